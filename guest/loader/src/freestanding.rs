//! What a program needs that has neither the standard library nor C's: a beginning, and an end in a panic. (The functions
//! on memory that the compiler calls are in `memory.rs`.)

use core::arch::naked_asm;
use core::panic::PanicInfo;

/// Where the kernel begins. It leaves the stack aligned (System V ABI for AMD64, 3.4.1), and a call wants it so.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("xor ebp, ebp", "call {run}", "ud2", run = sym begin)
}

extern "C" fn begin() -> ! {
    crate::run()
}

#[panic_handler]
fn panic(panic: &PanicInfo<'_>) -> ! {
    crate::say(format_args!("sealpod: {panic}"));
    crate::system::exit(1)
}
