//! The quote: its signature, what it binds, and which registers it covers.

use rstest::rstest;
use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::tpm::codec::{Endian, Writer};
use sealpod_evidence::tpm::{Evidence, QuoteEvidence};

use crate::event_log::sha256;
use crate::keys::AttestationKey;
use crate::support::{Guest, assert_refused, selection};

/// SHA-256, three bytes: the registers 0 to 9.
const BANK: [u8; 6] = [0, 0x0b, 3, 0xff, 0x03, 0];

#[rstest]
#[case::p256(AttestationKey::p256)]
#[case::p384(AttestationKey::p384)]
#[case::rsa_pkcs1(AttestationKey::rsa_pkcs1)]
#[case::rsa_pss(AttestationKey::rsa_pss)]
fn an_altered_signature_is_refused(#[case] key: fn() -> AttestationKey) {
    let mut guest = Guest::new();
    guest.attestation = key();
    guest.enrol();
    guest.verify().unwrap();
    let altered = guest.verify_altered(|evidence| *evidence.tpm_quote.signature.last_mut().unwrap() ^= 1);
    assert_refused(altered, "quote_signature", "another signature");
    let other = guest.verify_altered(|evidence| {
        evidence.tpm_quote.signature = AttestationKey::p256().sign(&evidence.tpm_quote.message);
    });
    assert_refused(other, "quote_signature", "another signature");
}

#[test]
fn an_altered_message_is_refused() {
    let mut guest = Guest::new();
    guest.enrol();
    // A byte of the clock.
    let result = guest.verify_altered(|evidence| evidence.tpm_quote.message[50] ^= 1);
    assert_refused(result, "quote_signature", "another signature");
}

#[rstest]
#[case::of_an_unsupported_hash(signature([0x0018, 0x000d], &[1; 32]), "not supported")]
#[case::of_sha_1([&[0, 0x14, 0, 0x04, 0, 1], &[1; 1][..]].concat(), "not supported")]
#[case::of_a_number_that_is_too_long(signature([0x0018, 0x000b], &[1; 33]), "numbers that are too long")]
#[case::of_a_p384_number_that_is_too_long(signature([0x0018, 0x000c], &[1; 49]), "numbers that are too long")]
#[case::of_an_unknown_algorithm(signature([0x0001, 0x000b], &[1; 32]), "signature algorithm is 0x1")]
#[case::of_nothing(vec![], "the signature ends early")]
fn a_signature_that_is_none_is_refused(#[case] signature: Vec<u8>, #[case] actual: &str) {
    let result = Guest::new().verify_altered(|evidence| evidence.tpm_quote.signature = signature);
    assert_refused(result, "quote_signature", actual);
}

#[test]
fn a_signature_may_have_zeros_before_its_numbers_or_leave_them_out() {
    let guest = Guest::new();
    let resized = |change: fn(&[u8]) -> Vec<u8>| {
        guest.verify_altered(|evidence| {
            let (r, s) = evidence.tpm_quote.signature[6..].split_at(32);
            let mut out = Writer::new(Endian::Big);
            out.u16(0x0018).u16(0x000b).sized(&change(r)).sized(&change(&s[2..]));
            evidence.tpm_quote.signature = out.into_bytes();
        })
    };
    resized(|number| [&[0, 0], number].concat()).unwrap();
    resized(|number| number.iter().copied().skip_while(|byte| *byte == 0).collect()).unwrap();
}

fn signature([scheme, hash]: [u16; 2], number: &[u8]) -> Vec<u8> {
    let mut out = Writer::new(Endian::Big);
    out.u16(scheme).u16(hash).sized(number).sized(number);
    out.into_bytes()
}

#[rstest]
#[case::nothing(|_: Vec<u8>| vec![])]
#[case::text(|_: Vec<u8>| b"a key".to_vec())]
#[case::followed_by_something(|key: Vec<u8>| [key, vec![0]].concat())]
#[case::another_form(|key: Vec<u8>| [&[0x30, 0x81], &key[1..]].concat())]
fn an_enrolled_key_has_one_form(#[case] other: fn(Vec<u8>) -> Vec<u8>) {
    let mut guest = Guest::new();
    let key = other(guest.ak_public());
    guest.anchors.tpm_enrolled_aks = vec![sha256(&key).try_into().unwrap()];
    let result = guest.verify_altered(|evidence| evidence.ak_public = key);
    assert_refused(result, "quote_signature", "a key that is not SubjectPublicKeyInfo");
}

#[test]
fn what_the_tpm_did_not_make_is_refused() {
    let mut guest = Guest::new();
    guest.quote.magic = 0;
    assert_refused(guest.verify(), "quote", "magic is 0x00000000");
}

#[test]
fn another_kind_of_attestation_is_refused() {
    let mut guest = Guest::new();
    // TPM_ST_ATTEST_CERTIFY.
    guest.quote.kind = 0x8017;
    assert_refused(guest.verify(), "quote", "attestation type is 0x8017");
}

#[test]
fn a_quote_with_something_after_it_is_refused() {
    let mut guest = Guest::new();
    guest.quote.trailing = vec![0];
    assert_refused(guest.verify(), "quote", "1 bytes follow the quote");
}

#[rstest]
#[case::of_another_nonce(vec![0x11; 32])]
#[case::none(vec![])]
#[case::cut(vec![0x5a; 31])]
#[case::all_of_it(vec![0x5a; 48])]
fn other_report_data_is_refused(#[case] extra_data: Vec<u8>) {
    let mut guest = Guest::new();
    guest.quote.extra_data = extra_data.clone();
    let refusal = guest.verify().unwrap_err();
    assert_eq!(refusal.claim, "report_data");
    assert_eq!(refusal.expected, "5a".repeat(32));
    assert_eq!(refusal.actual, hex::encode(extra_data));
}

#[rstest]
#[case(0)]
#[case(20)]
#[case(64)]
#[case(100_000)]
fn report_data_of_any_length_is_compared_as_far_as_a_tpm_takes_it(#[case] length: usize) {
    let mut guest = Guest::new();
    guest.report_data = vec![0x5b; length];
    assert_refused(guest.verify(), "report_data", &"5a".repeat(32));
    guest.quote.extra_data = sealpod_evidence::fit(&guest.report_data, 32);
    guest.verify().unwrap();
}

#[rstest]
#[case::fewer(selection(HashAlgorithm::Sha256, 0..=8), "sha256:0,1,2,3,4,5,6,7,8")]
#[case::more(selection(HashAlgorithm::Sha256, 0..=10), "sha256:0,1,2,3,4,5,6,7,8,9,10")]
#[case::another_presented_as_the_last(
    selection(HashAlgorithm::Sha256, (0..=8).chain([16])),
    "sha256:0,1,2,3,4,5,6,7,8,16"
)]
#[case::another_bank(selection(HashAlgorithm::Sha384, 0..=9), "sha384:0,1")]
#[case::no_register(vec![0, 0, 0, 0], "")]
#[case::two_banks([&[0, 0, 0, 2], &BANK[..], &[0, 0x0c, 3, 1, 0, 0]].concat(), "+sha384:0")]
#[case::one_bank_twice([&[0, 0, 0, 2], &BANK[..], &BANK].concat(), "another form")]
#[case::in_another_order(
    vec![0, 0, 0, 2, 0, 0x0b, 3, 0xe0, 0x03, 0, 0, 0x0b, 3, 0x1f, 0, 0],
    "another form"
)]
fn a_quote_over_other_registers_is_refused(#[case] selection: Vec<u8>, #[case] actual: &str) {
    let mut guest = Guest::new();
    // The digest is over the values that are presented, as it is where a TPM signs such a selection.
    guest.quote.selection = selection;
    let refusal = guest.verify().unwrap_err();
    assert_eq!(
        (refusal.claim.as_str(), refusal.expected.as_str()),
        ("pcr_selection", "sha256:0,1,2,3,4,5,6,7,8,9")
    );
    assert!(refusal.actual.ends_with(actual) || refusal.actual.starts_with(actual), "{refusal}");
}

#[test]
fn a_selection_of_too_many_banks_is_refused() {
    let mut guest = Guest::new();
    guest.quote.selection = vec![0xff; 4];
    assert_refused(guest.verify(), "quote", "number of PCR banks");
}

#[rstest]
#[case::none(|quote: &mut QuoteEvidence| quote.pcrs.clear(), "0")]
#[case::fewer(|quote: &mut QuoteEvidence| drop(quote.pcrs.pop()), "9")]
#[case::more(|quote: &mut QuoteEvidence| quote.pcrs.push("00".repeat(32)), "11")]
#[case::no_hexadecimal(|quote: &mut QuoteEvidence| quote.pcrs[3] = "g".repeat(64), "something else")]
#[case::shorter(|quote: &mut QuoteEvidence| drop(quote.pcrs[3].split_off(62)), "something else")]
#[case::joined(join, "something else")]
fn registers_that_are_none_are_refused(#[case] change: fn(&mut QuoteEvidence), #[case] actual: &str) {
    let result = Guest::new().verify_altered(|evidence: &mut Evidence| change(&mut evidence.tpm_quote));
    assert_refused(result, "pcrs", actual);
}

/// The same bytes, so the same digest, cut at another place.
fn join(quote: &mut QuoteEvidence) {
    let byte = quote.pcrs[4].split_off(62);
    quote.pcrs[5].insert_str(0, &byte);
}

#[test]
fn other_values_than_those_that_were_signed_are_refused() {
    let mut guest = Guest::new();
    let signed = hex::encode(sha256(&guest.registers.concat()));
    let other = guest.verify_altered(|evidence| evidence.tpm_quote.pcrs[4] = "00".repeat(32));
    assert_eq!(other.unwrap_err().expected, signed);
    let swapped = guest.verify_altered(|evidence| evidence.tpm_quote.pcrs.swap(0, 1));
    assert_refused(swapped, "pcr_digest", "");
    guest.quote.pcr_digest = Some(vec![7; 32]);
    assert_refused(guest.verify(), "pcr_digest", &signed);
}

#[test]
fn the_digest_is_by_the_hash_of_the_signature() {
    let mut guest = Guest::new();
    guest.attestation = AttestationKey::p384();
    guest.enrol();
    guest.quote.pcr_digest = Some(sha256(&guest.registers.concat()));
    assert_refused(guest.verify(), "pcr_digest", "");
}

#[test]
fn evidence_of_another_shape_is_refused() {
    let guest = Guest::new();
    let good = serde_json::to_value(guest.evidence()).unwrap();
    guest.verify_value(&good).unwrap();
    for change in [
        |value: &mut serde_json::Value| value["more"] = 1.into(),
        |value: &mut serde_json::Value| drop(value.as_object_mut().unwrap().remove("ak_public")),
        |value: &mut serde_json::Value| value["tpm_quote"]["signature"] = "not base64!".into(),
        |value: &mut serde_json::Value| value["tpm_quote"]["pcrs"] = serde_json::Value::Null,
        |value: &mut serde_json::Value| *value = serde_json::Value::Null,
    ] {
        let mut value = good.clone();
        change(&mut value);
        assert_refused(guest.verify_value(&value), "evidence", "");
    }
}

#[test]
fn evidence_is_good_for_one_handshake() {
    let (guest, mut next) = (Guest::new(), Guest::new());
    let replayed = guest.evidence();
    next.report_data = vec![0x77; 48];
    next.enrol();
    next.anchors.tpm_enrolled_aks.push(sha256(&guest.ak_public()).try_into().unwrap());
    assert_refused(next.verify_altered(|evidence| *evidence = replayed), "report_data", "5a5a");
}
