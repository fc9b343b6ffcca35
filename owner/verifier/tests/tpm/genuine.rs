//! Evidence of a genuine TPM that others recorded: an RSA attestation key, all registers, no log and no certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealpod_evidence::Tee;
use sealpod_evidence::tpm::Evidence;
use sealpod_verifier::{Claims, Expected, Refusal, TrustAnchors, verify};
use serde_json::Value;

use crate::event_log::sha256;
use crate::support::{NOW, assert_refused};

fn evidence() -> Value {
    let folder = std::env::var_os("SEALPOD_FIXTURES").expect("SEALPOD_FIXTURES names the genuine evidence");
    let path = std::path::Path::new(&folder).join("tpm/tpm_evidence.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Verifies it without a credential, as the handshake's first message had no keys.
fn verify_under(evidence: &Value, anchors: &TrustAnchors) -> Result<Claims, Refusal> {
    let expected =
        Expected { report_data: &[0; 32], init_data_digest: None, credential: None, tpm_request: None };
    verify(Tee::Tpm, evidence, &expected, anchors, NOW)
}

fn enrolled(evidence: &Value) -> TrustAnchors {
    let key = STANDARD.decode(evidence["ak_public"].as_str().unwrap()).unwrap();
    TrustAnchors { tpm_enrolled_aks: vec![sha256(&key).try_into().unwrap()], ..TrustAnchors::default() }
}

#[test]
#[ignore = "on genuine evidence, which SEALPOD_FIXTURES names"]
fn a_genuine_quote_under_a_key_that_nobody_vouches_for_is_refused() {
    let evidence = evidence();
    assert_refused(verify_under(&evidence, &TrustAnchors::default()), "ak", "neither");
}

/// It binds 64 bytes of report data, of which our handshake takes 32; so it is refused for these, once its signature
/// was found good.
#[test]
#[ignore = "on genuine evidence, which SEALPOD_FIXTURES names"]
fn a_genuine_quote_under_an_enrolled_key_has_a_good_signature() {
    let evidence = evidence();
    let parsed: Evidence = serde_json::from_value(evidence.clone()).unwrap();
    let bound = &sealpod_evidence::tpm::Attest::parse(&parsed.tpm_quote.message).unwrap().extra_data;
    assert_eq!(bound.len(), 64);
    let anchors = enrolled(&evidence);
    assert_refused(verify_under(&evidence, &anchors), "report_data", &hex::encode(bound));
}

#[test]
#[ignore = "on genuine evidence, which SEALPOD_FIXTURES names"]
fn a_genuine_quote_with_an_altered_signature_is_refused() {
    let mut evidence = evidence();
    let mut signature = STANDARD.decode(evidence["tpm_quote"]["signature"].as_str().unwrap()).unwrap();
    *signature.last_mut().unwrap() ^= 1;
    evidence["tpm_quote"]["signature"] = STANDARD.encode(signature).into();
    assert_refused(verify_under(&evidence, &enrolled(&evidence)), "quote_signature", "another signature");
}
