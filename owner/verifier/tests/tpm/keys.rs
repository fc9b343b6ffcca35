//! The keys of a TPM in software: public areas, signatures, and the opening of credentials (TPM 2.0 Library part 1
//! §24), written from the specification and not with the verifier's code.

use std::sync::LazyLock;

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, UnparsedPublicKey, agree};
use aws_lc_rs::cipher::{AES_128, AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
};
use aws_lc_rs::{digest, hmac};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, SignatureAlgorithm};
use sealpod_evidence::tpm::codec::{Endian, Reader, Writer};
use sealpod_evidence::tpm::{ChallengeParams, attributes};

pub(crate) const SHA1: u16 = 0x0004;
pub(crate) const SHA256: u16 = 0x000b;
pub(crate) const SHA384: u16 = 0x000c;
const NULL: u16 = 0x0010;
const EK_ATTRIBUTES: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::RESTRICTED
    | attributes::DECRYPT;
const AK_ATTRIBUTES: u32 = attributes::FIXED_TPM
    | attributes::FIXED_PARENT
    | attributes::SENSITIVE_DATA_ORIGIN
    | attributes::USER_WITH_AUTH
    | attributes::RESTRICTED
    | attributes::SIGN;

/// Making RSA keys is slow: the tests share two.
static RSA_KEYS: LazyLock<[RsaKeyPair; 2]> =
    LazyLock::new(|| [(); 2].map(|()| RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));

/// What a public area (`TPMT_PUBLIC`) says beside the key.
#[derive(Clone)]
pub(crate) struct Area {
    pub(crate) name_algorithm: u16,
    pub(crate) attributes: u32,
    /// AES in CFB mode with a key of so many bits.
    pub(crate) symmetric: Option<u16>,
    /// A signature scheme and its hash.
    pub(crate) scheme: Option<[u16; 2]>,
}

pub(crate) enum AttestationKey {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    RsaPkcs1(&'static RsaKeyPair),
    RsaPss(&'static RsaKeyPair),
}

pub(crate) enum EndorsementKey {
    P256(agreement::PrivateKey),
    P384(agreement::PrivateKey),
    Rsa(&'static RsaKeyPair),
}

impl AttestationKey {
    pub(crate) fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn rsa_pkcs1() -> Self {
        Self::RsaPkcs1(&RSA_KEYS[0])
    }

    pub(crate) fn rsa_pss() -> Self {
        Self::RsaPss(&RSA_KEYS[0])
    }

    /// What the public area of a restricted signing key says.
    pub(crate) fn area(&self) -> Area {
        let (name_algorithm, _) = self.hash();
        let scheme = [self.scheme(), self.hash().0];
        Area { name_algorithm, attributes: AK_ATTRIBUTES, symmetric: None, scheme: Some(scheme) }
    }

    pub(crate) fn public(&self, area: &Area) -> Vec<u8> {
        match self {
            Self::P256(key) => ecc_public(0x0003, key.public_key().as_ref(), area),
            Self::P384(key) => ecc_public(0x0004, key.public_key().as_ref(), area),
            Self::RsaPkcs1(key) | Self::RsaPss(key) => rsa_public(key, area),
        }
    }

    /// The hash of its signatures, by its TPM's number.
    pub(crate) fn hash(&self) -> (u16, &'static digest::Algorithm) {
        match self {
            Self::P384(_) => (SHA384, &digest::SHA384),
            _ => (SHA256, &digest::SHA256),
        }
    }

    /// A signature (`TPMT_SIGNATURE`).
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let mut out = Writer::new(Endian::Big);
        out.u16(self.scheme()).u16(self.hash().0);
        match self {
            Self::P256(key) | Self::P384(key) => {
                let signature = key.sign(&random, message).unwrap();
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                out.sized(r).sized(s);
            }
            Self::RsaPkcs1(key) | Self::RsaPss(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let pss = matches!(self, Self::RsaPss(_));
                let padding = if pss { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                key.sign(padding, &random, message, &mut signature).unwrap();
                out.sized(&signature);
            }
        }
        out.into_bytes()
    }

    fn scheme(&self) -> u16 {
        match self {
            Self::P256(_) | Self::P384(_) => 0x0018,
            Self::RsaPkcs1(_) => 0x0014,
            Self::RsaPss(_) => 0x0016,
        }
    }
}

impl EndorsementKey {
    pub(crate) fn p256() -> Self {
        Self::P256(agreement::PrivateKey::generate(&ECDH_P256).unwrap())
    }

    pub(crate) fn p384() -> Self {
        Self::P384(agreement::PrivateKey::generate(&ECDH_P384).unwrap())
    }

    pub(crate) fn rsa() -> Self {
        Self::Rsa(&RSA_KEYS[1])
    }

    /// What the public area of a storage key says.
    pub(crate) fn area(&self) -> Area {
        let (name_algorithm, symmetric) = match self {
            Self::P384(_) => (SHA384, 256),
            _ => (SHA256, 128),
        };
        Area { name_algorithm, attributes: EK_ATTRIBUTES, symmetric: Some(symmetric), scheme: None }
    }

    pub(crate) fn public(&self, area: &Area) -> Vec<u8> {
        match self {
            Self::P256(_) => ecc_public(0x0003, &self.key_bytes(), area),
            Self::P384(_) => ecc_public(0x0004, &self.key_bytes(), area),
            Self::Rsa(key) => rsa_public(key, area),
        }
    }

    /// The key as a certificate holds it: a point, or an RSAPublicKey.
    pub(crate) fn key_bytes(&self) -> Vec<u8> {
        match self {
            Self::P256(key) | Self::P384(key) => key.compute_public_key().unwrap().as_ref().to_vec(),
            Self::Rsa(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// The kind of key as a certificate names it.
    pub(crate) fn kind(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256(_) => &PKCS_ECDSA_P256_SHA256,
            Self::P384(_) => &PKCS_ECDSA_P384_SHA384,
            Self::Rsa(_) => &PKCS_RSA_SHA256,
        }
    }

    /// Opens a credential that was made for the object of this name (`TPM2_ActivateCredential`).
    pub(crate) fn activate(&self, object_name: &[u8], challenge: &ChallengeParams) -> Option<Vec<u8>> {
        let (mac, key_bits) = match self {
            Self::P384(_) => (hmac::HMAC_SHA384, 256),
            _ => (hmac::HMAC_SHA256, 128),
        };
        let seed = self.seed(&challenge.encrypted_secret)?;
        let hash_bits = u32::try_from(mac.digest_algorithm().output_len() * 8).unwrap();
        let storage_key = kdf_a(mac, &seed, b"STORAGE\0", object_name, key_bits);
        let integrity_key = kdf_a(mac, &seed, b"INTEGRITY\0", &[], hash_bits);

        let mut blob = Reader::new(&challenge.credential_blob, Endian::Big);
        let integrity = blob.sized().ok()?;
        let mut identity = blob.rest().to_vec();
        let key = hmac::Key::new(mac, &integrity_key);
        hmac::verify(&key, &[&identity, object_name].concat(), integrity).ok()?;
        let algorithm = if key_bits == 128 { &AES_128 } else { &AES_256 };
        let key = DecryptingKey::cfb128(UnboundCipherKey::new(algorithm, &storage_key).unwrap()).unwrap();
        key.decrypt(&mut identity, DecryptionContext::Iv128(FixedLength::from([0; 16]))).unwrap();
        Some(Reader::new(&identity, Endian::Big).sized().ok()?.to_vec())
    }

    fn seed(&self, encrypted: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::P256(key) => ecc_seed(key, &digest::SHA256, 32, encrypted),
            Self::P384(key) => ecc_seed(key, &digest::SHA384, 48, encrypted),
            Self::Rsa(key) => {
                let key = PrivateDecryptingKey::from_pkcs8(key.as_der().unwrap().as_ref()).unwrap();
                let key = OaepPrivateDecryptingKey::new(key).unwrap();
                let mut seed = vec![0; key.min_output_size()];
                let label = Some(&b"IDENTITY\0"[..]);
                key.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut seed, label)
                    .ok()
                    .map(|seed| seed.to_vec())
            }
        }
    }
}

/// A key's name: its algorithm and the digest of its public area.
pub(crate) fn name(name_algorithm: u16, public: &[u8]) -> Vec<u8> {
    let hash = if name_algorithm == SHA384 { &digest::SHA384 } else { &digest::SHA256 };
    [&name_algorithm.to_be_bytes(), digest::digest(hash, public).as_ref()].concat()
}

fn ecc_seed(
    key: &agreement::PrivateKey,
    hash: &'static digest::Algorithm,
    field: usize,
    encrypted: &[u8],
) -> Option<Vec<u8>> {
    let mut point = Reader::new(encrypted, Endian::Big);
    let (x, y) = (point.sized().ok()?, point.sized().ok()?);
    let theirs = UnparsedPublicKey::new(key.algorithm(), [&[4], x, y].concat());
    let mine = key.compute_public_key().unwrap();
    let my_x = &mine.as_ref()[1..1 + field];
    agree(key, theirs, (), |z| {
        let input = [&[0, 0, 0, 1], z, b"IDENTITY\0", x, my_x].concat();
        Ok(digest::digest(hash, &input).as_ref().to_vec())
    })
    .ok()
}

fn kdf_a(mac: hmac::Algorithm, seed: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    let input = [&[0, 0, 0, 1], label, context, &bits.to_be_bytes()].concat();
    hmac::sign(&hmac::Key::new(mac, seed), &input).as_ref()[..bits as usize / 8].to_vec()
}

/// A public area of the point of a curve (`TPM_ECC_CURVE`).
pub(crate) fn ecc_public(curve: u16, point: &[u8], area: &Area) -> Vec<u8> {
    let (x, y) = point[1..].split_at(point.len() / 2);
    let mut out = head(0x0023, area);
    out.u16(curve).u16(NULL).sized(x).sized(y);
    out.into_bytes()
}

fn rsa_public(key: &RsaKeyPair, area: &Area) -> Vec<u8> {
    let modulus = key.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let mut out = head(0x0001, area);
    out.u16(2048).u32(0).sized(&modulus);
    out.into_bytes()
}

fn head(kind: u16, area: &Area) -> Writer {
    let mut out = Writer::new(Endian::Big);
    out.u16(kind).u16(area.name_algorithm).u32(area.attributes).sized(&[]);
    match area.symmetric {
        Some(bits) => out.u16(0x0006).u16(bits).u16(0x0043),
        None => out.u16(NULL),
    };
    match area.scheme {
        Some([scheme, hash]) => out.u16(scheme).u16(hash),
        None => out.u16(NULL),
    };
    out
}
