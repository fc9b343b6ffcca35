//! The functions on memory that the compiler calls by their names, where no C library has them. Not one is a loop: the
//! compiler could make a call of the function itself of it.

use core::arch::asm;

/// memcpy(3)
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { copy_up(to, from, bytes) };
    to
}

/// memmove(3)
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    let copy = if to.addr().wrapping_sub(from.addr()) >= bytes { copy_up } else { copy_down };
    // SAFETY: the caller's; in this direction nothing is overwritten before it is read.
    unsafe { copy(to, from, bytes) };
    to
}

/// Copies from the first byte to the last; words first, which an emulated processor copies faster.
///
/// # Safety
/// There must be as many bytes at both.
#[inline(always)]
unsafe fn copy_up(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller's.
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
}

/// Copies from the last byte to the first.
///
/// # Safety
/// There must be as many bytes at both.
unsafe fn copy_down(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller's.
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
}

/// memset(3)
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
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
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, bytes: usize) -> i32 {
    let (above, below): (u8, u8);
    // SAFETY: the caller gives as many bytes at both. Compared with itself first, for no bytes are equal ones.
    unsafe {
        asm!(
            "cmp eax, eax",
            "repe cmpsb",
            "seta {above}",
            "setb {below}",
            above = out(reg_byte) above,
            below = out(reg_byte) below,
            inout("rcx") bytes => _,
            inout("rsi") one => _,
            inout("rdi") other => _,
            out("rax") _,
            options(nostack, readonly),
        );
    }
    i32::from(above) - i32::from(below)
}

/// bcmp(3)
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(one, other, bytes) }
}

/// strlen(3)
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let end: *const u8;
    // SAFETY: the caller's text ends with a zero.
    unsafe {
        asm!(
            "repne scasb",
            inout("rcx") usize::MAX => _,
            inout("rdi") text => end,
            in("al") 0_u8,
            options(nostack, readonly),
        );
    }
    end.addr() - text.addr() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> [u8; 64] {
        std::array::from_fn(|index| index as u8)
    }

    #[test]
    fn bytes_are_copied_whether_they_overlap_or_not() {
        for length in 0..20 {
            for (from, to) in [(0, 32), (32, 0), (8, 9), (9, 8), (8, 8), (8, 15), (15, 8)] {
                let (mut ours, mut expected) = (numbers(), numbers());
                expected.copy_within(from..from + length, to);
                let begin = ours.as_mut_ptr();
                // SAFETY: both lie in the array.
                let result = unsafe { memmove(begin.add(to), begin.add(from), length) };
                assert_eq!(result, begin.wrapping_add(to));
                assert_eq!(ours, expected, "{length} bytes from {from} to {to}");
            }
            let (numbers, mut ours) = (numbers(), [0; 64]);
            // SAFETY: both arrays have as many bytes.
            unsafe { memcpy(ours.as_mut_ptr(), numbers.as_ptr(), length) };
            assert_eq!((&ours[..length], &ours[length..]), (&numbers[..length], &[0; 64][length..]));
        }
    }

    #[test]
    fn bytes_are_set_and_no_more() {
        for length in 0..20 {
            let mut ours = [0; 64];
            // SAFETY: it has as many bytes.
            unsafe { memset(ours.as_mut_ptr(), 0x1FF, length) };
            assert_eq!(
                (&ours[..length], &ours[length..]),
                ([0xFF; 64][..length].as_ref(), &[0; 64][length..])
            );
        }
    }

    #[test]
    fn bytes_are_compared_as_numbers_without_a_sign() {
        for (one, other, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "abd", -1),
            ("b", "a", 1),
            ("a\u{e9}", "ab", 1),
            ("ab", "a\u{e9}", -1),
        ] {
            let length = one.len().min(other.len());
            // SAFETY: both have as many bytes.
            let (result, equal) = unsafe {
                (memcmp(one.as_ptr(), other.as_ptr(), length), bcmp(one.as_ptr(), other.as_ptr(), length))
            };
            assert_eq!((result, equal != 0), (expected, expected != 0), "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_text_ends_with_its_first_zero() {
        for text in [c"", c"a", c"a longer one"] {
            // SAFETY: it ends with a zero.
            assert_eq!(unsafe { strlen(text.as_ptr().cast()) }, text.to_bytes().len());
        }
    }
}
