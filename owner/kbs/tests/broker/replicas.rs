//! Brokers that share a database are one broker.

use futures::future::{join, join_all};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::database::Database;
use crate::support::{Broker, Guest, Home, attest, challenge, fetch, send};

const SECRET: &str = "default/key/web";

/// A database, and two brokers with the same administrator that share it.
fn pair() -> (Database, Home, [Broker; 2]) {
    let database = Database::start();
    let home = Home::sharing(&database);
    let brokers = [home.start(), home.start()];
    (database, home, brokers)
}

async fn attempt(broker: &Broker) -> StatusCode {
    let session = challenge(broker, "sample").await;
    attest(broker, &session.cookie, &Guest::new().attestation(&session.nonce)).await.status
}

#[tokio::test]
async fn a_guest_may_ask_one_and_answer_another() {
    let (_database, _home, [one, other]) = pair();
    one.set_resource(SECRET, b"a secret").await;
    let guest = Guest::new();
    let session = challenge(&other, "sample").await;
    let early = fetch(&one, &session.cookie, SECRET).await;
    early.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
    let answer = attest(&one, &session.cookie, &guest.attestation(&session.nonce)).await;
    let token = answer.expect(StatusCode::OK).json()["token"].as_str().unwrap().to_owned();
    for broker in [&one, &other] {
        assert_eq!(guest.open(&fetch(broker, &session.cookie, SECRET).await), b"a secret");
        let by_token = broker.request(Method::GET, &format!("resource/{SECRET}")).bearer_auth(&token);
        assert_eq!(guest.open(&send(by_token).await), b"a secret");
    }
    assert_eq!(one.audit_of_guests().await.len(), 5);
    assert_eq!(one.audit().await, other.audit().await);
}

#[tokio::test]
async fn of_many_answers_to_both_at_once_one_is_taken() {
    let (_database, _home, [one, other]) = pair();
    for _ in 0..5 {
        let session = challenge(&one, "sample").await;
        let guests: Vec<Value> = (0..16).map(|_| Guest::new().attestation(&session.nonce)).collect();
        let answers = join_all(guests.iter().enumerate().map(|(number, answer)| {
            attest(if number % 2 == 0 { &one } else { &other }, &session.cookie, answer)
        }))
        .await;
        let count = |status| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!((count(StatusCode::OK), count(StatusCode::CONFLICT)), (1, 15));
    }
}

#[tokio::test]
async fn an_answer_that_one_denied_is_not_taken_by_another() {
    let (_database, _home, [one, other]) = pair();
    let guest = Guest::new();
    let session = challenge(&one, "sample").await;
    let mut wrong = guest.attestation(&session.nonce);
    wrong["tee-evidence"]["primary_evidence"]["report_data"] = json!("AAAA");
    let denied = attest(&one, &session.cookie, &wrong).await;
    let right = guest.attestation(&session.nonce);
    attest(&other, &session.cookie, &right).await.error(StatusCode::CONFLICT, "Conflict");
    // The owner finds the reason at either.
    assert_eq!(other.reason(&denied).await["failures"][0]["claim"], "report_data");
}

#[tokio::test]
async fn secrets_that_are_set_at_one_are_read_listed_and_deleted_at_another() {
    let (_database, _home, [one, other]) = pair();
    one.set_resource(SECRET, b"a secret").await;
    let route = format!("resource/{SECRET}");
    assert_eq!(send(other.admin(Method::GET, &route)).await.expect(StatusCode::OK).body, b"a secret");
    assert_eq!(send(other.admin(Method::GET, "resource")).await.json(), json!([SECRET]));
    send(other.admin(Method::DELETE, &route)).await.expect(StatusCode::OK);
    send(one.admin(Method::GET, &route)).await.error(StatusCode::NOT_FOUND, "NotFound");
}

#[tokio::test]
async fn policies_and_values_that_are_set_at_one_decide_at_another_at_once() {
    let (_database, _home, [one, other]) = pair();
    let policy = "package policy\nimport rego.v1\ndefault svn := 33\n\
        svn := 3 if input.sample.svn == query_reference_value(\"svn\")\n\
        trust_claims := {\"executables\": svn}\n";
    one.set_reference_values(json!({ "svn": "1" })).await.expect(StatusCode::OK);
    one.set_policy("attestation-policy", policy).await.expect(StatusCode::OK);
    // Back and forth, so that each has what was in force before in its memory.
    for _ in 0..5 {
        assert_eq!(attempt(&other).await, StatusCode::OK);
        one.set_reference_values(json!({ "svn": "2" })).await.expect(StatusCode::OK);
        assert_eq!(attempt(&other).await, StatusCode::FORBIDDEN);
        let values = send(other.admin(Method::GET, "reference-value/svn")).await;
        assert_eq!(values.json(), "2");
        other.set_reference_values(json!({ "svn": "1" })).await.expect(StatusCode::OK);
        assert_eq!(attempt(&one).await, StatusCode::OK);
    }

    one.set_resource(SECRET, b"a secret").await;
    let guest = Guest::new();
    let (_, cookie) = guest.attest(&other).await;
    guest.open(&fetch(&other, &cookie, SECRET).await);
    one.set_policy("resource-policy", "package policy\nallow := false\n").await.expect(StatusCode::OK);
    fetch(&other, &cookie, SECRET).await.error(StatusCode::FORBIDDEN, "Denied");
    other.set_policy("resource-policy", "package policy\nallow := true\n").await.expect(StatusCode::OK);
    guest.open(&fetch(&one, &cookie, SECRET).await);
}

#[tokio::test]
async fn brokers_that_start_together_for_the_first_time_sign_with_one_key() {
    let database = Database::start();
    let homes: Vec<Home> = (0..4).map(|_| Home::sharing(&database)).collect();
    let brokers: Vec<Broker> = std::thread::scope(|scope| {
        let starts: Vec<_> = homes.iter().map(|home| scope.spawn(|| home.start())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    brokers[0].set_resource(SECRET, b"a secret").await;
    for issuer in &brokers {
        let guest = Guest::new();
        let (token, _) = guest.attest(issuer).await;
        for broker in &brokers {
            let request = broker.request(Method::GET, &format!("resource/{SECRET}")).bearer_auth(&token);
            assert_eq!(guest.open(&send(request).await), b"a secret");
        }
    }
}

#[tokio::test]
async fn a_signing_key_that_was_replaced_signs_no_more_anywhere() {
    let (database, _home, [one, other]) = pair();
    one.set_resource(SECRET, b"a secret").await;
    let (token, _) = Guest::new().attest(&one).await;
    database.ask(
        "DELETE FROM sealpod.entry WHERE name = 'token-signing-key'; \
         UPDATE sealpod.revision SET mark = gen_random_uuid()",
    );
    for broker in [&one, &other] {
        let request = broker.request(Method::GET, &format!("resource/{SECRET}")).bearer_auth(&token);
        send(request).await.error(StatusCode::UNAUTHORIZED, "Unauthenticated");
    }
    let guest = Guest::new();
    let (token, _) = guest.attest(&one).await;
    let request = other.request(Method::GET, &format!("resource/{SECRET}")).bearer_auth(&token);
    assert_eq!(guest.open(&send(request).await), b"a secret");
}

#[tokio::test]
async fn what_attested_guests_and_others_cause_has_one_bound_for_all_brokers() {
    let database = Database::start();
    let home = Home::sharing(&database);
    home.configure("keep = 1000000", "keep = 3");
    let brokers = [home.start(), home.start()];
    let mut tokens = Vec::new();
    for number in 0..7 {
        tokens.push(Guest::new().attest(&brokers[number % 2]).await);
    }
    for broker in &brokers {
        assert_eq!(broker.audit().await.len(), 3);
    }
}

#[tokio::test]
async fn one_goes_on_while_others_come_and_go() {
    let (_database, home, [mut one, other]) = pair();
    let session = challenge(&one, "sample").await;
    one.kill();
    let guest = Guest::new();
    let answer = attest(&other, &session.cookie, &guest.attestation(&session.nonce)).await;
    answer.expect(StatusCode::OK);
    let (third, _) = join(async { home.start() }, async {}).await;
    third.set_resource(SECRET, b"a secret").await;
    assert_eq!(guest.open(&fetch(&third, &session.cookie, SECRET).await), b"a secret");
}
