//! The register of init data.

use rstest::rstest;
use sealpod_evidence::fit;
use serde_json::json;

use crate::event_log::sha256;
use crate::support::{Guest, assert_refused};

/// A guest that extended this digest, cut or filled as a TPM takes it, and a broker that got it.
fn guest(digest: &[u8]) -> Guest {
    let mut guest = Guest::new();
    guest.registers[8] = sha256(&[vec![0; 32], fit(digest, 32)].concat());
    guest.init_data_digest = Some(digest.to_vec());
    guest
}

#[rstest]
#[case::sha_256(32)]
#[case::sha_384(48)]
#[case::sha_512(64)]
#[case::shorter(20)]
#[case::empty(0)]
#[case::long(100_000)]
fn a_digest_of_any_length_is_compared_as_far_as_the_register_takes_it(#[case] length: usize) {
    let mut guest = guest(&vec![3; length]);
    assert_eq!(guest.verify().unwrap().0["init_data"], json!("03".repeat(length)));
    guest.init_data_digest = Some(vec![4; length.max(1)]);
    assert_refused(guest.verify(), "init_data", &hex::encode(&guest.registers[8]));
}

#[test]
fn other_init_data_is_refused() {
    let mut guest = guest(&[3; 32]);
    guest.init_data_digest = Some(vec![4; 32]);
    let refusal = guest.verify().unwrap_err();
    assert_eq!(refusal.claim, "init_data");
    assert_eq!(refusal.expected, format!("PCR 8 with init data {}", "04".repeat(32)));
    assert_eq!(refusal.actual, format!("PCR 8 {}", hex::encode(&guest.registers[8])));
}

#[test]
fn init_data_that_was_not_extended_is_refused() {
    let mut guest = guest(&[3; 32]);
    guest.registers[8] = vec![0; 32];
    assert_refused(guest.verify(), "init_data", &"00".repeat(32));
}

#[test]
fn init_data_that_was_not_presented_is_refused() {
    let mut guest = guest(&[3; 32]);
    guest.init_data_digest = None;
    let refusal = guest.verify().unwrap_err();
    assert_eq!((refusal.claim.as_str(), refusal.expected.as_str()), ("init_data", "PCR 8 without init data"));
}

#[test]
fn init_data_that_was_extended_twice_is_refused() {
    let mut guest = guest(&[3; 32]);
    guest.registers[8] = sha256(&[guest.registers[8].clone(), vec![3; 32]].concat());
    assert_refused(guest.verify(), "init_data", &hex::encode(&guest.registers[8]));
}
