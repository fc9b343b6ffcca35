//! Which images are the guests'.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The configuration file (TOML).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Patterns of image references, in which `*` stands for any text: these are left to the guest. All, by default.
    pub images: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: toml::de::Error,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self { images: vec!["*".into()] }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no TOML, or says something unknown.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
        toml::from_str(&text).map_err(|source| Error::Parse { path: path.into(), source })
    }

    /// Whether an image is left to the guest.
    pub(crate) fn is_for_guests(&self, image: &str) -> bool {
        self.images.iter().any(|pattern| matches(pattern, image))
    }
}

/// `*` stands for any text, everything else for itself.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(before) else { return false };
    let Some((rest, last)) = rest.rsplit_once('*') else { return text.ends_with(rest) };
    // The first place of each middle part is as good as any later one.
    let mut remaining = text;
    for part in rest.split('*') {
        match remaining.find(part) {
            Some(at) => remaining = &remaining[at + part.len()..],
            None => return false,
        }
    }
    remaining.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_a_shell_without_the_rest() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "registry/app:1"),
            ("registry/*", "registry/app:1"),
            ("*/app:*", "registry/app:1"),
            ("a*b*c*d", "a-b-bc-c-d"),
            ("exact", "exact"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("registry/*", "other/app"), ("*b", "abc"), ("a*b*c", "acb"), ("ab*ba", "aba")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "images = [\"registry/*\"]\n").unwrap();
        assert!(!Config::load(file.path()).unwrap().is_for_guests("other/app"));
        std::fs::write(file.path(), "image = []\n").unwrap();
        assert!(matches!(Config::load(file.path()), Err(Error::Parse { .. })));
        assert!(matches!(Config::load(Path::new("/nowhere")), Err(Error::Read { .. })));
        assert!(Config::default().is_for_guests("anything"));
    }
}
