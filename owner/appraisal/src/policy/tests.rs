use serde_json::json;

use super::*;

fn claims(value: Value) -> Claims {
    Claims(value.as_object().unwrap().clone())
}

fn measured() -> Claims {
    claims(json!({
        "tpm": {}, "firmware": "aa", "kernel": "bb", "initrd": "cc", "cmdline": "dd", "init_data": "ee" }))
}

fn references() -> ReferenceValues {
    let one = |id: &str, value: &str| (id.to_owned(), json!([value, "another"]));
    [
        one("firmware", "aa"),
        one("kernel", "bb"),
        one("initrd", "cc"),
        one("cmdline", "dd"),
        one("init_data", "ee"),
    ]
    .into()
}

fn default() -> Policy {
    Policy::parse("default", DEFAULT_POLICY).unwrap()
}

#[test]
fn a_guest_of_which_everything_is_registered_is_affirmed() {
    let appraisal = appraise(&default(), Tee::Tpm, &measured(), &references()).unwrap();
    assert_eq!(appraisal.status, Status::Affirming);
    assert!(appraisal.failures.is_empty());
}

#[test]
fn each_claim_that_differs_is_refused_and_explained() {
    for name in ["firmware", "kernel", "initrd", "cmdline", "init_data"] {
        let mut other = measured();
        other.0.insert(name.into(), json!("zz"));
        let appraisal = appraise(&default(), Tee::Tpm, &other, &references()).unwrap();
        assert_eq!(appraisal.status, Status::Warning, "{name}");
        let [failure] = appraisal.failures.as_slice() else { panic!("{name}: {:?}", appraisal.failures) };
        assert_eq!((failure.claim.as_str(), failure.actual.as_str()), (name, "zz"));
        assert!(failure.expected.ends_with(" or another"));
    }
}

#[test]
fn nothing_registered_means_nothing_trusted() {
    let appraisal = appraise(&default(), Tee::Tpm, &measured(), &ReferenceValues::new()).unwrap();
    assert_ne!(appraisal.status, Status::Affirming);
    assert_eq!(appraisal.failures.len(), 5);
}

#[test]
fn no_init_data_is_trusted_only_where_that_is_registered() {
    let mut without = measured();
    without.0.insert("init_data".into(), json!(""));
    assert_ne!(appraise(&default(), Tee::Tpm, &without, &references()).unwrap().status, Status::Affirming);
    let mut references = references();
    references.insert("init_data".into(), json!([""]));
    assert_eq!(appraise(&default(), Tee::Tpm, &without, &references).unwrap().status, Status::Affirming);
}

#[test]
fn claims_of_no_tee_are_not_trusted() {
    let mut other = measured();
    other.0.remove("tpm");
    let appraisal = appraise(&default(), Tee::Snp, &other, &references()).unwrap();
    assert_eq!(appraisal.status, Status::Contraindicated);
}

#[test]
fn a_malformed_policy_is_refused_with_its_line() {
    let error = Policy::parse("x", "package policy\nimport rego.v1\nallow if {").err().unwrap().to_string();
    assert!(error.contains("x.rego:3"), "{error}");
    assert!(Policy::parse("x", "package other\ntrust_claims := {}").is_err());
    assert!(Policy::parse("x", "package policy\nallow := true").is_err());
    assert!(matches!(Policy::parse("x", &"#".repeat(MAX_LENGTH + 1)), Err(PolicyError::TooLong(_))));
}

#[test]
fn a_policy_that_gives_no_vector_fails_closed() {
    let policy = Policy::parse("x", "package policy\ntrust_claims := {\"hardware\": \"fine\"}").unwrap();
    assert!(matches!(
        appraise(&policy, Tee::Tpm, &measured(), &references()),
        Err(PolicyError::Result { rule: "trust_claims", .. })
    ));
    let empty = Policy::parse("x", "package policy\ntrust_claims := {}").unwrap();
    assert_eq!(appraise(&empty, Tee::Tpm, &measured(), &references()).unwrap().status, Status::None);
}

#[test]
fn a_claim_about_which_nothing_is_known_is_not_affirmed() {
    let policy =
        Policy::parse("x", "package policy\ntrust_claims := {\"hardware\": 2, \"executables\": 0}").unwrap();
    assert_eq!(appraise(&policy, Tee::Tpm, &measured(), &references()).unwrap().status, Status::None);
}

#[test]
fn a_claim_that_ar4si_does_not_have_is_refused() {
    let policy = Policy::parse("x", "package policy\ntrust_claims := {\"hardwear\": 2}").unwrap();
    let error = appraise(&policy, Tee::Tpm, &measured(), &references()).unwrap_err().to_string();
    assert!(error.contains("hardwear"), "{error}");
}

#[test]
fn a_reference_value_may_be_a_single_one() {
    let mut references = references();
    references.insert("kernel".into(), json!("bb"));
    assert_eq!(appraise(&default(), Tee::Tpm, &measured(), &references).unwrap().status, Status::Affirming);
    references.insert("kernel".into(), json!("xx"));
    let appraisal = appraise(&default(), Tee::Tpm, &measured(), &references).unwrap();
    assert_eq!(appraisal.status, Status::Warning);
    assert_eq!(appraisal.failures, [Refusal::new("kernel", "xx", "bb")]);
}

#[test]
fn a_policy_in_the_manner_of_other_verifiers_is_evaluated() {
    let policy = r#"
        package policy
        import rego.v1
        default executables := 33
        default hardware := 97
        executables := 3 if input.sample.svn in query_reference_value("svn")
        hardware := 2 if input.sample.svn in query_reference_value("svn")
        trust_claims := {"executables": executables, "hardware": hardware, "file-system": 2}
        extensions := [{"name": "ear.trustee.identifiers", "key": 65002, "value": {"svn": input.sample.svn}}]
    "#;
    let policy = Policy::parse("x", policy).unwrap();
    let claims = claims(json!({ "sample": { "svn": "1" }, "init_data": "" }));
    let references = ReferenceValues::from([("svn".to_owned(), json!(["1"]))]);
    let appraisal = appraise(&policy, Tee::Sample, &claims, &references).unwrap();
    assert_eq!(appraisal.status, Status::Affirming);
    assert_eq!(appraisal.extensions["ear.trustee.identifiers"], json!({ "svn": "1" }));
    let appraisal = appraise(&policy, Tee::Sample, &claims, &ReferenceValues::new()).unwrap();
    assert_eq!(appraisal.status, Status::Contraindicated);
    assert_eq!(appraisal.failures.len(), 1, "the owner gets a reason although the policy gives none");
}

#[test]
fn extensions_cannot_replace_the_appraisal() {
    for name in RESERVED {
        let text = format!(
            "package policy\ntrust_claims := {{\"hardware\": 97}}\n\
             extensions := [{{\"name\": \"{name}\", \"value\": \"affirming\"}}]"
        );
        let policy = Policy::parse("x", &text).unwrap();
        assert!(matches!(
            appraise(&policy, Tee::Tpm, &measured(), &references()),
            Err(PolicyError::Result { rule: "extensions", .. })
        ));
    }
}

#[test]
fn a_policy_that_does_not_end_is_stopped() {
    let text = "package policy\nimport rego.v1\n\
        trust_claims := {\"hardware\": 2} if {\n\
        some a in numbers.range(0, 9999)\nsome b in numbers.range(0, 9999)\na + b == 0 - 1\n}";
    let start = std::time::Instant::now();
    let error = Policy::parse("x", text).err().unwrap().to_string();
    assert!(error.contains("time limit"), "{error}");
    assert!(start.elapsed() < 10 * TIME_LIMIT);
}
