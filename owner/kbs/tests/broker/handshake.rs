//! `auth` and `attest`: each challenge is answered once, by evidence that binds the guest's key.

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use sealpod_evidence::HashAlgorithm;
use serde_json::{Value, json};

use crate::support::{Answer, Broker, Guest, Home, attest, attestation, auth, challenge, fetch, send, until};

const SECRET: &str = "default/key/web";

#[tokio::test]
async fn a_guest_that_attested_gets_secrets_sealed_to_its_key() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let guest = Guest::new();
    let (token, cookie) = guest.attest(&broker).await;

    let by_session = fetch(&broker, &cookie, SECRET).await;
    assert_eq!(guest.open(&by_session), b"a secret");
    let by_token = broker.request(Method::GET, &format!("resource/{SECRET}")).bearer_auth(&token);
    assert_eq!(guest.open(&send(by_token).await), b"a secret");

    let log = broker.audit_of_guests().await;
    let events: Vec<_> = log.iter().map(|entry| (&entry["event"], &entry["outcome"])).collect();
    assert_eq!(
        events,
        [
            (&json!("attest"), &json!("granted")),
            (&json!("resource"), &json!("granted")),
            (&json!("resource"), &json!("granted"))
        ]
    );
    assert!(log.iter().all(|entry| entry["guest"] == guest.keys.public_key().thumbprint()));
    assert_eq!(log[1]["resource"], SECRET);
}

#[tokio::test]
async fn each_session_has_a_cookie_of_its_own_that_scripts_do_not_see() {
    let home = Home::sample();
    let broker = home.start();
    let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": {} });
    let mut seen = Vec::new();
    for _ in 0..2 {
        let response = auth(&broker, &request).await;
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        let (value, attributes) = cookie.strip_prefix("kbs-session-id=").unwrap().split_once("; ").unwrap();
        assert!(value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
        assert!(attributes.contains("HttpOnly"), "{attributes}");
        let nonce: Value = response.json().await.unwrap();
        seen.push((value.to_owned(), nonce["nonce"].clone()));
    }
    assert!(seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1);
}

#[tokio::test]
async fn versions_that_are_not_listed_are_refused() {
    let home = Home::sample();
    let broker = home.start();
    for version in ["", "0.1.0", "0.2.0", "0.4", "0.4.1", "0.5.0", "1.0.0", "0.4.0 "] {
        let request = json!({ "version": version, "tee": "sample", "extra-params": {} });
        let answer = send(broker.request(Method::POST, "auth").body(request.to_string())).await;
        let detail = answer.error(StatusCode::BAD_REQUEST, "ProtocolVersion");
        assert!(detail.contains(version) && detail.ends_with("0.4.0"), "{detail}");
    }
}

#[tokio::test]
async fn requests_that_are_not_well_formed_are_refused() {
    let home = Home::sample();
    let broker = home.start();
    let good = json!({ "version": "0.4.0", "tee": "sample", "extra-params": {} });
    for (member, value) in [
        ("tee", json!("toaster")),
        ("more", json!(1)),
        ("extra-params", json!({ "tpm": {} })),
        ("extra-params", json!({ "supported-hash-algorithms": ["md5", "sha1"] })),
        ("extra-params", json!({ "supported-hash-algorithms": "sha384" })),
    ] {
        let mut request = good.clone();
        request[member] = value;
        let answer = send(broker.request(Method::POST, "auth").body(request.to_string())).await;
        answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
    }
    let session = challenge(&broker, "sample").await;
    for body in ["", "{", "[]", "{}", &"[".repeat(100_000)] {
        let request = broker.request(Method::POST, "attest").header("cookie", &session.cookie);
        let answer = send(request.body(body.to_owned())).await;
        answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
    }
}

#[tokio::test]
async fn the_hash_is_one_that_the_guest_has() {
    let home = Home::sample();
    let broker = home.start();
    for (offered, chosen) in [
        (json!([]), HashAlgorithm::Sha384),
        (json!(["sha256"]), HashAlgorithm::Sha256),
        (json!(["sha512"]), HashAlgorithm::Sha512),
        (json!(["sha3", "sha512", "sha384"]), HashAlgorithm::Sha384),
    ] {
        let extra = json!({ "supported-hash-algorithms": offered });
        let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": extra });
        let response = auth(&broker, &request).await;
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["extra-params"]["selected-hash-algorithm"], chosen.name());
        let key = json!(Guest::new().keys.public_key());
        let answer = attestation(body["nonce"].as_str().unwrap(), key, chosen);
        attest(&broker, cookie.split(';').next().unwrap(), &answer).await.expect(StatusCode::OK);
    }
}

#[tokio::test]
async fn a_second_answer_on_an_attested_session_is_refused() {
    let home = Home::sample();
    let broker = home.start();
    let guest = Guest::new();
    let session = challenge(&broker, "sample").await;
    let answer = guest.attestation(&session.nonce);
    attest(&broker, &session.cookie, &answer).await.expect(StatusCode::OK);
    for again in [answer, Guest::new().attestation(&session.nonce)] {
        let refused = attest(&broker, &session.cookie, &again).await;
        refused.error(StatusCode::CONFLICT, "Conflict");
        assert!(refused.json().get("token").is_none());
    }
}

#[tokio::test]
async fn a_nonce_is_used_up_by_an_answer_that_was_denied() {
    let home = Home::sample();
    let broker = home.start();
    let guest = Guest::new();
    let session = challenge(&broker, "sample").await;
    let mut wrong = guest.attestation(&session.nonce);
    wrong["tee-evidence"]["primary_evidence"]["report_data"] = json!("AAAA");
    attest(&broker, &session.cookie, &wrong).await.expect(StatusCode::FORBIDDEN);
    let right = guest.attestation(&session.nonce);
    attest(&broker, &session.cookie, &right).await.error(StatusCode::CONFLICT, "Conflict");
    fetch(&broker, &session.cookie, SECRET).await.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
}

#[tokio::test]
async fn of_many_answers_at_once_one_is_taken() {
    let home = Home::sample();
    let broker = home.start();
    for _ in 0..3 {
        let session = challenge(&broker, "sample").await;
        let guests: Vec<Value> = (0..16).map(|_| Guest::new().attestation(&session.nonce)).collect();
        let answers = join_all(guests.iter().map(|answer| attest(&broker, &session.cookie, answer))).await;
        let taken = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
        let refused = answers.iter().filter(|answer| answer.status == StatusCode::CONFLICT).count();
        assert_eq!((taken, refused), (1, 15));
    }
}

#[tokio::test]
async fn a_nonce_of_another_session_is_refused() {
    let home = Home::sample();
    let broker = home.start();
    let (one, other) = (challenge(&broker, "sample").await, challenge(&broker, "sample").await);
    let refused = attest(&broker, &one.cookie, &Guest::new().attestation(&other.nonce)).await;
    let failures = broker.reason(&refused).await["failures"].clone();
    let expected = json!([{ "claim": "nonce", "expected": one.nonce, "actual": other.nonce }]);
    assert_eq!(failures, expected);
}

#[tokio::test]
async fn evidence_that_binds_another_key_is_refused_and_only_the_owner_learns_why() {
    let home = Home::sample();
    let broker = home.start();
    let session = challenge(&broker, "sample").await;
    let mut answer = Guest::new().attestation(&session.nonce);
    answer["runtime-data"]["tee-pubkey"] = json!(Guest::new().keys.public_key());
    let refused = attest(&broker, &session.cookie, &answer).await;

    let entry = broker.reason(&refused).await;
    assert_eq!((&entry["event"], &entry["tee"]), (&json!("attest"), &json!("sample")));
    let failure = &entry["failures"][0];
    assert_eq!(failure["claim"], "report_data");
    for (member, length) in [("expected", 96), ("actual", 96)] {
        let value = failure[member].as_str().unwrap();
        assert_eq!(value.len(), length);
        assert!(!String::from_utf8_lossy(&refused.body).contains(value));
        assert!(broker.log().contains(value), "the log names what the audit log has");
    }
    let id = refused.json()["denial"].as_str().unwrap().to_owned();
    assert!(broker.log().contains(&id));
}

#[tokio::test]
async fn sample_evidence_is_refused_unless_it_is_allowed() {
    let home = Home::sample();
    home.configure("allow_sample = true", "allow_sample = false");
    let broker = home.start();
    let entry = broker.reason(&ask(&broker, "sample").await).await;
    assert_eq!(entry["failures"][0]["claim"], "tee");
    assert_eq!(entry["failures"][0]["actual"], "sample");
}

/// A request for a challenge.
async fn ask(broker: &Broker, tee: &str) -> Answer {
    let request = json!({ "version": "0.4.0", "tee": tee, "extra-params": {} });
    send(broker.request(Method::POST, "auth").body(request.to_string())).await
}

#[tokio::test]
async fn a_tee_whose_evidence_nobody_verifies_gets_no_challenge() {
    let home = Home::sample();
    let broker = home.start();
    for tee in ["snp", "tdx", "sgx", "az-snp-vtpm", "sampledevice"] {
        let entry = broker.reason(&ask(&broker, tee).await).await;
        assert_eq!((&entry["tee"], &entry["failures"][0]["claim"]), (&json!(tee), &json!("tee")));
    }
    assert!(broker.text("/metrics").await.contains("kbs_challenges_total 0\n"));
}

#[tokio::test]
async fn another_tees_evidence_is_refused() {
    let home = Home::sample();
    home.enrol();
    let broker = home.start();
    let session = challenge(&broker, "tpm").await;
    let refused = attest(&broker, &session.cookie, &Guest::new().attestation(&session.nonce)).await;
    assert_eq!(broker.reason(&refused).await["tee"], "tpm");
}

#[tokio::test]
async fn a_tpm_for_which_nobody_vouches_gets_no_challenge() {
    let home = Home::sample();
    let broker = home.start();
    let tpm = json!({ "ek_certificate": "AAAA", "ek_public": "AAAA", "ak_public": "AAAA" });
    // Nor one that names no key, where none is enrolled.
    for params in [json!({ "tpm": tpm }), json!({})] {
        let request = json!({ "version": "0.4.0", "tee": "tpm", "extra-params": params });
        let answer = send(broker.request(Method::POST, "auth").body(request.to_string())).await;
        let entry = broker.reason(&answer).await;
        assert_eq!((&entry["event"], &entry["tee"]), (&json!("attest"), &json!("tpm")));
    }
}

#[tokio::test]
async fn nothing_that_a_guest_sends_stops_the_broker() {
    let home = Home::sample();
    home.enrol();
    let broker = home.start();
    let init_data = |body: &str| json!({ "format": "toml", "body": body });
    let quote = json!({ "signature": "", "message": "AAAA", "pcrs": ["00"] });
    let evidence = json!({ "tpm_quote": quote, "ak_public": "AAAA", "event_log": "AAAA" });
    let long = "A".repeat(400_000);
    for (pointer, value) in [
        ("/init-data", init_data("")),
        ("/init-data", init_data("not = toml [")),
        ("/init-data", init_data("version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]\n")),
        ("/init-data", json!({ "format": "json", "body": "{}" })),
        ("/runtime-data/nonce", json!(long)),
        ("/tee-evidence/primary_evidence", Value::Null),
        ("/tee-evidence/primary_evidence", evidence),
        ("/tee-evidence/primary_evidence/report_data", json!("")),
        ("/tee-evidence/primary_evidence/report_data", json!(long)),
        ("/tee-evidence/primary_evidence/svn", json!(1)),
        ("/tee-evidence/additional_evidence", json!("{\"nvidia\":{}}")),
    ] {
        for tee in ["sample", "tpm"] {
            let session = challenge(&broker, tee).await;
            let mut answer = Guest::new().attestation(&session.nonce);
            *answer.pointer_mut(pointer).unwrap() = value.clone();
            let refused = attest(&broker, &session.cookie, &answer).await;
            let entry = broker.reason(&refused).await;
            assert!(entry.to_string().len() < 20_000, "{pointer} fills the audit log");
        }
    }
    Guest::new().attest(&broker).await;
}

#[tokio::test]
async fn init_data_digests_of_each_length_are_taken() {
    let home = Home::sample();
    let broker = home.start();
    for algorithm in ["sha256", "sha384", "sha512"] {
        let session = challenge(&broker, "sample").await;
        let mut answer = Guest::new().attestation(&session.nonce);
        let body = format!("version = \"0.1.0\"\nalgorithm = \"{algorithm}\"\n[data]\n");
        answer["init-data"] = json!({ "format": "toml", "body": body });
        attest(&broker, &session.cookie, &answer).await.expect(StatusCode::OK);
    }
}

#[tokio::test]
async fn an_answer_without_a_session_is_refused() {
    let home = Home::sample();
    let broker = home.start();
    let nonce = challenge(&broker, "sample").await.nonce;
    let answer = Guest::new().attestation(&nonce);
    for cookie in ["", "other=1", "kbs-session-id=", "kbs-session-id=0000", "kbs-session-id"] {
        let refused = attest(&broker, cookie, &answer).await;
        refused.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
    }
}

#[tokio::test]
async fn an_attestation_is_good_for_as_long_as_the_configuration_says() {
    let home = Home::sample();
    home.configure("token_lifetime_seconds = 300", "token_lifetime_seconds = 1");
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let (token, cookie) = Guest::new().attest(&broker).await;
    until(async || fetch(&broker, &cookie, SECRET).await.status == StatusCode::UNAUTHORIZED).await;
    let route = format!("resource/{SECRET}");
    let by_token = async || send(broker.request(Method::GET, &route).bearer_auth(&token)).await.status;
    until(async || by_token().await == StatusCode::UNAUTHORIZED).await;
}
