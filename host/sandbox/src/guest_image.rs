//! A guest: the files that a VM boots, in one folder.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Error;

/// A guest as `sealpod guest build` makes it: a folder with `guest.json` and the files that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImage {
    /// The kernel (a bzImage with EFI stub).
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The agent, a ROM for all VMs to read.
    pub agent: PathBuf,
    /// The UEFI firmware's code.
    pub firmware: PathBuf,
    /// The UEFI firmware's variables, of which each VM gets a copy.
    pub firmware_variables: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory below 4 GiB, in MiB: fixed, because QEMU writes it into the kernel's measured header.
    pub low_memory_mib: u32,
    /// QEMU's machine type, with options of its own if any.
    pub machine: String,
}

/// `guest.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    kernel: String,
    initrd: String,
    agent: String,
    firmware: String,
    firmware_variables: String,
    cmdline: String,
    low_memory_mib: u32,
    machine: String,
}

const VERSION: u32 = 2;
const MANIFEST: &str = "guest.json";
/// The longest command line that the kernel takes on x86.
const CMDLINE_BYTES: usize = 2047;

impl GuestImage {
    /// Reads `guest.json` in the folder and makes sure that the files are there.
    ///
    /// # Errors
    /// [`Error::Guest`] with what is wrong.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let path = folder.join(MANIFEST);
        let refuse = |problem: String| Error::Guest { path: path.clone(), problem };
        let json = std::fs::read(&path).map_err(|error| refuse(error.to_string()))?;
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| refuse(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(refuse(format!(
                "expected version {VERSION}, got {}: build it again with this release's `sealpod guest build`",
                manifest.version
            )));
        }
        check_cmdline(&manifest.cmdline).map_err(refuse)?;
        if !(64..=3072).contains(&manifest.low_memory_mib) {
            let actual = manifest.low_memory_mib;
            return Err(refuse(format!("low_memory_mib: expected 64 to 3072, got {actual}")));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=,".contains(&byte);
        if !manifest.machine.starts_with(|first: char| first.is_ascii_alphabetic())
            || !manifest.machine.bytes().all(plain)
        {
            return Err(refuse(format!("machine: expected a machine type, got {:?}", manifest.machine)));
        }
        Ok(Self {
            kernel: file_of(folder, &manifest.kernel)?,
            initrd: file_of(folder, &manifest.initrd)?,
            agent: rom_of(folder, &manifest.agent)?,
            firmware: file_of(folder, &manifest.firmware)?,
            firmware_variables: file_of(folder, &manifest.firmware_variables)?,
            cmdline: manifest.cmdline,
            low_memory_mib: manifest.low_memory_mib,
            machine: manifest.machine,
        })
    }
}

/// The path of a non-empty file that lies in the folder itself.
fn file_of(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = folder.join(name);
    let refuse = |problem: String| Error::Guest { path: path.clone(), problem };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(refuse(format!("expected the name of a file in the guest's folder, got {name:?}")));
    }
    let metadata = path.metadata().map_err(|error| refuse(error.to_string()))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(refuse("expected a file that is not empty".into()));
    }
    Ok(path)
}

/// The same, of a size that a PCI device's memory can have.
fn rom_of(folder: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = file_of(folder, name)?;
    match rom_bytes(&path)? {
        bytes if bytes.is_power_of_two() => Ok(path),
        bytes => {
            Err(Error::Guest { path, problem: format!("expected a power of two of bytes, got {bytes}") })
        }
    }
}

/// The size of the agent's ROM.
pub(crate) fn rom_bytes(path: &Path) -> Result<u64, Error> {
    let refuse = |error: std::io::Error| Error::Guest { path: path.to_owned(), problem: error.to_string() };
    Ok(path.metadata().map_err(refuse)?.len())
}

/// The kernel would cut a long command line, and QEMU a line break, without a word.
pub(crate) fn check_cmdline(cmdline: &str) -> Result<(), String> {
    if cmdline.len() > CMDLINE_BYTES {
        return Err(format!("cmdline: expected {CMDLINE_BYTES} bytes at most, got {}", cmdline.len()));
    }
    match cmdline.chars().find(|character| !matches!(character, ' '..='~')) {
        Some(character) => Err(format!("cmdline: expected printable ASCII, got {character:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const JSON: &str = r#"{"version":2,"kernel":"vmlinuz","initrd":"initrd.cpio","agent":"agent",
        "firmware":"CODE.fd","firmware_variables":"VARS.fd","cmdline":"console=ttyS0 panic=-1","low_memory_mib":256,"machine":"q35"}"#;

    fn folder(json: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), json).unwrap();
        for name in ["vmlinuz", "initrd.cpio", "agent", "CODE.fd", "VARS.fd"] {
            std::fs::write(folder.path().join(name), "12345678").unwrap();
        }
        folder
    }

    fn refusal(json: &str) -> String {
        GuestImage::open(folder(json).path()).unwrap_err().to_string()
    }

    #[test]
    fn a_complete_folder_is_opened() {
        let folder = folder(JSON);
        let guest = GuestImage::open(folder.path()).unwrap();
        assert_eq!(guest.kernel, folder.path().join("vmlinuz"));
        assert_eq!((guest.low_memory_mib, guest.machine.as_str()), (256, "q35"));
    }

    #[test]
    fn an_agents_file_that_is_no_rom_is_refused() {
        let folder = folder(JSON);
        std::fs::write(folder.path().join("agent"), "123456789").unwrap();
        let refusal = GuestImage::open(folder.path()).unwrap_err().to_string();
        assert!(refusal.contains("expected a power of two of bytes, got 9"), "{refusal}");
    }

    #[test]
    fn a_manifest_with_anything_unknown_or_out_of_range_is_refused() {
        for (from, to, word) in [
            ("\"version\":2", "\"version\":1", "expected version 2, got 1: build it again"),
            ("\"version\":2", "\"version\":2,\"more\":1", "unknown field `more`"),
            ("\"vmlinuz\"", "\"../vmlinuz\"", "expected the name of a file"),
            ("\"vmlinuz\"", "\"absent\"", "No such file"),
            ("panic=-1", "panic=-1\\n", "printable ASCII"),
            ("256", "16", "expected 64 to 3072, got 16"),
            ("\"q35\"", "\"q35 -S\"", "machine type"),
            ("\"q35\"", "\"\"", "machine type"),
        ] {
            let message = refusal(&JSON.replacen(from, to, 1));
            assert!(message.contains(word), "{to}: {message}");
        }
        let long = format!("panic=-1 {}", "x".repeat(CMDLINE_BYTES));
        assert!(refusal(&JSON.replace("panic=-1", &long)).contains("2047 bytes at most"));
    }

    #[test]
    fn an_empty_file_is_refused() {
        let folder = folder(JSON);
        std::fs::write(folder.path().join("initrd.cpio"), "").unwrap();
        let message = GuestImage::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("initrd.cpio") && message.contains("not empty"), "{message}");
    }
}
