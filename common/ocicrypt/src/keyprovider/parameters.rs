//! What people write behind `provider:attestation-agent:`.

use std::path::PathBuf;

use super::{PacketError, WrapType};

/// `keyid=URI::keypath=FILE::algorithm=NAME`, in any order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Under which id recipients will ask the key broker for the key.
    pub key_id: Option<String>,
    /// The file that holds the key.
    pub key_path: Option<PathBuf>,
    /// How to encrypt under it.
    pub algorithm: WrapType,
}

/// Why parameters were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Not of the form `name=value`, or of a name that is not known.
    #[error("key provider parameter {actual:?}, expected keyid=, keypath= or algorithm= (joined by ::)")]
    Unknown {
        /// What stands there.
        actual: String,
    },
    /// One that is needed is not there.
    #[error("the key provider parameter {name}= is missing")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// One stands there twice.
    #[error("the key provider parameter {name}= is given twice")]
    Twice {
        /// Which.
        name: String,
    },
    /// The key's id is not a resource URI.
    #[error("the key id {actual:?} is not a resource URI such as kbs:///default/key/1")]
    KeyId {
        /// What stands there.
        actual: String,
    },
    /// The algorithm is not known.
    #[error(transparent)]
    Algorithm(#[from] PacketError),
    /// Existing tools would encrypt under a key that everybody knows.
    #[error("the sample key is public and protects nothing: name a key of your own with keyid= and keypath=")]
    Sample,
}

impl Parameters {
    /// Reads the parameters.
    ///
    /// # Errors
    /// [`ParameterError`] says which one.
    pub fn parse(text: &str) -> Result<Self, ParameterError> {
        let mut seen = Vec::new();
        let mut parameters = Self::default();
        for part in text.split("::") {
            let unknown = || ParameterError::Unknown { actual: part.to_owned() };
            let (name, value) = part.split_once('=').ok_or_else(unknown)?;
            if seen.contains(&name) {
                return Err(ParameterError::Twice { name: name.to_owned() });
            }
            seen.push(name);
            match name {
                "keyid" if is_resource_uri(value) => parameters.key_id = Some(value.to_owned()),
                "keyid" => return Err(ParameterError::KeyId { actual: value.to_owned() }),
                "keypath" if !value.is_empty() => parameters.key_path = Some(value.into()),
                "algorithm" => parameters.algorithm = value.parse()?,
                "sample" if value == "false" => {}
                "sample" => return Err(ParameterError::Sample),
                _ => return Err(unknown()),
            }
        }
        Ok(parameters)
    }
}

/// `kbs[+plugin]://[host[:port]]/repository/type/tag[?query]`
fn is_resource_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let plugin_is_named = scheme.strip_prefix("kbs+").is_some_and(|plugin| !plugin.is_empty());
    let path = rest.split_once('?').map_or(rest, |(path, _)| path);
    let mut parts = path.split('/').skip(1);
    (scheme == "kbs" || plugin_is_named)
        && parts.clone().count() == 3
        && parts.all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic()))
}
