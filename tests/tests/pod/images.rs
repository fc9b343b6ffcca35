//! What images a pod runs, and what it says of the others.

use std::path::Path;
use std::process::Command;

use sealpod_agent_protocol::{Failure, FailureKind, PullImage, Request};
use sealpod_tests::{ImageOptions, LOOPBACK_IN_GUEST, Pod};
use serde_json::Value;

use crate::world::World;

const ACCEPT_ANYTHING: &str = r#"{ "default": [{ "type": "insecureAcceptAnything" }] }"#;

async fn refusal(pod: &Pod, image: &str) -> Failure {
    pod.refused(Request::PullImage(PullImage { image: image.into() })).await
}

pub(crate) async fn an_image_without_a_good_signature_is_refused(world: &World) {
    let owner = world.owner();
    let unsigned = ImageOptions { signed: false, ..ImageOptions::default() };
    let image = owner.publish("unsigned", world.root(), &unsigned);
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::ImageRefused);
    assert!(failure.message.contains("no signature"), "{failure}");

    // Signed, but by somebody else.
    owner.sealpod(["image", "keygen", "--output", &owner.word("stranger")]);
    let (key, on_host) = (owner.word("stranger.key"), owner.on_host("unsigned"));
    owner.sealpod(["image", "sign", "--plain-http", "--key", &key, "--identity", &image, &on_host]);
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::ImageRefused, "{failure}");
}

pub(crate) async fn an_image_for_another_repository_is_refused(world: &World) {
    let owner = world.owner();
    let unsigned = ImageOptions { signed: false, ..ImageOptions::default() };
    let image = owner.publish("renamed", world.root(), &unsigned);
    let (key, on_host) = (owner.word("signing.key"), owner.on_host("renamed"));
    let other = owner.in_guest("another");
    owner.sealpod(["image", "sign", "--plain-http", "--key", &key, "--identity", &other, &on_host]);
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::ImageRefused);
    assert!(failure.message.contains("another"), "{failure}");
}

pub(crate) async fn a_layer_that_the_registry_altered_is_refused_and_leaves_nothing(world: &World) {
    let owner = world.owner();
    let root = owner.path("roots/altered");
    std::fs::create_dir_all(&root).unwrap();
    // Large enough to be half unpacked when the end shows what it is, and too random to be compressed away.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(3 << 20)
    .collect();
    std::fs::write(root.join("noise"), noise).unwrap();
    let image = owner.publish("altered", &root, &ImageOptions::default());
    let layout = owner.path("images/altered-encrypted/blobs/sha256");
    let layer = std::fs::read_dir(layout)
        .unwrap()
        .map(|it| it.unwrap())
        .max_by_key(|it| it.metadata().unwrap().len());
    let digest = layer.unwrap().file_name().into_string().unwrap();
    let stored =
        owner.path("registry/docker/registry/v2/blobs/sha256").join(&digest[..2]).join(&digest).join("data");
    let genuine = std::fs::read(&stored).unwrap();
    let mut altered = genuine.clone();
    *altered.last_mut().unwrap() ^= 1;
    std::fs::write(&stored, &altered).unwrap();

    let pod = world.pod().await;
    let failure = refusal(pod, &image).await;
    assert_eq!(failure.kind, FailureKind::ImageCorrupt);
    assert!(failure.message.contains(&digest), "{failure}");
    // Nothing of it can be run, and the genuine one can be pulled.
    let container = pod.container(&image, "true");
    let missing = pod.refused(Request::CreateContainer(Box::new(container))).await;
    assert_eq!(missing.kind, FailureKind::NotFound);
    std::fs::write(&stored, &altered[..altered.len() / 2]).unwrap();
    assert_eq!(refusal(pod, &image).await.kind, FailureKind::ImageCorrupt);
    std::fs::write(&stored, &genuine).unwrap();
    pod.pull(&image).await;
}

pub(crate) async fn an_image_that_does_not_fit_is_refused_and_the_pod_goes_on(world: &World) {
    let owner = world.owner();
    let root = owner.path("roots/large");
    std::fs::create_dir_all(&root).unwrap();
    // Compresses to little. A file without holes: those would take no room in the guest either.
    std::fs::write(root.join("large"), vec![b'x'; 600 << 20]).unwrap();
    let image = owner.publish("large", &root, &ImageOptions::default());
    // Not where other tests need room at the same time.
    let pod = world.lenient_pod().await;
    world.set_lenient_policy(ACCEPT_ANYTHING);
    pod.pull(&world.image()).await;
    let failure = refusal(&pod, &image).await;
    assert_eq!(failure.kind, FailureKind::Exhausted, "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("memory")));
    // Its room is free again.
    let exited =
        pod.sh(&world.image(), "head -c 100000000 /dev/zero > /tmp/room && ls -l /tmp | wc -l").await;
    assert_eq!(exited.status.code, 0, "{}", exited.stderr);
}

pub(crate) async fn what_is_not_there_is_said_to_be_not_there(world: &World) {
    let image = world.owner().in_guest("never-pushed");
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.message.contains("never-pushed"), "{failure}");
    let failure = refusal(world.pod().await, &world.owner().in_guest("UPPER")).await;
    assert_eq!(failure.kind, FailureKind::Invalid);
}

pub(crate) async fn registries_that_the_policy_does_not_name_are_not_asked(world: &World) {
    // Another port is another registry.
    for image in ["registry.invalid/tools:1", &format!("{LOOPBACK_IN_GUEST}:1/tools:1")] {
        let failure = refusal(world.pod().await, image).await;
        assert_eq!(failure.kind, FailureKind::ImageRefused, "{failure}");
    }
}

pub(crate) async fn registries_that_cannot_be_reached_are_named(world: &World) {
    let pod = world.lenient_pod().await;
    world.set_lenient_policy(ACCEPT_ANYTHING);
    // Nobody listens there.
    let registry = format!("{LOOPBACK_IN_GUEST}:1");
    let failure = refusal(&pod, &format!("{registry}/tools:1")).await;
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(failure.message.contains(&format!("the registry {registry} ")), "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("plain_http_registries")));
}

pub(crate) async fn an_image_policy_that_cannot_be_used_is_reported(world: &World) {
    let pod = world.lenient_pod().await;
    for (policy, word) in [
        ("{ \"default\": [", "line 1"),
        (r#"{ "default": [{ "type": "acceptAnything" }] }"#, "acceptAnything"),
        (r#"{ "default": [] }"#, "default"),
    ] {
        world.set_lenient_policy(policy);
        let failure = refusal(&pod, &world.image()).await;
        assert_eq!(failure.kind, FailureKind::Invalid, "{failure}");
        assert!(failure.message.contains("image policy") && failure.message.contains(word), "{failure}");
        assert!(failure.hint.is_some_and(|hint| hint.contains("containers-policy.json")));
    }
}

pub(crate) async fn a_key_that_does_not_fit_the_image_is_reported(world: &World) {
    let owner = world.owner();
    let plain = ImageOptions { encrypted: false, signed: false, ..ImageOptions::default() };
    // Of its own content: what was unpacked before needs no key.
    let root = owner.path("roots/mistaken");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("file"), "mistaken").unwrap();
    owner.publish("mistaken", &root, &plain);
    // The key broker has another key under the name than the one that encrypted.
    std::fs::write(owner.path("mistaken.key"), [8; 32]).unwrap();
    std::fs::write(owner.path("used.key"), [9; 32]).unwrap();
    owner.sealpod(["kbs", "resource", "set", "default/key/mistaken", "--file", &owner.word("mistaken.key")]);
    let recipient = format!(
        "provider:attestation-agent:keyid=kbs:///default/key/mistaken::keypath={}",
        owner.word("used.key")
    );
    let (from, to) = (owner.word("images/mistaken"), owner.word("images/mistaken-encrypted"));
    owner.sealpod(["image", "encrypt", "--recipient", &recipient, &from, &to]);
    let image = push_and_sign(world, &to, "mistaken");
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::ImageCorrupt, "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("its key in the key broker is another one")));
}

pub(crate) async fn an_image_for_other_machines_is_refused(world: &World) {
    let owner = world.owner();
    let plain = ImageOptions { encrypted: false, signed: false, ..ImageOptions::default() };
    owner.publish("foreign", world.root(), &plain);
    let layout = owner.path("images/foreign");
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
        layout.join("blobs").join(digest)
    };
    // Writes JSON as a blob, and has the descriptor name it.
    let replace = |descriptor: &mut Value, json: &Value| {
        let text = json.to_string();
        let digest = sha256(&text, &layout);
        descriptor["digest"] = format!("sha256:{digest}").into();
        descriptor["size"] = text.len().into();
        std::fs::write(blob(descriptor), text).unwrap();
    };
    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = read(&blob(&manifest["config"]));
    config["architecture"] = "riscv64".into();
    replace(&mut manifest["config"], &config);
    replace(&mut index["manifests"][0], &manifest);
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();

    let image = push_and_sign(world, &owner.word("images/foreign"), "foreign");
    let failure = refusal(world.pod().await, &image).await;
    assert_eq!(failure.kind, FailureKind::Invalid, "{failure}");
    assert!(failure.message.contains("linux/riscv64"), "{failure}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("linux/amd64")));
}

/// Pushes an image of one's own making; gives its name in a guest.
fn push_and_sign(world: &World, layout: &str, repository: &str) -> String {
    let owner = world.owner();
    let (on_host, in_guest) = (owner.on_host(repository), owner.in_guest(repository));
    owner.sealpod(["image", "push", "--plain-http", layout, &on_host]);
    let key = owner.word("signing.key");
    owner.sealpod(["image", "sign", "--plain-http", "--key", &key, "--identity", &in_guest, &on_host]);
    in_guest
}

fn sha256(text: &str, folder: &Path) -> String {
    let file = folder.join("text");
    std::fs::write(&file, text).unwrap();
    let output = Command::new("sha256sum").arg(&file).output().unwrap();
    std::fs::remove_file(file).unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}
