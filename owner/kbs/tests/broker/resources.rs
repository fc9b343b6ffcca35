//! Secrets: who gets them, and in which form.

use aws_lc_rs::agreement::{ECDH_P521, PrivateKey};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, StatusCode};
use sealpod_evidence::HashAlgorithm;
use serde_json::{Value, json};

use crate::support::{Guest, Home, attest, attestation, challenge, fetch, send};

const SECRET: &str = "default/key/web";
const ROUTE: &str = "resource/default/key/web";

#[tokio::test]
async fn an_administrator_sets_reads_lists_and_deletes() {
    let home = Home::sample();
    let broker = home.start();
    let bytes: Vec<u8> = (0..=255).collect();
    broker.set_resource(SECRET, &bytes).await;
    broker.set_resource("a/b/c", b"").await;
    broker.set_resource("a/b/c", b"another").await;

    assert_eq!(send(broker.admin(Method::GET, ROUTE)).await.expect(StatusCode::OK).body, bytes);
    assert_eq!(send(broker.admin(Method::GET, "resource/a/b/c")).await.body, b"another");
    assert_eq!(send(broker.admin(Method::GET, "resource")).await.json(), json!(["a/b/c", SECRET]));

    send(broker.admin(Method::DELETE, ROUTE)).await.expect(StatusCode::OK);
    send(broker.admin(Method::DELETE, ROUTE)).await.error(StatusCode::NOT_FOUND, "NotFound");
    send(broker.admin(Method::GET, ROUTE)).await.error(StatusCode::NOT_FOUND, "NotFound");
    assert_eq!(send(broker.admin(Method::GET, "resource")).await.json(), json!(["a/b/c"]));
}

#[tokio::test]
async fn who_has_not_attested_gets_nothing() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let session = challenge(&broker, "sample").await;
    for cookie in ["", "kbs-session-id=0", &session.cookie] {
        fetch(&broker, cookie, SECRET).await.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
    }
}

#[tokio::test]
async fn a_token_that_the_broker_did_not_sign_is_refused() {
    let (home, other_home) = (Home::sample(), Home::sample());
    let (broker, other) = (home.start(), other_home.start());
    broker.set_resource(SECRET, b"a secret").await;
    let (token, _) = Guest::new().attest(&broker).await;
    let (foreign, _) = Guest::new().attest(&other).await;
    let parts: Vec<&str> = token.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    claims["exp"] = json!(u32::MAX);
    let altered = URL_SAFE_NO_PAD.encode(claims.to_string());
    for wrong in [
        foreign,
        String::new(),
        "a.b.c".into(),
        format!("{}.{altered}.{}", parts[0], parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
    ] {
        let answer = send(broker.request(Method::GET, ROUTE).bearer_auth(&wrong)).await;
        answer.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let home = Home::sample();
    let broker = home.start();
    let (_, cookie) = Guest::new().attest(&broker).await;
    fetch(&broker, &cookie, SECRET).await.error(StatusCode::NOT_FOUND, "NotFound");
}

#[tokio::test]
async fn the_resource_policy_decides_and_only_the_owner_learns_so() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    broker.set_resource("default/open/web", b"no secret").await;
    let policy = "package policy\nimport rego.v1\nallow if data[\"resource-path\"][1] == \"open\"\n";
    broker.set_policy("resource-policy", policy).await.expect(StatusCode::OK);
    let guest = Guest::new();
    let (_, cookie) = guest.attest(&broker).await;
    assert_eq!(guest.open(&fetch(&broker, &cookie, "default/open/web").await), b"no secret");

    for path in [SECRET, "default/key/that-is-not-there"] {
        let refused = fetch(&broker, &cookie, path).await;
        let entry = broker.reason(&refused).await;
        assert_eq!((&entry["event"], &entry["resource"]), (&json!("resource"), &json!(path)));
        assert_eq!(entry["failures"][0]["claim"], "resource policy");
    }
}

#[tokio::test]
async fn a_resource_policy_that_fails_allows_nothing() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let policy = "package policy\nimport rego.v1\n\
        allow := true if input.submods.cpu0\nallow := false if input.submods.cpu0\n";
    broker.set_policy("resource-policy", policy).await.expect(StatusCode::OK);
    let (_, cookie) = Guest::new().attest(&broker).await;
    let refused = fetch(&broker, &cookie, SECRET).await;
    let failure = broker.reason(&refused).await["failures"][0].clone();
    assert_eq!(failure["expected"], "a policy that can be evaluated");
}

#[tokio::test]
async fn names_that_are_no_names_of_resources_are_refused() {
    let home = Home::sample();
    let broker = home.start();
    for route in [
        "resource/.a/b/c",
        "resource/a/b%2fc/d",
        "resource/a/b/c%00",
        "resource/a/b/%ff",
        &format!("resource/a/b/{}", "c".repeat(200)),
    ] {
        let answer = send(broker.admin(Method::POST, route).body("x")).await;
        answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
    }
    for route in ["resource/a", "resource/a/b", "resource/a/b/c/d", "resource/a//c", "resource/a/%2e%2e/c"] {
        let status = send(broker.admin(Method::POST, route).body("x")).await.status;
        assert!(status.is_client_error(), "{route}: {status}");
    }
    assert_eq!(send(broker.admin(Method::GET, "resource")).await.json(), json!([]));
}

#[tokio::test]
async fn secrets_are_sealed_to_each_kind_of_key() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let point = PrivateKey::generate(&ECDH_P521).unwrap().compute_public_key().unwrap();
    let (x, y) = point.as_ref()[1..].split_at(66);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let p521 = json!({ "kty": "EC", "alg": "ECDH-ES+A256KW", "crv": "P-521", "x": x, "y": y });
    let no_point = json!({ "kty": "EC", "alg": "ECDH-ES+A256KW", "crv": "P-521", "x": y, "y": x });
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let n = URL_SAFE_NO_PAD.encode(pair.public_key().modulus().big_endian_without_leading_zero());
    let rsa = json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": n, "e": "AQAB" });
    let old = json!({ "kty": "RSA", "alg": "RSA1_5", "n": n, "e": "AQAB" });
    for (key, algorithm) in
        [(p521, Some("ECDH-ES+A256KW")), (rsa, Some("RSA-OAEP-256")), (old, None), (no_point, None)]
    {
        let session = challenge(&broker, "sample").await;
        let answer = attestation(&session.nonce, key.clone(), HashAlgorithm::Sha384);
        attest(&broker, &session.cookie, &answer).await.expect(StatusCode::OK);
        let answer = fetch(&broker, &session.cookie, SECRET).await;
        match algorithm {
            Some(algorithm) => {
                let protected = answer.expect(StatusCode::OK).json()["protected"].clone();
                let header = URL_SAFE_NO_PAD.decode(protected.as_str().unwrap()).unwrap();
                let header: Value = serde_json::from_slice(&header).unwrap();
                assert_eq!((&header["alg"], &header["enc"]), (&json!(algorithm), &json!("A256GCM")));
            }
            None => {
                answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
                let last = broker.audit().await.pop().unwrap();
                assert_eq!(last["event"], "attest", "what was not given is not noted as given");
            }
        }
    }
}

#[tokio::test]
async fn metrics_count_and_name_no_resource() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let before = broker.text("/metrics").await;
    let (_, cookie) = Guest::new().attest(&broker).await;
    fetch(&broker, &cookie, SECRET).await.expect(StatusCode::OK);
    for number in 0..20 {
        fetch(&broker, &cookie, &format!("default/key/{number}")).await.expect(StatusCode::NOT_FOUND);
    }
    let after = broker.text("/metrics").await;
    assert!(after.contains("kbs_challenges_total 1\n"), "{after}");
    assert!(after.contains("kbs_attestations_total{outcome=\"granted\"} 1\n"), "{after}");
    assert!(after.contains("kbs_resources_total{outcome=\"granted\"} 1\n"), "{after}");
    assert_eq!(before.lines().count(), after.lines().count(), "no line is made of what was asked for");
    assert!(!after.contains("default"));
}
