//! What a program needs that has neither the standard library nor C's: a beginning, an end in a panic, and the
//! functions on memory that the compiler calls by name.

use core::arch::{asm, naked_asm};
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

/// memcpy(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller gives as many bytes at both; words first, which an emulated processor copies faster.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, {rest:e}",
            "rep movsb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// memmove(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= bytes {
        // SAFETY: the caller's; nothing is overwritten before it is read.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: the caller gives as many bytes at both; from the last to the first, none is overwritten before it is read.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") bytes => _,
            inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// memset(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    let [value, ..] = value.to_le_bytes();
    // SAFETY: the caller gives as many bytes.
    unsafe {
        asm!(
            "rep stosq",
            "mov ecx, {rest:e}",
            "rep stosb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from_le_bytes([value; 8]),
            options(nostack, preserves_flags),
        );
    }
    to
}

/// memcmp(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, bytes: usize) -> i32 {
    for index in 0..bytes {
        // SAFETY: the caller gives as many bytes at both.
        let (one, other) = unsafe { (*one.add(index), *other.add(index)) };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

/// bcmp(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(one, other, bytes) }
}

/// strlen(3)
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let end: *const u8;
    // SAFETY: the caller's text ends with a zero. Not a loop: the compiler would make a call of this function of it.
    unsafe {
        asm!(
            "repne scasb",
            inout("rcx") usize::MAX => _,
            inout("rdi") text => end,
            in("al") 0_u8,
            options(nostack),
        );
    }
    end.addr() - text.addr() - 1
}
