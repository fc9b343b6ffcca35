//! Evidence that proves nothing, and TEEs without a verifier.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rstest::rstest;
use sealpod_evidence::Tee;
use sealpod_verifier::{Claims, Expected, Refusal, TrustAnchors, supported, verify};
use serde_json::{Value, json};

use crate::support::{NOW, assert_refused};

const REPORT_DATA: [u8; 48] = [1; 48];

fn verify_as(tee: Tee, evidence: &Value, allow_sample: bool) -> Result<Claims, Refusal> {
    let expected = Expected {
        report_data: &REPORT_DATA,
        init_data_digest: Some(&[2; 32]),
        credential: None,
        tpm_request: None,
    };
    verify(tee, evidence, &expected, &TrustAnchors { allow_sample, ..TrustAnchors::default() }, NOW)
}

fn evidence(report_data: &[u8]) -> Value {
    json!({ "svn": "1", "report_data": STANDARD.encode(report_data) })
}

#[test]
fn sample_evidence_is_taken_where_it_is_allowed() {
    let claims = verify_as(Tee::Sample, &evidence(&REPORT_DATA), true).unwrap();
    let expected = json!({ "sample": { "svn": "1" }, "init_data": "02".repeat(32) });
    assert_eq!(serde_json::to_value(claims).unwrap(), expected);
}

#[test]
fn sample_evidence_is_refused_where_it_is_not_allowed() {
    assert_refused(verify_as(Tee::Sample, &evidence(&REPORT_DATA), false), "tee", "sample");
}

#[rstest]
#[case::other(&[2; 48])]
#[case::cut(&[1; 32])]
#[case::longer(&[1; 49])]
#[case::empty(&[])]
fn sample_evidence_with_other_report_data_is_refused(#[case] report_data: &[u8]) {
    let result = verify_as(Tee::Sample, &evidence(report_data), true);
    assert_refused(result, "report_data", &hex::encode(report_data));
}

#[rstest]
#[case::nothing(json!(null))]
#[case::no_report_data(json!({ "svn": "1" }))]
#[case::an_unknown_field(json!({ "svn": "1", "report_data": "", "more": 1 }))]
#[case::no_base64(json!({ "svn": "1", "report_data": "!" }))]
fn sample_evidence_of_another_shape_is_refused(#[case] evidence: Value) {
    assert_refused(verify_as(Tee::Sample, &evidence, true), "evidence", "");
}

#[rstest]
#[case(Tee::Snp)]
#[case(Tee::Tdx)]
#[case(Tee::Sgx)]
fn a_tee_without_a_verifier_is_refused(#[case] tee: Tee) {
    assert_refused(verify_as(tee, &evidence(&REPORT_DATA), true), "tee", &tee.to_string());
}

#[test]
fn what_would_be_refused_in_any_case_is_known_without_evidence() {
    for (tee, allow_sample, good) in [
        (Tee::Tpm, false, true),
        (Tee::Sample, true, true),
        (Tee::Sample, false, false),
        (Tee::Snp, true, false),
        (Tee::Sampledevice, true, false),
    ] {
        let anchors = TrustAnchors { allow_sample, ..TrustAnchors::default() };
        assert_eq!(supported(tee, &anchors).is_ok(), good, "{tee}");
    }
}
