//! What the kernel does for a program at its end, and what it says meanwhile.

use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr;

use rustix::fd::BorrowedFd;
use rustix::io::{Errno, write};
use sealpod_loader::call;

/// execve(2) of x86-64, the same for all versions of Linux.
const EXECVE: usize = 59;
const EXIT_GROUP: usize = 231;
const STANDARD_ERROR: i32 = 2;

/// The standard error stream, which is the console.
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, words: &str) -> fmt::Result {
        // SAFETY: nothing closes it; where there is no console, a write fails.
        let stream = unsafe { BorrowedFd::borrow_raw(STANDARD_ERROR) };
        write(stream, words.as_bytes()).map_err(|_| fmt::Error).map(drop)
    }
}

/// Whether the processor has the instructions (BMI2) that this program is compiled for: Intel's since 2013, AMD's since
/// 2015, and QEMU's own.
pub(crate) fn has_bmi2() -> bool {
    const LEAF: u32 = 7;
    const BMI2: u32 = 1 << 8;
    __cpuid(0).eax >= LEAF && __cpuid_count(LEAF, 0).ebx & BMI2 != 0
}

/// Runs another program in place of this one, with its path as its only argument and no environment; says why if it
/// cannot.
pub(crate) fn execute(path: &CStr) -> Errno {
    let arguments: [*const c_char; 2] = [path.as_ptr(), ptr::null()];
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: all three are there for the call, and end as execve(2) wants it.
    let result =
        unsafe { call(EXECVE, path.as_ptr().addr(), arguments.as_ptr().addr(), environment.as_ptr().addr()) };
    // The kernel gives an error as its negative.
    i32::try_from(result.wrapping_neg()).map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Ends this process.
pub(crate) fn exit(code: u8) -> ! {
    loop {
        // SAFETY: it takes no address.
        unsafe { call(EXIT_GROUP, code.into(), 0, 0) };
    }
}
