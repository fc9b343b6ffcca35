//! A program that is taken from a stranger, if it is the one that it should be.

use std::io::{Read, Write};

use anyhow::{Context, bail};
use blake2::{Blake2b512, Digest};

/// No agent has as many bytes: a disk that goes on is cut there, before it fills the memory.
const LIMIT: u64 = 64 << 20;
const BUFFER: usize = 256 << 10;

/// Copies everything, and says whether it has the digest of a line that `b2sum` has printed.
///
/// # Errors
/// If it has not, or cannot be read or written. What was written is nothing then to go by.
pub(crate) fn copy(from: impl Read, to: &mut impl Write, digest: &str) -> anyhow::Result<()> {
    let expected = digest.split_whitespace().next().unwrap_or_default();
    let mut from = from.take(LIMIT);
    let mut hash = Blake2b512::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).context("read the agent")?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        to.write_all(bytes).context("write the agent")?;
    }
    let actual = hex::encode(hash.finalize());
    if actual != expected {
        bail!("it is not the agent that was measured: expected BLAKE2b {expected}, got {actual}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7693, appendix A.
    const ABC: &str = "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923";

    #[test]
    fn what_has_the_digest_is_copied() {
        let mut copied = Vec::new();
        copy(&b"abc"[..], &mut copied, &format!("{ABC}  sealpod-agent\n")).unwrap();
        assert_eq!(copied, b"abc");
    }

    #[test]
    fn anything_else_is_refused() {
        for (content, digest) in [("abd", ABC), ("abc\0", ABC), ("", ABC), ("abc", ""), ("abc", &ABC[1..])] {
            let error = copy(content.as_bytes(), &mut Vec::new(), digest).unwrap_err().to_string();
            assert!(error.contains("not the agent that was measured"), "{error}");
        }
    }

    #[test]
    fn a_disk_without_an_end_does_not_fill_the_memory() {
        let mut sink = std::io::sink();
        copy(std::io::repeat(0), &mut sink, ABC).unwrap_err();
    }
}
