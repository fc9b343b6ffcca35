//! Init data: what a pod's owner binds it to, in a form whose digest the TEE reports.

mod settings;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use crate::HashAlgorithm;

pub use settings::{AGENT_POLICY, Image, KeyBroker, Settings};

/// The only version there is.
const VERSION: &str = "0.1.0";

/// At most this many bytes of TOML.
pub const MAX_LENGTH: usize = 1 << 20;

/// Parsed init data. Its digest is over the raw text, not over this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitData {
    /// `0.1.0`.
    pub version: String,
    /// What the digest is made with.
    pub algorithm: HashAlgorithm,
    /// Named texts: `aa.toml`, `cdh.toml`, `policy.rego`. [`Settings`] has what they say.
    pub data: BTreeMap<String, String>,
}

/// Why something is no init data.
#[derive(Debug, thiserror::Error)]
pub enum InitDataError {
    /// More than [`MAX_LENGTH`] bytes.
    #[error("init data has {0} bytes, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// Not TOML of this shape.
    #[error("init data is not as expected: {0}")]
    Malformed(#[from] toml::de::Error),
    /// Another version.
    #[error("init data has version {0:?}, expected {VERSION:?}")]
    Version(String),
    /// An algorithm that is not to be relied upon.
    #[error("init data names the hash algorithm {0}, expected sha256, sha384 or sha512")]
    Algorithm(HashAlgorithm),
    /// An entry of `data` that nobody knows: a misspelt one that is passed over would be a hole.
    #[error("init data has an unknown entry {0:?}; known are aa.toml, cdh.toml and policy.rego")]
    UnknownEntry(String),
    /// An entry that does not say what it should.
    #[error("{entry} of the init data is not as expected: {reason}")]
    Entry {
        /// Which.
        entry: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What cannot be said in TOML.
    #[error("init data cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
    /// An annotation that is not base64.
    #[error("the annotation is not base64: {0}")]
    Encoding(#[from] base64::DecodeError),
    /// An annotation that is not gzip of UTF-8 text.
    #[error("the annotation's content cannot be read: {0}")]
    Compression(#[from] std::io::Error),
}

impl InitData {
    /// Parses the raw TOML. Unknown fields are errors.
    ///
    /// # Errors
    /// If the text is too long, is no TOML of init data, or is of another version or algorithm.
    pub fn parse(raw: &str) -> Result<Self, InitDataError> {
        if raw.len() > MAX_LENGTH {
            return Err(InitDataError::TooLong(raw.len()));
        }
        let init_data: Self = toml::from_str(raw)?;
        if init_data.version != VERSION {
            return Err(InitDataError::Version(init_data.version));
        }
        if init_data.algorithm == HashAlgorithm::Sha1 {
            return Err(InitDataError::Algorithm(init_data.algorithm));
        }
        Ok(init_data)
    }
}

/// The digest of raw init data, by the algorithm that it names itself.
///
/// # Errors
/// If it is no init data.
pub fn digest(raw: &str) -> Result<Vec<u8>, InitDataError> {
    Ok(InitData::parse(raw)?.algorithm.digest(raw.as_bytes()))
}

/// The pod annotation's form: base64 of gzip of the raw TOML. The same text always gives the same annotation.
///
/// # Errors
/// If it is no init data.
pub fn encode_annotation(raw: &str) -> Result<String, InitDataError> {
    InitData::parse(raw)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(raw.as_bytes())?;
    Ok(STANDARD.encode(encoder.finish()?))
}

/// The raw TOML of a pod annotation.
///
/// # Errors
/// If it is too long, packed or unpacked, not of this form, or no init data.
pub fn decode_annotation(annotation: &str) -> Result<String, InitDataError> {
    if annotation.len() > MAX_LENGTH {
        return Err(InitDataError::TooLong(annotation.len()));
    }
    let compressed = STANDARD.decode(annotation.trim())?;
    let limit = u64::try_from(MAX_LENGTH).unwrap_or(u64::MAX).saturating_add(1);
    let mut raw = String::new();
    GzDecoder::new(compressed.as_slice()).take(limit).read_to_string(&mut raw)?;
    InitData::parse(&raw)?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x = 1\"\n";

    #[test]
    fn the_digest_is_over_the_raw_text() {
        assert_eq!(digest(RAW).unwrap(), HashAlgorithm::Sha256.digest(RAW.as_bytes()));
        assert_ne!(digest(RAW).unwrap(), digest(&format!("{RAW}# a comment\n")).unwrap());
    }

    #[test]
    fn the_algorithm_is_the_one_that_it_names() {
        assert_eq!(digest(&RAW.replace("sha256", "sha384")).unwrap().len(), 48);
        assert!(matches!(digest(&RAW.replace("sha256", "sha1")), Err(InitDataError::Algorithm(_))));
        assert!(digest(&RAW.replace("sha256", "md5")).is_err());
    }

    #[test]
    fn an_annotation_round_trips() {
        assert_eq!(decode_annotation(&encode_annotation(RAW).unwrap()).unwrap(), RAW);
    }

    #[test]
    fn an_annotation_that_unpacks_to_too_much_is_refused() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![b'#'; MAX_LENGTH * 4]).unwrap();
        let bomb = STANDARD.encode(encoder.finish().unwrap());
        assert!(matches!(decode_annotation(&bomb), Err(InitDataError::TooLong(_))));
    }

    #[test]
    fn unknown_fields_and_other_versions_are_refused() {
        assert!(InitData::parse(&format!("extra = 1\n{RAW}")).is_err());
        assert!(matches!(InitData::parse(&RAW.replace("0.1.0", "0.2.0")), Err(InitDataError::Version(_))));
    }
}
