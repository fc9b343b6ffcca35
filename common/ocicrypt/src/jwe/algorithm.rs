//! The ways to encrypt a content key, and the curves.

use std::fmt;

use aws_lc_rs::agreement;
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm};

/// How the content key is encrypted for a recipient (RFC 7518 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSAES-OAEP with SHA-1: what existing tools use for RSA keys.
    RsaOaep,
    /// RSAES-OAEP with SHA-256.
    RsaOaep256,
    /// Ephemeral-static Diffie-Hellman, then AES-128 key wrap.
    EcdhEsA128Kw,
    /// Ephemeral-static Diffie-Hellman, then AES-192 key wrap.
    EcdhEsA192Kw,
    /// Ephemeral-static Diffie-Hellman, then AES-256 key wrap: what existing tools use for EC keys.
    EcdhEsA256Kw,
}

impl Algorithm {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        const ALL: [Algorithm; 5] = [
            Algorithm::RsaOaep,
            Algorithm::RsaOaep256,
            Algorithm::EcdhEsA128Kw,
            Algorithm::EcdhEsA192Kw,
            Algorithm::EcdhEsA256Kw,
        ];
        ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RsaOaep => "RSA-OAEP",
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::EcdhEsA128Kw => "ECDH-ES+A128KW",
            Self::EcdhEsA192Kw => "ECDH-ES+A192KW",
            Self::EcdhEsA256Kw => "ECDH-ES+A256KW",
        }
    }

    /// The padding, if this is an RSA algorithm.
    pub(super) fn oaep(self) -> Option<&'static OaepAlgorithm> {
        match self {
            Self::RsaOaep => Some(&OAEP_SHA1_MGF1SHA1),
            Self::RsaOaep256 => Some(&OAEP_SHA256_MGF1SHA256),
            _ => None,
        }
    }

    /// The bytes of the key-encryption key, if this is an ECDH algorithm.
    pub(super) fn key_wrap_length(self) -> Option<usize> {
        match self {
            Self::EcdhEsA128Kw => Some(16),
            Self::EcdhEsA192Kw => Some(24),
            Self::EcdhEsA256Kw => Some(32),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A NIST curve (RFC 7518 section 6.2.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    pub(super) const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.name() == name)
    }

    pub(super) fn from_oid(oid: &str) -> Option<Self> {
        match oid {
            "1.2.840.10045.3.1.7" => Some(Self::P256),
            "1.3.132.0.34" => Some(Self::P384),
            "1.3.132.0.35" => Some(Self::P521),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate, and of a private scalar.
    pub(super) fn length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    pub(super) fn ecdh(self) -> &'static agreement::Algorithm {
        match self {
            Self::P256 => &agreement::ECDH_P256,
            Self::P384 => &agreement::ECDH_P384,
            Self::P521 => &agreement::ECDH_P521,
        }
    }
}
