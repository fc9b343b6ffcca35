//! The three device-mapper calls that make an encrypted device (`linux/dm-ioctl.h`).

use std::fs::File;
use std::io;

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// Room for `struct dm_ioctl`, one target and its parameters.
const BUFFER: usize = 1024;
/// `sizeof(struct dm_ioctl)`
const HEADER: usize = 312;
/// `sizeof(struct dm_target_spec)`
const TARGET: usize = 40;
/// `DM_SECURE_DATA_FLAG`: the kernel wipes its copy of the parameters, which hold the key.
const SECURE_DATA: u32 = 1 << 15;

const CREATE: Opcode = opcode::read_write::<[u8; HEADER]>(0xFD, 3);
/// Without the suspend flag: resume.
const SUSPEND: Opcode = opcode::read_write::<[u8; HEADER]>(0xFD, 6);
const LOAD: Opcode = opcode::read_write::<[u8; HEADER]>(0xFD, 9);

/// `struct dm_ioctl` and what follows it.
#[repr(C, align(8))]
struct Message([u8; BUFFER]);

/// Makes the device `name` of one target, and returns its minor number.
pub(super) fn create(name: &str, sectors: u64, target: &str, parameters: &str) -> io::Result<u32> {
    let mapper = File::options().read(true).write(true).open("/dev/mapper/control")?;
    Message::new(name)?.call::<CREATE>(&mapper)?;
    Message::new(name)?.with_target(sectors, target, parameters)?.call::<LOAD>(&mapper)?;
    Ok(Message::new(name)?.call::<SUSPEND>(&mapper)?.minor())
}

impl Message {
    fn new(name: &str) -> io::Result<Self> {
        let mut message = Self([0; BUFFER]);
        // version[3], data_size, data_start
        for (index, value) in [4, 0, 0, BUFFER as u32, HEADER as u32].into_iter().enumerate() {
            message.put(index * 4, &value.to_ne_bytes())?;
        }
        message.put(48, name.as_bytes())?;
        Ok(message)
    }

    fn with_target(mut self, sectors: u64, target: &str, parameters: &str) -> io::Result<Self> {
        self.put(20, &1u32.to_ne_bytes())?;
        self.put(28, &SECURE_DATA.to_ne_bytes())?;
        self.put(HEADER + 8, &sectors.to_ne_bytes())?;
        self.put(HEADER + 24, target.as_bytes())?;
        self.put(HEADER + TARGET, parameters.as_bytes())?;
        Ok(self)
    }

    /// The buffer is zero elsewhere, so that strings end in NUL as long as one byte is left.
    fn put(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len();
        let space = self.0.get_mut(offset..end).filter(|_| end < BUFFER);
        space.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }

    fn call<const OPCODE: Opcode>(mut self, mapper: &File) -> io::Result<Self> {
        // SAFETY: the opcodes are device-mapper's, whose argument is a `struct dm_ioctl` followed by data; the
        // buffer has that layout and is as long as its `data_size` says.
        unsafe { ioctl(mapper, Updater::<OPCODE, Self>::new(&mut self))? };
        Ok(self)
    }

    /// Of `dev`, which is encoded as the kernel's `huge_encode_dev` does.
    fn minor(&self) -> u32 {
        let bytes = self.0.get(40..44).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        let device = u32::from_ne_bytes(bytes);
        (device & 0xFF) | ((device >> 12) & !0xFF)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stands_where_the_kernel_reads_it() {
        let message = Message::new("disk").unwrap().with_target(8, "crypt", "parameters").unwrap();
        assert_eq!(message.0[48..53], *b"disk\0");
        assert_eq!(message.0[20..24], 1u32.to_ne_bytes());
        assert_eq!(message.0[320..328], 8u64.to_ne_bytes());
        assert_eq!(message.0[336..342], *b"crypt\0");
        assert_eq!(message.0[352..363], *b"parameters\0");
    }

    #[test]
    fn parameters_that_do_not_fit_are_refused() {
        assert!(Message::new("disk").unwrap().with_target(8, "crypt", &"x".repeat(BUFFER)).is_err());
        assert!(Message::new("disk").unwrap().with_target(8, "crypt", &"x".repeat(BUFFER - 352)).is_err());
    }

    #[test]
    fn the_opcodes_are_those_of_linux() {
        assert_eq!(CREATE, 0xC138_FD03);
        assert_eq!(SUSPEND, 0xC138_FD06);
        assert_eq!(LOAD, 0xC138_FD09);
    }
}
