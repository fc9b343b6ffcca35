//! System calls without a C library.

use core::arch::asm;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the loader knows the system calls of x86-64 only");

/// A system call of three arguments.
///
/// # Safety
/// As that system call's.
pub unsafe fn call(number: usize, first: usize, second: usize, third: usize) -> usize {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11 and no other register; the caller answers for the rest.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
