//! The names of resources in a key broker.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// No part of a name is longer, in bytes.
const MAX_PART: usize = 128;
/// No host is longer, in bytes.
const MAX_HOST: usize = 259;

/// A resource's place in a broker: `repository/type/tag`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourcePath {
    /// The first part.
    pub repository: String,
    /// The second part, the resource's type.
    pub kind: String,
    /// The third part.
    pub tag: String,
}

/// A resource as documents name it: `kbs://[host[:port]]/repository/type/tag`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUri {
    /// The broker, where the name says which.
    pub host: Option<String>,
    /// The place in it.
    pub path: ResourcePath,
}

/// Why a text names no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceNameError {
    /// Not three parts.
    #[error("{0:?} has not the form repository/type/tag")]
    Form(String),
    /// A part with other characters, or too long.
    #[error(
        "{0:?} is no part of a resource's name: letters, digits, `_`, `-`, and `.` but not first; 128 at most"
    )]
    Part(String),
    /// Another scheme or plugin.
    #[error("{0:?} does not begin with kbs://")]
    Scheme(String),
    /// What stands between `kbs://` and the path.
    #[error("{0:?} is no host with an optional port")]
    Host(String),
}

impl FromStr for ResourcePath {
    type Err = ResourceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        let (Some(repository), Some(kind), Some(tag), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ResourceNameError::Form(shortened(text)));
        };
        Ok(Self { repository: part(repository)?, kind: part(kind)?, tag: part(tag)? })
    }
}

impl FromStr for ResourceUri {
    type Err = ResourceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scheme = || ResourceNameError::Scheme(shortened(text));
        let (scheme_name, rest) = text.split_once("://").ok_or_else(scheme)?;
        if !matches!(scheme_name, "kbs" | "kbs+resource") {
            return Err(scheme());
        }
        let (host, path) = rest.split_once('/').ok_or_else(|| ResourceNameError::Form(shortened(text)))?;
        let proper = |character: char| character.is_ascii_alphanumeric() || "-._:[]".contains(character);
        if host.len() > MAX_HOST || !host.chars().all(proper) {
            return Err(ResourceNameError::Host(shortened(host)));
        }
        Ok(Self { host: (!host.is_empty()).then(|| host.to_owned()), path: path.parse()? })
    }
}

impl TryFrom<String> for ResourcePath {
    type Error = ResourceNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ResourcePath> for String {
    fn from(path: ResourcePath) -> Self {
        path.to_string()
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.repository, self.kind, self.tag)
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kbs://{}/{}", self.host.as_deref().unwrap_or_default(), self.path)
    }
}

fn part(text: &str) -> Result<String, ResourceNameError> {
    let proper = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    if text.is_empty() || text.len() > MAX_PART || text.starts_with('.') || !text.chars().all(proper) {
        return Err(ResourceNameError::Part(shortened(text)));
    }
    Ok(text.to_owned())
}

/// Text of unknown origin for an error message.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_three_parts_of_plain_characters() {
        assert_eq!("default/key/1".parse::<ResourcePath>().unwrap().to_string(), "default/key/1");
        assert_eq!("a-b/c_d/e.f".parse::<ResourcePath>().unwrap().tag, "e.f");
        for wrong in
            ["", "a", "a/b", "a/b/c/d", "a//c", "../b/c", "a/.b/c", "a/b/c?d", "a/b/ c", "a/b/\u{e9}"]
        {
            assert!(wrong.parse::<ResourcePath>().is_err(), "{wrong:?}");
        }
        assert!(format!("a/b/{}", "c".repeat(129)).parse::<ResourcePath>().is_err());
    }

    #[test]
    fn a_uri_may_name_its_broker() {
        assert_eq!("kbs:///a/b/c".parse::<ResourceUri>().unwrap().host, None);
        assert_eq!(
            "kbs://broker:8080/a/b/c".parse::<ResourceUri>().unwrap().host.as_deref(),
            Some("broker:8080")
        );
        for wrong in ["a/b/c", "http://x/a/b/c", "kbs+other:///a/b/c", "kbs://a@b/a/b/c", "kbs:/a/b/c"] {
            assert!(wrong.parse::<ResourceUri>().is_err(), "{wrong:?}");
        }
    }
}
