//! Names in a layer: where they lead, and which of them are instructions rather than files.

use super::UnpackError;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs kept its own files under such names; they mean nothing in a layer.
const AUFS: &[u8] = b".wh..wh.";
/// As long as a name may be on Linux, and as deep.
const MAX_COMPONENT_LENGTH: usize = 255;
const MAX_PATH_LENGTH: usize = 4096;

/// A name's parts, from the layer's root down. None of them is empty, `.` or `..`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name(Vec<Vec<u8>>);

/// What a name is (OCI image specification, layers, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The root of the layer itself.
    Root,
    /// Something in this folder with this name.
    Member(Name, Vec<u8>),
    /// Lower layers' member of this name is hidden.
    Whiteout(Name, Vec<u8>),
    /// All that lower layers have in this folder is hidden.
    Opaque(Name),
    /// Nothing.
    Ignored,
}

impl Name {
    /// Reads the name of a member, or of what a hard link leads to. Names that begin at the root or go up are
    /// refused, not corrected: no honest tool writes them.
    pub(super) fn parse(path: &[u8]) -> Result<Self, UnpackError> {
        let refused = |reason| Err(UnpackError::refused(path, reason));
        if path.starts_with(b"/") {
            return refused("whose name begins at the root");
        }
        if path.contains(&0) {
            return refused("whose name has a NUL");
        }
        if path.len() > MAX_PATH_LENGTH {
            return refused("whose name is longer than 4096 bytes");
        }
        let mut parts = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return refused("whose name goes up with \"..\""),
                part if part.len() > MAX_COMPONENT_LENGTH => {
                    return refused("whose name has a part longer than 255 bytes");
                }
                part => parts.push(part.to_vec()),
            }
        }
        Ok(Self(parts))
    }

    /// What the name of a member means.
    pub(super) fn meaning(self, path: &[u8]) -> Result<Meaning, UnpackError> {
        let Self(mut parts) = self;
        let Some(last) = parts.pop() else { return Ok(Meaning::Root) };
        if parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(UnpackError::refused(path, "which lies under a whiteout"));
        }
        let folder = Self(parts);
        if last == OPAQUE {
            return Ok(Meaning::Opaque(folder));
        }
        if last.starts_with(AUFS) {
            return Ok(Meaning::Ignored);
        }
        match last.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Member(folder, last)),
            Some(b"" | b"." | b"..") => Err(UnpackError::refused(path, "a whiteout of no name")),
            Some(hidden) => Ok(Meaning::Whiteout(folder, hidden.to_vec())),
        }
    }

    /// The folder and the name in it; `None` for the root.
    pub(super) fn split(mut self) -> Option<(Self, Vec<u8>)> {
        let last = self.0.pop()?;
        Some((self, last))
    }

    pub(super) fn parts(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// As a relative path; empty for the root.
    pub(super) fn path(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn meaning(path: &str) -> Result<Meaning, UnpackError> {
        Name::parse(path.as_bytes())?.meaning(path.as_bytes())
    }

    fn name(path: &str) -> Name {
        Name::parse(path.as_bytes()).unwrap()
    }

    #[rstest]
    #[case("a", Meaning::Member(name(""), b"a".to_vec()))]
    #[case("./a//b/./c/", Meaning::Member(name("a/b"), b"c".to_vec()))]
    #[case("./", Meaning::Root)]
    #[case("a/.wh.b", Meaning::Whiteout(name("a"), b"b".to_vec()))]
    #[case("a/.wh..wh..opq", Meaning::Opaque(name("a")))]
    #[case(".wh..wh..opq", Meaning::Opaque(name("")))]
    #[case(".wh..wh.plnk", Meaning::Ignored)]
    #[case("a/..b", Meaning::Member(name("a"), b"..b".to_vec()))]
    fn names_mean(#[case] path: &str, #[case] expected: Meaning) {
        assert_eq!(meaning(path).unwrap(), expected);
    }

    #[rstest]
    fn names_that_lead_elsewhere_are_refused(
        #[values(
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a/..",
            "a/.wh.b/c",
            ".wh.",
            ".wh...",
            ".wh..",
            "a\0b"
        )]
        path: &str,
    ) {
        assert!(matches!(meaning(path), Err(UnpackError::Refused { .. })));
    }

    #[test]
    fn names_that_linux_does_not_take_are_refused() {
        assert!(meaning(&"a".repeat(256)).is_err());
        assert!(meaning(&"a/".repeat(2049)).is_err());
        assert!(meaning(&"a".repeat(255)).is_ok());
    }

    proptest! {
        #[test]
        fn no_name_leads_up(path in "[./a-c\\x00]{0,40}") {
            if let Ok(name) = Name::parse(path.as_bytes()) {
                prop_assert!(name.parts().iter().all(|part| !part.is_empty() && part != b"." && part != b".."));
            }
        }
    }
}
