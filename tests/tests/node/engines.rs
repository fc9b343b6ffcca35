//! containerd or the snapshotter dies, at each of kubelet's calls: pods go on, and what was asked for can be asked again.

use rustix::process::Pid;
use sealpod_tests::Node;
use sealpod_tests::node::{NodePod, RUNTIME, cri};
use tonic::Code;

use crate::failures::{
    RUNNING, Still, another_vm, asked_for, begins, containerd, interrupted, inventory, is_running,
    nothing_is_left, processes, remove_all_but_ready,
};
use crate::world::World;

/// Starts containerd again after it was killed.
async fn start_again(node: &mut Node) {
    node.kill_containerd();
    node.start_containerd();
    node.ready().await;
}

/// What kubelet does with containers that it does not want, until it works.
async fn remove_containers(node: &Node, pod: &NodePod) {
    let filter = cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let all = cri::ListContainersRequest { filter: Some(filter) };
    for container in node.runtime().list_containers(all).await.unwrap().into_inner().containers {
        let (stop, remove) = (
            cri::StopContainerRequest { container_id: container.id.clone(), timeout: 0 },
            cri::RemoveContainerRequest { container_id: container.id },
        );
        let removed = async || {
            let mut runtime = node.runtime();
            runtime.stop_container(stop.clone()).await.ok()?;
            runtime.remove_container(remove.clone()).await.ok()
        };
        node.until("a container is removed", removed).await;
    }
}

/// As kubelet does where it needs room.
async fn forget(node: &Node, image: &str) {
    let spec = cri::ImageSpec { image: image.into(), ..Default::default() };
    node.images().remove_image(cri::RemoveImageRequest { image: Some(spec) }).await.unwrap();
}

pub(crate) async fn containerd_killed_while_an_image_is_pulled_or_a_container_is_made_is_missed_only_meanwhile(
    world: &World,
) {
    let mut node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let pod = node.run_pod("without-containerd", &world.init_data()).await;
    let config = |node: &Node| node.container_config("main", &world.image(), "sleep 1000");

    // An image is unpacked into snapshots, and a container begins with one.
    forget(&node, &world.image()).await;
    let pulls = asked_for(world, &node, "/manifests/");
    let still = Still::keep(snapshotter());
    let pulled = interrupted(node.try_pull_for(&world.image(), ""), pulls, containerd(&node)).await;
    assert!(pulled.is_err(), "containerd was killed");
    drop(still);
    start_again(&mut node).await;
    node.pull(&world.image()).await;

    let still = Still::keep(snapshotter());
    let begins = begins(&node, "CreateContainer within sandbox");
    let made = interrupted(node.try_create(&pod, config(&node)), begins, containerd(&node)).await;
    assert!(made.is_err(), "containerd was killed");
    drop(still);
    start_again(&mut node).await;
    remove_containers(&node, &pod).await;

    let id = node.try_create(&pod, config(&node)).await.unwrap();
    let pulls = asked_for(world, &node, "/blobs/");
    let started = interrupted(node.try_start(&id), pulls, containerd(&node)).await;
    assert!(started.is_err(), "containerd was killed");
    start_again(&mut node).await;
    assert!(node.is_ready(&pod).await);
    remove_containers(&node, &pod).await;

    let id = node.spawn(&pod, config(&node)).await;
    let exec = interrupted(node.exec(&id, RUNNING), is_running(&node, &id), containerd(&node)).await;
    assert!(exec.is_err(), "containerd was killed");
    start_again(&mut node).await;
    assert_eq!(node.exec(&id, "echo still there").await.unwrap().stdout, b"still there\n");
    remove_containers(&node, &pod).await;

    let (status, lines) = node.run(&pod, node.container_config("main", &world.image(), "echo again")).await;
    assert_eq!((status.exit_code, lines[0].text.as_str()), (0, "again"));
    node.remove(&pod).await;
    nothing_is_left(&node, &before).await;
}

pub(crate) async fn containerd_killed_while_a_pod_starts_leaves_nothing_that_cannot_be_removed(
    world: &World,
) {
    let mut node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let starting = node.try_run_pod(node.pod_config("orphan", Some(&world.init_data())), RUNTIME);
    let started = interrupted(starting, another_vm(&node), containerd(&node)).await;
    assert!(started.is_err(), "containerd was killed");
    node.start_containerd();
    node.ready().await;
    // The shim goes on; its pod becomes ready or is gone. kubelet removes what it has not heard of.
    let all = node.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    for pod in all.unwrap().into_inner().items {
        if pod.metadata.is_some_and(|metadata| metadata.name == "orphan") {
            node.remove(&NodePod { id: pod.id, config: cri::PodSandboxConfig::default() }).await;
        }
    }
    nothing_is_left(&node, &before).await;
}

pub(crate) async fn pods_outlive_containerd(world: &World) {
    let mut node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "n=0; while [ $n -lt 100 ]; do n=$((n+1)); echo $n; sleep 0.1; done; sleep 1000";
    let id = node.spawn(&pod, node.container_config("counter", &world.image(), script)).await;
    node.kill_containerd();
    node.kill_snapshotter();
    node.start_snapshotter();
    node.start_containerd();
    node.ready().await;
    assert!(node.is_ready(&pod).await);
    let log = node.status(&id).await.log_path;
    let lines = node
        .until("it has counted to the end", async || {
            let lines = sealpod_tests::node::log_lines(log.as_ref());
            (lines.last()?.text == "100").then_some(lines)
        })
        .await;
    let numbers: Vec<usize> = lines.iter().map(|line| line.text.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>(), "no line is lost or doubled");
    let answer = node.exec(&id, "echo still there").await.unwrap();
    assert_eq!(answer.stdout, b"still there\n");
}

/// The snapshotter ends while a container is made; when it is back, the next try works.
pub(crate) async fn a_snapshotter_killed_while_a_container_is_made_is_missed_only_meanwhile(world: &World) {
    let mut node = world.node().await;
    let pod = world.pod(&node).await;
    let before = inventory();
    let config = |node: &Node| node.container_config("snapshots", &world.image(), "echo made");
    node.kill_snapshotter();
    let refused = node.try_create(&pod, config(&node)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{}", refused.message());
    node.start_snapshotter();
    let (status, lines) = node.run(&pod, config(&node)).await;
    assert_eq!((status.exit_code, lines[0].text.as_str()), (0, "made"));
    let remove = cri::RemoveContainerRequest { container_id: status.id };
    node.runtime().remove_container(remove).await.unwrap();
    nothing_is_left(&node, &before).await;
}

pub(crate) async fn a_snapshotter_killed_while_an_image_is_pulled_or_a_pod_starts_is_missed_only_meanwhile(
    world: &World,
) {
    let mut node = world.node().await;
    let shared = world.pod(&node).await;
    let before = inventory();

    let image = world.image();
    forget(&node, &image).await;
    let pulls = asked_for(world, &node, "/manifests/");
    let still = Still::keep(snapshotter());
    let pulled = interrupted(node.try_pull_for(&image, ""), pulls, snapshotter()).await;
    drop(still);
    assert!(pulled.is_err(), "the snapshotter was killed");
    node.kill_snapshotter();
    node.start_snapshotter();
    node.try_pull_for(&image, "").await.unwrap();
    let config = node.container_config("pulled-again", &image, "true");
    let (status, _) = node.run(&shared, config).await;
    assert_eq!(status.exit_code, 0);
    let remove = cri::RemoveContainerRequest { container_id: status.id };
    node.runtime().remove_container(remove).await.unwrap();

    // The pod's own snapshot is made first; its machine needs none.
    let config = node.pod_config("without-snapshotter", Some(&world.init_data()));
    node.kill_snapshotter();
    let refused = node.try_run_pod(config.clone(), RUNTIME).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{}", refused.message());
    node.start_snapshotter();
    let starts = async || node.try_run_pod(config.clone(), RUNTIME).await.ok();
    let pod = interrupted(node.until("the pod runs", starts), another_vm(&node), snapshotter()).await;
    assert!(node.is_ready(&pod).await);
    node.kill_snapshotter();
    node.start_snapshotter();
    let removed = async || {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        node.runtime().stop_pod_sandbox(stop).await.ok()?;
        node.runtime().remove_pod_sandbox(remove).await.ok()
    };
    node.until("the pod is removed", removed).await;
    remove_all_but_ready(&node).await;
    nothing_is_left(&node, &before).await;
}

/// The node's snapshotter.
pub(crate) fn snapshotter() -> Pid {
    processes("sealpod-snapshotter", "--root")[0]
}
