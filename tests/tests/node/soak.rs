//! Many pods, one after the other and at once: the node is as it was.

use std::ops::Range;

use futures::{StreamExt, stream};
use rustix::process::Pid;
use sealpod_tests::Node;

use crate::engines::snapshotter;
use crate::failures::{containerd, inventory};
use crate::world::World;

/// How many pods are made one after the other.
const IN_A_ROW: usize = 100;
/// In so many rows beside one another: a pod's start keeps one processor busy.
const ROWS: usize = 2;
/// How many at once.
const AT_ONCE: usize = 8;
/// After so many of them, memory has what it keeps: caches, and what allocators hold back.
const SETTLED: usize = 25;
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
    // The snapshotter connects to containerd when the first container asks for it, and stays connected.
    node.run(&shared, node.container_config("first", &world.image(), "true")).await;
    let (before, [snapshotter, containerd]) = (inventory(), usage(&node));
    let in_a_row = async |numbers: Range<usize>| {
        let row = async |number| {
            let pod = node.run_pod(&format!("row-{number}"), &world.init_data()).await;
            node.remove(&pod).await;
        };
        stream::iter(numbers).for_each_concurrent(ROWS, row).await;
        usage(&node)
    };
    let then = in_a_row(0..SETTLED).await;
    let now = in_a_row(SETTLED..IN_A_ROW).await;
    let pods = (0..AT_ONCE).map(async |number| {
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
    eprintln!("memory after {SETTLED} pods and after {IN_A_ROW}: {then:?}, {now:?}");
    for ((then, now), each_kib) in then.iter().zip(&now).zip([SNAPSHOTTER_KIB, CONTAINERD_KIB]) {
        let may_have = then.memory_kib + (IN_A_ROW - SETTLED) * each_kib;
        assert!(now.memory_kib <= may_have, "{then:?}, then {now:?}: expected {may_have} KiB at most");
    }
}
