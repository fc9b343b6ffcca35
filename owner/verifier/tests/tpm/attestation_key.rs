//! Who vouches for the attestation key.

use rstest::rstest;
use sealpod_evidence::tpm::attributes;

use crate::event_log::sha256;
use crate::keys::{AttestationKey, SHA1};
use crate::support::{Guest, SECRET, assert_refused, proof};

#[test]
fn a_key_that_only_the_evidence_vouches_for_is_refused() {
    let mut guest = Guest::new();
    guest.request = None;
    assert_refused(guest.verify(), "ak", "neither");
}

#[test]
fn a_key_without_a_credential_is_refused() {
    let mut guest = Guest::new();
    guest.credential = None;
    assert_refused(guest.verify(), "ak", "no credential in the challenge");
}

#[test]
fn a_key_without_a_proof_is_refused() {
    let result = Guest::new().verify_altered(|evidence| evidence.credential_proof = None);
    assert_refused(result, "ak", "no proof of the credential");
}

#[test]
fn another_enrolled_key_vouches_for_nothing() {
    let mut guest = Guest::new();
    guest.anchors.tpm_enrolled_aks = vec![[0; 32], sha256(b"another key").try_into().unwrap()];
    guest.request = None;
    assert_refused(guest.verify(), "ak", "neither");
}

#[rstest]
#[case::of_another_secret(|message: &[u8]| proof(b"another secret", message))]
#[case::over_another_quote(|_: &[u8]| proof(&SECRET, b"another quote"))]
#[case::cut(|message: &[u8]| proof(&SECRET, message)[..31].to_vec())]
#[case::empty(|_: &[u8]| Vec::new())]
fn another_proof_is_refused(#[case] other: fn(&[u8]) -> Vec<u8>) {
    let result = Guest::new().verify_altered(|evidence| {
        evidence.credential_proof = Some(other(&evidence.tpm_quote.message));
    });
    assert_refused(result, "ak", "another proof");
}

#[test]
fn a_proof_is_for_one_quote() {
    let (guest, mut later) = (Guest::new(), Guest::new());
    later.quote.extra_data = vec![1; 32];
    let old = later.evidence().credential_proof;
    let result = guest.verify_altered(|evidence| evidence.credential_proof = old);
    assert_refused(result, "ak", "another proof");
}

#[test]
fn a_quote_by_another_key_than_the_request_named_is_refused() {
    let mut guest = Guest::new();
    // The proof is good: the TPM opened the credential, and something else signed.
    guest.attestation = AttestationKey::p256();
    assert_refused(guest.verify(), "ak", "another key");
}

#[rstest]
#[case::leaves_its_tpm(attributes::FIXED_TPM, 0)]
#[case::gets_another_parent(attributes::FIXED_PARENT, 0)]
#[case::was_made_elsewhere(attributes::SENSITIVE_DATA_ORIGIN, 0)]
#[case::signs_anything(attributes::RESTRICTED, 0)]
#[case::does_not_sign(attributes::SIGN, 0)]
#[case::decrypts(0, attributes::DECRYPT)]
fn a_key_that_is_not_a_restricted_signing_key_is_refused(#[case] without: u32, #[case] with: u32) {
    let mut guest = Guest::new();
    let mut area = guest.attestation.area();
    area.attributes = area.attributes & !without | with;
    guest.request_mut().ak_public = guest.attestation.public(&area);
    let refusal = guest.refused_twice();
    assert_eq!(refusal.claim, "ak");
    assert_eq!(refusal.actual, format!("attributes {:#010x}", area.attributes));
}

#[test]
fn a_key_whose_name_is_made_with_sha_1_is_refused() {
    let mut guest = Guest::new();
    let mut area = guest.attestation.area();
    area.name_algorithm = SHA1;
    guest.request_mut().ak_public = guest.attestation.public(&area);
    let refusal = guest.refused_twice();
    assert_eq!((refusal.claim.as_str(), refusal.actual.as_str()), ("ak", "sha1"));
}

#[test]
fn a_malformed_public_area_is_refused() {
    let mut guest = Guest::new();
    guest.request_mut().ak_public.push(0);
    let refusal = guest.refused_twice();
    assert_eq!(refusal.claim, "ak");
    assert_eq!(refusal.actual, "1 bytes follow the public area");
}
