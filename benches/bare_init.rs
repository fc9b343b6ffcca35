//! The least that a kernel can run as its first process: one line to the console, then nothing.

#![no_std]
#![no_main]

use core::panic::PanicInfo;

#[path = "../guest/loader/src/call.rs"]
mod call;

use call::call;

/// `src/bare.rs` waits for it.
const LINE: &[u8] = b"bare: running\n";

const WRITE: usize = 1;
const PAUSE: usize = 34;
const STANDARD_OUTPUT: usize = 1;

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    // SAFETY: write(2) reads a whole slice.
    unsafe { call(WRITE, STANDARD_OUTPUT, LINE.as_ptr().addr(), LINE.len()) };
    // If the first process ended, the kernel would panic.
    loop {
        // SAFETY: pause(2) takes nothing.
        unsafe { call(PAUSE, 0, 0, 0) };
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    loop {}
}
