//! What a quote takes the TPM itself: the emulator, asked on this machine without a VM between.
//!
//! In a guest the same quote takes longer. So what is left of an attestation without its quote counts rather too
//! much than too little.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use sealpod_attester::tpm::Transport;
use sealpod_attester::{Attester, Error, TpmAttester};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::RUNS;

/// No response of a TPM is longer.
const RESPONSE_BYTES: usize = 4096;

/// Makes a TPM as a pod's is made, and has it quote with the attester's own key and registers.
pub(crate) fn measure(tpm_authority: &Path, folder: &Path) -> anyhow::Result<Vec<Duration>> {
    let (emulator, channel) = Emulator::start(tpm_authority, folder)?;
    let event_log = folder.join("event-log");
    std::fs::write(&event_log, b"").context("cannot write an event log")?;
    let mut attester = TpmAttester::new(channel, &event_log);
    let mut times = Vec::new();
    for run in 0..=RUNS {
        attester.evidence(&[0; 48], &Value::Null)?;
        // The first makes the keys and warms the emulator up.
        if run > 0 {
            times.push(attester.quote_time());
        }
    }
    drop(emulator);
    Ok(times)
}

/// A running swtpm. Dropping it ends it.
struct Emulator(Child);

/// The emulator's data channel: a command, a response.
struct Channel(UnixStream);

impl Emulator {
    fn start(tpm_authority: &Path, folder: &Path) -> anyhow::Result<(Self, Channel)> {
        let state = folder.join("tpm");
        std::fs::create_dir(&state).context("cannot make a folder for a TPM")?;
        let setup = Command::new("swtpm_setup")
            .args(["--tpm2", "--ecc", "--create-ek-cert", "--pcr-banks", "sha256", "--config"])
            .arg(tpm_authority.join("setup.conf"))
            .arg("--tpm-state")
            .arg(&state)
            .output()
            .context("cannot run swtpm_setup")?;
        let said = String::from_utf8_lossy(&setup.stdout);
        ensure!(setup.status.success(), "swtpm_setup ended with {}: {said}", setup.status);

        // The socket listens before swtpm runs, so there is nothing to wait for.
        let socket = folder.join("tpm.sock");
        let listener = UnixListener::bind(&socket).context("cannot make a socket for a TPM")?;
        let mut option = std::ffi::OsString::from("dir=");
        option.push(&state);
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            // It ends when its only connection does, so it does not outlive this process.
            .args(["--terminate", "--server", "type=unixio,fd=0", "--tpmstate"])
            .arg(option)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start swtpm")?;
        let emulator = Self(process);
        let channel = UnixStream::connect(&socket).context("cannot connect to swtpm")?;
        Ok((emulator, Channel(channel)))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // These fail only if it ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Transport for Channel {
    fn transmit(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let failed = |action| move |source| Error::Device { action, device: "swtpm".into(), source };
        self.0.write_all(command).map_err(failed("write to"))?;
        let mut response = Zeroizing::new(vec![0; RESPONSE_BYTES]);
        let length = self.0.read(&mut response).map_err(failed("read from"))?;
        response.truncate(length);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulated_tpm_quotes_as_often_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let authority = folder.path().join("authority");
        sealpod_sandbox::tpm_authority::create(&authority).unwrap();
        let times = measure(&authority, folder.path()).unwrap();
        assert_eq!(times.len(), RUNS);
        assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    }
}
