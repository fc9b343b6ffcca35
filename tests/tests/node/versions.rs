//! Newer releases of containerd, which have a snapshotter for each runtime, and other words for shims.

use sealpod_tests::Node;
use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{Containerd, NodePod, RUNTIME, cri};

use crate::containers::{default_profile, security};
use crate::failures::{inventory, nothing_is_left};
use crate::streams::descriptors_of_shim;
use crate::volumes::{LIMITS, kubelets, mount};
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

    let mut config = node.pod_config(folder, Some(&world.init_data()));
    config.annotations.insert(LIMITS.into(), "bounded=1000000".into());
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().seccomp = Some(default_profile());
    let pod = node.try_run_pod(config, RUNTIME).await.unwrap_or_else(|status| panic!("{status}"));
    let script = "echo out; echo err >&2; exit 7";
    let mut first = node.container_config("first", &image, script);
    security(&mut first).seccomp = Some(default_profile());
    let (status, lines) = node.run(&pod, first).await;
    assert_eq!(status.exit_code, 7);
    let mut text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    text.sort_unstable();
    assert_eq!(text, ["err", "out"]);

    limits_hold_and_a_last_word_arrives(&node, &pod, &image).await;
    let id = node.spawn(&pod, node.container_config("second", &image, "sleep 1000")).await;
    let answer = node.exec(&id, "echo here; exit 5").await.unwrap();
    assert_eq!((answer.exit_code, answer.stdout), (5, b"here\n".to_vec()));
    what_an_exec_left_behind_holds_nothing(&node, &pod, &id).await;
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

/// A process that an exec leaves behind has its output, for whose end the engine waits; until it gives up.
async fn what_an_exec_left_behind_holds_nothing(node: &Node, pod: &NodePod, id: &str) {
    let before = descriptors_of_shim(pod);
    let left = "while sleep 1; do echo still here || touch /tmp/broken; done & echo $! > /tmp/left";
    assert!(node.exec(id, left).await.is_err(), "nobody gave up");
    let closed = async || (descriptors_of_shim(pod) <= before).then_some(());
    node.until("its streams are closed", closed).await;
    let script = "kill -0 $(cat /tmp/left) && sleep 3 && ! test -e /tmp/broken && kill $(cat /tmp/left)";
    assert_eq!(node.exec(id, script).await.unwrap().exit_code, 0, "it goes on, and can write");
}

async fn limits_hold_and_a_last_word_arrives(node: &Node, pod: &NodePod, image: &str) {
    let script = "head -c 60000000 /dev/zero | tail -n 1 > /dev/null";
    let mut greedy = node.container_config("greedy", image, script);
    greedy.linux.as_mut().unwrap().resources =
        Some(cri::LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() });
    let (status, _) = node.run(pod, greedy).await;
    assert_eq!(status.reason, "OOMKilled");

    let script = "dd if=/dev/zero of=/bounded/fits bs=1000 count=900 2> /dev/null || exit 1
        dd if=/dev/zero of=/bounded/more bs=1000 count=900 2> /dev/termination-log; exit 3";
    let log = node.kubelets(pod.name(), "containers/bounded/4f2a");
    std::fs::write(&log, "").unwrap();
    let mut bounded = node.container_config("bounded", image, script);
    let volume = kubelets(node, pod, "empty-dir", "bounded");
    bounded.mounts = vec![mount("/bounded", &volume, false), mount("/dev/termination-log", &log, false)];
    let (status, _) = node.run(pod, bounded).await;
    assert_eq!(status.exit_code, 3);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("No space left on device"), "{said:?}");
}
