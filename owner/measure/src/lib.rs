//! Computes, from a guest's files alone, what a VM that boots them measures into its TPM: the owner's
//! reference values.
//!
//! A VM with OVMF and QEMU's `-kernel`, `-initrd` and `-append` logs in
//! - PCR 0: its firmware's volumes (EV_EFI_PLATFORM_FIRMWARE_BLOB);
//! - PCR 4: the kernel, as a PE file's Authenticode hash (EV_EFI_BOOT_SERVICES_APPLICATION);
//! - PCR 9: the command line ("LOADED_IMAGE::LoadOptions") and the initrd ("Linux initrd").
//!
//! Two of the log's digests are worth a word. The volume of the PEI phase is left out: its modules run in
//! place and write into it before it is measured, so its digest varies with the VM's processors, and it is
//! measured by code within itself. And the log has of the command line only a digest.

mod authenticode;
mod bytes;
mod error;
mod firmware;
mod kernel;

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::Value;

pub use error::Error;

/// What OVMF adds to the command line when there is an initrd.
const INITRD_WORD: &str = " initrd=initrd";

/// The contents of a guest's files, and how it is booted.
#[derive(Clone, Copy, Debug)]
pub struct GuestFiles<'a> {
    /// The UEFI firmware's code.
    pub firmware: &'a [u8],
    /// The kernel, a bzImage with EFI stub.
    pub kernel: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
    /// The kernel's whole command line, as QEMU gets it.
    pub cmdline: &'a str,
    /// The VM's memory below 4 GiB, in MiB.
    pub low_memory_mib: u32,
}

/// What a VM measures: digests in the event log, SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Measurements {
    /// The firmware's volume with the DXE phase, of PCR 0.
    pub firmware: String,
    /// The kernel of PCR 4: as QEMU patches its header, and as it is, which newer versions of QEMU and OVMF measure.
    pub kernel: Vec<String>,
    /// The initrd of PCR 9.
    pub initrd: String,
    /// The command line of PCR 9: UTF-16 with its NUL.
    pub cmdline: String,
}

/// Computes what a VM that boots these files will measure.
///
/// # Errors
/// [`Error`] where a file is not of the expected form, or the measurement cannot be foretold.
pub fn measure(files: &GuestFiles<'_>) -> Result<Measurements, Error> {
    Ok(Measurements {
        firmware: sha256(&firmware::dxe_volume(files.firmware)?),
        kernel: kernel::digests(files)?,
        initrd: sha256(files.initrd),
        cmdline: sha256(&load_options(files.cmdline)),
    })
}

impl Measurements {
    /// The reference values as a key broker takes them: for each id the list of what is accepted.
    pub fn reference_values(&self) -> BTreeMap<String, Value> {
        [
            ("firmware", std::slice::from_ref(&self.firmware)),
            ("kernel", &self.kernel),
            ("initrd", std::slice::from_ref(&self.initrd)),
            ("cmdline", std::slice::from_ref(&self.cmdline)),
        ]
        .map(|(id, accepted)| (id.to_owned(), Value::from(accepted)))
        .into()
    }
}

/// The kernel's load options as OVMF makes them of the command line (UEFI's strings are UTF-16).
fn load_options(cmdline: &str) -> Vec<u8> {
    let text = [cmdline, INITRD_WORD, "\0"].concat();
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn sha256(content: &[u8]) -> String {
    hex::encode(digest(&SHA256, content))
}

#[cfg(test)]
mod tests;
