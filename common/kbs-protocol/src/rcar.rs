//! The messages of the handshake, protocol 0.4.0.

use sealpod_evidence::Tee;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::jwe::TeePublicKey;

/// The version that this crate speaks.
pub const VERSION: &str = "0.4.0";

/// The versions that a server takes, by exact match.
pub const VERSIONS: [&str; 1] = [VERSION];

/// `POST auth`: a guest says what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The protocol's version.
    pub version: String,
    /// The TEE that evidence will come from.
    pub tee: Tee,
    /// What a TEE adds, and `supported-hash-algorithms`.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// The answer to [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    /// 32 random bytes, standard base64.
    pub nonce: String,
    /// What a TEE adds, and `selected-hash-algorithm`.
    #[serde(rename = "extra-params")]
    pub extra_params: Value,
}

/// `POST attest`: the guest's answer to the challenge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// The raw init data whose digest the evidence reports.
    #[serde(rename = "init-data", default)]
    pub init_data: Option<InitDataBody>,
    /// What the report data binds.
    #[serde(rename = "runtime-data")]
    pub runtime_data: RuntimeData,
    /// The evidence.
    #[serde(rename = "tee-evidence")]
    pub tee_evidence: TeeEvidence,
}

/// Init data as it travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitDataBody {
    /// `toml`.
    pub format: String,
    /// The raw text.
    pub body: String,
}

/// What the guest's report data binds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeData {
    /// The challenge's.
    pub nonce: String,
    /// The key that secrets are sealed to.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: TeePublicKey,
}

/// The evidence of a guest and of its devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeeEvidence {
    /// The TEE's own; its form depends on the TEE.
    pub primary_evidence: Value,
    /// JSON of the devices' evidence by device, as a text; empty for none.
    pub additional_evidence: String,
}

/// The answer to [`Attestation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// A JWT, see [`crate::ear`].
    pub token: String,
}

/// The body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// `https://github.com/confidential-containers/kbs/errors/` and the error's name.
    #[serde(rename = "type")]
    pub kind: String,
    /// In words.
    pub detail: String,
    /// The entry in the owner's audit log that says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<String>,
}

impl RuntimeData {
    /// What a primary TEE's report data is the hash of (with [`sealpod_evidence::report_data`]).
    pub fn bound_with(&self, additional_evidence: &str) -> Value {
        serde_json::json!({
            "additional-evidence": additional_evidence,
            "nonce": self.nonce,
            "tee-pubkey": self.tee_pubkey,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attestation() -> Value {
        json!({
            "init-data": null,
            "runtime-data": { "nonce": "AA==", "tee-pubkey": {
                "kty": "EC", "alg": "ECDH-ES+A256KW", "crv": "P-256", "x": "AA", "y": "AA" } },
            "tee-evidence": { "primary_evidence": {}, "additional_evidence": "" },
        })
    }

    #[test]
    fn the_messages_have_the_names_of_the_wire() {
        let request = Request { version: VERSION.into(), tee: Tee::Tpm, extra_params: json!({}) };
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            json!({ "version": "0.4.0", "tee": "tpm", "extra-params": {} })
        );
        let parsed: Attestation = serde_json::from_value(attestation()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), attestation());
    }

    #[test]
    fn unknown_members_are_refused() {
        let mut other = attestation();
        other["more"] = json!(1);
        assert!(serde_json::from_value::<Attestation>(other).is_err());
    }
}
