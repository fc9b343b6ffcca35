//! How TPM evidence travels in the key broker's protocol.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the guest sends with its request (`extra-params.tpm`): the keys for which it wants a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestParams {
    /// The endorsement key's certificate, DER.
    #[serde(with = "base64_text")]
    pub ek_certificate: Vec<u8>,
    /// The endorsement key's public area (`TPMT_PUBLIC`).
    #[serde(with = "base64_text")]
    pub ek_public: Vec<u8>,
    /// The attestation key's public area (`TPMT_PUBLIC`).
    #[serde(with = "base64_text")]
    pub ak_public: Vec<u8>,
}

/// What the broker answers (`extra-params.tpm`): a secret that only this endorsement key's TPM opens, and only for
/// this attestation key (part 1 §24).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeParams {
    /// The content of `TPM2B_ID_OBJECT`.
    #[serde(with = "base64_text")]
    pub credential_blob: Vec<u8>,
    /// The content of `TPM2B_ENCRYPTED_SECRET`.
    #[serde(with = "base64_text")]
    pub encrypted_secret: Vec<u8>,
}

/// The evidence of a measured boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The quote.
    pub tpm_quote: QuoteEvidence,
    /// The attestation key as SubjectPublicKeyInfo, DER.
    #[serde(with = "base64_text")]
    pub ak_public: Vec<u8>,
    /// The firmware's event log as the kernel shows it. Other attesters leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_base64_text")]
    pub event_log: Option<Vec<u8>>,
    /// HMAC-SHA256 of the quote's message under the secret of [`ChallengeParams`].
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_base64_text")]
    pub credential_proof: Option<Vec<u8>>,
}

/// A quote and the register values that it covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteEvidence {
    /// `TPMT_SIGNATURE`.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
    /// `TPMS_ATTEST`.
    #[serde(with = "base64_text")]
    pub message: Vec<u8>,
    /// The selected registers' values in hexadecimal, in ascending order of their numbers.
    pub pcrs: Vec<String>,
}

mod base64_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

mod optional_base64_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        base64_text::deserialize(deserializer).map(Some)
    }
}
