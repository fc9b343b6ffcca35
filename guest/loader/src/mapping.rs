//! A file's pages as memory, so that a disk is read into them without a copy in between.

use core::ptr;
use core::slice;

use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A file that nobody else knows of, mapped as a whole.
pub(crate) struct Mapping {
    begin: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps a file of at least `length` bytes, which is not 0.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub(crate) fn new(file: BorrowedFd<'_>, length: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address where nothing else is.
        let begin = unsafe { mmap(ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0)? };
        Ok(Self { begin: begin.cast(), length })
    }

    /// The file's content.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as many bytes are mapped until this value's end, and the file is nobody else's.
        unsafe { slice::from_raw_parts_mut(self.begin, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has the bytes, which the value lent, any more.
        let _ = unsafe { munmap(self.begin.cast(), self.length) };
    }
}
