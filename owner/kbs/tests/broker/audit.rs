//! What the audit log keeps, whatever anybody sends.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use sealpod_evidence::HashAlgorithm;
use serde_json::{Value, json};

use crate::database::Database;
use crate::support::{Answer, Broker, Guest, Home, attest, challenge, fetch, send};

/// A request for a challenge by a TPM for which nobody vouches: everybody can send it, as often as they like.
async fn bogus_auth(broker: &Broker) -> Answer {
    let tpm = json!({ "ek_certificate": "AAAA", "ek_public": "AAAA", "ak_public": "AAAA" });
    let request = json!({ "version": "0.4.0", "tee": "tpm", "extra-params": { "tpm": tpm } });
    send(broker.request(Method::POST, "auth").body(request.to_string())).await
}

/// So is an answer that binds nothing.
async fn bogus_attest(broker: &Broker) -> Answer {
    let session = challenge(broker, "sample").await;
    let mut answer = Guest::new().attestation(&session.nonce);
    answer["tee-evidence"]["primary_evidence"]["report_data"] = json!("AAAA");
    attest(broker, &session.cookie, &answer).await
}

fn denial(answer: &Answer) -> String {
    answer.expect(StatusCode::FORBIDDEN);
    answer.json()["denial"].as_str().unwrap().to_owned()
}

async fn entries(broker: &Broker, id: &str) -> Value {
    send(broker.admin(Method::GET, &format!("audit?id={id}"))).await.json()
}

#[tokio::test]
async fn refusals_that_anybody_can_cause_displace_each_other_and_nothing_else() {
    let home = Home::sample();
    home.configure("keep_refusals = 10000", "keep_refusals = 4");
    let broker = home.start();
    Guest::new().attest(&broker).await;
    let mut denials = Vec::new();
    for _ in 0..5 {
        denials.push(denial(&bogus_auth(&broker).await));
        denials.push(denial(&bogus_attest(&broker).await));
    }
    let log = broker.audit().await;
    assert_eq!(log.len(), 5, "{log:?}");
    assert_eq!(log[0]["outcome"], "granted");
    let (gone, kept) = denials.split_at(6);
    for id in gone {
        assert_eq!(entries(&broker, id).await, json!([]));
    }
    for id in kept {
        assert_eq!(entries(&broker, id).await[0]["id"], id.as_str());
    }
}

#[tokio::test]
async fn whoever_is_refused_too_often_waits_and_is_not_noted_while_others_attest() {
    let home = Home::sample();
    home.configure("refusals_per_minute = 600", "refusals_per_minute = 3");
    let broker = home.start();
    for _ in 0..3 {
        denial(&bogus_auth(&broker).await);
    }
    for _ in 0..10 {
        // In the time that this takes, another one may be noted.
        for answer in [bogus_auth(&broker).await, bogus_attest(&broker).await] {
            assert!(
                matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::FORBIDDEN),
                "{}",
                answer.status
            );
        }
    }
    let log = broker.audit().await;
    assert!(log.len() < 3 + 10, "{} of 23 were noted", log.len());
    let metrics = broker.text("/metrics").await;
    assert!(metrics.contains("kbs_attestations_total{outcome=\"denied\"} 23"), "{metrics}");
    assert!(!metrics.contains("kbs_refusals_unnoted_total 0"), "{metrics}");
    // A good guest is not held up.
    Guest::new().attest(&broker).await;
    assert_eq!(broker.audit().await.last().unwrap()["outcome"], "granted");
}

#[tokio::test]
async fn what_administrators_read_and_change_is_noted_without_the_secret() {
    let home = Home::sample();
    let broker = home.start();
    let route = "resource/default/key/web";
    broker.set_resource("default/key/web", b"a well-kept secret").await;
    send(broker.admin(Method::GET, route)).await.expect(StatusCode::OK);
    send(broker.admin(Method::DELETE, route)).await.expect(StatusCode::OK);
    let policy = "package policy\ntrust_claims := {\"executables\": 3}\n";
    broker.set_policy("attestation-policy", policy).await.expect(StatusCode::OK);
    broker.set_policy("resource-policy", "package policy\nallow := false\n").await.expect(StatusCode::OK);
    broker.set_reference_values(json!({ "kernel": ["a"] })).await.expect(StatusCode::OK);
    // What is refused changes nothing, and is no deed.
    broker.set_policy("resource-policy", "package other\n").await.expect(StatusCode::BAD_REQUEST);
    send(broker.admin(Method::GET, route)).await.expect(StatusCode::NOT_FOUND);
    for (method, route) in [(Method::GET, route), (Method::POST, route), (Method::DELETE, route)] {
        let answer = send(broker.request(method, route).bearer_auth("x").body("x")).await;
        answer.expect(StatusCode::UNAUTHORIZED);
    }

    let log = broker.audit().await;
    let events: Vec<&str> = log.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let expected = [
        "set-resource",
        "read-resource",
        "delete-resource",
        "set-attestation-policy",
        "set-resource-policy",
        "set-reference-values",
    ];
    assert_eq!(events, expected);
    let key = std::fs::read_to_string(home.path("admin.pub")).unwrap();
    let key: String = key.lines().filter(|line| !line.starts_with('-')).collect();
    let key = HashAlgorithm::Sha256.digest(&STANDARD.decode(key).unwrap());
    for entry in &log {
        assert_eq!(
            (&entry["outcome"], &entry["administrator"]),
            (&json!("accepted"), &json!(hex::encode(&key)))
        );
    }
    assert!(log[..3].iter().all(|entry| entry["resource"] == "default/key/web"));
    let digest = hex::encode(HashAlgorithm::Sha256.digest(policy.as_bytes()));
    assert_eq!(log[3]["details"], format!("sha256:{digest}"));
    assert_eq!(log[5]["details"], "{\"kernel\":[\"a\"]}");
    assert!(!format!("{log:?}{}", broker.log()).contains("well-kept"));
}

#[tokio::test]
async fn what_administrators_do_and_what_guests_get_displace_nothing_of_each_other() {
    let home = Home::sample();
    home.configure("keep = 1000000", "keep = 2");
    let broker = home.start();
    for number in 0..3 {
        broker.set_resource(&format!("default/key/{number}"), b"x").await;
        Guest::new().attest(&broker).await;
    }
    let events: Vec<Value> = broker.audit().await.iter().map(|entry| entry["event"].clone()).collect();
    assert_eq!(events, ["set-resource", "attest", "set-resource", "attest"]);
}

#[tokio::test]
async fn nothing_is_given_or_changed_that_cannot_be_noted() {
    let database = Database::start();
    let home = Home::sharing(&database);
    let broker = home.start();
    broker.set_resource("default/key/web", b"a secret").await;
    let guest = Guest::new();
    let (_, cookie) = guest.attest(&broker).await;
    database.ask("ALTER TABLE sealpod.audit ADD CHECK (false) NOT VALID");
    let route = "resource/default/key/web";
    for refused in [
        fetch(&broker, &cookie, "default/key/web").await,
        send(broker.admin(Method::GET, route)).await,
        send(broker.admin(Method::POST, route).body("another")).await,
        send(broker.admin(Method::DELETE, route)).await,
        broker.set_reference_values(json!({ "kernel": ["a"] })).await,
        broker.set_policy("resource-policy", "package policy\nallow := false\n").await,
    ] {
        refused.error(StatusCode::INTERNAL_SERVER_ERROR, "Internal");
    }
    database.ask("ALTER TABLE sealpod.audit DROP CONSTRAINT audit_check");
    assert_eq!(send(broker.admin(Method::GET, route)).await.expect(StatusCode::OK).body, b"a secret");
    assert_eq!(send(broker.admin(Method::GET, "reference-value")).await.json(), json!({}));
    assert_eq!(guest.open(&fetch(&broker, &cookie, "default/key/web").await), b"a secret");
}

#[tokio::test]
async fn what_is_about_attested_guests_has_a_bound_too() {
    let home = Home::sample();
    home.configure("keep = 1000000", "keep = 2");
    let broker = home.start();
    let refused = denial(&bogus_auth(&broker).await);
    for _ in 0..4 {
        Guest::new().attest(&broker).await;
    }
    let outcomes: Vec<Value> = broker.audit().await.iter().map(|entry| entry["outcome"].clone()).collect();
    assert_eq!(outcomes, ["denied", "granted", "granted"]);
    assert_eq!(entries(&broker, &refused).await[0]["id"], refused.as_str());
}
