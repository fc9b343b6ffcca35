//! Little-endian numbers at places in a file; nothing where the file ends before.

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// A 32-bit number that serves as offset or length.
pub(crate) fn size_at(bytes: &[u8], at: usize) -> Option<usize> {
    u32_at(bytes, at).and_then(|size| usize::try_from(size).ok())
}

/// A 64-bit number that serves as length.
pub(crate) fn long_size_at(bytes: &[u8], at: usize) -> Option<usize> {
    array(bytes, at).map(u64::from_le_bytes).and_then(|size| usize::try_from(size).ok())
}

/// A 24-bit length, as the headers of firmware files and sections have it.
pub(crate) fn short_size_at(bytes: &[u8], at: usize) -> Option<usize> {
    let [low, middle, high] = array(bytes, at)?;
    size_at(&[low, middle, high, 0], 0)
}
