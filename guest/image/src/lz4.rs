//! LZ4 in the form from which Linux unpacks an initrd (`lib/decompress_unlz4.c`): the tool's legacy frame.
//!
//! Firmware copies and measures every byte of an initrd slowly, and the kernel unpacks this format faster than any
//! other: the guest boots sooner than with a plain archive.

use std::io;

use lz4::block::{CompressionMode, compress};

/// Of the legacy frame, little-endian.
const MAGIC: u32 = 0x184C_2102;
/// Each chunk but the last unpacks to as much, which is what the kernel has room for.
const CHUNK_BYTES: usize = 8 << 20;
/// The highest: a guest is built once and boots often.
const LEVEL: i32 = 12;

/// Packs bytes; the same bytes always give the same frame.
///
/// # Errors
/// If memory runs out.
pub(crate) fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = MAGIC.to_le_bytes().to_vec();
    for chunk in bytes.chunks(CHUNK_BYTES) {
        let packed = compress(chunk, Some(CompressionMode::HIGHCOMPRESSION(LEVEL)), false)?;
        let length = u32::try_from(packed.len()).map_err(io::Error::other)?;
        frame.extend(length.to_le_bytes());
        frame.extend(packed);
    }
    Ok(frame)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn unpack(frame: &[u8]) -> Vec<u8> {
        let mut rest = frame.strip_prefix(&MAGIC.to_le_bytes()[..]).unwrap();
        let mut unpacked = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk() {
            let (chunk, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            unpacked.extend(lz4::block::decompress(chunk, Some(CHUNK_BYTES as i32)).unwrap());
            rest = tail;
        }
        unpacked
    }

    #[test]
    fn each_chunk_unpacks_to_what_it_was() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES + 1000).map(|index| (index / 7 % 251) as u8).collect();
        let frame = pack(&bytes).unwrap();
        assert!(frame.len() < bytes.len() / 4);
        assert!(unpack(&frame) == bytes);
    }

    #[test]
    fn the_same_bytes_give_the_same_frame() {
        assert_eq!(pack(b"the same bytes").unwrap(), pack(b"the same bytes").unwrap());
    }
}
