//! The claims of an attestation result (EAR: draft-ietf-rats-ear, with the AR4SI trustworthiness vector).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The profile that our tokens follow.
pub const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";

/// The claims that AR4SI defines (draft-ietf-rats-ar4si §2.3). A trustworthiness vector has no others.
pub const TRUSTWORTHINESS_CLAIMS: [&str; 8] = [
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
];

/// The name of the submodule of the guest itself.
pub const CPU: &str = "cpu0";

/// The claims of a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ear {
    /// The profile, see [`PROFILE`].
    pub eat_profile: String,
    /// When it was issued, in seconds since the Unix epoch.
    pub iat: u64,
    /// When it ends, in seconds since the Unix epoch.
    pub exp: u64,
    /// Who issued it.
    pub iss: String,
    /// Who verified.
    #[serde(rename = "ear.verifier-id")]
    pub verifier_id: VerifierId,
    /// The result for each part of the guest.
    pub submods: BTreeMap<String, Submod>,
}

/// Who verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifierId {
    /// The software.
    pub build: String,
    /// Whose it is.
    pub developer: String,
}

/// The result for a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submod {
    /// The worst tier of the vector.
    #[serde(rename = "ear.status")]
    pub status: Status,
    /// By claim.
    #[serde(rename = "ear.trustworthiness-vector")]
    pub vector: TrustworthinessVector,
    /// The policy that appraised.
    #[serde(rename = "ear.appraisal-policy-id")]
    pub policy_id: String,
    /// The evidence's claims and what the report data binds.
    #[serde(rename = "ear.veraison.annotated-evidence")]
    pub annotated_evidence: Value,
    /// What the policy adds, by claim name (the draft's extensions).
    #[serde(flatten)]
    pub extensions: BTreeMap<String, Value>,
}

/// AR4SI's claims; 2 to 31 affirms, 32 to 95 warns, 96 and above contraindicates.
pub type TrustworthinessVector = BTreeMap<String, i8>;

/// A tier of AR4SI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is known.
    None,
    /// As it should be.
    Affirming,
    /// To be looked at.
    Warning,
    /// Not to be trusted.
    Contraindicated,
}

impl Status {
    /// The tier of one claim's value (draft-ietf-rats-ar4si §2.3).
    pub fn of(value: i8) -> Self {
        match value {
            2..=31 | -32..=-2 => Self::Affirming,
            32..=95 | -96..=-33 => Self::Warning,
            96..=127 | -128..=-97 => Self::Contraindicated,
            -1..=1 => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claims_value_has_its_tier() {
        for (value, status) in [
            (0, Status::None),
            (1, Status::None),
            (2, Status::Affirming),
            (31, Status::Affirming),
            (32, Status::Warning),
            (96, Status::Contraindicated),
            (99, Status::Contraindicated),
            (-1, Status::None),
            (-128, Status::Contraindicated),
        ] {
            assert_eq!(Status::of(value), status, "{value}");
        }
    }
}
