//! The agent's ROM: memory of a PCI device that the host gives the machine, and fills. It takes no driver to read it.

use core::ffi::CStr;
use core::ptr;
use core::slice;

use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::{Errno, write};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the host plugs it: the slot's folder in sysfs.
const DEVICE: &CStr = c"/sys/bus/pci/devices/0000:00:1e.0";
/// The region of the device's memory (QEMU's `ivshmem-plain`, base address register 2).
const REGION: &CStr = c"resource2";

/// A file in the ROM, which is the host's: what is there may be anything.
///
/// The measured initrd says of each, in a line of four words, its name, the byte at which it begins, how many bytes it
/// has, and their BLAKE2b (RFC 7693) in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, in bytes.
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

/// A mapping of it. The host can change at any moment what is there, so it is only ever copied, and the copy judged.
#[derive(Debug)]
pub struct Rom(Mapping);

impl Rom {
    /// The machine's.
    ///
    /// # Errors
    /// If the machine has none (`ENOENT`), or it cannot be mapped.
    pub fn map() -> Result<Self, Errno> {
        let flags = OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::RDONLY;
        let device = openat(CWD, DEVICE, flags, Mode::empty())?;
        // Firmware leaves a device off for which it has no driver.
        write(openat(&device, c"enable", OFlags::CLOEXEC | OFlags::WRONLY, Mode::empty())?, b"1")?;
        let region = openat(&device, REGION, OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?;
        Self::of_file(&region)
    }

    /// A file in its place.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn of_file(file: impl AsFd) -> Result<Self, Errno> {
        let length = usize::try_from(fstat(&file)?.st_size).map_err(|_| Errno::OVERFLOW)?;
        Mapping::of(file, length).map(Self)
    }

    /// Copies what begins at a byte of it.
    ///
    /// # Errors
    /// `ENXIO` if it ends before.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.0.at(offset, into.len())?;
        // SAFETY: it is mapped for as long as `self` lives, and nothing else refers to what `into` does. There may be any
        // bytes, which is all that they are taken for.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Appends so many bytes of it to a file.
    ///
    /// # Errors
    /// `ENXIO` if it ends before; what the file's system says.
    pub fn append(&self, offset: usize, length: usize, to: impl AsFd) -> Result<(), Errno> {
        let mut done = 0;
        while done < length {
            let from = self.0.at(offset + done, length - done)?;
            // SAFETY: as above; and only the kernel reads them, once.
            match write(&to, unsafe { slice::from_raw_parts(from, length - done) })? {
                0 => return Err(Errno::IO),
                written => done += written,
            }
        }
        Ok(())
    }
}

/// A file's bytes, mapped for reading.
#[derive(Debug)]
pub struct Mapping {
    begin: *mut u8,
    length: usize,
}

impl Mapping {
    /// The first bytes of a file.
    ///
    /// # Errors
    /// If they cannot be mapped.
    pub fn of(file: impl AsFd, length: usize) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses a place where nothing is.
        let begin = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
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

    fn at(&self, offset: usize, length: usize) -> Result<*const u8, Errno> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.begin.wrapping_add(offset)),
            _ => Err(Errno::NXIO),
        }
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

    use super::*;

    #[test]
    fn a_line_has_four_words() {
        let entry = Entry { name: "overlay.ko", offset: 512, length: 3, digest: "ba80" };
        assert_eq!(Entry::of_line("overlay.ko 512 3 ba80"), Some(entry));
        for line in ["", "a 0 1", "a 0 1 b c", "a -1 1 b", "a 0 one b", "a  0 1 b"] {
            assert_eq!(Entry::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_in_it_is_copied_and_nothing_that_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("rom"), b"agent one two").unwrap();
        let rom = Rom::of_file(File::open(path("rom")).unwrap()).unwrap();

        let mut three = [0; 3];
        rom.read(6, &mut three).unwrap();
        assert_eq!(&three, b"one");
        rom.read(10, &mut three).unwrap();
        assert_eq!(&three, b"two");
        for offset in [11, 13, 14, 1 << 20, usize::MAX - 2, usize::MAX] {
            assert_eq!(rom.read(offset, &mut three), Err(Errno::NXIO), "{offset}");
            assert_eq!(&three, b"two");
        }

        let copy = File::create(path("copy")).unwrap();
        rom.append(0, 5, &copy).unwrap();
        rom.append(9, 4, &copy).unwrap();
        assert_eq!(rom.append(9, 5, &copy), Err(Errno::NXIO));
        assert_eq!(rom.append(usize::MAX, 1, &copy), Err(Errno::NXIO));
        assert_eq!(fs::read(path("copy")).unwrap(), b"agent two");
        assert_eq!(rom.append(0, 5, File::open(path("rom")).unwrap()), Err(Errno::BADF));
        assert_eq!(rom.append(0, 5, File::create("/dev/full").unwrap()), Err(Errno::NOSPC));
    }
}
