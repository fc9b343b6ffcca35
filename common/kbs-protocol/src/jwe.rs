//! Encryption to a guest's key: JWE (RFC 7516) in flattened JSON, A256GCM content, and the guest's key as a JWK.

mod agreement;
#[cfg(test)]
mod interoperation;
mod key;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Secret;
use agreement::EphemeralKey;
pub use key::{TeeKeyPair, TeePublicKey};

const TAG_LENGTH: usize = 16;
const KEY_LENGTH: usize = 32;

/// A JWE in flattened JSON serialisation; every member is base64url without padding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwe {
    /// The protected header, as it was authenticated.
    pub protected: String,
    /// The wrapped content key.
    pub encrypted_key: String,
    /// The initialisation vector.
    pub iv: String,
    /// The content.
    pub ciphertext: String,
    /// The authentication tag.
    pub tag: String,
}

/// Why something cannot be sealed or opened. Says nothing of keys or contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// The key is none that can be used.
    #[error(
        "the public key cannot be used: expected an EC key on P-256 or P-521, or RSA of 2048 bits or more"
    )]
    Key,
    /// The message is not well-formed, or not for this algorithm.
    #[error("the message is not a JWE that this key opens")]
    Malformed,
    /// It was made for another key, or was altered.
    #[error("the message does not open with this key")]
    Opaque,
    /// The machine's cryptography failed.
    #[error("the cryptographic library failed")]
    Internal,
}

/// The protected header. Its members' order is that in which other clients serialise it again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<EphemeralKey>,
}

impl Jwe {
    /// Encrypts to a guest's key.
    ///
    /// # Errors
    /// [`JweError`]: the guest's key is none, or the system has no random numbers.
    pub fn seal(recipient: &TeePublicKey, content: &[u8]) -> Result<Self, JweError> {
        let mut content_key = Zeroizing::new([0; KEY_LENGTH]);
        rand::fill(content_key.as_mut_slice()).map_err(|_| JweError::Internal)?;
        let (epk, encrypted_key) = recipient.wrap(&content_key)?;
        let header = Header { alg: recipient.algorithm().to_owned(), enc: "A256GCM".into(), epk };
        let protected = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).map_err(|_| JweError::Internal)?);

        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv).map_err(|_| JweError::Internal)?;
        let mut ciphertext = content.to_vec();
        let aad = Aad::from(protected.as_bytes());
        let tag = gcm(&content_key)?
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut ciphertext)
            .map_err(|_| JweError::Internal)?;
        Ok(Self {
            encrypted_key: URL_SAFE_NO_PAD.encode(encrypted_key),
            iv: URL_SAFE_NO_PAD.encode(iv),
            ciphertext: URL_SAFE_NO_PAD.encode(ciphertext),
            tag: URL_SAFE_NO_PAD.encode(tag.as_ref()),
            protected,
        })
    }
}

impl TeeKeyPair {
    /// Decrypts what was sealed to this key.
    ///
    /// # Errors
    /// [`JweError`]: it is not of this form, is for another key, or was altered.
    pub fn open(&self, jwe: &Jwe) -> Result<Secret, JweError> {
        let header: Header =
            serde_json::from_slice(&decode(&jwe.protected)?).map_err(|_| JweError::Malformed)?;
        if header.enc != "A256GCM" || header.alg != self.public_key().algorithm() {
            return Err(JweError::Malformed);
        }
        let epk = header.epk.ok_or(JweError::Malformed)?;
        let content_key = self.unwrap(&epk, &decode(&jwe.encrypted_key)?)?;
        let iv: [u8; NONCE_LEN] = decode(&jwe.iv)?.try_into().map_err(|_| JweError::Malformed)?;
        let mut content = Zeroizing::new(decode(&jwe.ciphertext)?);
        let tag = decode(&jwe.tag)?;
        if tag.len() != TAG_LENGTH {
            return Err(JweError::Malformed);
        }
        content.extend_from_slice(&tag);
        // The header's own bytes are what was authenticated, however its members are ordered.
        let aad = Aad::from(jwe.protected.as_bytes());
        let plain = gcm(&content_key)?
            .open_in_place(Nonce::assume_unique_for_key(iv), aad, &mut content)
            .map_err(|_| JweError::Opaque)?;
        Ok(Secret::new(plain.to_vec()))
    }
}

fn gcm(key: &[u8; KEY_LENGTH]) -> Result<LessSafeKey, JweError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| JweError::Internal)
}

fn decode(text: &str) -> Result<Vec<u8>, JweError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_to_a_key_opens_with_it_and_with_no_other() {
        let (mine, other) = (TeeKeyPair::generate().unwrap(), TeeKeyPair::generate().unwrap());
        let jwe = Jwe::seal(mine.public_key(), b"a secret").unwrap();
        assert_eq!(mine.open(&jwe).unwrap().as_bytes(), b"a secret");
        assert_eq!(other.open(&jwe).unwrap_err(), JweError::Opaque);
    }

    #[test]
    fn each_altered_member_is_noticed() {
        let keys = TeeKeyPair::generate().unwrap();
        let jwe = Jwe::seal(keys.public_key(), b"a secret").unwrap();
        let flip = |text: &str| {
            let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
            bytes[0] ^= 1;
            URL_SAFE_NO_PAD.encode(bytes)
        };
        for altered in [
            Jwe { protected: flip(&jwe.protected), ..jwe.clone() },
            Jwe { encrypted_key: flip(&jwe.encrypted_key), ..jwe.clone() },
            Jwe { iv: flip(&jwe.iv), ..jwe.clone() },
            Jwe { ciphertext: flip(&jwe.ciphertext), ..jwe.clone() },
            Jwe { tag: flip(&jwe.tag), ..jwe.clone() },
            Jwe { tag: String::new(), ..jwe.clone() },
        ] {
            assert!(keys.open(&altered).is_err());
        }
    }

    #[test]
    fn the_header_has_the_order_in_which_other_clients_write_it() {
        let keys = TeeKeyPair::generate().unwrap();
        let jwe = Jwe::seal(keys.public_key(), b"").unwrap();
        let header = String::from_utf8(URL_SAFE_NO_PAD.decode(jwe.protected).unwrap()).unwrap();
        let places: Vec<usize> = ["\"alg\"", "\"enc\"", "\"epk\"", "\"crv\"", "\"kty\"", "\"x\"", "\"y\""]
            .iter()
            .map(|member| header.find(member).unwrap())
            .collect();
        assert!(places.is_sorted(), "{header}");
    }

    #[test]
    fn a_key_that_is_no_point_of_its_curve_is_refused() {
        for length in [3, 32] {
            let zeros = URL_SAFE_NO_PAD.encode(vec![0; length]);
            let key = TeePublicKey::EC {
                alg: "ECDH-ES+A256KW".into(),
                crv: "P-256".into(),
                x: zeros.clone(),
                y: zeros,
            };
            assert_eq!(Jwe::seal(&key, b"x").unwrap_err(), JweError::Key, "{length}");
        }
    }
}
