//! A program that is taken from a stranger, if it is the one that it should be.

use core::fmt;

use blake2b_simd::{OUTBYTES, blake2b};

/// Of a digest, in hexadecimal digits.
const DIGITS: usize = 2 * OUTBYTES;

/// It is another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not the agent that was measured: expected BLAKE2b {expected}, got {actual}")]
pub(crate) struct Other {
    expected: Digest,
    actual: Digest,
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

/// Whether a program has the digest.
///
/// # Errors
/// If it has not.
pub(crate) fn check(program: &[u8], expected: Digest) -> Result<(), Other> {
    let mut actual = Digest([0; DIGITS]);
    actual.0.copy_from_slice(blake2b(program).to_hex().as_bytes());
    if actual == expected { Ok(()) } else { Err(Other { expected, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7693, appendix A.
    const ABC: &str = "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923";

    #[test]
    fn a_program_is_taken_by_its_digest_and_no_other_is() {
        assert_eq!(check(b"abc", Digest::of_digits(ABC)), Ok(()));
        for (content, digest) in [
            ("abd", ABC),
            ("ab", ABC),
            ("abcd", ABC),
            ("\0abc", ABC),
            ("", ABC),
            ("abc", ""),
            ("abc", &ABC[1..]),
        ] {
            let error = check(content.as_bytes(), Digest::of_digits(digest)).unwrap_err();
            assert!(error.to_string().contains("not the agent that was measured"), "{error}");
        }
    }
}
