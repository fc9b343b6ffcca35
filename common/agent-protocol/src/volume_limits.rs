//! What empty volumes may hold: known to a pod's author, asked for by the host, and demanded by the pod's policy.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The most that volumes may hold, by name, in bytes: at least 1.
///
/// CRI does not tell the host what an `emptyDir` may hold that is not in memory. So a pod's annotation does, as
/// `cache=67108864 scratch=1048576`, or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeLimits(BTreeMap<String, u64>);

/// Why a text says no limits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeLimitsError {
    /// It has another form.
    #[error("expected volumes as NAME=BYTES with blanks between, or {NONE:?}, came {0:?}")]
    Form(String),
    /// A number that is none.
    #[error("expected bytes from 1 to {} for the volume {volume:?}, came {actual:?}", VolumeLimits::MOST)]
    Bytes {
        /// The volume's name.
        volume: String,
        /// What is in the number's place.
        actual: String,
    },
    /// Two words for one volume.
    #[error("expected one limit for the volume {0:?}, came several")]
    Twice(String),
}

const NONE: &str = "none";
/// The longest name of a volume (RFC 1123 label).
const LONGEST_NAME: usize = 63;
/// What errors quote at most, in characters.
const LONGEST_QUOTE: usize = 80;

impl VolumeLimits {
    /// The annotation's name. It begins as that of init data does, with what nodes hand on to runtimes already.
    pub const ANNOTATION: &str = "io.katacontainers.config.sealpod.volume_limits";
    /// The largest limit, in bytes: Kubernetes knows no larger quantity, and file systems would take it for none.
    pub const MOST: u64 = i64::MAX as u64;

    /// What a volume may hold, in bytes.
    pub fn of(&self, volume: &str) -> Option<u64> {
        self.0.get(volume).copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, u64)> for VolumeLimits {
    fn from_iter<T: IntoIterator<Item = (String, u64)>>(limits: T) -> Self {
        Self(limits.into_iter().collect())
    }
}

impl fmt::Display for VolumeLimits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return formatter.write_str(NONE);
        }
        for (number, (volume, bytes)) in self.0.iter().enumerate() {
            let blank = if number == 0 { "" } else { " " };
            write!(formatter, "{blank}{volume}={bytes}")?;
        }
        Ok(())
    }
}

impl FromStr for VolumeLimits {
    type Err = VolumeLimitsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut limits = BTreeMap::new();
        if text.trim() == NONE {
            return Ok(Self(limits));
        }
        for word in text.split_ascii_whitespace() {
            let form = || VolumeLimitsError::Form(quote(word));
            let (volume, bytes) = word.split_once('=').filter(|(name, _)| is_name(name)).ok_or_else(form)?;
            let bytes = parse_bytes(bytes)
                .ok_or_else(|| VolumeLimitsError::Bytes { volume: volume.into(), actual: quote(bytes) })?;
            if limits.insert(volume.to_owned(), bytes).is_some() {
                return Err(VolumeLimitsError::Twice(volume.into()));
            }
        }
        match limits.is_empty() {
            true => Err(VolumeLimitsError::Form(quote(text))),
            false => Ok(Self(limits)),
        }
    }
}

fn is_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(valid)
}

/// Digits alone: a sign says nothing here.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|bytes| digits && (1..=VolumeLimits::MOST).contains(bytes))
}

fn quote(text: &str) -> String {
    text.chars().take(LONGEST_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written() {
        for (limits, text) in [
            (&[][..], "none"),
            (&[("cache", 1)], "cache=1"),
            (&[("a-1", 67_108_864), ("b", VolumeLimits::MOST)], "a-1=67108864 b=9223372036854775807"),
        ] {
            let limits: VolumeLimits =
                limits.iter().map(|(volume, bytes)| (volume.to_string(), *bytes)).collect();
            assert_eq!(limits.to_string(), text);
            assert_eq!(text.parse(), Ok(limits));
        }
        let limits: VolumeLimits = " b=2\n a=1 ".parse().unwrap();
        assert_eq!((limits.of("a"), limits.of("b"), limits.of("c")), (Some(1), Some(2), None));
    }

    #[test]
    fn what_says_no_limits_is_refused_by_name() {
        for (text, words) in [
            ("", "NAME=BYTES"),
            ("cache", "\"cache\""),
            ("none none", "\"none\""),
            ("=1", "\"=1\""),
            ("../etc=1", "\"../etc=1\""),
            ("Cache=1", "\"Cache=1\""),
            ("cache=", "\"cache\", came \"\""),
            ("cache=0", "from 1 to 9223372036854775807 for the volume \"cache\", came \"0\""),
            ("cache=+1", "came \"+1\""),
            ("cache=-1", "came \"-1\""),
            ("cache=64Mi", "came \"64Mi\""),
            ("cache=1.5", "came \"1.5\""),
            ("cache=9223372036854775808", "came \"9223372036854775808\""),
            ("cache=1 cache=2", "one limit for the volume \"cache\""),
            ("cache=1,b=2", "came \"1,b=2\""),
        ] {
            let error = text.parse::<VolumeLimits>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
        let long = format!("{}=1", "a".repeat(1 << 20)).parse::<VolumeLimits>().unwrap_err().to_string();
        assert!(long.len() < 200, "{}", long.len());
    }
}
