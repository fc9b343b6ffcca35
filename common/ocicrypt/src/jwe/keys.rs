//! Public and private keys, and the files they come in.

use std::fmt;

use aws_lc_rs::agreement::PrivateKey as EcdhKey;
use aws_lc_rs::rsa::{
    OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _, oid::ObjectIdentifier};
use x509_cert::spki::SubjectPublicKeyInfoRef;
use zeroize::Zeroizing;

use super::agreement::{PartyInfo, Point, key_encryption_key};
use super::algorithm::{Algorithm, Curve};
use super::jwk::{Base64Url, Jwk};
use super::wire::RecipientKey;
use super::{ContentKey, der, key_wrap};

const RSA_OID: &str = "1.2.840.113549.1.1.1";
const EC_OID: &str = "1.2.840.10045.2.1";

/// Why a key file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFormatError {
    /// Neither PEM nor JSON.
    #[error("neither a key in PEM nor a JSON Web Key")]
    Unrecognised,
    /// PEM of something else.
    #[error("the PEM block is a {actual:?}, expected {expected}")]
    Label {
        /// What would do.
        expected: &'static str,
        /// The block's label.
        actual: String,
    },
    /// A private key under a passphrase.
    #[error("the private key is under a passphrase; decrypt it first: openssl pkey -in FILE -out PLAIN")]
    UnderPassphrase,
    /// A private key where a public one belongs.
    #[error("a private key, expected a public one: openssl pkey -in FILE -pubout -out PUBLIC")]
    Private,
    /// A public key where a private one belongs.
    #[error("a public key, expected a private one")]
    Public,
    /// The right form, wrong inside.
    #[error("the key is malformed: {0}")]
    Malformed(&'static str),
    /// A kind of key that cannot be used.
    #[error(
        "the key is of the kind {actual:?}, expected RSA of 2048 to 8192 bits, or EC on P-256, P-384 or P-521"
    )]
    Kind {
        /// What it is.
        actual: String,
    },
    /// An algorithm that is not known, or not this key's.
    #[error("the key is for the algorithm {actual:?}, which does not suit it or is not supported")]
    Algorithm {
        /// What stands there.
        actual: String,
    },
}

/// A recipient's public key.
#[derive(Clone)]
pub struct PublicKey {
    kind: PublicKind,
    algorithm: Algorithm,
    kid: Option<String>,
}

#[derive(Clone)]
enum PublicKind {
    Rsa(PublicEncryptingKey),
    Ec(Point),
}

impl PublicKey {
    /// Reads a PEM file (public key, PKCS#1 public key, certificate) or a JSON Web Key.
    ///
    /// # Errors
    /// [`KeyFormatError`].
    pub fn parse(file: &[u8]) -> Result<Self, KeyFormatError> {
        match KeyFile::read(file)? {
            KeyFile::Jwk(jwk) => Self::from_jwk(&jwk),
            KeyFile::Pem { label, der } => match label.as_str() {
                "PUBLIC KEY" => Self::from_spki(&der),
                "RSA PUBLIC KEY" => Self::from_spki(&der::rsa_public_key_info_of_pkcs1(&der)),
                "CERTIFICATE" => Self::from_certificate(&der),
                "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                    Err(KeyFormatError::Private)
                }
                _ => Err(KeyFormatError::Label { expected: "a public key or a certificate", actual: label }),
            },
        }
    }

    /// Chooses another algorithm than the default, which is RSA-OAEP or ECDH-ES+A256KW.
    ///
    /// # Errors
    /// [`KeyFormatError::Algorithm`] if this kind of key cannot serve it.
    pub fn with_algorithm(self, algorithm: Algorithm) -> Result<Self, KeyFormatError> {
        let suits = match &self.kind {
            PublicKind::Rsa(_) => algorithm.oaep().is_some(),
            PublicKind::Ec(_) => algorithm.key_wrap_length().is_some(),
        };
        match suits {
            true => Ok(Self { algorithm, ..self }),
            false => Err(KeyFormatError::Algorithm { actual: algorithm.to_string() }),
        }
    }

    /// Encrypts a content key for this recipient; `None` where the library fails.
    pub(super) fn wrap(&self, key: &ContentKey) -> Option<RecipientKey> {
        let info = PartyInfo::default();
        let (ephemeral, encrypted_key) = match &self.kind {
            PublicKind::Rsa(public) => {
                let public = OaepPublicEncryptingKey::new(public.clone()).ok()?;
                let mut encrypted = vec![0; public.ciphertext_size()];
                let length = public.encrypt(self.algorithm.oaep()?, &**key, &mut encrypted, None).ok()?.len();
                encrypted.truncate(length);
                (None, encrypted)
            }
            PublicKind::Ec(point) => {
                let ephemeral = EcdhKey::generate(point.curve.ecdh()).ok()?;
                let key_encryption_key = key_encryption_key(&ephemeral, point, self.algorithm, &info)?;
                let ephemeral = Point::of_private_key(point.curve, &ephemeral)?;
                (Some(ephemeral), key_wrap::wrap(&key_encryption_key, &**key)?)
            }
        };
        Some(RecipientKey {
            algorithm: self.algorithm,
            kid: self.kid.clone(),
            ephemeral,
            info,
            encrypted_key,
        })
    }

    fn new(kind: PublicKind) -> Self {
        let algorithm = match kind {
            PublicKind::Rsa(_) => Algorithm::RsaOaep,
            PublicKind::Ec(_) => Algorithm::EcdhEsA256Kw,
        };
        Self { kind, algorithm, kid: None }
    }

    fn from_certificate(der: &[u8]) -> Result<Self, KeyFormatError> {
        let certificate =
            Certificate::from_der(der).map_err(|_| KeyFormatError::Malformed("not a certificate"))?;
        let spki = certificate.tbs_certificate().subject_public_key_info().to_der();
        Self::from_spki(&spki.map_err(|_| KeyFormatError::Malformed("the certificate's public key"))?)
    }

    fn from_spki(spki: &[u8]) -> Result<Self, KeyFormatError> {
        let malformed = KeyFormatError::Malformed("not a SubjectPublicKeyInfo");
        let info = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| malformed.clone())?;
        let algorithm = info.algorithm.oid.to_string();
        match algorithm.as_str() {
            RSA_OID => Self::rsa(spki),
            EC_OID => {
                let curve = info.algorithm.parameters.ok_or(malformed)?;
                let curve = curve.decode_as::<ObjectIdentifier>();
                let curve =
                    curve.map_err(|_| KeyFormatError::Malformed("the curve is not named"))?.to_string();
                let curve = Curve::from_oid(&curve)
                    .ok_or_else(|| KeyFormatError::Kind { actual: format!("EC on curve {curve}") })?;
                let point = info.subject_public_key.as_bytes().and_then(|bytes| Point::parse(curve, bytes));
                Self::ec(point)
            }
            _ => Err(KeyFormatError::Kind { actual: algorithm }),
        }
    }

    fn from_jwk(jwk: &Jwk) -> Result<Self, KeyFormatError> {
        if jwk.d.is_some() {
            return Err(KeyFormatError::Private);
        }
        let mut key = match jwk.kty.as_str() {
            "RSA" => Self::rsa(&der::rsa_public_key_info(member(&jwk.n)?, member(&jwk.e)?))?,
            "EC" => Self::ec(jwk_point(jwk)?)?,
            _ => return Err(KeyFormatError::Kind { actual: jwk.kty.clone() }),
        };
        key.kid.clone_from(&jwk.kid);
        match &jwk.alg {
            None => Ok(key),
            Some(name) => {
                let algorithm = Algorithm::from_name(name);
                key.with_algorithm(
                    algorithm.ok_or_else(|| KeyFormatError::Algorithm { actual: name.clone() })?,
                )
            }
        }
    }

    fn rsa(spki: &[u8]) -> Result<Self, KeyFormatError> {
        let key = PublicEncryptingKey::from_der(spki);
        key.map(|key| Self::new(PublicKind::Rsa(key))).map_err(|_| unusable_rsa())
    }

    fn ec(point: Option<Point>) -> Result<Self, KeyFormatError> {
        point.map(|point| Self::new(PublicKind::Ec(point))).ok_or(KeyFormatError::Malformed(NOT_ON_CURVE))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            PublicKind::Rsa(key) => format!("RSA {}", key.key_size_bits()),
            PublicKind::Ec(point) => format!("EC {}", point.curve.name()),
        };
        write!(f, "PublicKey({kind}, {})", self.algorithm)
    }
}

/// A private key, to open what was encrypted for its public half. It does not print.
pub struct PrivateKey(PrivateKind);

enum PrivateKind {
    Rsa(OaepPrivateDecryptingKey),
    Ec { curve: Curve, key: EcdhKey },
}

impl PrivateKey {
    /// Reads a PEM file (PKCS#8, PKCS#1, SEC 1) or a private JSON Web Key.
    ///
    /// # Errors
    /// [`KeyFormatError`].
    pub fn parse(file: &[u8]) -> Result<Self, KeyFormatError> {
        match KeyFile::read(file)? {
            KeyFile::Jwk(jwk) => Self::from_jwk(&jwk),
            KeyFile::Pem { label, der } => match label.as_str() {
                "PRIVATE KEY" => Self::from_pkcs8(&der),
                "RSA PRIVATE KEY" => Self::rsa(&der::rsa_private_key_info(&der)),
                "EC PRIVATE KEY" => Self::from_sec1(&der).ok_or(KeyFormatError::Malformed(NOT_ON_CURVE)),
                "ENCRYPTED PRIVATE KEY" => Err(KeyFormatError::UnderPassphrase),
                "PUBLIC KEY" | "RSA PUBLIC KEY" | "CERTIFICATE" => Err(KeyFormatError::Public),
                _ => Err(KeyFormatError::Label { expected: "a private key", actual: label }),
            },
        }
    }

    /// What kind of key this is, for messages.
    pub(super) fn kind(&self) -> String {
        match &self.0 {
            PrivateKind::Rsa(key) => format!("RSA {}", key.key_size_bits()),
            PrivateKind::Ec { curve, .. } => format!("EC {}", curve.name()),
        }
    }

    /// The content key for a recipient; `None` if that is somebody else.
    pub(super) fn unwrap(&self, recipient: &RecipientKey) -> Option<ContentKey> {
        let key = match &self.0 {
            PrivateKind::Rsa(private) => {
                let mut key = Zeroizing::new(vec![0; private.min_output_size()]);
                let algorithm = recipient.algorithm.oaep()?;
                let length = private.decrypt(algorithm, &recipient.encrypted_key, &mut key, None).ok()?.len();
                key.truncate(length);
                key
            }
            PrivateKind::Ec { key: private, .. } => {
                let ephemeral = recipient.ephemeral.as_ref()?;
                let key = key_encryption_key(private, ephemeral, recipient.algorithm, &recipient.info)?;
                key_wrap::unwrap(&key, &recipient.encrypted_key)?
            }
        };
        Some(ContentKey::new(key.as_slice().try_into().ok()?))
    }

    /// The key's algorithm is found by trying: only one of them can read it.
    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyFormatError> {
        if let Ok(key) = Self::rsa(der) {
            return Ok(key);
        }
        Self::from_sec1(der).ok_or_else(|| KeyFormatError::Kind { actual: "another".into() })
    }

    /// Reads an EC key on whichever of the curves it names, bare or in PKCS#8.
    fn from_sec1(der: &[u8]) -> Option<Self> {
        Curve::ALL.into_iter().find_map(|curve| {
            let key = EcdhKey::from_private_key_der(curve.ecdh(), der).ok()?;
            Some(Self(PrivateKind::Ec { curve, key }))
        })
    }

    fn from_jwk(jwk: &Jwk) -> Result<Self, KeyFormatError> {
        let Some(d) = &jwk.d else { return Err(KeyFormatError::Public) };
        match jwk.kty.as_str() {
            "RSA" => {
                let numbers = [
                    member(&jwk.n)?,
                    member(&jwk.e)?,
                    &d.0,
                    member(&jwk.p)?,
                    member(&jwk.q)?,
                    member(&jwk.dp)?,
                    member(&jwk.dq)?,
                    member(&jwk.qi)?,
                ];
                Self::rsa(&der::rsa_private_key_info(&der::rsa_private_key(numbers)))
            }
            "EC" => {
                let point = jwk_point(jwk)?.ok_or(KeyFormatError::Malformed(NOT_ON_CURVE))?;
                let key = EcdhKey::from_private_key(point.curve.ecdh(), &d.0)
                    .map_err(|_| KeyFormatError::Malformed("the private scalar"))?;
                if Point::of_private_key(point.curve, &key).as_ref() != Some(&point) {
                    return Err(KeyFormatError::Malformed("the public half is another key's"));
                }
                Ok(Self(PrivateKind::Ec { curve: point.curve, key }))
            }
            _ => Err(KeyFormatError::Kind { actual: jwk.kty.clone() }),
        }
    }

    fn rsa(pkcs8: &[u8]) -> Result<Self, KeyFormatError> {
        let key = PrivateDecryptingKey::from_pkcs8(pkcs8).map_err(|_| unusable_rsa())?;
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| unusable_rsa())?;
        Ok(Self(PrivateKind::Rsa(key)))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.kind())
    }
}

const NOT_ON_CURVE: &str = "not a point of its curve";

/// What a key file holds.
enum KeyFile {
    Jwk(Box<Jwk>),
    Pem { label: String, der: Zeroizing<Vec<u8>> },
}

impl KeyFile {
    fn read(file: &[u8]) -> Result<Self, KeyFormatError> {
        let text = std::str::from_utf8(file).map_err(|_| KeyFormatError::Unrecognised)?;
        if text.trim_start().starts_with('{') {
            let jwk: Jwk =
                serde_json::from_str(text).map_err(|_| KeyFormatError::Malformed("not a JSON Web Key"))?;
            if let Some(actual) = jwk.intended_use.as_ref().filter(|intended| *intended != "enc") {
                return Err(KeyFormatError::Algorithm { actual: format!("use {actual}") });
            }
            return Ok(Self::Jwk(Box::new(jwk)));
        }
        let mut rest = text;
        loop {
            let (label, body, after) = next_pem_block(rest).ok_or(KeyFormatError::Unrecognised)?;
            // OpenSSL puts the curve's name in a block of its own before the key.
            if label != "EC PARAMETERS" {
                let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
                let der = STANDARD.decode(&*body);
                let der = der.map_err(|_| KeyFormatError::Malformed("the PEM block is not base64"))?;
                return Ok(Self::Pem { label: label.to_owned(), der: Zeroizing::new(der) });
            }
            rest = after;
        }
    }
}

/// The label, body and remainder of the first PEM block (RFC 7468).
fn next_pem_block(text: &str) -> Option<(&str, &str, &str)> {
    let (_, after_begin) = text.split_once("-----BEGIN ")?;
    let (label, after_label) = after_begin.split_once("-----")?;
    let (body, after) = after_label.split_once(&format!("-----END {label}-----"))?;
    Some((label, body, after))
}

fn jwk_point(jwk: &Jwk) -> Result<Option<Point>, KeyFormatError> {
    let name = jwk.crv.as_deref().unwrap_or_default();
    let curve = Curve::from_name(name)
        .ok_or_else(|| KeyFormatError::Kind { actual: format!("EC on curve {name}") })?;
    Ok(Point::from_coordinates(curve, member(&jwk.x)?, member(&jwk.y)?))
}

fn member(value: &Option<Base64Url>) -> Result<&[u8], KeyFormatError> {
    value.as_ref().map(|value| value.0.as_slice()).ok_or(KeyFormatError::Malformed("a member is missing"))
}

fn unusable_rsa() -> KeyFormatError {
    KeyFormatError::Kind { actual: "RSA of an unsuitable size or form".into() }
}
