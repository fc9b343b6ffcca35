//! What images a pod runs, and what it says of the others.

use sealpod_agent_protocol::{Failure, FailureKind, PullImage, Request};
use sealpod_tests::{ImageOptions, LOOPBACK_IN_GUEST, Pod};

use crate::world::World;

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
    let pod = world.pod().await;
    let failure = refusal(pod, &image).await;
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

pub(crate) async fn registries_that_cannot_be_reached_are_named(world: &World) {
    // The image policy speaks for one registry only; an image of another is refused before anybody is asked.
    let failure = refusal(world.pod().await, "registry.invalid/tools:1").await;
    assert_eq!(failure.kind, FailureKind::ImageRefused, "{failure}");
    // This one is allowed by nobody either: another port is another registry.
    let failure = refusal(world.pod().await, &format!("{LOOPBACK_IN_GUEST}:1/tools:1")).await;
    assert_eq!(failure.kind, FailureKind::ImageRefused, "{failure}");
}
