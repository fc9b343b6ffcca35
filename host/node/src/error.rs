//! Why a node could not be set up, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why something could not be done to the node. [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be used.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is to be installed is not where it should be.
    #[error("{} is not there or not usable: {problem}", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody else installs or uninstalls at the same time.
    #[error("another install or uninstall is under way ({} is locked)", .0.display())]
    Busy(PathBuf),
    /// Somebody else has installed or uninstalled since this was planned.
    #[error("what is installed in {} has changed meanwhile", .0.display())]
    Outdated(PathBuf),
    /// There is no container runtime.
    #[error("neither containerd nor CRI-O is installed{}", place(.0.as_deref()))]
    NoRuntime(Option<PathBuf>),
    /// containerd cannot be asked for its version.
    #[error("containerd's version is not known: {0}")]
    Version(String),
    /// containerd is older than what is supported.
    #[error("expected containerd 1.6 or newer, got {0}")]
    TooOld(String),
    /// Which images are the guests' must be said for containerd 1.6.
    #[error(
        "containerd 1.6 has one snapshotter for all runtimes, so it must be said which images are the guests'"
    )]
    ImagesUnknown,
    /// A configuration file of containerd's that cannot be edited.
    #[error("{}: {problem}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What was expected, and what is there.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// containerd refuses a configuration.
    #[error("containerd refuses {which}: {output}")]
    Refused {
        /// Whose configuration.
        which: &'static str,
        /// What it says.
        output: String,
    },
    /// The new configuration would change more than it should.
    #[error("the new configuration would change what is not ours: {0}")]
    Changes(String),
    /// A service does not run any more.
    #[error("{service} did not start with the new configuration: {problem}; {restored}")]
    Service {
        /// The unit.
        service: String,
        /// What was seen.
        problem: String,
        /// What became of the old configuration.
        restored: String,
    },
    /// A program failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it says.
        output: String,
    },
    /// Nothing is installed there.
    #[error("nothing is installed in {}: there is no {}", .0.display(), .0.join("installation.json").display())]
    NotInstalled(PathBuf),
    /// The record of the installation cannot be read.
    #[error("{}: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Pods still use what is to be removed.
    #[error("pods still use it: {0}")]
    InUse(String),
}

fn place(root: Option<&Path>) -> String {
    root.map(|root| format!(" in {}", root.display())).unwrap_or_default()
}

impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => "run it as root",
            Self::Source { .. } => {
                "name the folder that has the programs with --from, and that of `sealpod guest build` with --guest"
            }
            Self::Busy(_) => "wait until it is done, then run this again",
            Self::Outdated(_) => "nothing was changed; run this again",
            Self::NoRuntime(_) => {
                "install containerd or CRI-O first, or say which version of containerd will be there with \
                 --containerd-version"
            }
            Self::Version(_) => "`sealpod node install` takes it by --containerd-version",
            Self::TooOld(_) => {
                "install a newer containerd: Debian 12 and all supported releases of others have one"
            }
            Self::ImagesUnknown => {
                "say it with --images 'registry.example/confidential/*' (may be given again); a newer containerd needs \
                 none of it"
            }
            Self::Configuration { advice, .. } => advice,
            Self::Refused { which: "its present configuration", .. } => {
                "nothing was changed; repair it first: `containerd config dump` must succeed"
            }
            Self::Refused { .. } | Self::Changes(_) => {
                "nothing was changed; please report it with your /etc/containerd/config.toml"
            }
            Self::Service { .. } => "look into `journalctl -u` of the service; then run this again",
            Self::NotInstalled(_) => "name the folder with --prefix if it is another one",
            Self::Record { .. } => {
                "repair the file or restore it: without it nothing knows what was there before"
            }
            Self::InUse(_) => "drain the node (`kubectl drain`) and run this again, or give --force",
            Self::File { .. } | Self::Command { .. } => return None,
        };
        Some(hint.into())
    }

    /// Makes an error of the system's into one that says what was being done to which file.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
