//! What a container asks of its guest, on 127.0.0.1:8006.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::world::World;

pub(crate) async fn a_container_fetches_a_secret(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let exited = pod.sh(&image, "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/secret/word").await;
    assert_eq!(exited.stdout, "a secret word", "{}", exited.stderr);
    // From outside of the pod's own loopback nobody asks.
    let exited = pod.sh(&image, "wget -O - http://10.0.2.15:8006/info 2>&1; echo $?").await;
    assert!(exited.stdout.ends_with("1\n"), "{exited:?}");
}

pub(crate) async fn the_token_says_what_was_measured_from_the_files(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let exited = pod.sh(&image, "wget -q -O - 'http://127.0.0.1:8006/aa/token?token_type=kbs'").await;
    let answer: Value = serde_json::from_str(&exited.stdout).unwrap();
    assert!(answer["tee_keypair"].as_str().unwrap().contains("PRIVATE KEY"));
    let payload = answer["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap();
    let token: Value = serde_json::from_slice(&payload).unwrap();
    let appraisal = &token["submods"]["cpu0"];
    assert_eq!(appraisal["ear.status"], "affirming", "{token}");
    let claims = &appraisal["ear.veraison.annotated-evidence"];
    let expected = world.owner().measurements();
    for (name, accepted) in expected.as_object().unwrap() {
        let actual = &claims[name];
        assert!(
            accepted.as_array().unwrap().contains(actual),
            "{name}: {actual} is not in {accepted}: {claims}"
        );
    }
    assert_eq!(expected.as_object().unwrap().len(), 4, "{expected}");
}

pub(crate) async fn what_the_broker_does_not_have_is_not_found(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "wget -S -O - http://127.0.0.1:8006/cdh/resource/default/secret/none 2>&1 | grep '^  HTTP/'
        wget -S -O - http://127.0.0.1:8006/cdh/resource/default/secret/%2e%2e 2>&1 | grep '^  HTTP/'
        wget -S -O - 'http://127.0.0.1:8006/aa/token?token_type=other' 2>&1 | grep '^  HTTP/'";
    let exited = pod.sh(&image, script).await;
    let statuses: Vec<_> = exited.stdout.lines().map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(statuses, [Some("404"), Some("400"), Some("400")], "{exited:?}");
}

pub(crate) async fn the_guest_says_what_it_is(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let exited = pod.sh(&image, "wget -q -O - http://127.0.0.1:8006/info").await;
    let info: Value = serde_json::from_str(&exited.stdout).unwrap_or_else(|_| panic!("{exited:?}"));
    assert_eq!(info, json!({ "version": env!("CARGO_PKG_VERSION"), "tee": "tpm" }));
}

pub(crate) async fn evidence_binds_a_containers_own_data(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let own = "a nonce of somebody's choice";
    let encoded = STANDARD.encode(own).replace('=', "%3D").replace('+', "%2B");
    let raw = own.replace(' ', "%20");
    for query in [format!("runtime_data={raw}"), format!("runtime_data={encoded}&encoding=base64")] {
        let script = format!("wget -q -O - \"http://127.0.0.1:8006/aa/evidence?{query}\"");
        let exited = pod.sh(&image, &script).await;
        let evidence: Value = serde_json::from_str(&exited.stdout).unwrap_or_else(|_| panic!("{exited:?}"));
        let quoted = STANDARD.decode(evidence["tpm_quote"]["message"].as_str().unwrap()).unwrap();
        assert!(quoted.windows(own.len()).any(|bytes| bytes == own.as_bytes()), "{query}: {evidence}");
    }
    let script = format!(
        "wget -S -O - 'http://127.0.0.1:8006/aa/evidence?runtime_data={}' 2>&1 | grep '^  HTTP/'",
        "r".repeat(65)
    );
    let exited = pod.sh(&image, &script).await;
    assert_eq!(exited.stdout.split_whitespace().nth(1), Some("400"), "{exited:?}");
}
