//! What evidence proves, and why it does not.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What evidence proves, by name. The appraisal compares it with reference values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims(pub Map<String, Value>);

/// Why evidence is refused: for the owner, never for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{claim}: expected {expected}, came {actual}")]
pub struct Refusal {
    /// What was looked at.
    pub claim: String,
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

impl Refusal {
    /// A refusal in words.
    pub fn new(claim: &str, expected: impl fmt::Display, actual: impl fmt::Display) -> Self {
        Self { claim: claim.to_owned(), expected: expected.to_string(), actual: actual.to_string() }
    }
}

/// Bytes for people.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    hex::encode(bytes)
}
