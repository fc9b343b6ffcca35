//! One VM's emulated TPM.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::process::{self, Process};
use crate::programs::SWTPM;
use crate::runtime_folder::RuntimeFolder;
use crate::tpm_authority;

/// How long making a TPM may take; on an idle machine it is half a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// A TPM that waits for its machine.
#[derive(Debug)]
pub(crate) struct EmulatedTpm {
    /// The program.
    pub(crate) process: Process,
    /// Where QEMU finds it.
    pub(crate) socket: PathBuf,
}

/// Makes a TPM with a certified endorsement key of its own, and starts it in these control groups.
pub(crate) async fn start(
    authority: &Path,
    folder: &RuntimeFolder,
    cgroup_procs: &[PathBuf],
) -> Result<EmulatedTpm, Error> {
    let state = folder.join("tpm");
    std::fs::create_dir(&state).map_err(Error::io("cannot make a folder for the TPM"))?;
    let owned = authority.to_owned();
    let created = tokio::task::spawn_blocking(move || tpm_authority::create(&owned)).await;
    created.map_err(|error| Error::Tpm { what: "its authority", output: error.to_string() })??;

    let setup = tpm_authority::manufacture(authority, &state)?;
    // It waits for ever for a TPM of its own that was killed.
    let made = tokio::time::timeout(PATIENCE, process::run(setup)).await;
    let made = made.map_err(|_| Error::Tpm {
        what: "swtpm_setup does not end",
        output: format!("it was given {PATIENCE:?}"),
    })?;
    let (status, output) = made.map_err(Error::io("cannot run swtpm_setup"))?;
    if !status.success() {
        return Err(Error::Tpm { what: "swtpm_setup failed", output });
    }

    // The socket listens before swtpm runs: QEMU need not wait for it to come into being.
    let socket = folder.join("tpm.sock");
    let listener = UnixListener::bind(&socket).map_err(Error::io("cannot make the TPM's socket"))?;
    let mut swtpm = process::command(SWTPM.find()?);
    let mut state_option = std::ffi::OsString::from("dir=");
    state_option.push(&state);
    swtpm
        .args(["socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,fd=0", "--tpmstate"])
        .arg(state_option)
        .stdin(OwnedFd::from(listener));
    let process = Process::start("swtpm", swtpm, process::join_cgroups(cgroup_procs)?)?;
    Ok(EmulatedTpm { process, socket })
}
