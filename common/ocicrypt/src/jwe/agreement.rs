//! ECDH-ES key agreement (RFC 7518 section 4.6).

use aws_lc_rs::agreement::{ParsedPublicKey, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::digest;
use zeroize::Zeroizing;

use super::algorithm::{Algorithm, Curve};

/// A point on a curve, uncompressed (SEC 1 section 2.3.3), known to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) curve: Curve,
    bytes: Vec<u8>,
}

impl Point {
    /// Takes `04 || x || y`; `None` where that is not a point of the curve.
    pub(super) fn parse(curve: Curve, bytes: &[u8]) -> Option<Self> {
        if bytes.first() != Some(&4) || bytes.len() != 1 + 2 * curve.length() {
            return None;
        }
        ParsedPublicKey::try_from(UnparsedPublicKey::new(curve.ecdh(), bytes)).ok()?;
        Some(Self { curve, bytes: bytes.to_vec() })
    }

    pub(super) fn from_coordinates(curve: Curve, x: &[u8], y: &[u8]) -> Option<Self> {
        if x.len() != curve.length() || y.len() != curve.length() {
            return None;
        }
        Self::parse(curve, &[&[4], x, y].concat())
    }

    pub(super) fn of_private_key(curve: Curve, key: &PrivateKey) -> Option<Self> {
        Self::parse(curve, key.compute_public_key().ok()?.as_ref())
    }

    pub(super) fn coordinates(&self) -> (&[u8], &[u8]) {
        let both = self.bytes.get(1..).unwrap_or_default();
        both.split_at(self.curve.length().min(both.len()))
    }
}

/// What both sides know besides the shared secret: `apu` and `apv` of the header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PartyInfo {
    pub(super) producer: Vec<u8>,
    pub(super) recipient: Vec<u8>,
}

/// The key-encryption key that both sides arrive at; `None` for an algorithm without agreement, or keys
/// of different curves.
pub(super) fn key_encryption_key(
    mine: &PrivateKey,
    theirs: &Point,
    algorithm: Algorithm,
    info: &PartyInfo,
) -> Option<Zeroizing<Vec<u8>>> {
    let length = algorithm.key_wrap_length()?;
    let theirs = UnparsedPublicKey::new(theirs.curve.ecdh(), &theirs.bytes);
    agree(mine, theirs, None, |secret| concat_kdf(secret, algorithm.name(), info, length).ok_or(None::<()>))
        .ok()
}

/// The Concat KDF of NIST SP 800-56A section 5.8.1 with SHA-256, for keys of at most 32 bytes.
fn concat_kdf(secret: &[u8], algorithm: &str, info: &PartyInfo, length: usize) -> Option<Zeroizing<Vec<u8>>> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&1u32.to_be_bytes());
    hash.update(secret);
    for field in [algorithm.as_bytes(), &info.producer, &info.recipient] {
        hash.update(&u32::try_from(field.len()).ok()?.to_be_bytes());
        hash.update(field);
    }
    let bits = u32::try_from(length.checked_mul(8)?).ok()?;
    hash.update(&bits.to_be_bytes());
    Some(Zeroizing::new(hash.finish().as_ref().get(..length)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    #[test]
    fn the_example_of_rfc_7518_appendix_c_gives_its_key() {
        let base64url = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let bob = Point::from_coordinates(
            Curve::P256,
            &base64url("weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ"),
            &base64url("e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck"),
        )
        .unwrap();
        let alice = PrivateKey::from_private_key(
            Curve::P256.ecdh(),
            &base64url("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo"),
        )
        .unwrap();
        let info = PartyInfo { producer: b"Alice".to_vec(), recipient: b"Bob".to_vec() };
        let theirs = UnparsedPublicKey::new(bob.curve.ecdh(), &bob.bytes);
        let key =
            agree(&alice, theirs, (), |secret| concat_kdf(secret, "A128GCM", &info, 16).ok_or(())).unwrap();
        assert_eq!(*key, base64url("VqqN6vgjbSBcIijNcacQGg"));
    }

    /// RFC 7520 section 5.4: the key-encryption key, seen by the content key that it unwraps.
    #[test]
    fn the_example_of_rfc_7520_section_5_4_unwraps() {
        let base64url = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let ephemeral = Point::from_coordinates(
            Curve::P384,
            &base64url("uBo4kHPw6kbjx5l0xowrd_oYzBmaz-GKFZu4xAFFkbYiWgutEK6iuEDsQ6wNdNg3"),
            &base64url("sp3p5SGhZVC2faXumI-e9JU2Mo8KpoYrFDr5yPNVtW4PgEwZOyQTA-JdaY8tb7E0"),
        )
        .unwrap();
        let peregrin = PrivateKey::from_private_key(
            Curve::P384.ecdh(),
            &base64url("iTx2pk7wW-GqJkHcEkFQb2EFyYcO7RugmaW3mRrQVAOUiPommT0IdnYK2xDlZh-j"),
        )
        .unwrap();
        let key = key_encryption_key(&peregrin, &ephemeral, Algorithm::EcdhEsA128Kw, &PartyInfo::default())
            .unwrap();
        let content_key = crate::jwe::key_wrap::unwrap(&key, &base64url("0DJjBXri_kBcC46IkU5_Jk9BqaQeHdv2"));
        assert_eq!(*content_key.unwrap(), base64url("Nou2ueKlP70ZXDbq9UrRwg"));
    }

    #[test]
    fn keys_of_different_curves_do_not_agree() {
        let key = PrivateKey::generate(Curve::P256.ecdh()).unwrap();
        let other = PrivateKey::generate(Curve::P384.ecdh()).unwrap();
        let point = Point::of_private_key(Curve::P384, &other).unwrap();
        assert!(key_encryption_key(&key, &point, Algorithm::EcdhEsA256Kw, &PartyInfo::default()).is_none());
    }
}
