//! What the audit log keeps, whatever anybody sends.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, Broker, Guest, Home, attest, challenge, send};

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
