//! The endorsement key's certificate and its chain to an anchor (RFC 5280 §6, as far as TPM certificates need it).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, UnparsedPublicKey, VerificationAlgorithm,
};
use sealpod_evidence::HashAlgorithm;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage};

use crate::{Refusal, UnixSeconds};

/// No chain is longer: an endorsement key certificate, intermediates, a root.
const MAX_CHAIN: usize = 6;
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
/// tcg-kp-EKCertificate (TCG EK Credential Profile §3.2).
const ENDORSEMENT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");

/// What a good certificate says.
pub(super) struct Certified {
    /// Its SubjectPublicKeyInfo, DER.
    pub(super) key: Vec<u8>,
    /// The SHA-256 digest of the certificate, without what fills the TPM's memory after it.
    pub(super) digest: Vec<u8>,
}

/// The key of an endorsement key certificate that chains to an anchor and is valid now.
///
/// Each anchor is trusted by itself, so a chain may end at an intermediate. Where an anchor's own issuer is an anchor
/// too, the chain goes on to it, and a root that expired is noticed. Revocation lists are not looked at: the owner takes
/// a revoked authority out of the anchors.
pub(super) fn certified_key(der: &[u8], anchors: &[Vec<u8>], now: UnixSeconds) -> Result<Certified, Refusal> {
    let refused = |actual: &str| {
        Refusal::new("ek_certificate", "a certificate that chains to a configured authority", actual)
    };
    let der = without_filling(der).ok_or_else(|| refused("something that is no X.509 certificate"))?;
    let leaf = parse(der).ok_or_else(|| refused("something that is no X.509 certificate"))?;
    let anchors: Vec<Certificate> = anchors.iter().filter_map(|anchor| parse(anchor)).collect();
    valid(&leaf, now)?;
    endorses(&leaf)?;
    let certified = || {
        let key = key(&leaf).ok_or_else(|| refused("a key that is not SubjectPublicKeyInfo"))?;
        Ok(Certified { key, digest: HashAlgorithm::Sha256.digest(der) })
    };
    let mut subject = &leaf;
    for depth in 0..MAX_CHAIN {
        let issuer = anchors.iter().find(|anchor| issued(anchor, subject));
        match issuer {
            Some(issuer) => {
                valid(issuer, now)?;
                authority(issuer, depth)?;
                if issuer.tbs_certificate().subject() == issuer.tbs_certificate().issuer() {
                    return certified();
                }
                subject = issuer;
            }
            None if depth > 0 => return certified(),
            None => {
                let issuer = leaf.tbs_certificate().issuer();
                return Err(refused(&format!("one that {issuer} issued")));
            }
        }
    }
    Err(refused("a chain that is too long"))
}

fn parse(der: &[u8]) -> Option<Certificate> {
    Certificate::from_der(without_filling(der)?).ok()
}

/// A certificate in NV memory may be followed by filling.
fn without_filling(der: &[u8]) -> Option<&[u8]> {
    der.get(..der_length(der)?)
}

/// The length of the outermost SEQUENCE, its header included.
fn der_length(der: &[u8]) -> Option<usize> {
    match der {
        [0x30, 0x82, high, low, ..] => Some(4 + usize::from(u16::from_be_bytes([*high, *low]))),
        [0x30, 0x81, length, ..] => Some(3 + usize::from(*length)),
        _ => None,
    }
}

fn valid(certificate: &Certificate, now: UnixSeconds) -> Result<(), Refusal> {
    let validity = certificate.tbs_certificate().validity();
    let (from, to) =
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs());
    if (from..=to).contains(&now) {
        return Ok(());
    }
    let subject = certificate.tbs_certificate().subject();
    Err(Refusal::new(
        "ek_certificate",
        format!("{subject} valid at {now}"),
        format!("valid from {from} to {to}"),
    ))
}

/// Whether a certificate is for endorsement keys, where it says what it is for: authorities issue others, too, whose
/// keys need not be in a TPM.
fn endorses(certificate: &Certificate) -> Result<(), Refusal> {
    let refused = |actual| Refusal::new("ek_certificate", "a certificate for an endorsement key", actual);
    match certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>() {
        Ok(Some((_, usage))) if !usage.0.contains(&ENDORSEMENT) => {
            Err(refused("one for another use of the key"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(refused("a malformed extended key usage")),
    }
}

/// Whether a certificate may issue others, with so many authorities below it.
fn authority(certificate: &Certificate, below: usize) -> Result<(), Refusal> {
    let tbs = certificate.tbs_certificate();
    let refused = |actual: &str| {
        Refusal::new("ek_certificate", format!("{} as a certificate authority", tbs.subject()), actual)
    };
    let constraints = tbs.get_extension::<BasicConstraints>().ok().flatten();
    let Some((_, constraints)) = constraints.filter(|(_, constraints)| constraints.ca) else {
        return Err(refused("a certificate of no authority"));
    };
    if constraints.path_len_constraint.is_some_and(|limit| usize::from(limit) < below) {
        return Err(refused("a chain longer than it allows"));
    }
    match tbs.get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) if !usage.key_cert_sign() => {
            Err(refused("a key that may not sign certificates"))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(refused("a malformed key usage")),
    }
}

/// Whether the issuer's name and key fit the certificate.
fn issued(issuer: &Certificate, subject: &Certificate) -> bool {
    issuer.tbs_certificate().subject() == subject.tbs_certificate().issuer()
        && signed(issuer, subject).is_some()
}

fn signed(issuer: &Certificate, subject: &Certificate) -> Option<()> {
    // The algorithm stands in the signed part as well; both must agree (RFC 5280 §4.1.1.2).
    if subject.signature_algorithm() != subject.tbs_certificate().signature() {
        return None;
    }
    let info = issuer.tbs_certificate().subject_public_key_info();
    let key = info.subject_public_key.as_bytes()?;
    let candidates: &[&'static dyn VerificationAlgorithm] = match subject.signature_algorithm().oid {
        RSA_SHA256 => &[&RSA_PKCS1_2048_8192_SHA256],
        RSA_SHA384 => &[&RSA_PKCS1_2048_8192_SHA384],
        ECDSA_SHA256 => &[&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA256_ASN1],
        ECDSA_SHA384 => &[&ECDSA_P384_SHA384_ASN1],
        _ => return None,
    };
    let message = subject.tbs_certificate().to_der().ok()?;
    let signature = subject.signature().as_bytes()?;
    let good = |algorithm: &&'static dyn VerificationAlgorithm| {
        UnparsedPublicKey::new(*algorithm, key).verify(&message, signature).is_ok()
    };
    candidates.iter().any(good).then_some(())
}

fn key(certificate: &Certificate) -> Option<Vec<u8>> {
    certificate.tbs_certificate().subject_public_key_info().to_der().ok()
}
