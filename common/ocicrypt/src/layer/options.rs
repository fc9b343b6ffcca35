//! The two halves of a layer's encryption options, and their JSON.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::LayerError;
use crate::Secret;
use crate::encoding::Bytes;

/// The one cipher that the OCI image encryption defines.
pub const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
/// Bytes of a layer's key.
pub const KEY_LENGTH: usize = 32;
/// Bytes of a layer's nonce: the counter block that the stream begins with.
pub const NONCE_LENGTH: usize = 16;
/// Bytes of a layer's HMAC.
pub const HMAC_LENGTH: usize = 32;

const DIGEST_PREFIX: &str = "sha256:";

/// What only a recipient learns: the key, the nonce, and the digest of the compressed plaintext.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateOptions {
    pub(super) key: [u8; KEY_LENGTH],
    #[zeroize(skip)]
    pub(super) nonce: [u8; NONCE_LENGTH],
    #[zeroize(skip)]
    pub(super) digest: [u8; 32],
}

impl PrivateOptions {
    /// Reads the JSON that stands inside a recipient's wrapping.
    ///
    /// # Errors
    /// Anything but a key of 32 bytes, a nonce of 16 and a SHA-256 digest; an unknown field.
    pub fn parse(json: &[u8]) -> Result<Self, LayerError> {
        let wire: PrivateWire = serde_json::from_slice(json).map_err(|error| malformed("private", &error))?;
        let nonce = wire.cipheroptions.unwrap_or_default().nonce.ok_or(LayerError::NonceNotAuthenticated)?;
        Ok(Self {
            key: exactly("key", &wire.symkey.0)?,
            nonce: exactly("nonce", &nonce.0)?,
            digest: parse_digest(&wire.digest)?,
        })
    }

    /// The JSON to wrap for a recipient.
    pub fn to_json(&self) -> Secret {
        // Room for the whole text, so that no growing leaves a copy of the key behind.
        let mut json = Zeroizing::new(String::with_capacity(256));
        json.push_str(r#"{"symkey":""#);
        STANDARD.encode_string(self.key, &mut json);
        json.push_str(r#"","digest":""#);
        json.push_str(&self.digest());
        json.push_str(r#"","cipheroptions":{"nonce":""#);
        STANDARD.encode_string(self.nonce, &mut json);
        json.push_str(r#""}}"#);
        Secret::new(std::mem::take(&mut *json).into_bytes())
    }

    /// The digest of the compressed plaintext, as `sha256:` and lower-case hexadecimal.
    pub fn digest(&self) -> String {
        digest_text(&self.digest)
    }
}

/// Neither the key nor the nonce prints.
impl fmt::Debug for PrivateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateOptions").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// What anybody may read and alter: nothing here is believed before the HMAC proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicOptions {
    /// HMAC-SHA-256 of the ciphertext.
    pub(super) hmac: [u8; HMAC_LENGTH],
    /// Some tools repeat the nonce here.
    pub(super) nonce: Option<[u8; NONCE_LENGTH]>,
}

impl PublicOptions {
    /// Reads the JSON of the annotation `org.opencontainers.image.enc.pubopts`.
    ///
    /// # Errors
    /// Another cipher, an HMAC or a nonce of another length, an unknown field.
    pub fn parse(json: &[u8]) -> Result<Self, LayerError> {
        let wire: PublicWire = serde_json::from_slice(json).map_err(|error| malformed("public", &error))?;
        if wire.cipher != CIPHER {
            return Err(LayerError::Cipher { actual: wire.cipher });
        }
        let nonce = wire.cipheroptions.unwrap_or_default().nonce;
        Ok(Self {
            hmac: exactly("HMAC", &wire.hmac.0)?,
            nonce: nonce.map(|nonce| exactly("nonce", &nonce.0)).transpose()?,
        })
    }

    /// The JSON of the annotation.
    pub fn to_json(&self) -> String {
        let nonce = match &self.nonce {
            Some(nonce) => format!(r#""nonce":"{}""#, STANDARD.encode(nonce)),
            None => String::new(),
        };
        let hmac = STANDARD.encode(self.hmac);
        format!(r#"{{"cipher":"{CIPHER}","hmac":"{hmac}","cipheroptions":{{{nonce}}}}}"#)
    }

    /// The cipher's name.
    pub fn cipher(&self) -> &'static str {
        CIPHER
    }

    /// HMAC-SHA-256 of the ciphertext.
    pub fn hmac(&self) -> &[u8; HMAC_LENGTH] {
        &self.hmac
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateWire {
    symkey: Bytes,
    digest: String,
    cipheroptions: Option<CipherOptionsWire>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicWire {
    cipher: String,
    hmac: Bytes,
    cipheroptions: Option<CipherOptionsWire>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CipherOptionsWire {
    nonce: Option<Bytes>,
}

fn malformed(which: &'static str, error: &serde_json::Error) -> LayerError {
    LayerError::Malformed { which, line: error.line(), column: error.column() }
}

fn exactly<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], LayerError> {
    bytes.try_into().map_err(|_| LayerError::Length { field, expected: N, actual: bytes.len() })
}

fn parse_digest(text: &str) -> Result<[u8; 32], LayerError> {
    let refused = || LayerError::DigestForm { actual: text.chars().take(100).collect() };
    let digits = text.strip_prefix(DIGEST_PREFIX).ok_or_else(refused)?;
    if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return Err(refused());
    }
    let mut digest = [0; 32];
    hex::decode_to_slice(digits, &mut digest).map_err(|_| refused())?;
    Ok(digest)
}

pub(super) fn digest_text(digest: &[u8]) -> String {
    format!("{DIGEST_PREFIX}{}", hex::encode(digest))
}
