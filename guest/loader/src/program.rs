//! A program that is taken from a stranger, if it is the one that it should be.

use core::fmt;

use blake2b_simd::{OUTBYTES, State};
use rustix::io::Errno;

/// No agent has as many bytes: a disk that goes on is refused there, before it fills the memory.
const LIMIT: usize = 64 << 20;
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
    #[error("it has more than {LIMIT} bytes")]
    TooLarge,
    #[error("it is not the agent that was measured: expected BLAKE2b {expected}, got {actual}")]
    Other { expected: Digest, actual: Digest },
}

/// A digest's digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; DIGITS]);

impl Digest {
    /// The first word of a line that `b2sum` has printed; no digest where it is none.
    pub(crate) fn of_line(line: &[u8]) -> Self {
        let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        Self(word.try_into().unwrap_or([b'?'; DIGITS]))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).unwrap_or("nothing"))
    }
}

/// Copies everything, and says whether it has the digest.
///
/// # Errors
/// If it has not, or cannot be read or written. What was written is nothing then to go by.
pub(crate) fn copy(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    mut write: impl FnMut(&[u8]) -> Result<usize, Errno>,
    expected: Digest,
) -> Result<(), Error> {
    let mut buffer = Buffer([0; BUFFER]);
    let mut hash = State::new();
    let mut total = 0;
    loop {
        let length = read(&mut buffer.0).map_err(Error::Read)?;
        let Some(mut bytes) = buffer.0.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        total += length;
        if total > LIMIT {
            return Err(Error::TooLarge);
        }
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

    /// Copies by pieces of no more than two bytes.
    fn copied(mut from: &[u8], line: &str) -> Result<Vec<u8>, Error> {
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
        copy(read, write, Digest::of_line(line.as_bytes())).map(|()| to)
    }

    #[test]
    fn what_has_the_digest_is_copied() {
        assert_eq!(copied(b"abc", &format!("{ABC}  sealpod-agent\n")).unwrap(), b"abc");
    }

    #[test]
    fn anything_else_is_refused() {
        for (content, digest) in [("abd", ABC), ("abc\0", ABC), ("", ABC), ("abc", ""), ("abc", &ABC[1..])] {
            let error = copied(content.as_bytes(), digest).unwrap_err();
            assert!(matches!(error, Error::Other { .. }), "{error}");
            assert!(error.to_string().contains("not the agent that was measured"), "{error}");
        }
    }

    #[test]
    fn a_disk_without_an_end_does_not_fill_the_memory() {
        let error = copy(|buffer| Ok(buffer.len()), |bytes| Ok(bytes.len()), Digest::of_line(ABC.as_bytes()));
        assert_eq!(error, Err(Error::TooLarge));
    }

    #[test]
    fn what_cannot_be_read_or_written_is_no_program() {
        let digest = Digest::of_line(ABC.as_bytes());
        assert_eq!(copy(|_| Err(Errno::IO), |bytes| Ok(bytes.len()), digest), Err(Error::Read(Errno::IO)));
        assert_eq!(
            copy(|buffer| Ok(buffer.len()), |_| Err(Errno::NOSPC), digest),
            Err(Error::Write(Errno::NOSPC))
        );
        assert_eq!(copy(|buffer| Ok(buffer.len()), |_| Ok(0), digest), Err(Error::Write(Errno::IO)));
    }
}
