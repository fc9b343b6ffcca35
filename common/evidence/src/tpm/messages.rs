//! How TPM evidence travels in the key broker's protocol.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// No part of a credential is longer, in bytes: TPMs have RSA keys of 4096 bits and hashes of 512 at most.
const MAX_CREDENTIAL_PART: usize = 1024;

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
    /// The content of `TPM2B_ID_OBJECT`, at most 1024 bytes.
    #[serde(serialize_with = "base64_text::serialize", deserialize_with = "credential_part")]
    pub credential_blob: Vec<u8>,
    /// The content of `TPM2B_ENCRYPTED_SECRET`, at most 1024 bytes.
    #[serde(serialize_with = "base64_text::serialize", deserialize_with = "credential_part")]
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

fn credential_part<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let bytes = base64_text::deserialize(deserializer)?;
    match bytes.len() {
        0..=MAX_CREDENTIAL_PART => Ok(bytes),
        length => Err(serde::de::Error::custom(format!(
            "a part of the credential has {length} bytes, expected {MAX_CREDENTIAL_PART} at most"
        ))),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_credential_is_no_longer_than_tpms_make_it() {
        for (blob, secret, good) in [
            (MAX_CREDENTIAL_PART, MAX_CREDENTIAL_PART, true),
            (0, 0, true),
            (MAX_CREDENTIAL_PART + 1, 1, false),
            (1, MAX_CREDENTIAL_PART + 1, false),
            (1 << 17, 1 << 17, false),
        ] {
            let encode = |length| STANDARD.encode(vec![7; length]);
            let params = json!({ "credential_blob": encode(blob), "encrypted_secret": encode(secret) });
            assert_eq!(serde_json::from_value::<ChallengeParams>(params).is_ok(), good, "{blob} {secret}");
        }
    }
}
