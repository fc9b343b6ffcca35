//! ECDH-ES+A256KW (RFC 7518 §4.6): agree on a key, wrap another with it.

use aws_lc_rs::agreement::{Algorithm, ECDH_P256, ECDH_P521, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::digest;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{JweError, KEY_LENGTH};

/// The algorithm's name, in the header and in the key derivation.
pub(super) const NAME: &str = "ECDH-ES+A256KW";

/// The sender's key of one message (`epk`), members in the order in which other clients serialise them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EphemeralKey {
    pub(super) crv: String,
    kty: String,
    x: String,
    y: String,
}

/// A curve by its name in a JWK.
pub(super) fn curve(name: &str) -> Option<(&'static Algorithm, usize)> {
    match name {
        "P-256" => Some((&ECDH_P256, 32)),
        "P-521" => Some((&ECDH_P521, 66)),
        _ => None,
    }
}

impl EphemeralKey {
    fn of(curve: &str, length: usize, key: &PrivateKey) -> Result<Self, JweError> {
        let (x, y) = coordinates(key, length)?;
        Ok(Self { crv: curve.to_owned(), kty: "EC".into(), x, y })
    }

    fn point(&self, length: usize) -> Result<Vec<u8>, JweError> {
        if self.kty != "EC" {
            return Err(JweError::Malformed);
        }
        point(&self.x, &self.y, length).ok_or(JweError::Malformed)
    }
}

/// Wraps a content key for a recipient's point.
pub(super) fn wrap(
    curve_name: &str,
    x: &str,
    y: &str,
    content_key: &[u8],
) -> Result<(EphemeralKey, Vec<u8>), JweError> {
    let (algorithm, length) = curve(curve_name).ok_or(JweError::Key)?;
    let recipient = point(x, y, length).ok_or(JweError::Key)?;
    let mine = PrivateKey::generate(algorithm).map_err(|_| JweError::Internal)?;
    let epk = EphemeralKey::of(curve_name, length, &mine)?;
    let kek = key_encryption_key(algorithm, &mine, &recipient).map_err(|_| JweError::Key)?;
    let kek = AesKek::new(&AES_256, kek.as_slice()).map_err(|_| JweError::Internal)?;
    let mut wrapped = vec![0; content_key.len() + 8];
    kek.wrap(content_key, &mut wrapped).map_err(|_| JweError::Internal)?;
    Ok((epk, wrapped))
}

/// Unwraps a content key.
pub(super) fn unwrap(
    curve_name: &str,
    mine: &PrivateKey,
    epk: &EphemeralKey,
    wrapped: &[u8],
) -> Result<Zeroizing<[u8; KEY_LENGTH]>, JweError> {
    let (algorithm, length) = curve(curve_name).ok_or(JweError::Malformed)?;
    if epk.crv != curve_name || wrapped.len() != KEY_LENGTH + 8 {
        return Err(JweError::Malformed);
    }
    let kek = key_encryption_key(algorithm, mine, &epk.point(length)?)?;
    let kek = AesKek::new(&AES_256, kek.as_slice()).map_err(|_| JweError::Internal)?;
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    // Unwrapping needs room for one more block.
    let mut room = Zeroizing::new([0; KEY_LENGTH + 8]);
    let unwrapped = kek.unwrap(wrapped, room.as_mut_slice()).map_err(|_| JweError::Opaque)?;
    key.copy_from_slice(unwrapped.get(..KEY_LENGTH).ok_or(JweError::Opaque)?);
    Ok(key)
}

/// Base64url coordinates of a private key's point.
pub(super) fn coordinates(key: &PrivateKey, length: usize) -> Result<(String, String), JweError> {
    let public = key.compute_public_key().map_err(|_| JweError::Internal)?;
    let coordinates = public.as_ref().get(1..1 + 2 * length).ok_or(JweError::Internal)?;
    let (x, y) = coordinates.split_at(length);
    Ok((URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y)))
}

/// An uncompressed point (SEC 1 §2.3.3); whether it lies on the curve is found out by the agreement.
fn point(x: &str, y: &str, length: usize) -> Option<Vec<u8>> {
    let decode = |text| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == length);
    Some([vec![4], decode(x)?, decode(y)?].concat())
}

fn key_encryption_key(
    algorithm: &'static Algorithm,
    mine: &PrivateKey,
    theirs: &[u8],
) -> Result<Zeroizing<[u8; KEY_LENGTH]>, JweError> {
    let theirs = UnparsedPublicKey::new(algorithm, theirs);
    agree(mine, theirs, JweError::Opaque, |secret| Ok(concat_kdf(secret, NAME, b"", b"", 256)))
}

/// The Concat KDF of NIST SP 800-56A §5.8.1 with SHA-256, one round.
fn concat_kdf(
    secret: &[u8],
    algorithm: &str,
    producer: &[u8],
    recipient: &[u8],
    bits: u32,
) -> Zeroizing<[u8; 32]> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&1u32.to_be_bytes());
    hash.update(secret);
    for field in [algorithm.as_bytes(), producer, recipient] {
        hash.update(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(field);
    }
    hash.update(&bits.to_be_bytes());
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(hash.finish().as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7518_appendix_c_gives_its_key() {
        let base64url = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let alice = base64url("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
        let alice = PrivateKey::from_private_key(&ECDH_P256, &alice).unwrap();
        let bob = point(
            "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
            "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
            32,
        );
        let bob = UnparsedPublicKey::new(&ECDH_P256, bob.unwrap());
        let key = agree(&alice, bob, (), |secret| Ok(concat_kdf(secret, "A128GCM", b"Alice", b"Bob", 128)))
            .unwrap();
        assert_eq!(key[..16], base64url("VqqN6vgjbSBcIijNcacQGg"));
    }

    #[test]
    fn a_key_wrapped_for_either_curve_unwraps() {
        for name in ["P-256", "P-521"] {
            let (algorithm, length) = curve(name).unwrap();
            let key = PrivateKey::generate(algorithm).unwrap();
            let (x, y) = coordinates(&key, length).unwrap();
            let (epk, wrapped) = wrap(name, &x, &y, &[7; KEY_LENGTH]).unwrap();
            assert_eq!(*unwrap(name, &key, &epk, &wrapped).unwrap(), [7; KEY_LENGTH]);
        }
    }
}
