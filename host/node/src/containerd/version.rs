//! containerd's versions, and what differs between them here.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A version, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// The first number.
    pub(crate) major: u32,
    /// The second.
    pub(crate) minor: u32,
}

impl FromStr for Version {
    type Err = Error;

    /// Takes `1.6`, `v2.1.4`, `1.6.20~ds1` and what `containerd --version` prints.
    fn from_str(text: &str) -> Result<Self, Error> {
        let version = text.split_ascii_whitespace().find_map(numbers);
        let version = version.ok_or_else(|| {
            Error::Version(format!("expected something like 1.6.20, got {:?}", text.trim()))
        })?;
        if version < (Self { major: 1, minor: 6 }) {
            return Err(Error::TooOld(version.to_string()));
        }
        Ok(version)
    }
}

fn numbers(word: &str) -> Option<Version> {
    let mut parts =
        word.strip_prefix('v').unwrap_or(word).split(|character: char| !character.is_ascii_digit());
    Some(Version { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Files that are imported add to a plugin's section. Before, they replace it whole.
    pub(crate) fn has_drop_ins(self) -> bool {
        self.major >= 2
    }

    /// A runtime's program may be named beside its type. Before, the type itself must be its path.
    pub(crate) fn has_runtime_paths(self) -> bool {
        self >= Self { major: 1, minor: 7 }
    }

    /// Each runtime can have a snapshotter of its own.
    pub(crate) fn has_snapshotter_per_runtime(self) -> bool {
        self >= Self { major: 1, minor: 7 }
    }

    /// The transfer service pulls images, and unpacks for the snapshotters that it lists.
    pub(crate) fn pulls_by_transfer_service(self) -> bool {
        self >= Self { major: 2, minor: 1 }
    }

    /// The newest version of the configuration file that it may be given; containerd itself knows better.
    pub(crate) fn newest_file_version(self) -> i64 {
        match (self.major, self.minor) {
            (..=1, _) => 2,
            (2, ..=2) => 3,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_packagers_are_read() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", (1, 6)),
            ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4\n", (2, 1)),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown \n", (2, 1)),
            ("containerd containerd.io 1.7.27 05044ec0a9a7\n", (1, 7)),
            ("1.7", (1, 7)),
            ("v2.3.0-rc.1", (2, 3)),
        ] {
            let version: Version = text.parse().unwrap();
            assert_eq!((version.major, version.minor), expected, "{text}");
        }
    }

    #[test]
    fn old_and_unreadable_ones_are_refused() {
        let refusal = |text: &str| text.parse::<Version>().unwrap_err().to_string();
        assert_eq!(refusal("1.5.18"), "expected containerd 1.6 or newer, got 1.5");
        assert!(refusal("containerd: not found").contains("expected something like 1.6.20"));
        assert!(refusal("").contains("got \"\""));
    }
}
