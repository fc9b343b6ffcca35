//! The guest's key pair of one attestation, and its public half as the wire has it.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::agreement::{self, EphemeralKey};
use super::{JweError, KEY_LENGTH};
use crate::Secret;

const RSA_OAEP_256: &str = "RSA-OAEP-256";
/// No modulus is shorter, in bytes.
const MIN_MODULUS: usize = 256;

/// A guest's public key: a JWK (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty", deny_unknown_fields)]
pub enum TeePublicKey {
    /// On P-256 or P-521, for `ECDH-ES+A256KW`.
    EC {
        /// `ECDH-ES+A256KW`.
        alg: String,
        /// The curve's name.
        crv: String,
        /// Base64url.
        x: String,
        /// Base64url.
        y: String,
    },
    /// For `RSA-OAEP-256`.
    RSA {
        /// `RSA-OAEP-256`.
        alg: String,
        /// The modulus, base64url.
        n: String,
        /// The exponent, base64url.
        e: String,
    },
}

/// A guest's key pair, made for one attestation.
pub struct TeeKeyPair {
    private: PrivateKey,
    public: TeePublicKey,
}

impl TeePublicKey {
    /// The algorithm that seals to it, as the key itself names it.
    pub fn algorithm(&self) -> &str {
        match self {
            Self::EC { alg, .. } | Self::RSA { alg, .. } => alg,
        }
    }

    /// The key's thumbprint (RFC 7638) with SHA-256, hexadecimal.
    pub fn thumbprint(&self) -> String {
        // The required members in lexicographic order.
        let members = match self {
            Self::EC { crv, x, y, .. } => json!({ "crv": crv, "kty": "EC", "x": x, "y": y }),
            Self::RSA { n, e, .. } => json!({ "e": e, "kty": "RSA", "n": n }),
        };
        let digest = digest::digest(&digest::SHA256, members.to_string().as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Wraps a content key for this key.
    pub(super) fn wrap(
        &self,
        content_key: &[u8; KEY_LENGTH],
    ) -> Result<(Option<EphemeralKey>, Vec<u8>), JweError> {
        match self {
            Self::EC { alg, crv, x, y } if alg == agreement::NAME => {
                let (epk, wrapped) = agreement::wrap(crv, x, y, content_key)?;
                Ok((Some(epk), wrapped))
            }
            Self::RSA { alg, n, e } if alg == RSA_OAEP_256 => Ok((None, wrap_rsa(n, e, content_key)?)),
            _ => Err(JweError::Key),
        }
    }
}

impl TeeKeyPair {
    /// A new key on P-256.
    ///
    /// # Errors
    /// [`JweError::Internal`], where the system has no random numbers.
    pub fn generate() -> Result<Self, JweError> {
        let private = PrivateKey::generate(&ECDH_P256).map_err(|_| JweError::Internal)?;
        let (x, y) = agreement::coordinates(&private, 32)?;
        let public = TeePublicKey::EC { alg: agreement::NAME.into(), crv: "P-256".into(), x, y };
        Ok(Self { private, public })
    }

    /// A key of a test vector, big-endian.
    #[cfg(test)]
    pub(super) fn from_scalar(public: TeePublicKey, scalar: &[u8]) -> Self {
        let TeePublicKey::EC { crv, .. } = &public else { panic!("not on a curve") };
        let (algorithm, _) = agreement::curve(crv).unwrap();
        Self { private: PrivateKey::from_private_key(algorithm, scalar).unwrap(), public }
    }

    /// The public half.
    pub fn public_key(&self) -> &TeePublicKey {
        &self.public
    }

    /// The private half as PKCS#8 PEM (RFC 5958, RFC 7468).
    ///
    /// # Errors
    /// [`JweError::Internal`].
    pub fn to_pkcs8_pem(&self) -> Result<Secret, JweError> {
        let der: Pkcs8V1Der<'_> = self.private.as_der().map_err(|_| JweError::Internal)?;
        let text = Zeroizing::new(STANDARD.encode(der.as_ref()));
        let mut pem = b"-----BEGIN PRIVATE KEY-----\n".to_vec();
        for line in text.as_bytes().chunks(64) {
            pem.extend_from_slice(line);
            pem.push(b'\n');
        }
        pem.extend_from_slice(b"-----END PRIVATE KEY-----\n");
        Ok(Secret::new(pem))
    }

    pub(super) fn unwrap(
        &self,
        epk: &EphemeralKey,
        wrapped: &[u8],
    ) -> Result<Zeroizing<[u8; KEY_LENGTH]>, JweError> {
        let TeePublicKey::EC { crv, .. } = &self.public else { return Err(JweError::Malformed) };
        agreement::unwrap(crv, &self.private, epk, wrapped)
    }
}

fn wrap_rsa(n: &str, e: &str, content_key: &[u8]) -> Result<Vec<u8>, JweError> {
    let decode = |text| URL_SAFE_NO_PAD.decode(text).map_err(|_| JweError::Key);
    let (n, e) = (decode(n)?, decode(e)?);
    if n.len() < MIN_MODULUS {
        return Err(JweError::Key);
    }
    let key: PublicEncryptingKey = PublicKeyComponents { n, e }.try_into().map_err(|_| JweError::Key)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| JweError::Key)?;
    let mut wrapped = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA256_MGF1SHA256, content_key, &mut wrapped, None).map_err(|_| JweError::Internal)?;
    Ok(wrapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_private_key_is_pem_of_pkcs8() {
        let pem = TeeKeyPair::generate().unwrap().to_pkcs8_pem().unwrap();
        let pem = String::from_utf8(pem.as_bytes().to_vec()).unwrap();
        assert!(
            pem.starts_with("-----BEGIN PRIVATE KEY-----\nM") && pem.ends_with("-----END PRIVATE KEY-----\n")
        );
        assert_eq!(format!("{:?}", Secret::new(pem.into_bytes())), "Secret(..)");
    }

    #[test]
    fn the_example_of_rfc_7638_has_its_thumbprint() {
        let n = concat!(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs",
            "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbI",
            "SD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        );
        let key = TeePublicKey::RSA { alg: RSA_OAEP_256.into(), n: n.into(), e: "AQAB".into() };
        let expected = URL_SAFE_NO_PAD.decode("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs").unwrap();
        let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(key.thumbprint(), expected);
    }

    #[test]
    fn keys_of_other_algorithms_are_refused() {
        let json = r#"{"kty":"RSA","alg":"RSA1_5","n":"AQAB","e":"AQAB"}"#;
        let key: TeePublicKey = serde_json::from_str(json).unwrap();
        assert!(matches!(key.wrap(&[0; KEY_LENGTH]), Err(JweError::Key)));
        let short = r#"{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB"}"#;
        let key: TeePublicKey = serde_json::from_str(short).unwrap();
        assert!(matches!(key.wrap(&[0; KEY_LENGTH]), Err(JweError::Key)));
    }
}
