//! The processes of a pod die, or its guest stands still: it costs the pod, and leaves nothing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use sealpod_tests::node::{ADDRESSES, NodePod, RUNTIME, control_groups, cri};
use sealpod_tests::{InitData, Node, program};
use tonic::Status;

use crate::streams::{STDIN, STDOUT, attach};
use crate::volumes::{self, kubelets, mount};
use crate::world::World;

/// The programs that a pod takes.
pub(crate) const SHIM: &str = "containerd-shim-sealpod-v2";
const VM: &str = "qemu-system-x86_64";
const TPM: &str = "swtpm";

/// Processes of this namespace whose program and arguments have these words.
pub(crate) fn processes(program: &str, word: &str) -> Vec<Pid> {
    let matches = |folder: &Path| {
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.split('\0').next().is_some_and(|first| first.ends_with(program)) && line.contains(word)
    };
    let folders = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let number = |folder: PathBuf| folder.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    folders.filter(|folder| matches(folder)).filter_map(number).collect()
}

/// QEMU's processes, shims, taps, folders and sockets of VMs, namespaces, addresses and control groups of pods, and
/// mounts.
pub(crate) fn inventory() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for program in [VM, TPM, SHIM] {
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
    // What the network plugin has given away, a file for each.
    let given = std::fs::read_dir(ADDRESSES).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let addresses = given.filter_map(|name| name.to_str()?.parse::<IpAddr>().ok());
    found.extend(addresses.map(|address| format!("the address {address}")));
    found.extend(control_groups::of_pods().iter().map(|group| group.display().to_string()));
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

/// Looks again and again: containerd's calls of the shim come and go.
async fn becomes_empty(log: impl Fn() -> String, differences: impl Fn() -> Vec<String>) {
    let in_time = tokio::time::timeout(Duration::from_secs(60), async {
        while !differences().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(in_time.await.is_ok(), "{:?} are left\n{}", differences(), log());
}

/// Within which time the shim sees that a volume was changed.
const UPDATED: Duration = Duration::from_secs(3);
/// Within which time the death of a pod's process is noticed.
const NOTICED: Duration = Duration::from_secs(20);

/// The process of a pod that runs a program: the shim, whose command line has the pod's id, or one with the VM's folder in
/// it, which has the shim's number.
fn process_of(pod: &NodePod, program: &str) -> Pid {
    let shim = processes(SHIM, &pod.id)[0];
    if program == SHIM { shim } else { processes(program, &format!("sealpod-vm-{}-", shim.as_raw_pid()))[0] }
}

/// The node's containerd.
pub(crate) fn containerd(node: &Node) -> Pid {
    processes("containerd", node.path("containerd.toml").to_str().unwrap())[0]
}

/// Makes a call, and kills a process once something has come about.
pub(crate) async fn interrupted<T>(
    call: impl Future<Output = T>,
    then: impl Future<Output = ()>,
    killed: Pid,
) -> T {
    let killing = async {
        then.await;
        kill_process(killed, Signal::KILL).unwrap();
    };
    tokio::join!(call, killing).0
}

/// A process that stands still, so that a call that needs it cannot end; goes on when this is dropped.
pub(crate) struct Still(Pid);

impl Still {
    pub(crate) fn keep(process: Pid) -> Self {
        kill_process(process, Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// Waits until containerd says that it has begun a call.
pub(crate) fn begins(node: &Node, call: &str) -> impl Future<Output = ()> {
    let said = node.log().len();
    async move {
        node.until("the call begins", async || node.log()[said..].contains(call).then_some(())).await;
    }
}

/// Waits until the registry is asked for more of a kind.
pub(crate) fn asked_for(world: &World, node: &Node, kind: &str) -> impl Future<Output = ()> {
    let asked = world.owner().registry_log().len();
    async move {
        let asks = async || world.owner().registry_log()[asked..].contains(kind).then_some(());
        node.until("the registry is asked", asks).await;
    }
}

/// Waits until there is another VM.
pub(crate) fn another_vm(node: &Node) -> impl Future<Output = ()> {
    let vms = processes(VM, "").len();
    async move {
        node.until("its VM is there", async || (processes(VM, "").len() > vms).then_some(())).await;
    }
}

/// What an exec does that does not end by itself.
pub(crate) const RUNNING: &str = "touch /tmp/running; sleep 1000";

/// Waits until it does that.
pub(crate) async fn is_running(node: &Node, id: &str) {
    let runs = async || node.exec(id, "[ -e /tmp/running ]").await.ok().filter(|exec| exec.exit_code == 0);
    node.until("an exec runs", runs).await;
}

/// Starts a pod for each of the names, all at once.
async fn run_pods(world: &World, node: &Node, names: &[&str]) -> Vec<NodePod> {
    let init_data = world.init_data();
    let pods = names.iter().map(|name| node.run_pod(name, &init_data));
    futures::future::join_all(pods).await
}

/// Kills one of a pod's processes while a container and an exec run, somebody is attached, and a volume is updated.
async fn fails(world: &World, node: &Node, pod: &NodePod, program: &str) {
    let settings = kubelets(node, pod, "configmap", "settings");
    volumes::write(&settings, "1", &[("colour", "green")]);
    let mut config = node.container_config("main", &world.image(), "echo attached; cat; sleep 1000");
    (config.stdin, config.mounts) = (true, vec![mount("/etc/settings", &settings, true)]);
    let id = node.spawn(pod, config).await;
    let mut attached = attach(node, &id, false).await;
    attached.send(STDIN, b"echo\n").await;
    attached.until(STDOUT, b"echo\n").await;
    let mut killed = Duration::ZERO;
    let mut still = None;
    let running = async {
        is_running(node, &id).await;
        // The guest does not answer to the update, which goes on from when the shim has seen it. Nobody else sees it.
        still = Some(Still::keep(process_of(pod, VM)));
        volumes::write(&settings, "2", &[("colour", "red")]);
        tokio::time::sleep(UPDATED).await;
        killed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    };
    let exec = interrupted(node.exec(&id, RUNNING), running, process_of(pod, program)).await;
    drop(still);
    assert!(exec.as_ref().map_or(true, |exec| exec.exit_code != 0), "{exec:?} of a pod that was killed");
    attached.rest(STDOUT).await;
    let status = node.ended(&id).await;
    assert_ne!(status.exit_code, 0);
    // The time is the shim's, or that of containerd's call of it: how long CRI takes to say so is not in it.
    let ended = Duration::from_nanos(status.finished_at.try_into().unwrap());
    assert!(
        ended + Duration::from_millis(1) >= killed && ended.saturating_sub(killed) < NOTICED,
        "killed at {killed:?}, noticed at {ended:?}"
    );
    node.until("the pod is not ready", async || (!node.is_ready(pod).await).then_some(())).await;
    node.remove(pod).await;
}

pub(crate) async fn a_pod_fails_with_each_of_its_processes_and_leaves_nothing(world: &World) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let pods = run_pods(world, &node, &["killed-shim", "killed-vm", "killed-tpm"]).await;
    for (pod, program) in pods.iter().zip([SHIM, VM, TPM]) {
        fails(world, &node, pod, program).await;
    }
    nothing_is_left(&node, &before).await;
}

pub(crate) async fn a_pod_killed_while_it_pulls_an_image_fails_and_leaves_nothing(world: &World) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let pods = run_pods(world, &node, &["pulls-without-shim", "pulls-without-vm", "pulls-without-tpm"]).await;
    for (pod, program) in pods.iter().zip([SHIM, VM, TPM]) {
        let config = node.container_config("main", &world.image(), "sleep 1000");
        let id = node.try_create(pod, config).await.unwrap();
        let (pulls, vm) = (asked_for(world, &node, "/blobs/"), process_of(pod, VM));
        let mut still = None;
        let pulls_on = async {
            pulls.await;
            still = Some(Still::keep(vm));
        };
        // Only this asks the shim for a container, and it the guest.
        let started = interrupted(node.try_start(&id), pulls_on, process_of(pod, program)).await;
        assert!(started.is_err(), "a container runs in a pod whose {program} was killed");
        node.until("the pod is not ready", async || (!node.is_ready(pod).await).then_some(())).await;
        node.remove(pod).await;
    }
    nothing_is_left(&node, &before).await;
}

/// The calls that end a container.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// With a long grace.
    Stop,
    /// Which kills one that runs.
    Remove,
}

impl Ending {
    async fn ends(self, node: &Node, id: &str) -> Result<(), Status> {
        let (mut runtime, container_id) = (node.runtime(), id.to_owned());
        match self {
            Self::Stop => {
                let stop = cri::StopContainerRequest { container_id, timeout: 1000 };
                runtime.stop_container(stop).await.map(drop)
            }
            Self::Remove => {
                runtime.remove_container(cri::RemoveContainerRequest { container_id }).await.map(drop)
            }
        }
    }
}

/// A container does not end when it is asked to, or its machine stands still.
pub(crate) async fn a_pod_killed_while_a_container_is_stopped_or_removed_fails_and_leaves_nothing(
    world: &World,
) {
    let mut node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    for ending in [Ending::Stop, Ending::Remove] {
        killed_while_a_container_ends(world, &mut node, ending).await;
    }
    nothing_is_left(&node, &before).await;
}

async fn killed_while_a_container_ends(world: &World, node: &mut Node, ending: Ending) {
    let names = ["shim", "vm", "tpm", "containerd"].map(|name| format!("{ending:?}-{name}").to_lowercase());
    let pods = run_pods(world, node, &names.each_ref().map(String::as_str)).await;
    let engine = containerd(node);
    for (pod, program) in pods.iter().zip([Some(SHIM), Some(VM), Some(TPM), None]) {
        let stubborn =
            node.container_config("main", &world.image(), "trap '' TERM; while :; do sleep 1; done");
        let id = node.spawn(pod, stubborn).await;
        let call = format!("{ending:?}Container for");
        let begins = begins(node, &call);
        let still = (ending == Ending::Remove).then(|| Still::keep(process_of(pod, VM)));
        let killed = program.map_or(engine, |program| process_of(pod, program));
        let ended = interrupted(ending.ends(node, &id), begins, killed).await;
        drop(still);
        if program.is_none() {
            assert!(ended.is_err(), "containerd was killed");
            node.kill_containerd();
            node.start_containerd();
            node.ready().await;
            assert!(node.is_ready(pod).await, "a pod outlives containerd");
            if ending == Ending::Stop {
                let state = node.status(&id).await.state();
                assert_eq!(state, cri::ContainerState::ContainerRunning);
            }
        } else {
            // One may be gone that was to be removed.
            if ending == Ending::Stop {
                assert_ne!(node.ended(&id).await.exit_code, 0);
            }
            node.until("the pod is not ready", async || (!node.is_ready(pod).await).then_some(())).await;
        }
        node.remove(pod).await;
    }
}

pub(crate) async fn a_pod_killed_while_it_is_stopped_or_removed_leaves_nothing(world: &World) {
    let mut node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    for call in ["StopPodSandbox", "RemovePodSandbox"] {
        killed_while_it_ends(world, &mut node, call).await;
    }
    nothing_is_left(&node, &before).await;
}

async fn killed_while_it_ends(world: &World, node: &mut Node, call: &str) {
    let names = ["shim", "vm", "tpm", "containerd"].map(|name| format!("{call}-{name}").to_lowercase());
    let pods = run_pods(world, node, &names.each_ref().map(String::as_str)).await;
    for pod in &pods {
        node.spawn(pod, node.container_config("main", &world.image(), "sleep 1000")).await;
    }
    let engine = containerd(node);
    let [shim, vm, tpm] =
        [(0, SHIM), (1, VM), (2, TPM)].map(|(pod, program)| process_of(&pods[pod], program));
    for (pod, killed) in pods.iter().zip([shim, vm, tpm, engine]) {
        // containerd's log quotes the quotes.
        let (machine, said) = (process_of(pod, VM), format!(r#"{call} for \"{}\"#, pod.id));
        let begins = begins(node, &said);
        let still = Still::keep(machine);
        let (mut runtime, pod_sandbox_id) = (node.runtime(), pod.id.clone());
        let ending = async {
            if call == "StopPodSandbox" {
                runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id }).await.map(drop)
            } else {
                runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.map(drop)
            }
        };
        // It may succeed or fail, but for containerd's: kubelet comes again until it succeeds.
        let ended = interrupted(ending, begins, killed).await;
        if killed == engine {
            assert!(ended.is_err(), "containerd was killed");
            drop(still);
            node.kill_containerd();
            node.start_containerd();
            node.ready().await;
        }
        // kubelet asks for what it finds.
        let filter = cri::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let found = node.runtime().list_pod_sandbox(request).await.unwrap().into_inner().items;
        if found.is_empty() {
            assert_eq!((call, ended.is_ok()), ("RemovePodSandbox", true), "it was not to be removed");
        } else {
            node.remove(pod).await;
        }
    }
}

/// A machine that stands still answers nothing, and does not even end when it is asked to.
pub(crate) async fn a_pod_whose_guest_hangs_is_removed_and_costs_no_other(world: &World) {
    let node = world.node().await;
    let shared = world.pod(&node).await;
    let other = node.spawn(&shared, node.container_config("unmoved", &world.image(), "sleep 1000")).await;
    let before = inventory();
    let config = std::fs::read_to_string(node.path("shim.toml")).unwrap();
    std::fs::write(node.path("shim.toml"), format!("{config}silence_limit_seconds = 4\n")).unwrap();
    let pod = node.run_pod("hangs", &world.init_data()).await;
    std::fs::write(node.path("shim.toml"), config).unwrap();
    node.pull(&world.image()).await;
    let id = node.spawn(&pod, node.container_config("main", &world.image(), "sleep 1000")).await;
    let _still = Still::keep(process_of(&pod, VM));
    let unanswered = tokio::time::timeout(Duration::from_secs(2), node.exec(&id, "true")).await;
    assert!(!matches!(unanswered, Ok(Ok(_))), "{unanswered:?} of a guest that stands still");
    assert_eq!(node.exec(&other, "echo unmoved").await.unwrap().stdout, b"unmoved\n");
    node.remove(&pod).await;
    nothing_is_left(&node, &before).await;
}

/// A pod's owner, or a guest that was taken over, cannot keep a node from ending it.
pub(crate) async fn a_pod_that_may_not_be_killed_is_removed_all_the_same(world: &World) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let init_data = world.owner().init_data(&InitData {
        agent_policy: Some(
            "package agent_policy\nCreateContainer := true\nSignalProcess := false\nRemoveContainer := false\n",
        ),
        ..InitData::default()
    });
    let pod = node.run_pod("stays", &init_data).await;
    node.pull(&world.image()).await;
    // One that ends by itself is reported, and what may not be removed of it stays where it is.
    let short = node.spawn(&pod, node.container_config("short", &world.image(), "exit 4")).await;
    assert_eq!(node.ended(&short).await.exit_code, 4);
    let id = node.spawn(&pod, node.container_config("main", &world.image(), "sleep 1000")).await;
    let stop = cri::StopContainerRequest { container_id: id, timeout: 5 };
    let refused = node.runtime().stop_container(stop).await.unwrap_err();
    assert!(refused.message().contains("rule SignalProcess is false"), "{}", refused.message());
    assert!(node.is_ready(&pod).await, "it was asked to end, and may say no");
    node.remove(&pod).await;
    for said in ["its files stay in the guest", "a container cannot be ended, so its pod is"] {
        assert!(node.log().contains(said), "{said}: {}", node.log());
    }
    nothing_is_left(&node, &before).await;
}

/// kubelet's requests have a deadline, and pulling an image may take longer.
pub(crate) async fn a_container_on_which_its_engine_gives_up_is_removed(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let config = |name: &str| node.container_config(name, &world.image(), "sleep 1000");
    let late = node.try_create(&pod, config("late")).await.unwrap();
    // None are not told.
    let in_guest = || node.metrics(&pod.id)["pids"]["current"].as_u64().unwrap_or_default();
    let before = in_guest();
    let still = Still::keep(process_of(&pod, VM));
    let mut start = tonic::Request::new(cri::StartContainerRequest { container_id: late.clone() });
    start.set_timeout(Duration::from_secs(3));
    assert!(node.runtime().start_container(start).await.is_err());
    drop(still);
    node.until("it is removed", async || {
        node.log().contains("its engine has given up on a container").then_some(())
    })
    .await;
    node.until("it is gone from the guest", async || (in_guest() <= before).then_some(())).await;
    let next = node.spawn(&pod, config("next")).await;
    assert_eq!(node.exec(&next, "echo next").await.unwrap().stdout, b"next\n");
}

/// Which of a pod's first processes are killed: the programs, and a word of their arguments.
///
/// Others with the same program come and go: containerd's calls of the shim, swtpm's questions to itself.
const EARLY: [(&str, &str); 5] = [
    (SHIM, "start"),
    (SHIM, "serve"),
    ("swtpm_setup", "sealpod-vm-"),
    (TPM, "type=unixio,fd=0"),
    (VM, "sealpod-vm-"),
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
        // containerd does not tidy up after a shim that said its address and was killed before the first call; the next
        // pod's start does.
        if word != "serve" {
            nothing_is_left(&node, &before).await;
        }
    }
}

/// The `start` call is killed after it has started the process that serves, which says its address to nobody.
pub(crate) async fn a_shim_whose_start_call_was_killed_leaves_nothing(world: &World) {
    let node = world.node().await;
    let _shared = world.pod(&node).await;
    let before = inventory();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut serve = Command::new(program(SHIM));
    serve.args(["-namespace", "k8s.io", "-id", "unheard", "-address", "/run/nobody.sock", "serve"]);
    serve.current_dir(node.path("")).stdin(Stdio::null()).stdout(writer);
    let ended = serve.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("cannot tell the address"), "{said}");
    nothing_is_left(&node, &before).await;
}

/// What kubelet does with what it does not know.
pub(crate) async fn remove_all_but_ready(node: &Node) {
    let all = node.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
    for pod in all.unwrap().into_inner().items {
        if pod.state() == cri::PodSandboxState::SandboxNotready {
            node.remove(&NodePod { id: pod.id, config: cri::PodSandboxConfig::default() }).await;
        }
    }
}
