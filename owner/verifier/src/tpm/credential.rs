//! Credential protection (TPM 2.0 Library part 1 §24, §11.4.10): a secret that only one TPM opens, for one key.

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use aws_lc_rs::{hmac, rand};
use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::tpm::codec::{Endian, Writer};
use sealpod_evidence::tpm::{ChallengeParams, Curve, Parameters, Public};

use zeroize::Zeroizing;

use crate::Refusal;

/// What the keys of a credential are derived from. Whoever has it opens the credential.
type Seed = Zeroizing<Vec<u8>>;

/// Encrypts a secret for the TPM of `endorsement`, bound to the key of the name `object_name`.
pub(super) fn make(
    endorsement: &Public,
    object_name: &[u8],
    secret: &[u8],
) -> Result<ChallengeParams, Refusal> {
    let hash = endorsement.name_algorithm;
    let (seed, encrypted_secret) = match &endorsement.parameters {
        Parameters::Rsa { exponent, modulus } => rsa_seed(hash, *exponent, modulus)?,
        Parameters::Ecc { curve, x, y } => ecc_seed(hash, *curve, x, y)?,
    };
    let key_bits = endorsement.symmetric.map(|symmetric| symmetric.key_bits).unwrap_or_default();
    let storage_key = kdf_a(hash, &seed, b"STORAGE\0", object_name, &[], key_bits)?;
    let integrity_key = kdf_a(hash, &seed, b"INTEGRITY\0", &[], &[], bits(hash))?;

    let mut identity = Writer::new(Endian::Big);
    identity.sized(secret);
    let mut encrypted = identity.into_bytes();
    encrypt(&storage_key, &mut encrypted)?;
    let key = hmac::Key::new(hmac_algorithm(hash)?, &integrity_key);
    let mut context = hmac::Context::with_key(&key);
    context.update(&encrypted);
    context.update(object_name);
    let integrity = context.sign();

    let mut blob = Writer::new(Endian::Big);
    blob.sized(integrity.as_ref()).bytes(&encrypted);
    Ok(ChallengeParams { credential_blob: blob.into_bytes(), encrypted_secret })
}

/// A random seed, encrypted with OAEP under the label IDENTITY (part 1 §B.10.4).
fn rsa_seed(hash: HashAlgorithm, exponent: u32, modulus: &[u8]) -> Result<(Seed, Vec<u8>), Refusal> {
    if hash != HashAlgorithm::Sha256 {
        return Err(Refusal::new("ek", "an RSA key with SHA-256 names", hash));
    }
    let mut seed = Zeroizing::new(vec![0; hash.length()]);
    rand::fill(&mut seed).map_err(failed)?;
    let exponent = if exponent == 0 { 65537 } else { exponent };
    let exponent: Vec<u8> = exponent.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
    let unusable = |_| Refusal::new("ek", "an RSA key that can encrypt", "another");
    let key: PublicEncryptingKey =
        PublicKeyComponents { n: modulus, e: exponent.as_slice() }.try_into().map_err(unusable)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(unusable)?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    key.encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut encrypted, Some(b"IDENTITY\0")).map_err(unusable)?;
    Ok((seed, encrypted))
}

/// A seed agreed upon with a fresh key (part 1 §C.6.4).
fn ecc_seed(hash: HashAlgorithm, curve: Curve, x: &[u8], y: &[u8]) -> Result<(Seed, Vec<u8>), Refusal> {
    let algorithm = match curve {
        Curve::P256 => &ECDH_P256,
        Curve::P384 => &ECDH_P384,
    };
    let mine = EphemeralPrivateKey::generate(algorithm, &rand::SystemRandom::new()).map_err(failed)?;
    let public = mine.compute_public_key().map_err(failed)?;
    let coordinates = public.as_ref().get(1..).unwrap_or_default();
    let (my_x, my_y) = coordinates.split_at_checked(curve.field_length()).unwrap_or_default();
    let mut point = Writer::new(Endian::Big);
    point.sized(my_x).sized(my_y);
    let theirs = UnparsedPublicKey::new(algorithm, [&[4], x, y].concat());
    let off_curve = Refusal::new("ek", "a point of the curve", "another");
    let seed = agree_ephemeral(mine, theirs, off_curve, |z| Ok(kdf_e(hash, z, b"IDENTITY\0", my_x, x)))?;
    Ok((seed, point.into_bytes()))
}

/// KDFe (part 1 §11.4.10.3), for as many bits as the hash has.
fn kdf_e(hash: HashAlgorithm, z: &[u8], label: &[u8], party_u: &[u8], party_v: &[u8]) -> Seed {
    Zeroizing::new(hash.digest_parts(&[&1u32.to_be_bytes(), z, label, party_u, party_v]))
}

/// KDFa (part 1 §11.4.10.2), for at most as many bits as the hash has.
fn kdf_a(
    hash: HashAlgorithm,
    key: &[u8],
    label: &[u8],
    context_u: &[u8],
    context_v: &[u8],
    bits: u16,
) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let key = hmac::Key::new(hmac_algorithm(hash)?, key);
    let mut context = hmac::Context::with_key(&key);
    for part in [&1u32.to_be_bytes(), label, context_u, context_v, &u32::from(bits).to_be_bytes()] {
        context.update(part);
    }
    let mut derived = Zeroizing::new(context.sign().as_ref().to_vec());
    derived.truncate(usize::from(bits / 8));
    Ok(derived)
}

/// AES-CFB with a zero initialisation vector; each key encrypts once.
fn encrypt(key: &[u8], bytes: &mut [u8]) -> Result<(), Refusal> {
    let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
    let key = UnboundCipherKey::new(algorithm, key).map_err(failed)?;
    let key = EncryptingKey::cfb128(key).map_err(failed)?;
    key.less_safe_encrypt(bytes, EncryptionContext::Iv128(FixedLength::from([0; 16]))).map_err(failed)?;
    Ok(())
}

fn hmac_algorithm(hash: HashAlgorithm) -> Result<hmac::Algorithm, Refusal> {
    match hash {
        HashAlgorithm::Sha256 => Ok(hmac::HMAC_SHA256),
        HashAlgorithm::Sha384 => Ok(hmac::HMAC_SHA384),
        HashAlgorithm::Sha512 => Ok(hmac::HMAC_SHA512),
        HashAlgorithm::Sha1 => Err(Refusal::new("ek", "a name by SHA-256 or better", hash)),
    }
}

fn bits(hash: HashAlgorithm) -> u16 {
    u16::try_from(hash.length() * 8).unwrap_or_default()
}

fn failed(_: aws_lc_rs::error::Unspecified) -> Refusal {
    Refusal::new("ek", "a working cryptographic library", "a failure of its own")
}
