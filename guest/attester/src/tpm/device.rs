//! How commands reach a TPM.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use zeroize::Zeroizing;

use crate::Error;

/// A TPM answers one command at a time; no response is longer than this.
const MAX_RESPONSE: usize = 4096;

/// Carries a command to a TPM and its response back.
pub trait Transport: Send {
    /// Gives the response to a command, both with their headers. A response may have a secret.
    ///
    /// # Errors
    /// [`Error::Device`], where the TPM is not reached or does not answer. What the response says is not looked at.
    fn transmit(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error>;
}

/// The kernel's character device.
#[derive(Debug)]
pub struct Device {
    file: File,
    name: String,
}

impl Device {
    /// Opens `/dev/tpm0`, which one process has for itself, or `/dev/tpmrm0`.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Self { file, name }),
            Err(source) => Err(Error::Device { action: "open", device: name, source }),
        }
    }
}

impl Transport for Device {
    fn transmit(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let failed = |action| {
            let device = self.name.clone();
            move |source| Error::Device { action, device, source }
        };
        self.file.write_all(command).map_err(failed("write to"))?;
        let mut response = Zeroizing::new(vec![0; MAX_RESPONSE]);
        let length = self.file.read(&mut response).map_err(failed("read from"))?;
        response.truncate(length);
        Ok(response)
    }
}
