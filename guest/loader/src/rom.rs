//! The agent's ROM: memory of a PCI device that the host gives the machine, and fills. It takes no driver to read it.

use core::arch::asm;
use core::ffi::CStr;
use core::ptr;
use core::slice;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, write};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::call;

/// Where the host plugs it: the slot's folder in sysfs.
const DEVICE: &CStr = c"/sys/bus/pci/devices/0000:00:1e.0";
/// The region of the device's memory (QEMU's `ivshmem-plain`, base address register 2).
const REGION: &CStr = c"resource2";

/// write(2) of x86-64, the same for all versions of Linux.
const WRITE: usize = 1;

/// A file in the ROM, which is the host's: what is there may be anything.
///
/// The measured initrd says of each, in a line of four words, its name, the byte at which it begins, how many bytes it
/// has, and their BLAKE2b (RFC 7693) in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, in bytes: at a page.
    pub offset: usize,
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

/// The region of the device's memory. The host can change at any moment what is there, so it is only ever copied, and
/// the copy judged.
#[derive(Debug)]
pub struct Rom {
    region: OwnedFd,
    length: usize,
}

impl Rom {
    /// The machine's.
    ///
    /// # Errors
    /// If the machine has none (`ENOENT`), or it cannot be opened.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::RDONLY;
        let device = openat(CWD, DEVICE, flags, Mode::empty())?;
        // Firmware leaves a device off for which it has no driver.
        write(openat(&device, c"enable", OFlags::CLOEXEC | OFlags::WRONLY, Mode::empty())?, b"1")?;
        Self::of_file(openat(&device, REGION, OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?)
    }

    /// A file in its place.
    ///
    /// # Errors
    /// If its size cannot be read.
    pub fn of_file(region: OwnedFd) -> Result<Self, Errno> {
        let length = usize::try_from(fstat(&region)?.st_size).map_err(|_| Errno::OVERFLOW)?;
        Ok(Self { region, length })
    }

    /// Copies what begins at a page of it.
    ///
    /// # Errors
    /// `ENXIO` if it ends before; if it cannot be mapped.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.map(offset, into.len())?;
        // SAFETY: as many bytes are mapped there, and `into` has room for them. The compiler knows nothing of this copy,
        // so it cannot take the ROM for the copy and read there again.
        unsafe {
            asm!(
                "rep movsq",
                "mov ecx, {rest:e}",
                "rep movsb",
                rest = in(reg) into.len() % 8,
                inout("rcx") into.len() / 8 => _,
                inout("rdi") into.as_mut_ptr() => _,
                inout("rsi") from.begin => _,
                options(nostack, preserves_flags),
            );
        }
        Ok(())
    }

    /// Appends to a file as many bytes that begin at a page of it.
    ///
    /// # Errors
    /// `ENXIO` if it ends before; if it cannot be mapped; what the file's system says.
    pub fn append(&self, offset: usize, length: usize, to: impl AsFd) -> Result<(), Errno> {
        let from = self.map(offset, length)?;
        let to = usize::try_from(to.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
        let mut done = 0;
        while done < length {
            // SAFETY: they are mapped. Only the kernel reads them: write(2) by its number, since what would be a slice
            // in Rust must not change.
            let result = unsafe { call(WRITE, to, from.begin.addr() + done, length - done) };
            match result.cast_signed() {
                0 => return Err(Errno::IO),
                error @ ..0 => {
                    return Err(Errno::from_raw_os_error(i32::try_from(-error).unwrap_or_default()));
                }
                written => done += written.cast_unsigned(),
            }
        }
        Ok(())
    }

    fn map(&self, offset: usize, length: usize) -> Result<Mapping, Errno> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Mapping::of(&self.region, offset, length),
            _ => Err(Errno::NXIO),
        }
    }
}

/// A file's bytes, mapped for reading.
#[derive(Debug)]
pub struct Mapping {
    begin: *mut u8,
    length: usize,
}

impl Mapping {
    /// Those from a page on.
    ///
    /// # Errors
    /// `EINVAL` if no page begins there, or there are to be none; if they cannot be mapped.
    pub fn of(file: impl AsFd, offset: usize, length: usize) -> Result<Self, Errno> {
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        let offset = u64::try_from(offset).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the kernel chooses a place where nothing is.
        let begin = unsafe { mmap(ptr::null_mut(), length, read, shared, file, offset) }?;
        Ok(Self { begin: begin.cast(), length })
    }

    /// The bytes.
    ///
    /// # Safety
    /// The file must be as long, and nobody may change it meanwhile.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: they are mapped for as long as `self` lives; the caller answers for the rest.
        unsafe { slice::from_raw_parts(self.begin, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is as it was mapped, and nothing refers to it any more. It cannot fail for what was mapped so.
        let _ = unsafe { munmap(self.begin.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::fs::{self, File};
    use std::vec;

    use super::*;

    #[test]
    fn a_line_has_four_words() {
        let entry = Entry { name: "overlay.ko", offset: 4096, length: 3, digest: "ba80" };
        assert_eq!(Entry::of_line("overlay.ko 4096 3 ba80"), Some(entry));
        for line in ["", "a 0 1", "a 0 1 b c", "a -1 1 b", "a 0 one b", "a  0 1 b"] {
            assert_eq!(Entry::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_in_it_is_copied_and_nothing_that_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let content: vec::Vec<u8> = (0..8195_u32).map(|number| (number % 251) as u8).collect();
        fs::write(path("rom"), &content).unwrap();
        let rom = Rom::of_file(File::open(path("rom")).unwrap().into()).unwrap();

        for (offset, length) in [(0, 1), (0, 8195), (4096, 29), (4096, 4099), (8192, 3)] {
            let mut copy = vec![0; length];
            rom.read(offset, &mut copy).unwrap();
            assert_eq!(copy, &content[offset..][..length], "{length} bytes from {offset}");
        }
        let mut four = [9; 4];
        for offset in [8192, 12288, 1 << 20, usize::MAX - 4095, usize::MAX] {
            assert_eq!(rom.read(offset, &mut four), Err(Errno::NXIO), "{offset}");
        }
        assert_eq!(rom.read(1, &mut four), Err(Errno::INVAL), "no page begins there");
        assert_eq!(four, [9; 4]);

        let copy = File::create(path("copy")).unwrap();
        rom.append(0, 5, &copy).unwrap();
        rom.append(4096, 4099, &copy).unwrap();
        for (offset, length) in [(8192, 4), (usize::MAX, 1), (0, usize::MAX)] {
            assert_eq!(rom.append(offset, length, &copy), Err(Errno::NXIO));
        }
        assert_eq!(fs::read(path("copy")).unwrap(), [&content[..5], &content[4096..]].concat());
        assert_eq!(rom.append(0, 5, File::open(path("rom")).unwrap()), Err(Errno::BADF));
        assert_eq!(rom.append(0, 5, File::create("/dev/full").unwrap()), Err(Errno::NOSPC));
    }
}
