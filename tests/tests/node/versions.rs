//! Newer releases of containerd, which have a snapshotter for each runtime, and other words for shims.

use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{Containerd, RUNTIME, cri};

use crate::failures::{inventory, nothing_is_left};
use crate::world::World;

pub(crate) async fn containerd_1_7_runs_pods(world: &World) {
    runs_pods(world, Containerd::V1_7, "node-1.7").await;
}

pub(crate) async fn containerd_2_runs_pods(world: &World) {
    runs_pods(world, Containerd::V2, "node-2").await;
}

async fn runs_pods(world: &World, version: Containerd, folder: &str) {
    let there = inventory();
    let mut node = world.start_node(version, folder);
    node.ready().await;
    let image = world.image();
    let before = world.owner().registry_log().len();
    node.pull_for(&image, RUNTIME).await;
    let log = world.owner().registry_log();
    let asked = log[before..]
        .lines()
        .filter(|line| line.starts_with(ADDRESS) && line.contains("GET /v2/guest/tools/blobs"));
    assert_eq!(asked.count(), 1, "the host fetches the config, and no layer: {log}");

    let pod = node.run_pod(folder, &world.init_data()).await;
    let script = "echo out; echo err >&2; exit 7";
    let (status, lines) = node.run(&pod, node.container_config("first", &image, script)).await;
    assert_eq!(status.exit_code, 7);
    let mut text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    text.sort_unstable();
    assert_eq!(text, ["err", "out"]);

    let id = node.spawn(&pod, node.container_config("second", &image, "sleep 1000")).await;
    let answer = node.exec(&id, "echo here; exit 5").await.unwrap();
    assert_eq!((answer.exit_code, answer.stdout), (5, b"here\n".to_vec()));
    let stats = cri::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.runtime().container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let mut places = node.image_file_systems().await;
    places.extend(stats.writable_layer.and_then(|layer| layer.fs_id).map(|id| id.mountpoint.into()));
    assert!(!places.is_empty() && places.iter().all(|place| place.exists()), "{places:?}");

    // It finds them again.
    node.kill_containerd();
    node.start_containerd();
    node.ready().await;
    assert!(node.is_ready(&pod).await);
    let answer = node.exec(&id, "echo still there").await.unwrap();
    assert_eq!(answer.stdout, b"still there\n");
    let stop = cri::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    node.runtime().stop_container(stop).await.unwrap();
    assert_eq!(node.status(&id).await.exit_code, 137);
    node.remove(&pod).await;
    nothing_is_left(&node, &there).await;
}
