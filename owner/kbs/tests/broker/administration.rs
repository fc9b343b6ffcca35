//! What only the administrator may do, and who is taken for one.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Broker, Guest, Home, attest, challenge, now, send, sign};

/// Everything that an administrator alone may do.
fn routes() -> [(Method, &'static str); 12] {
    [
        (Method::GET, "resource"),
        (Method::POST, "resource/a/b/c"),
        (Method::DELETE, "resource/a/b/c"),
        (Method::GET, "resource/a/b/c"),
        (Method::GET, "attestation-policy"),
        (Method::POST, "attestation-policy"),
        (Method::GET, "resource-policy"),
        (Method::POST, "resource-policy"),
        (Method::GET, "reference-value"),
        (Method::POST, "reference-value"),
        (Method::GET, "reference-value/kernel"),
        (Method::GET, "audit"),
    ]
}

async fn policy(broker: &Broker, route: &str) -> String {
    let answer = send(broker.admin(Method::GET, route)).await;
    let body = answer.expect(StatusCode::OK).json();
    String::from_utf8(URL_SAFE_NO_PAD.decode(body["policy"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn who_shows_no_token_or_a_wrong_one_administrates_nothing() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_resource("a/b/c", b"a secret").await;
    let another = Home::sample();
    let another = std::fs::read(another.path("admin.key")).unwrap();
    let another = EncodingKey::from_ed_pem(&another).unwrap();
    let public = std::fs::read(home.path("admin.pub")).unwrap();
    let claims = json!({ "role": "admin", "exp": now() + 60 });
    let good = broker.sign_as_admin(claims.clone());
    let parts: Vec<&str> = good.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let later = URL_SAFE_NO_PAD.encode(json!({ "role": "admin", "exp": now() + 9999 }).to_string());
    let (guest, _) = Guest::new().attest(&broker).await;
    let symmetric = EncodingKey::from_secret(&public);
    let wrong = [
        ("expired", broker.sign_as_admin(json!({ "role": "admin", "exp": now() - 60 }))),
        ("not yet good", broker.sign_as_admin(json!({ "nbf": now() + 60, "exp": now() + 90 }))),
        ("without an expiry", broker.sign_as_admin(json!({ "role": "admin" }))),
        ("of another role", broker.sign_as_admin(json!({ "role": "guest", "exp": now() + 60 }))),
        ("of another key", sign(&another, claims.clone())),
        ("without a signature", format!("{none}.{}.", parts[1])),
        ("with its signature cut off", format!("{}.{}.", parts[0], parts[1])),
        ("altered", format!("{}.{later}.{}", parts[0], parts[2])),
        (
            "keyed with the public key",
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &symmetric).unwrap(),
        ),
        ("of a guest", guest),
        ("no token", "x".into()),
    ];
    for (method, route) in routes() {
        let request = broker.request(method.clone(), route).body("x");
        send(request).await.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
        for (what, token) in &wrong {
            let answer = send(broker.request(method.clone(), route).bearer_auth(token).body("x")).await;
            if (*what, route) == ("of a guest", "resource/a/b/c") && method == Method::GET {
                // Guests may ask for resources; they get them sealed.
                assert!(answer.json().get("ciphertext").is_some());
                continue;
            }
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {route}, a token {what}");
        }
    }
    let kept = send(broker.admin(Method::GET, "resource/a/b/c")).await;
    assert_eq!(kept.body, b"a secret");
}

#[tokio::test]
async fn clients_that_name_no_role_are_taken() {
    let home = Home::sample();
    let broker = home.start();
    let token = broker.sign_as_admin(json!({ "iat": now(), "exp": now() + 60 }));
    let request = broker.request(Method::GET, "resource").bearer_auth(token);
    send(request).await.expect(StatusCode::OK);
}

#[tokio::test]
async fn policies_are_taken_up_at_once_and_given_back() {
    let home = Home::sample();
    let broker = home.start();
    assert!(policy(&broker, "resource-policy").await.contains("default allow := false"));
    assert!(policy(&broker, "attestation-policy").await.contains("trust_claims"));

    let strict = "package policy\n\
        trust_claims := {\"executables\": 33}\n\
        failures := {{\"claim\": \"svn\", \"expected\": \"2\", \"actual\": input.sample.svn}}\n";
    broker.set_policy("attestation-policy", strict).await.expect(StatusCode::OK);
    assert_eq!(policy(&broker, "attestation-policy").await, strict);
    let session = challenge(&broker, "sample").await;
    let refused = attest(&broker, &session.cookie, &Guest::new().attestation(&session.nonce)).await;
    let failures = broker.reason(&refused).await["failures"].clone();
    assert_eq!(failures, json!([{ "claim": "svn", "expected": "2", "actual": "1" }]));

    let lax = "package policy\ntrust_claims := {\"executables\": 3}\n";
    let body = json!({ "policy_id": "default", "policy": URL_SAFE_NO_PAD.encode(lax) });
    let set = broker.admin(Method::POST, "attestation-policy").body(body.to_string());
    send(set).await.expect(StatusCode::OK);
    Guest::new().attest(&broker).await;
}

#[tokio::test]
async fn malformed_policies_are_refused_with_their_line_and_change_nothing() {
    let home = Home::sample();
    let broker = home.start();
    for (route, rule) in [("attestation-policy", "trust_claims"), ("resource-policy", "allow")] {
        let before = policy(&broker, route).await;
        let broken = format!("package policy\nimport rego.v1\n\n{rule} if {{\n");
        let detail = broker.set_policy(route, &broken).await.error(StatusCode::BAD_REQUEST, "InvalidRequest");
        assert!(detail.contains(".rego:4") || detail.contains(".rego:5"), "{detail}");
        let unknown = format!("package policy\n\n{rule} := no_such_function(1)\n");
        let detail =
            broker.set_policy(route, &unknown).await.error(StatusCode::BAD_REQUEST, "InvalidRequest");
        assert!(detail.contains(".rego:3"), "{detail}");
        for wrong in ["", "package other\n", "package policy\nother := 1\n", &"#".repeat(300_000)] {
            broker.set_policy(route, wrong).await.error(StatusCode::BAD_REQUEST, "InvalidRequest");
        }
        for body in [
            json!({ "policy": "%%%" }),
            json!({ "policy": URL_SAFE_NO_PAD.encode([0xff, 0xfe]) }),
            json!({ "policy": 1 }),
            json!({}),
            json!({ "policy": URL_SAFE_NO_PAD.encode(&before), "more": 1 }),
        ] {
            let answer = send(broker.admin(Method::POST, route).body(body.to_string())).await;
            answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
        }
        assert_eq!(policy(&broker, route).await, before);
    }
    let other = json!({ "policy_id": "other", "policy": URL_SAFE_NO_PAD.encode("package policy") });
    let answer = send(broker.admin(Method::POST, "attestation-policy").body(other.to_string())).await;
    assert!(answer.error(StatusCode::BAD_REQUEST, "InvalidRequest").contains("default"));
}

#[tokio::test]
async fn reference_values_are_set_replaced_and_listed() {
    let home = Home::sample();
    let broker = home.start();
    broker.set_reference_values(json!({ "kernel": ["a", "b"], "svn": "1" })).await.expect(StatusCode::OK);
    broker.set_reference_values(json!({ "kernel": ["c"] })).await.expect(StatusCode::OK);
    let get = async |route: &str| send(broker.admin(Method::GET, route)).await;
    assert_eq!(get("reference-value/kernel").await.json(), json!(["c"]));
    assert_eq!(get("reference-value").await.json(), json!({ "kernel": ["c"], "svn": "1" }));
    get("reference-value/other").await.error(StatusCode::NOT_FOUND, "NotFound");

    let policy = "package policy\nimport rego.v1\ndefault svn := 33\n\
        svn := 3 if input.sample.svn == query_reference_value(\"svn\")\n\
        trust_claims := {\"executables\": svn}\n";
    broker.set_policy("attestation-policy", policy).await.expect(StatusCode::OK);
    Guest::new().attest(&broker).await;
    broker.set_reference_values(json!({ "svn": "2" })).await.expect(StatusCode::OK);
    let session = challenge(&broker, "sample").await;
    let refused = attest(&broker, &session.cookie, &Guest::new().attestation(&session.nonce)).await;
    broker.reason(&refused).await;
}

#[tokio::test]
async fn malformed_reference_values_are_refused() {
    let home = Home::sample();
    let broker = home.start();
    let good = json!({ "version": "0.1.0", "type": "sample", "payload": STANDARD.encode("{}") });
    for (member, value) in [
        ("version", json!("0.2.0")),
        ("type", json!("swid")),
        ("payload", json!("%%%")),
        ("payload", json!(STANDARD.encode("[1]"))),
        ("payload", json!(STANDARD.encode("{\"\": [1]}"))),
        ("payload", json!(STANDARD.encode(json!({ "i".repeat(257): [1] }).to_string()))),
        ("payload", Value::Null),
        ("more", json!(1)),
    ] {
        let mut message = good.clone();
        message[member] = value;
        let answer = send(broker.admin(Method::POST, "reference-value").body(message.to_string())).await;
        answer.error(StatusCode::BAD_REQUEST, "InvalidRequest");
    }
    assert_eq!(send(broker.admin(Method::GET, "reference-value")).await.json(), json!({}));
}

#[tokio::test]
async fn the_audit_log_is_asked_by_id_and_by_number() {
    let home = Home::sample();
    let broker = home.start();
    for _ in 0..5 {
        Guest::new().attest(&broker).await;
    }
    let ask = async |query: &str| send(broker.admin(Method::GET, &format!("audit{query}"))).await;
    let all = ask("").await.json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 5);
    assert!(all.iter().all(|entry| entry["time"].as_u64().unwrap().abs_diff(now()) < 60));
    assert_eq!(ask("?limit=2").await.json().as_array().unwrap().as_slice(), &all[3..]);
    let id = all[1]["id"].as_str().unwrap();
    assert_eq!(ask(&format!("?id={id}")).await.json(), json!([all[1]]));
    assert_eq!(ask("?id=0000000000000000").await.json(), json!([]));
    assert_eq!(ask("?limit=0").await.json(), json!([]));
    for wrong in ["?limit=-1", "?limit=x", "?other=1"] {
        ask(wrong).await.error(StatusCode::BAD_REQUEST, "InvalidRequest");
    }
}
