//! The authority that certifies the endorsement keys of emulated TPMs.
//!
//! It is swtpm's own local authority with its files in a folder of the caller's. Who trusts its
//! certificates trusts this machine: it is for development, demonstrations and tests.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::process;
use crate::programs::{SWTPM, SWTPM_LOCALCA, SWTPM_SETUP};

/// The authority's own certificate, which signs endorsement key certificates.
const ISSUER: &str = "issuercert.pem";
/// The certificate that signs the authority's.
const ROOT: &str = "swtpm-localca-rootca-cert.pem";

/// Makes an authority in the folder, unless there is one, and gives its certificates' PEM files: the issuer's and
/// the root's. Takes about a second. The folder is made for this user alone: it holds the authority's keys.
///
/// # Errors
/// If the folder cannot be written, or swtpm's tools are missing or fail.
pub fn create(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let folder = configure(folder)?;
    let certificates = vec![folder.join(ISSUER), folder.join(ROOT)];
    if !certificates.iter().all(|path| path.is_file()) {
        // The authority comes into being when it certifies its first TPM, so one is made and forgotten.
        let first = tempfile::tempdir_in(&folder).map_err(Error::io("cannot make a folder for a TPM"))?;
        let (status, output) = process::run_blocking(manufacture(&folder, first.path())?)
            .map_err(Error::io("cannot run swtpm_setup"))?;
        if !status.success() || !certificates.iter().all(|path| path.is_file()) {
            return Err(Error::Tpm { what: "swtpm_setup could not make an authority", output });
        }
    }
    Ok(certificates)
}

/// The command that makes a TPM with a certified endorsement key (ECC P-384, and RSA-2048).
///
/// The authority's folder must be one that [`create`] gave its files in.
pub(crate) fn manufacture(authority: &Path, state: &Path) -> Result<Command, Error> {
    SWTPM.find()?;
    let authority = absolute(authority)?;
    let mut setup = process::command(SWTPM_SETUP.find()?);
    setup
        .args(["--tpm2", "--ecc", "--create-ek-cert", "--pcr-banks", "sha256", "--config"])
        .arg(authority.join("setup.conf"))
        .arg("--tpm-state")
        .arg(state)
        // What it leaves when it is killed goes with the TPM.
        .env("TMPDIR", state);
    Ok(setup)
}

/// Writes the configuration of swtpm's tools and gives the folder's absolute path.
fn configure(folder: &Path) -> Result<PathBuf, Error> {
    let failed = || Error::io(format!("cannot make the TPM authority in {}", folder.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed())?;
    let folder = absolute(folder)?;
    let localca = SWTPM_LOCALCA.find()?;
    let in_folder = |name: &str| folder.join(name).display().to_string();
    let authority = format!(
        "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
        folder.display(),
        in_folder("signkey.pem"),
        in_folder(ISSUER),
        in_folder("certserial"),
    );
    let options = "--platform-manufacturer Sealpod\n--platform-version 1.0\n--platform-model QEMU\n";
    let setup = format!(
        "create_certs_tool = {}\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\nactive_pcr_banks = sha256\n",
        localca.display(),
        in_folder("localca.conf"),
        in_folder("localca.options"),
    );
    for (name, text) in
        [("localca.conf", &authority), ("localca.options", &options.to_owned()), ("setup.conf", &setup)]
    {
        write_whole(&folder.join(name), text).map_err(failed())?;
    }
    Ok(folder)
}

fn absolute(folder: &Path) -> Result<PathBuf, Error> {
    folder.canonicalize().map_err(Error::io(format!("cannot use {}", folder.display())))
}

/// Replaces the file in one step: another pod may be starting with it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    let partial = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_authority_is_made_once_and_kept_private() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("state/tpm authority");
        let certificates = create(&folder).unwrap();
        let issuer = fs::read_to_string(&certificates[0]).unwrap();
        assert!(
            certificates.iter().all(|path| fs::read_to_string(path).unwrap().starts_with("-----BEGIN CERT"))
        );
        assert_ne!(issuer, fs::read_to_string(&certificates[1]).unwrap());
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(create(&folder).unwrap(), certificates);
        assert_eq!(
            fs::read_to_string(&certificates[0]).unwrap(),
            issuer,
            "the same authority the second time"
        );
        let left = fs::read_dir(&folder).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
        assert_eq!(left.count(), 0, "the first TPM is forgotten");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let message = create(Path::new("/proc/no/authority")).unwrap_err().to_string();
        assert!(message.contains("/proc/no/authority"), "{message}");
    }
}
