//! Disks by the serial numbers that the host gives them.

use core::mem::MaybeUninit;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{Errno, read};

/// The serial number of the disk that holds the agent.
pub const AGENT: &str = "agent";

/// Every disk has a folder here, of its name.
pub const DISKS: &str = "/sys/block";
/// The longest name of a disk (`DISK_NAME_LEN` of Linux).
const NAME_BYTES: usize = 32;
/// More than a serial number has (`VIRTIO_BLK_ID_BYTES`, 20, of virtio 1.2, 5.2.6), and a line's end.
const SERIAL_BYTES: usize = 32;
/// For some of a folder's entries.
const ENTRIES_BYTES: usize = 2048;

/// A disk's name: that of its device in `/dev`, and of its folder in [`DISKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; NAME_BYTES],
    length: usize,
}

impl Name {
    fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; NAME_BYTES];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self { bytes, length: name.len() })
    }

    /// The name; Linux gives none that is not ASCII.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|name| str::from_utf8(name).ok()).unwrap_or_default()
    }
}

/// The disk with a serial number.
///
/// # Errors
/// If sysfs cannot be read.
pub fn with_serial(serial: &str) -> Result<Option<Name>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let disks = openat(CWD, DISKS, flags | OFlags::DIRECTORY, Mode::empty())?;
    let mut space = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(&disks, &mut space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(name) =
            Name::new(entry.file_name().to_bytes()).filter(|name| !name.as_str().starts_with('.'))
        else {
            continue;
        };
        // Those of other kinds have none.
        let Ok(folder) = openat(&disks, entry.file_name(), flags | OFlags::DIRECTORY, Mode::empty()) else {
            continue;
        };
        let Ok(file) = openat(&folder, c"serial", flags, Mode::empty()) else { continue };
        let mut bytes = [0; SERIAL_BYTES];
        let Ok(length) = read(&file, &mut bytes) else { continue };
        if bytes.get(..length).unwrap_or_default().trim_ascii() == serial.as_bytes() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
