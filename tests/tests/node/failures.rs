//! What dies on a node, and what must not die with it.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use sealpod_tests::Node;
use sealpod_tests::node::{NodePod, RUNTIME, control_groups, cri};

use crate::world::World;

/// Processes of this namespace whose program and arguments have these words.
fn processes(program: &str, word: &str) -> Vec<Pid> {
    let matches = |folder: &Path| {
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').next().is_some_and(|first| first.ends_with(program)) && line.contains(word)
    };
    let folders = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let number = |folder: PathBuf| folder.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    folders.filter(|folder| matches(folder)).filter_map(number).collect()
}

/// QEMU's processes, shims, taps, folders and sockets of VMs, namespaces and control groups of pods, and mounts.
pub(crate) fn inventory() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for program in ["qemu-system-x86_64", "swtpm", "containerd-shim-sealpod-v2"] {
        found.extend(processes(program, "").iter().map(|pid| format!("{program} {}", pid.as_raw_pid())));
    }
    for folder in ["/run/sealpod", "/run/netns", "/sys/class/net"] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(
            entries
                .map(|entry| entry.path().display().to_string())
                .filter(|path| !path.ends_with("/cni") && !path.ends_with("/crio")),
        );
    }
    found.extend(control_groups().iter().map(|group| group.display().to_string()));
    found.extend(mounts().iter().map(|place| format!("a mount at {place}")));
    found.sort();
    found
}

/// Where something is mounted in this namespace, which is the tests' own.
fn mounts() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Its fifth word is the place (proc_pid_mountinfo(5)).
    mounts.lines().map(|mount| mount.split(' ').nth(4).unwrap().to_owned()).collect()
}

/// Waits until the inventory is what it was: nothing more, and nothing less.
pub(crate) async fn nothing_is_left(node: &Node, before: &[String]) {
    nothing_is_left_by(|| node.log(), before).await;
}

/// The same of an engine that has a log.
pub(crate) async fn nothing_is_left_by(log: impl Fn() -> String, before: &[String]) {
    let differences = || {
        let now = inventory();
        let more = now.iter().filter(|found| !before.contains(found)).cloned();
        let gone = before.iter().filter(|found| !now.contains(found));
        more.chain(gone.map(|found| format!("{found} (gone)"))).collect()
    };
    becomes_empty(log, differences).await;
}

/// Waits until the inventory has nothing new but what may stay.
async fn nothing_is_left_but(node: &Node, before: &[String], may_stay: impl Fn(&Path) -> bool) {
    let is_new = |found: &String| !before.contains(found) && !may_stay(found.as_ref());
    becomes_empty(|| node.log(), || inventory().into_iter().filter(is_new).collect()).await;
}

/// Looks again and again: containerd's calls of the shim come and go.
async fn becomes_empty(log: impl Fn() -> String, differences: impl Fn() -> Vec<String>) {
    let in_time = tokio::time::timeout(Duration::from_secs(60), async {
        while !differences().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(in_time.await.is_ok(), "{:?} are left\n{}", differences(), log());
}

/// Within which time the death of a pod's process is noticed.
const NOTICED: Duration = Duration::from_secs(20);

async fn fails_and_leaves_nothing(world: &World, name: &str, program: &str) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let pod = node.run_pod(name, &world.init_data()).await;
    node.pull(&world.image()).await;
    let id = node.spawn(&pod, node.container_config("main", &world.image(), "sleep 1000")).await;
    // QEMU's command line has its folder, which has its shim's number; the shim's has the pod's id.
    let shim = processes("containerd-shim-sealpod-v2", &pod.id)[0];
    let victim = match program {
        "containerd-shim-sealpod-v2" => shim,
        _ => processes(program, &format!("sealpod-vm-{}-", shim.as_raw_pid()))[0],
    };
    let killed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    kill_process(victim, Signal::KILL).unwrap();
    let status = node.ended(&id).await;
    assert_ne!(status.exit_code, 0);
    // The time is the shim's, or that of containerd's call of it: how long CRI takes to say so is not in it.
    let ended = Duration::from_nanos(status.finished_at.try_into().unwrap());
    assert!(ended.saturating_sub(killed) < NOTICED, "killed at {killed:?}, noticed at {ended:?}");
    let failed: &Node = &node;
    let gone: &NodePod = &pod;
    node.until("the pod is not ready", async || (!failed.is_ready(gone).await).then_some(())).await;
    node.remove(&pod).await;
    nothing_is_left(&node, &before).await;
}

pub(crate) async fn a_killed_vm_fails_its_pod_and_leaves_nothing(world: &World) {
    fails_and_leaves_nothing(world, "killed-vm", "qemu-system-x86_64").await;
}

pub(crate) async fn a_killed_tpm_fails_its_pod_and_leaves_nothing(world: &World) {
    fails_and_leaves_nothing(world, "killed-tpm", "swtpm").await;
}

pub(crate) async fn a_killed_shim_fails_its_pod_and_leaves_nothing(world: &World) {
    fails_and_leaves_nothing(world, "killed-shim", "containerd-shim-sealpod-v2").await;
}

/// Which of a pod's first processes are killed: the programs, and a word of their arguments.
///
/// Others with the same program come and go: containerd's calls of the shim, swtpm's questions to itself.
const EARLY: [(&str, &str); 5] = [
    ("containerd-shim-sealpod-v2", "start"),
    ("containerd-shim-sealpod-v2", "serve"),
    ("swtpm_setup", "sealpod-vm-"),
    ("swtpm", "type=unixio,fd=0"),
    ("qemu-system-x86_64", "sealpod-vm-"),
];

/// Kills one of a pod's processes as soon as it is there, while containerd waits for the pod.
pub(crate) async fn a_pod_killed_at_its_start_fails_and_leaves_nothing(world: &World) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    for (number, (program, word)) in EARLY.into_iter().enumerate() {
        let known = processes(program, word);
        let config = node.pod_config(&format!("early-{number}"), Some(&world.init_data()));
        let starting = node.try_run_pod(config, RUNTIME);
        // Some are there for a few milliseconds only.
        let killing = tokio::time::timeout(Duration::from_secs(60), async {
            let new = |pid: &Pid| !known.contains(pid) && kill_process(*pid, Signal::KILL).is_ok();
            while !processes(program, word).iter().any(new) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let (started, killed) = tokio::join!(starting, killing);
        assert!(killed.is_ok(), "{program} {word} was not seen");
        let refused = started.map(|pod| panic!("{program} {word} was killed, and {} runs", pod.id));
        let refused = refused.unwrap_err();
        assert!(!refused.message().is_empty(), "{program} {word}");
        remove_all_but_ready(&node).await;
        if program.contains("shim") {
            // containerd does not tidy up after a shim that it never reached; the next pod's start removes its socket.
            let is_socket =
                |path: &Path| path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
            nothing_is_left_but(&node, &before, is_socket).await;
        } else {
            nothing_is_left(&node, &before).await;
        }
    }
}

/// What kubelet does with what it does not know.
async fn remove_all_but_ready(node: &Node) {
    let all = node.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    for pod in all.unwrap().into_inner().items {
        if pod.state() == cri::PodSandboxState::SandboxNotready {
            node.remove(&NodePod { id: pod.id, config: cri::PodSandboxConfig::default() }).await;
        }
    }
}

pub(crate) async fn containerd_killed_while_a_pod_starts_leaves_nothing_that_cannot_be_removed(
    world: &World,
) {
    let mut node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    {
        let starting = node.try_run_pod(node.pod_config("orphan", Some(&world.init_data())), RUNTIME);
        let vms = processes("qemu-system-x86_64", "").len();
        let killing = async {
            node.until("its VM is there", async || {
                (processes("qemu-system-x86_64", "").len() > vms).then_some(())
            })
            .await;
            let containerd = processes("containerd", node.path("containerd.toml").to_str().unwrap())[0];
            kill_process(containerd, Signal::KILL).unwrap();
        };
        let (started, ()) = tokio::join!(starting, killing);
        assert!(started.is_err(), "containerd was killed");
    }
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

/// How many pods are made one after the other, and how many at once. `make soak` makes more of them.
fn counts() -> (usize, usize) {
    match std::env::var_os("SEALPOD_SOAK") {
        Some(_) => (100, 8),
        None => (2, 3),
    }
}

/// The snapshotter's descriptors, which must not become more.
fn descriptors() -> usize {
    let snapshotter = processes("sealpod-snapshotter", "--root")[0].as_raw_pid();
    std::fs::read_dir(format!("/proc/{snapshotter}/fd")).unwrap().count()
}

pub(crate) async fn pods_in_a_row_and_at_once_leave_nothing(world: &World) {
    let node = world.node().await;
    let shared = world.pod(&node).await;
    let (in_a_row, at_once) = counts();
    // The snapshotter connects to containerd when the first container asks for it, and stays connected.
    node.run(&shared, node.container_config("first", &world.image(), "true")).await;
    let (before, open) = (inventory(), descriptors());
    for number in 0..in_a_row {
        let pod = node.run_pod(&format!("row-{number}"), &world.init_data()).await;
        node.remove(&pod).await;
    }
    let pods = (0..at_once).map(async |number| {
        let pod = node.run_pod(&format!("once-{number}"), &world.init_data()).await;
        let script = format!("echo {number}");
        let config = node.container_config("main", &world.image(), &script);
        let (status, lines) = node.run(&pod, config).await;
        assert_eq!((status.exit_code, lines[0].text.as_str()), (0, number.to_string().as_str()));
        node.remove(&pod).await;
    });
    futures::future::join_all(pods).await;
    node.until("nothing is left", async || (inventory() == before && descriptors() == open).then_some(()))
        .await;
}
