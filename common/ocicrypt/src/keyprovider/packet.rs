//! The annotation packet: what the key provider leaves in a layer's annotation.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{self, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::Secret;
use crate::encoding::Bytes;

const VERSION: &str = "0.1.0";
const KBS: &str = "kbs";
const KEY_LENGTH: usize = 32;
const MAX_KID_LENGTH: usize = 1024;
/// Private options are about 200 bytes.
const MAX_WRAPPED_LENGTH: usize = 64 * 1024;

/// Private options under a symmetric key with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationPacket {
    version: PacketVersion,
    kid: String,
    wrapped_data: Vec<u8>,
    iv: Vec<u8>,
    wrap_type: WrapType,
}

/// The two forms of the packet that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PacketVersion {
    /// Four fields; what every release of the existing guests understands.
    #[default]
    V1,
    /// The same with a version, and who keeps the key.
    V2,
}

/// How the data are encrypted under the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WrapType {
    /// AES-256-GCM, an IV of 12 bytes, no additional data, the tag appended.
    #[default]
    A256Gcm,
    /// AES-256 in counter mode, an IV of 16 bytes. Not authenticated: an altered packet shows only when
    /// the layer's HMAC does not match.
    A256Ctr,
}

impl WrapType {
    fn iv_length(self) -> usize {
        match self {
            Self::A256Gcm => 12,
            Self::A256Ctr => 16,
        }
    }
}

impl fmt::Display for WrapType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A256Gcm => "A256GCM",
            Self::A256Ctr => "A256CTR",
        })
    }
}

impl FromStr for WrapType {
    type Err = PacketError;

    fn from_str(name: &str) -> Result<Self, PacketError> {
        match name {
            "A256GCM" | "aes-gcm" => Ok(Self::A256Gcm),
            "A256CTR" | "aes_256_ctr" => Ok(Self::A256Ctr),
            _ => Err(PacketError::WrapType { actual: shorten(name) }),
        }
    }
}

/// Why a packet was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It is not the JSON that it should be, or has unknown fields.
    #[error("the annotation packet is malformed: {0}")]
    Malformed(String),
    /// A field is not there.
    #[error("the annotation packet has no {field}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// A later version.
    #[error("the annotation packet has version {actual:?}, expected {VERSION:?}")]
    Version {
        /// What stands there.
        actual: String,
    },
    /// Its key is kept by somebody else than a key broker.
    #[error("the annotation packet's key is kept by {actual:?}, only {KBS:?} is supported")]
    Provider {
        /// What stands there.
        actual: String,
    },
    /// Settings for the key broker, of which none is defined.
    #[error("the annotation packet sets {field}, which mean nothing for {KBS:?}")]
    Settings {
        /// Which field is not empty.
        field: &'static str,
    },
    /// Encrypted in a way that is not known.
    #[error("the wrap type is {actual:?}, expected \"A256GCM\" or \"A256CTR\"")]
    WrapType {
        /// What stands there.
        actual: String,
    },
    /// The key's id is empty, too long, or has control characters.
    #[error("the key id {actual:?} is not one: expected 1 to {MAX_KID_LENGTH} printable characters")]
    Kid {
        /// Its beginning.
        actual: String,
    },
    /// A field does not have its length.
    #[error("the {field} has {actual} bytes, expected {expected}")]
    Length {
        /// "IV", "key", "wrapped data".
        field: &'static str,
        /// In bytes, in words where it is a range.
        expected: String,
        /// In bytes.
        actual: usize,
    },
    /// It is not what was wrapped under this key.
    #[error("the key {kid} does not open the annotation packet")]
    NotOpened {
        /// The key's id.
        kid: String,
    },
    /// The cryptographic library failed, for want of memory or randomness.
    #[error("the cryptographic library failed while wrapping a key")]
    Crypto,
}

impl AnnotationPacket {
    /// Reads the packet's JSON, of either version; byte fields as base64 or arrays of integers.
    ///
    /// # Errors
    /// [`PacketError`]; unknown fields among them.
    pub fn parse(json: &[u8]) -> Result<Self, PacketError> {
        let wire: Wire = serde_json::from_slice(json)
            .map_err(|error| PacketError::Malformed(shorten(&error.to_string())))?;
        let version = wire.version()?;
        let wrap_type: WrapType =
            wire.wrap_type.ok_or(PacketError::Missing { field: "wrap_type" })?.parse()?;
        let iv = wire.iv.ok_or(PacketError::Missing { field: "iv" })?.into_public();
        let packet =
            Self { version, kid: wire.kid, wrapped_data: wire.wrapped_data.into_public(), iv, wrap_type };
        packet.check()?;
        Ok(packet)
    }

    /// Wraps data under a key with a fresh IV.
    ///
    /// # Errors
    /// An unusable key id; [`PacketError::Crypto`].
    pub fn seal(
        version: PacketVersion,
        kid: &str,
        key: &[u8; KEY_LENGTH],
        wrap_type: WrapType,
        data: &[u8],
    ) -> Result<Self, PacketError> {
        let mut iv = vec![0; wrap_type.iv_length()];
        rand::fill(&mut iv).map_err(|_| PacketError::Crypto)?;
        let wrapped_data = match wrap_type {
            WrapType::A256Gcm => gcm_seal(key, &iv, data),
            WrapType::A256Ctr => ctr_encrypt(key, &iv, data),
        };
        let wrapped_data = wrapped_data.ok_or(PacketError::Crypto)?;
        let packet = Self { version, kid: kid.to_owned(), wrapped_data, iv, wrap_type };
        packet.check()?;
        Ok(packet)
    }

    /// Opens the packet under the key that [`Self::kid`] names.
    ///
    /// # Errors
    /// A key of another length than 32 bytes; [`PacketError::NotOpened`].
    pub fn open(&self, key: &Secret) -> Result<Secret, PacketError> {
        let key: &[u8; KEY_LENGTH] = key.as_bytes().try_into().map_err(|_| PacketError::Length {
            field: "key",
            expected: KEY_LENGTH.to_string(),
            actual: key.as_bytes().len(),
        })?;
        let data = match self.wrap_type {
            WrapType::A256Gcm => gcm_open(key, &self.iv, &self.wrapped_data),
            WrapType::A256Ctr => ctr_decrypt(key, &self.iv, &self.wrapped_data),
        };
        data.ok_or_else(|| PacketError::NotOpened { kid: self.kid.clone() })
    }

    /// The packet's JSON, byte fields as base64.
    pub fn to_json(&self) -> String {
        let v2 = self.version == PacketVersion::V2;
        let wire = Wire {
            version: v2.then(|| VERSION.to_owned()),
            provider: v2.then(|| KBS.to_owned()),
            kid: self.kid.clone(),
            wrapped_data: Bytes::new(self.wrapped_data.clone()),
            iv: Some(Bytes::new(self.iv.clone())),
            wrap_type: Some(self.wrap_type.to_string()),
            provider_settings: v2.then(Map::new),
            annotations: v2.then(Map::new),
        };
        serde_json::to_string(&wire).expect("strings and empty maps always serialise")
    }

    /// The id of the key that opens this.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The form it came in, or will be written in.
    pub fn version(&self) -> PacketVersion {
        self.version
    }

    /// How the data are encrypted.
    pub fn wrap_type(&self) -> WrapType {
        self.wrap_type
    }

    fn check(&self) -> Result<(), PacketError> {
        if self.kid.is_empty() || self.kid.len() > MAX_KID_LENGTH || self.kid.chars().any(char::is_control) {
            return Err(PacketError::Kid { actual: shorten(&self.kid) });
        }
        if self.iv.len() != self.wrap_type.iv_length() {
            return Err(PacketError::Length {
                field: "IV",
                expected: format!("{} for {}", self.wrap_type.iv_length(), self.wrap_type),
                actual: self.iv.len(),
            });
        }
        if self.wrapped_data.is_empty() || self.wrapped_data.len() > MAX_WRAPPED_LENGTH {
            return Err(PacketError::Length {
                field: "wrapped data",
                expected: format!("1 to {MAX_WRAPPED_LENGTH}"),
                actual: self.wrapped_data.len(),
            });
        }
        Ok(())
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    kid: String,
    wrapped_data: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iv: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrap_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider_settings: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Map<String, Value>>,
}

impl Wire {
    /// Version 2 is told by any of the fields that version 1 does not have.
    fn version(&self) -> Result<PacketVersion, PacketError> {
        let settings = [("provider_settings", &self.provider_settings), ("annotations", &self.annotations)];
        if self.version.is_none() && self.provider.is_none() && settings.iter().all(|(_, map)| map.is_none())
        {
            return Ok(PacketVersion::V1);
        }
        if let Some(actual) = self.version.as_ref().filter(|version| *version != VERSION) {
            return Err(PacketError::Version { actual: shorten(actual) });
        }
        if let Some(actual) = self.provider.as_ref().filter(|provider| *provider != KBS) {
            return Err(PacketError::Provider { actual: shorten(actual) });
        }
        match settings.iter().find(|(_, map)| map.as_ref().is_some_and(|map| !map.is_empty())) {
            Some((field, _)) => Err(PacketError::Settings { field }),
            None => Ok(PacketVersion::V2),
        }
    }
}

fn gcm_key(key: &[u8; KEY_LENGTH]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&aead::AES_256_GCM, key).ok()?))
}

fn gcm_seal(key: &[u8; KEY_LENGTH], iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    // Room for the tag, so that no growing leaves plaintext behind.
    let mut buffer = Vec::with_capacity(data.len().checked_add(aead::MAX_TAG_LEN)?);
    buffer.extend_from_slice(data);
    let nonce = Nonce::try_assume_unique_for_key(iv).ok()?;
    gcm_key(key)?.seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut buffer).ok()?;
    Some(buffer)
}

fn gcm_open(key: &[u8; KEY_LENGTH], iv: &[u8], wrapped: &[u8]) -> Option<Secret> {
    let mut buffer = Zeroizing::new(wrapped.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(iv).ok()?;
    let length = gcm_key(key)?.open_in_place(nonce, aead::Aad::empty(), &mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer.into())
}

fn ctr_encrypt(key: &[u8; KEY_LENGTH], iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = data.to_vec();
    let context = EncryptionContext::Iv128(FixedLength::try_from(iv).ok()?);
    let key = EncryptingKey::ctr(UnboundCipherKey::new(&AES_256, key).ok()?).ok()?;
    key.less_safe_encrypt(&mut buffer, context).ok()?;
    Some(buffer)
}

fn ctr_decrypt(key: &[u8; KEY_LENGTH], iv: &[u8], wrapped: &[u8]) -> Option<Secret> {
    let mut buffer = Zeroizing::new(wrapped.to_vec());
    let context = DecryptionContext::Iv128(FixedLength::try_from(iv).ok()?);
    let key = DecryptingKey::ctr(UnboundCipherKey::new(&AES_256, key).ok()?).ok()?;
    key.decrypt(&mut buffer, context).ok()?;
    Some(buffer.into())
}

/// What an error repeats of somebody else's text.
fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}
