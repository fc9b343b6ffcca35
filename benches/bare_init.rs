//! The least that a kernel can run as its first process: one line to the console, then nothing.

#![no_std]
#![no_main]

use core::arch::asm;
use core::panic::PanicInfo;

/// `src/bare.rs` waits for it.
const LINE: &[u8] = b"bare: running\n";

const WRITE: usize = 1;
const PAUSE: usize = 34;
const STANDARD_OUTPUT: usize = 1;

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    system_call(WRITE, STANDARD_OUTPUT, LINE.as_ptr().addr(), LINE.len());
    // If the first process ended, the kernel would panic.
    loop {
        system_call(PAUSE, 0, 0, 0);
    }
}

fn system_call(number: usize, first: usize, second: usize, third: usize) {
    // SAFETY: neither of the two calls writes to this process's memory, and write(2) is given a whole slice.
    // The kernel changes rax, rcx and r11 and no other register.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => _,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    loop {}
}
