//! Where distributions put the UEFI firmware.

use std::path::{Path, PathBuf};

use crate::error::Error;

const FOLDER: &str = "/usr/share/OVMF";
/// Code and its variables: Debian up to 12 has 2 MiB builds too, which are read and measured faster.
const PAIRS: [(&str, &str); 2] = [("OVMF_CODE.fd", "OVMF_VARS.fd"), ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")];

/// The code and the variables of the UEFI firmware that is installed here (package ovmf).
///
/// # Errors
/// [`Error::NoFirmware`] when there is none.
pub fn firmware() -> Result<(PathBuf, PathBuf), Error> {
    firmware_in(Path::new(FOLDER))
}

fn firmware_in(folder: &Path) -> Result<(PathBuf, PathBuf), Error> {
    PAIRS
        .iter()
        .map(|(code, variables)| (folder.join(code), folder.join(variables)))
        .find(|(code, variables)| code.is_file() && variables.is_file())
        .ok_or_else(|| Error::NoFirmware { searched: folder.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_with_its_own_variables() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(firmware_in(folder.path()).unwrap_err().to_string().contains("install the package ovmf"));
        for name in ["OVMF_CODE.fd", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"] {
            std::fs::write(path(name), "x").unwrap();
        }
        assert_eq!(firmware_in(folder.path()).unwrap(), (path("OVMF_CODE_4M.fd"), path("OVMF_VARS_4M.fd")));
        std::fs::write(path("OVMF_VARS.fd"), "x").unwrap();
        assert_eq!(firmware_in(folder.path()).unwrap(), (path("OVMF_CODE.fd"), path("OVMF_VARS.fd")));
    }
}
