//! The programs of others that a VM needs, and which package has each.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::error::Error;

/// A program that is looked for in `PATH`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    debian: &'static str,
    fedora: &'static str,
}

/// The machine.
pub(crate) const QEMU: Program =
    Program { name: "qemu-system-x86_64", debian: "qemu-system-x86", fedora: "qemu-system-x86-core" };
/// The emulated TPM.
pub(crate) const SWTPM: Program = Program { name: "swtpm", debian: "swtpm", fedora: "swtpm" };
/// Its manufacturer.
pub(crate) const SWTPM_SETUP: Program =
    Program { name: "swtpm_setup", debian: "swtpm-tools", fedora: "swtpm-tools" };
/// The authority that certifies it.
pub(crate) const SWTPM_LOCALCA: Program =
    Program { name: "swtpm_localca", debian: "swtpm-tools", fedora: "swtpm-tools" };

impl Program {
    /// The program's path.
    pub(crate) fn find(self) -> Result<PathBuf, Error> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Not every user has the folders of system programs in PATH.
        let folders =
            std::env::split_paths(&path).chain(["/usr/bin", "/usr/local/bin", "/bin"].map(PathBuf::from));
        let found = folders.map(|folder| folder.join(self.name)).find(|path| is_executable(path));
        found.ok_or_else(|| Error::MissingProgram { program: self.name, advice: self.advice() })
    }

    /// How to install it.
    pub(crate) fn advice(self) -> String {
        package_advice(self.debian, self.fedora)
    }
}

/// How to install a package.
pub(crate) fn package_advice(debian: &str, fedora: &str) -> String {
    format!("install it: `apt install {debian}` (Debian, Ubuntu) or `dnf install {fedora}` (Fedora)")
}

fn is_executable(path: &std::path::Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_reported_with_its_package() {
        let missing = Program { name: "sealpod-no-such-program", debian: "the-deb", fedora: "the-rpm" };
        let message = missing.find().unwrap_err().to_string();
        for part in ["sealpod-no-such-program", "apt install the-deb", "dnf install the-rpm"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
