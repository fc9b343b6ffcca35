//! How containerd, and CRI-O like it, call a shim (containerd's runtime v2 contract): flags in Go's style, and an action.

use std::ffi::OsString;
use std::path::PathBuf;

/// What containerd wants of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve a pod, and print the address at which.
    Start,
    /// Clean up what is left of a container whose shim has gone.
    Delete,
    /// Serve: what `Start` runs in the background.
    Serve,
    /// Print what this runtime is and can do, in containerd's words.
    Info,
    /// Print the version.
    Version,
    /// Print the help.
    Help,
}

/// The whole command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// What to do.
    pub action: Action,
    /// containerd's namespace, such as `k8s.io`.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// containerd's socket.
    pub address: String,
    /// The container's bundle, where containerd gives it; otherwise it is the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether containerd runs with debug logs.
    pub debug: bool,
}

/// A command line that no containerd writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A flag that is not known.
    #[error("{0:?} is not known; containerd runs this program, `-help` says how")]
    Unknown(String),
    /// A flag without its value.
    #[error("{0} needs a value")]
    Value(String),
    /// No action.
    #[error("expected start or delete; containerd runs this program, `-help` says how")]
    Action,
    /// A flag that must be given.
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// What `-help` prints.
pub const HELP: &str = "\
containerd's runtime v2 shim for pods in measured VMs.

containerd runs it; people configure it as the runtime of a RuntimeClass (version 2 of config.toml):

  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.sealpod]
    runtime_type = \"io.containerd.sealpod.v2\"
    pod_annotations = [\"io.katacontainers.*\"]
    privileged_without_host_devices = true
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.sealpod.options]
      ConfigPath = \"/etc/sealpod/shim.toml\"

Usage: containerd-shim-sealpod-v2 -namespace NAME -id ID -address SOCKET [-bundle FOLDER] [-debug] start|delete
       containerd-shim-sealpod-v2 -info
       containerd-shim-sealpod-v2 -v
";

impl CommandLine {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// [`Error`], with the word that is wrong.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut parsed = Self {
            action: Action::Help,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        let mut action = None;
        let mut words = arguments.into_iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                action = Some(match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "serve" => Action::Serve,
                    _ => return Err(Error::Unknown(word)),
                });
                continue;
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), None),
            };
            let mut value = || inline.clone().or_else(|| words.next()).ok_or(Error::Value(word.clone()));
            match name.as_str() {
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "bundle" => parsed.bundle = Some(value()?.into()),
                // Events go over containerd's ttrpc socket, not by its program.
                "publish-binary" | "socket" => drop(value()?),
                "debug" => parsed.debug = true,
                "info" => return Ok(Self { action: Action::Info, ..parsed }),
                "v" | "version" => return Ok(Self { action: Action::Version, ..parsed }),
                "h" | "help" => return Ok(Self { action: Action::Help, ..parsed }),
                _ => return Err(Error::Unknown(word)),
            }
        }
        parsed.action = action.ok_or(Error::Action)?;
        if parsed.namespace.is_empty() {
            return Err(Error::Missing("-namespace"));
        }
        if parsed.id.is_empty() {
            return Err(Error::Missing("-id"));
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CommandLine, Error> {
        CommandLine::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerd_1_6_starts_a_shim() {
        let line = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc start",
        );
        let line = line.unwrap();
        assert_eq!(line.action, Action::Start);
        assert_eq!((line.namespace.as_str(), line.id.as_str(), line.bundle), ("k8s.io", "abc", None));
    }

    #[test]
    fn crio_starts_a_shim() {
        let words = [
            "-namespace",
            "default",
            "-address",
            "",
            "-publish-binary",
            "/usr/bin/crio",
            "-id",
            "abc",
            "start",
        ];
        let line = CommandLine::parse(words.map(OsString::from)).unwrap();
        assert_eq!(
            (line.action, line.namespace.as_str(), line.id.as_str()),
            (Action::Start, "default", "abc")
        );
        assert_eq!((line.address.as_str(), line.bundle), ("", None));
    }

    #[test]
    fn containerd_1_6_deletes_what_a_shim_left() {
        let line = parse(
            "-namespace k8s.io -address /c.sock -publish-binary /c -id abc -bundle /run/b -debug delete",
        );
        let line = line.unwrap();
        assert_eq!((line.action, line.debug), (Action::Delete, true));
        assert_eq!(line.bundle, Some("/run/b".into()));
    }

    #[test]
    fn both_dashes_and_equal_signs_are_taken_as_go_does() {
        let line = parse("--namespace=k8s.io --id=abc start").unwrap();
        assert_eq!((line.namespace.as_str(), line.id.as_str()), ("k8s.io", "abc"));
    }

    #[test]
    fn what_containerd_does_not_write_is_refused() {
        assert_eq!(parse("-namespace k8s.io -id abc"), Err(Error::Action));
        assert_eq!(parse("-namespace k8s.io start"), Err(Error::Missing("-id")));
        assert_eq!(parse("-namespace"), Err(Error::Value("-namespace".into())));
        assert_eq!(parse("-id a -namespace b -x start"), Err(Error::Unknown("-x".into())));
        assert_eq!(parse("-id a -namespace b restart"), Err(Error::Unknown("restart".into())));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn containerd_2_asks_what_the_runtime_is() {
        let line = parse("-namespace default -address /c.sock -publish-binary /c -id x -info").unwrap();
        assert_eq!(line.action, Action::Info);
    }
}
