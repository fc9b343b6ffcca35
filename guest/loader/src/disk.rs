//! Disks by the serial numbers that the host gives them, and what is on the agent's.

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

/// A file on the agent's disk, which is the host's: what is there may be anything.
///
/// The measured initrd says of each, in a line of four words, its name, the byte at which it begins, how many bytes it
/// has, and their BLAKE2b (RFC 7693) in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size, in bytes.
    pub length: usize,
    /// What it must have for a digest.
    pub digest: &'a str,
}

impl<'a> Entry<'a> {
    /// What a line says; nothing where it is none of these.
    pub fn of_line(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (name, offset, length, digest) = (words.next()?, words.next()?, words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        Some(Self { name, offset: offset.parse().ok()?, length: length.parse().ok()?, digest })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_four_words() {
        let entry = Entry { name: "overlay.ko", offset: 512, length: 3, digest: "ba80" };
        assert_eq!(Entry::of_line("overlay.ko 512 3 ba80"), Some(entry));
        for line in ["", "a 0 1", "a 0 1 b c", "a -1 1 b", "a 0 one b", "a  0 1 b"] {
            assert_eq!(Entry::of_line(line), None, "{line}");
        }
    }
}
