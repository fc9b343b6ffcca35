//! A program that is taken from a stranger, if it is the one that it should be.

use core::fmt;

use blake2b_simd::{OUTBYTES, State};
use rustix::io::Errno;

const BUFFER: usize = 256 << 10;

/// Of a digest, in hexadecimal digits.
const DIGITS: usize = 2 * OUTBYTES;

/// What is read, at an address that a disk takes: a multiple of its sector's size (open(2), `O_DIRECT`).
#[repr(align(512))]
struct Buffer([u8; BUFFER]);

/// Why a program was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(clippy::large_enum_variant, reason = "it is made once, and there is no heap")]
pub(crate) enum Error {
    #[error("cannot read it: {0}")]
    Read(Errno),
    #[error("cannot write it: {0}")]
    Write(Errno),
    #[error("it is not the agent that was measured: expected BLAKE2b {expected}, got {actual}")]
    Other { expected: Digest, actual: Digest },
}

/// A digest's digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; DIGITS]);

impl Digest {
    /// That of these digits; one that nothing has where they are too few or too many.
    pub(crate) fn of_digits(digits: &str) -> Self {
        Self(digits.as_bytes().try_into().unwrap_or([b'?'; DIGITS]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).unwrap_or("nothing"))
    }
}

/// Copies as many bytes, and says whether they have the digest.
///
/// # Errors
/// If it has not, or cannot be read or written. What was written is nothing then to go by.
pub(crate) fn copy(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    mut write: impl FnMut(&[u8]) -> Result<usize, Errno>,
    mut remaining: usize,
    expected: Digest,
) -> Result<(), Error> {
    let mut buffer = Buffer([0; BUFFER]);
    let mut hash = State::new();
    while remaining > 0 {
        // Whole buffers, as a disk wants it; there is more behind the last one.
        let length = read(&mut buffer.0).map_err(Error::Read)?.min(remaining);
        let Some(mut bytes) = buffer.0.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        remaining -= length;
        hash.update(bytes);
        while !bytes.is_empty() {
            let written = write(bytes).map_err(Error::Write)?;
            bytes = bytes
                .get(written..)
                .filter(|rest| rest.len() < bytes.len())
                .ok_or(Error::Write(Errno::IO))?;
        }
    }
    let mut actual = Digest([0; DIGITS]);
    actual.0.copy_from_slice(hash.finalize().to_hex().as_bytes());
    if actual != expected {
        return Err(Error::Other { expected, actual });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7693, appendix A.
    const ABC: &str = "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923";

    /// Copies three bytes, by pieces of no more than two.
    fn copied(mut from: &[u8], digits: &str) -> Result<Vec<u8>, Error> {
        let mut to = Vec::new();
        let read = |buffer: &mut [u8]| {
            let (piece, rest) = from.split_at(from.len().min(2));
            buffer[..piece.len()].copy_from_slice(piece);
            from = rest;
            Ok(piece.len())
        };
        let write = |bytes: &[u8]| {
            to.push(bytes[0]);
            Ok(1)
        };
        copy(read, write, 3, Digest::of_digits(digits)).map(|()| to)
    }

    #[test]
    fn what_has_the_digest_is_copied_and_what_is_behind_it_is_not() {
        for content in ["abc", "abcd", "abcdef"] {
            assert_eq!(copied(content.as_bytes(), ABC).unwrap(), b"abc");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (content, digest) in
            [("abd", ABC), ("ab", ABC), ("\0abc", ABC), ("", ABC), ("abc", ""), ("abc", &ABC[1..])]
        {
            let error = copied(content.as_bytes(), digest).unwrap_err();
            assert!(matches!(error, Error::Other { .. }), "{error}");
            assert!(error.to_string().contains("not the agent that was measured"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_or_written_is_no_program() {
        let digest = Digest::of_digits(ABC);
        assert_eq!(copy(|_| Err(Errno::IO), |bytes| Ok(bytes.len()), 3, digest), Err(Error::Read(Errno::IO)));
        assert_eq!(
            copy(|buffer| Ok(buffer.len()), |_| Err(Errno::NOSPC), 3, digest),
            Err(Error::Write(Errno::NOSPC))
        );
        assert_eq!(copy(|buffer| Ok(buffer.len()), |_| Ok(0), 3, digest), Err(Error::Write(Errno::IO)));
    }
}
