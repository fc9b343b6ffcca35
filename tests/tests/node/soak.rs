//! Many pods, one after the other and at once: the node is as it was.

use rustix::process::Pid;
use sealpod_tests::Node;

use crate::engines::snapshotter;
use crate::failures::{containerd, inventory};
use crate::world::World;

/// How many pods are made one after the other, and how many at once. `make soak` makes more of them.
struct Counts {
    in_a_row: usize,
    at_once: usize,
    /// After so many, memory has what it keeps: caches, and what allocators hold back. Fewer pods show no leak.
    settled: Option<usize>,
}

fn counts() -> Counts {
    match std::env::var_os("SEALPOD_SOAK") {
        Some(_) => Counts { in_a_row: 100, at_once: 8, settled: Some(25) },
        None => Counts { in_a_row: 2, at_once: 3, settled: None },
    }
}

/// What the snapshotter may have more for each pod, in KiB. It keeps nothing of a pod that has gone.
const SNAPSHOTTER_KIB: usize = 16;
/// The same of containerd, whose garbage collector lets its heap double before it looks.
const CONTAINERD_KIB: usize = 128;

/// How much of the node one of its servers has.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    /// Memory of its own, without files'.
    memory_kib: usize,
}

impl Usage {
    fn of(server: Pid) -> Self {
        let folder = format!("/proc/{}", server.as_raw_pid());
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let memory_kib = memory.trim().trim_end_matches(" kB").parse().unwrap();
        Self { descriptors: std::fs::read_dir(format!("{folder}/fd")).unwrap().count(), memory_kib }
    }
}

/// The snapshotter's and containerd's.
fn usage(node: &Node) -> [Usage; 2] {
    [snapshotter(), containerd(node)].map(Usage::of)
}

pub(crate) async fn pods_in_a_row_and_at_once_leave_nothing(world: &World) {
    let node = world.node().await;
    let shared = world.pod(&node).await;
    let Counts { in_a_row, at_once, settled } = counts();
    // The snapshotter connects to containerd when the first container asks for it, and stays connected.
    node.run(&shared, node.container_config("first", &world.image(), "true")).await;
    let (before, [snapshotter, containerd]) = (inventory(), usage(&node));
    let mut memory = None;
    for number in 0..in_a_row {
        if settled == Some(number) {
            memory = Some(usage(&node));
        }
        let pod = node.run_pod(&format!("row-{number}"), &world.init_data()).await;
        node.remove(&pod).await;
    }
    let then = memory.map(|then| (then, usage(&node)));
    let pods = (0..at_once).map(async |number| {
        let pod = node.run_pod(&format!("once-{number}"), &world.init_data()).await;
        let script = format!("echo {number}");
        let config = node.container_config("main", &world.image(), &script);
        let (status, lines) = node.run(&pod, config).await;
        assert_eq!((status.exit_code, lines[0].text.as_str()), (0, number.to_string().as_str()));
        node.remove(&pod).await;
    });
    futures::future::join_all(pods).await;
    let nothing_left = async || {
        let [snapshotter_now, containerd_now] = usage(&node);
        // containerd opens and closes some while it looks after itself.
        let closed = snapshotter_now.descriptors == snapshotter.descriptors
            && containerd_now.descriptors <= containerd.descriptors;
        (inventory() == before && closed).then_some(())
    };
    node.until("nothing is left", nothing_left).await;
    if let (Some((then, now)), Some(settled)) = (then, settled) {
        eprintln!("memory after {settled} pods and after {in_a_row}: {then:?}, {now:?}");
        for ((then, now), each_kib) in then.iter().zip(now).zip([SNAPSHOTTER_KIB, CONTAINERD_KIB]) {
            let may_have = then.memory_kib + (in_a_row - settled) * each_kib;
            assert!(now.memory_kib <= may_have, "{then:?}, then {now:?}: expected {may_have} KiB at most");
        }
    }
}
