//! Certificate authorities that vouch for a software TPM.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};

use crate::keys::EndorsementKey;

/// The certificates of the tests are valid from the beginning of 2020 to that of 2040.
pub(crate) const VALID_FROM: u64 = 1_577_836_800;
pub(crate) const VALID_TO: u64 = 2_208_988_800;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    /// Its certificate, DER.
    pub(crate) certificate: Vec<u8>,
}

/// A public key as a certificate holds it.
struct Key<'a> {
    bytes: &'a [u8],
    kind: &'static SignatureAlgorithm,
}

impl Authority {
    /// A root whose certificate says what `change` makes of a good one.
    pub(crate) fn root(change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::root_with(KeyPair::generate().unwrap(), change)
    }

    pub(crate) fn root_with(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let params = authority_params("A TPM maker's root", change);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key, certificate }
    }

    /// An authority that this one vouches for.
    pub(crate) fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name, change);
        let certificate = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        Self { params, key, certificate }
    }

    /// A certificate for an endorsement key, which says what `change` makes of a good one.
    pub(crate) fn endorse(
        &self,
        key: &EndorsementKey,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        self.endorse_bytes(&key.key_bytes(), key.kind(), change)
    }

    /// The same for a key that need not be one.
    pub(crate) fn endorse_bytes(
        &self,
        bytes: &[u8],
        kind: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = params("A TPM");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        change(&mut params);
        params.signed_by(&Key { bytes, kind }, &self.issuer()).unwrap().der().to_vec()
    }

    /// Alters a certificate's signed part and signs it anew.
    pub(crate) fn sign_altered(&self, certificate: &[u8], alter: impl FnOnce(&mut [u8])) -> Vec<u8> {
        // A certificate of more than 255 bytes; its signed part has a length of one byte or two.
        let length = match certificate[5] {
            0x81 => 3 + usize::from(certificate[6]),
            _ => 4 + usize::from(u16::from_be_bytes([certificate[6], certificate[7]])),
        };
        let (signed, rest) = certificate[4..].split_at(length);
        let (mut signed, algorithm) = (signed.to_vec(), &rest[..2 + usize::from(rest[1])]);
        alter(&mut signed);
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, self.key.serialized_der()).unwrap();
        let signature = key.sign(&SystemRandom::new(), &signed).unwrap();
        let signature = signature.as_ref();
        let bits = [&[0x03, signature.len() as u8 + 1, 0], signature].concat();
        let content = [&signed, algorithm, &bits].concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82], &length[..], &content].concat()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}

impl PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.kind
    }
}

fn authority_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    params
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
