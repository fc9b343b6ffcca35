//! Why a guest was not built.

use std::path::{Path, PathBuf};

/// Why a guest was not built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as "read" or "write".
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An input is not what it should be.
    #[error("{}: expected {expected}, got {actual}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// A module that is needed is neither in the kernel nor beside it.
    #[error(
        "kernel module {module} (needed by {needed_by}) is neither in {} nor built into the kernel",
        modules.display()
    )]
    ModuleMissing {
        /// The module's name.
        module: String,
        /// The module, or group of modules, that asks for it.
        needed_by: String,
        /// Where it was looked for.
        modules: PathBuf,
    },
    /// Modules that need each other.
    #[error("kernel module {module} depends on itself")]
    ModuleCycle {
        /// One of them.
        module: String,
    },
    /// A module is compressed, which neither this crate nor the agent undoes.
    #[error("{} is compressed: expected plain .ko files; unpack the modules first (unxz, zstd -d)", path.display())]
    ModuleCompressed {
        /// The module's file.
        path: PathBuf,
    },
    /// The command line cannot be passed to a kernel.
    #[error("the kernel's command line: expected {expected}, got {actual}")]
    Cmdline {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// The output folder holds something that is not ours to replace.
    #[error("{} exists and is no guest (it has no guest.json): expected a new name, an empty folder or a guest", path.display())]
    Output {
        /// The folder.
        path: PathBuf,
    },
    /// No UEFI firmware was found.
    #[error(
        "there is no UEFI firmware in {searched}: install the package ovmf, or give --firmware and --firmware-variables"
    )]
    NoFirmware {
        /// The folder that was searched.
        searched: String,
    },
    /// A file that is longer than a cpio archive can say.
    #[error("{name} has {length} bytes: expected less than 4 GiB in an initrd")]
    TooLong {
        /// The file's name in the initrd.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Debian's tools did not give what was asked of them.
    #[error("cannot get {what} with Debian's package tools: {problem}; give --kernel and --modules instead")]
    Debian {
        /// The package or file.
        what: String,
        /// What went wrong.
        problem: String,
    },
}

/// Names the action and the file in an I/O error.
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}
