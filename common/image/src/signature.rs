//! Signatures over images as cosign makes them: a small JSON document that names a manifest's digest and
//! the image's identity ("simple signing"), under a raw signature of a plain public key.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::json;

/// Media type of the signed document.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation in which the signature over the document stands, in base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What the document says it is.
const CRITICAL_TYPE: &str = "cosign container image signature";

/// The tag under which the signatures of a manifest are found in its own repository.
pub fn signature_tag(manifest: Digest) -> String {
    format!("sha256-{}.sig", manifest.hex())
}

/// One signature, not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The signed document, a [`Payload`] once the signature is verified.
    pub payload: Vec<u8>,
    /// ECDSA (ASN.1 DER), RSA PKCS#1 v1.5 or Ed25519, over the document.
    pub signature: Vec<u8>,
}

/// What a signature says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// What must be understood.
    pub critical: Critical,
    /// What the signer says beside; nothing depends on it.
    #[serde(default)]
    pub optional: Value,
}

/// The part of a [`Payload`] that must be understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Critical {
    /// As what the image was signed.
    pub identity: PayloadIdentity,
    /// What was signed.
    pub image: PayloadImage,
    /// Says that this is a signature over an image.
    pub r#type: String,
}

/// As what an image was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PayloadIdentity {
    /// A reference, or a name without tag and digest.
    pub docker_reference: String,
}

/// What was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PayloadImage {
    /// Of the manifest or index.
    pub docker_manifest_digest: Digest,
}

impl Payload {
    /// For signing the manifest with this digest as this identity.
    pub fn new(manifest: Digest, identity: &str) -> Self {
        Self {
            critical: Critical {
                identity: PayloadIdentity { docker_reference: identity.into() },
                image: PayloadImage { docker_manifest_digest: manifest },
                r#type: CRITICAL_TYPE.into(),
            },
            optional: Value::Null,
        }
    }

    /// Reads a document whose signature is verified.
    ///
    /// # Errors
    /// Malformed JSON, a duplicate or unknown key, another type of document.
    pub fn parse(bytes: &[u8]) -> Result<Self, PayloadError> {
        let text = std::str::from_utf8(bytes).map_err(|_| PayloadError::NotUtf8)?;
        let payload: Self = json::from_str(text).map_err(PayloadError::Malformed)?;
        if payload.critical.r#type != CRITICAL_TYPE {
            return Err(PayloadError::Type { actual: payload.critical.r#type });
        }
        Ok(payload)
    }
}

/// Why a signed document is refused.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Not text.
    #[error("the signed document is not UTF-8")]
    NotUtf8,
    /// Not the JSON it should be.
    #[error("the signed document is malformed: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A signature over something else than an image.
    #[error("the signed document is of type {actual:?}, expected {CRITICAL_TYPE:?}")]
    Type {
        /// What it says.
        actual: String,
    },
}

/// A public key that verifies signatures.
#[derive(Clone)]
pub struct VerifyingKey {
    key: ParsedPublicKey,
    fingerprint: Digest,
}

impl VerifyingKey {
    /// Reads a `PUBLIC KEY` in PEM (SubjectPublicKeyInfo): ECDSA P-256 or P-384, RSA of 2048 bits or more, or
    /// Ed25519; all but the last with SHA-256.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        const ALGORITHMS: [&dyn VerificationAlgorithm; 4] =
            [&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA256_ASN1, &RSA_PKCS1_2048_8192_SHA256, &ED25519];
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::NotPem)?;
        let key = ALGORITHMS
            .into_iter()
            .find_map(|algorithm| ParsedPublicKey::new(algorithm, der.as_ref()).ok())
            .ok_or(KeyError::Algorithm)?;
        Ok(Self { key, fingerprint: Digest::of(der.as_ref()) })
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo in DER: what people compare.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// Whether this key made the signature.
    pub fn verifies(&self, signature: &Signature) -> bool {
        self.key.verify_sig(&signature.payload, &signature.signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.fingerprint)
    }
}

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not PEM, or not a public key.
    #[error("not a public key in PEM, expected -----BEGIN PUBLIC KEY-----")]
    NotPem,
    /// A key of another kind.
    #[error(
        "a public key of an unknown kind, expected ECDSA P-256 or P-384, RSA of 2048 bits or more, or Ed25519"
    )]
    Algorithm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_as_it_was_written() {
        let payload = Payload::new(Digest::of(b"manifest"), "example.com/app:1");
        assert_eq!(Payload::parse(&serde_json::to_vec(&payload).unwrap()).unwrap(), payload);
    }

    #[test]
    fn a_payload_of_another_shape_is_refused() {
        let digest = Digest::of(b"manifest");
        let with = |critical: &str| format!(r#"{{"critical":{{{critical}}},"optional":null}}"#);
        let identity = r#""identity":{"docker-reference":"a.b/c"}"#;
        let image = format!(r#""image":{{"docker-manifest-digest":"{digest}"}}"#);
        let kind = r#""type":"cosign container image signature""#;
        let good = with(&format!("{identity},{image},{kind}"));
        assert!(Payload::parse(good.as_bytes()).is_ok());
        for bad in [
            with(&format!("{identity},{image}")),
            with(&format!("{identity},{kind}")),
            with(&format!("{image},{kind}")),
            with(&format!(r#"{identity},{image},"type":"atomic container signature""#)),
            with(&format!("{identity},{image},{kind},{image}")),
            with(&format!(r#"{identity},{image},{kind},"more":1"#)),
            format!("{good} "),
            good.replace("\"optional\":null", "\"optional\":null,\"more\":1"),
        ]
        .into_iter()
        .filter(|bad| bad.trim() != good)
        {
            assert!(Payload::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        assert_eq!(VerifyingKey::from_pem(b"").unwrap_err(), KeyError::NotPem);
        let private = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(VerifyingKey::from_pem(private).unwrap_err(), KeyError::NotPem);
        let garbage = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert_eq!(VerifyingKey::from_pem(garbage).unwrap_err(), KeyError::Algorithm);
    }
}
