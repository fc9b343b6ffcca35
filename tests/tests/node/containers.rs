//! Containers of a pod.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::Pid;
use sealpod_tests::ImageOptions;
use sealpod_tests::node::{cri, map, variables};

use crate::world::World;

/// What kubelet asks for where a pod says `RuntimeDefault`, and always for its sandbox.
pub(crate) fn default_profile() -> cri::SecurityProfile {
    let profile_type = cri::security_profile::ProfileType::RuntimeDefault.into();
    cri::SecurityProfile { profile_type, ..Default::default() }
}

pub(crate) fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

pub(crate) async fn exit_codes_times_and_logs_are_true(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "echo out; echo err >&2; printf 'no end'; exit 7";
    let (status, lines) = node.run(&pod, node.container_config("logs", &world.image(), script)).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at, "{status:?}");
    let of = |stream: &str| {
        lines.iter().filter(|line| line.stream == stream).map(|line| line.text.as_str()).collect::<Vec<_>>()
    };
    assert_eq!((of("stdout"), of("stderr")), (vec!["out", "no end"], vec!["err"]));
    let (status, _) = node
        .run(&pod, node.container_config("signal", &world.image(), "sh -c 'kill -KILL $$'; exit $?"))
        .await;
    assert_eq!(status.exit_code, 137);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let script = "until [ -e /tmp/end ]; do sleep 0.1; done; exit 3";
    let id = node.spawn(&pod, node.container_config("timed", &world.image(), script)).await;
    let before = now();
    assert_eq!(node.exec(&id, "touch /tmp/end").await.unwrap().exit_code, 0);
    let status = node.ended(&id).await;
    let ended = status.finished_at.unsigned_abs().into();
    assert_eq!(status.exit_code, 3);
    assert!((before..now()).contains(&ended), "{ended} is not between {before} and {}", now());
    let mut config = node.container_config("missing", &world.image(), "");
    config.command = vec!["/bin/nothing".into()];
    let id = node.try_create(&pod, config).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("/bin/nothing"), "{}", refused.message());
}

/// As kubelet does for `restartPolicy`: another container of the same name, and the first is gone.
pub(crate) async fn a_container_that_failed_runs_again_with_the_pods_volumes(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let cache = node.kubelets(pod.name(), "volumes/kubernetes.io~empty-dir/attempts");
    std::fs::create_dir_all(&cache).unwrap();
    for attempt in 0..2 {
        let script = "echo try >> /cache/tries; wc -l < /cache/tries; [ $(wc -l < /cache/tries) = 2 ]";
        let mut config = node.container_config("again", &world.image(), script);
        config.metadata.as_mut().unwrap().attempt = attempt;
        config.log_path = format!("again-{attempt}.log");
        let host_path = cache.display().to_string();
        config.mounts = vec![cri::Mount { container_path: "/cache".into(), host_path, ..Default::default() }];
        let (status, lines) = node.run(&pod, config).await;
        assert_eq!(status.exit_code, i32::from(attempt == 0));
        assert_eq!(lines[0].text, (attempt + 1).to_string());
        let gone = cri::RemoveContainerRequest { container_id: status.id };
        node.runtime().remove_container(gone).await.unwrap();
    }
}

pub(crate) async fn an_exec_runs_and_its_exit_code_comes_back(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let id = node
        .spawn(&pod, node.container_config("exec", &world.image(), "echo here > /tmp/file; sleep 1000"))
        .await;
    let script = "until cat /tmp/file; do sleep 0.1; done 2> /dev/null; echo err >&2; exit 5";
    let answer = node.exec(&id, script).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        (answer.exit_code, text(&answer.stdout), text(&answer.stderr)),
        (5, "here\n".into(), "err\n".into())
    );
    let slow = cri::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let late = node.runtime().exec_sync(slow).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{}", late.message());
    let left = node.exec(&id, "ps -o args | grep -c '[s]leep 1000'").await.unwrap();
    assert_eq!(text(&left.stdout), "1\n", "the exec that was given up is gone");
}

pub(crate) async fn a_container_is_stopped_with_grace_and_then_without(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let stop = async |id: &str, timeout: i64| {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        node.runtime().stop_container(request).await.unwrap();
        node.status(id).await.exit_code
    };
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let id = node.spawn(&pod, node.container_config("graceful", &world.image(), script)).await;
    let log = node.status(&id).await.log_path;
    node.until("it is ready", async || {
        (!sealpod_tests::node::log_lines(log.as_ref()).is_empty()).then_some(())
    })
    .await;
    assert_eq!(stop(&id, 20).await, 9);
    let id = node
        .spawn(
            &pod,
            node.container_config("stubborn", &world.image(), "trap '' TERM; while :; do sleep 0.1; done"),
        )
        .await;
    assert_eq!(stop(&id, 1).await, 137);
    // Its name is free again, as for a restart.
    let remove = cri::RemoveContainerRequest { container_id: id };
    node.runtime().remove_container(remove).await.unwrap();
    let (status, _) = node.run(&pod, node.container_config("stubborn", &world.image(), "true")).await;
    assert_eq!(status.exit_code, 0);
}

pub(crate) async fn the_image_says_user_and_command_and_the_pod_may_change_them(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let owner = world.owner();
    let build = [
        "--entrypoint",
        "/bin/sh",
        "--entrypoint",
        "-c",
        "--cmd",
        "id -un; pwd; echo $COLOUR $MORE",
        "--env",
        "COLOUR=green",
        "--user",
        "app",
        "--workdir",
        "/work",
    ];
    let image = owner.publish(
        "guest/app",
        &owner.root("app"),
        &ImageOptions { build: &build, ..ImageOptions::default() },
    );
    node.pull(&image).await;
    let as_it_is =
        cri::ContainerConfig { command: Vec::new(), ..node.container_config("as-it-is", &image, "") };
    let (_, lines) = node.run(&pod, as_it_is.clone()).await;
    let text = |lines: &[sealpod_tests::node::LogLine]| {
        lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>()
    };
    assert_eq!(text(&lines), ["app", "/work", "green"]);
    let mut changed = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "changed".into(), attempt: 0 }),
        args: vec!["id -u; id -g; id -G; pwd; echo $COLOUR $MORE".into()],
        envs: variables(&[("COLOUR", "red"), ("MORE", "also")]),
        working_dir: "/tmp".into(),
        log_path: "changed.log".into(),
        ..as_it_is
    };
    let security = security(&mut changed);
    security.run_as_user = Some(cri::Int64Value { value: 4000 });
    security.run_as_group = Some(cri::Int64Value { value: 5000 });
    security.supplemental_groups = vec![29];
    let (_, lines) = node.run(&pod, changed).await;
    assert_eq!(text(&lines), ["4000", "5000", "5000 29", "/tmp", "red also"]);
}

pub(crate) async fn a_security_context_holds(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let run = async |name: &str, script: &str, change: fn(&mut cri::LinuxContainerSecurityContext)| {
        let mut config = node.container_config(name, &world.image(), script);
        change(security(&mut config));
        let (_, lines) = node.run(&pod, config).await;
        lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    let status = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t '";
    let lines = run("dropped", status, |security| {
        let all = vec!["ALL".to_owned()];
        security.capabilities = Some(cri::Capability {
            drop_capabilities: all,
            add_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
        security.no_new_privs = true;
    })
    .await;
    assert_eq!(lines, ["CapBnd:0000000000002000", "NoNewPrivs:1", "Seccomp:2"]);
    // Programs may gain privileges unless the pod says otherwise; system calls are filtered all the same.
    let lines = run("escalation", status, |_| ()).await;
    assert_eq!(lines[1..], ["NoNewPrivs:0", "Seccomp:2"], "{lines:?}");
    let masked = "[ -c /proc/kcore ] && echo hidden; [ -f /proc/kcore ] && echo seen; \
        echo 1 > /proc/sys/kernel/printk && echo written";
    let lines = run("masked", masked, |_| ()).await;
    assert_eq!(lines.first().map(String::as_str), Some("hidden"), "{lines:?}");
    assert!(!lines.contains(&"written".into()), "{lines:?}");
    let lines = run("unmasked", masked, |security| {
        security.masked_paths = Vec::new();
        security.readonly_paths = Vec::new();
    })
    .await;
    assert!(lines.contains(&"seen".into()), "{lines:?}");
    let lines = run("read-only", "touch /file 2>&1; touch /dev/shm/file && echo written", |security| {
        security.readonly_rootfs = true
    })
    .await;
    assert!(lines[0].contains("Read-only file system") && lines[1] == "written", "{lines:?}");
    let script = format!("{status}; mount -t tmpfs none /tmp && echo mounted; ls /proc/kcore");
    let lines = run("privileged", &script, |security| {
        security.privileged = true;
        security.masked_paths = Vec::new();
        security.readonly_paths = Vec::new();
    })
    .await;
    assert!(lines.contains(&"mounted".into()) && lines.contains(&"Seccomp:0".into()), "{lines:?}");
}

pub(crate) async fn limits_hold_and_are_counted(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let mut config =
        node.container_config("greedy", &world.image(), "head -c 60000000 /dev/zero | tail -n 1 > /dev/null");
    config.linux.as_mut().unwrap().resources =
        Some(cri::LinuxContainerResources { memory_limit_in_bytes: 24 << 20, ..Default::default() });
    let id = node.spawn(&pod, config.clone()).await;
    let status = node.ended(&id).await;
    assert_ne!(status.exit_code, 0);
    assert_eq!(status.reason, "OOMKilled");
    // Also where its own process outlives the child that was killed, and ends by itself.
    config.metadata.as_mut().unwrap().name = "survivor".into();
    config.log_path = "survivor.log".into();
    config.command[2] = "sh -c 'head -c 60000000 /dev/zero | tail -n 1' > /dev/null; exit 3".into();
    let (status, _) = node.run(&pod, config.clone()).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "OOMKilled"));
    config.metadata.as_mut().unwrap().name = "modest".into();
    config.command[2] = "while :; do :; done".into();
    let id = node.spawn(&pod, config).await;
    let stats = async || {
        let request = cri::ContainerStatsRequest { container_id: id.clone() };
        node.runtime().container_stats(request).await.unwrap().into_inner().stats.unwrap()
    };
    let used = async || stats().await.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
    let first = used().await;
    node.until("it has used more time", async || (used().await > first + 10_000_000).then_some(())).await;
    let memory = stats().await.memory.unwrap().working_set_bytes.unwrap().value;
    assert!((1..24 << 20).contains(&memory), "{memory}");
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 40 << 20,
            cpu_quota: 20_000,
            cpu_period: 100_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.runtime().update_container_resources(update).await.unwrap();
    let limits = node.exec(&id, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max").await.unwrap();
    assert_eq!(String::from_utf8_lossy(&limits.stdout), format!("{}\n20000 100000\n", 40 << 20));
    let all =
        node.runtime().list_container_stats(cri::ListContainerStatsRequest { filter: None }).await.unwrap();
    let all = all.into_inner().stats;
    let own = all.iter().find(|stats| stats.attributes.as_ref().is_some_and(|known| known.id == id)).unwrap();
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let pods = node.runtime().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let pods = pods.linux.unwrap().memory.unwrap().working_set_bytes.unwrap().value;
    assert!(pods >= own.memory.as_ref().unwrap().working_set_bytes.as_ref().unwrap().value, "{pods}");
    // That was the VM on the host, which containerd asks nobody about. The guest's own counters hold for the pod, too.
    for counter in ["/memory/usage", "/cpu/usage_usec", "/pids/current"] {
        let [of_pod, of_container] = [&pod.id, &id]
            .map(|id| node.metrics(id).pointer(counter).and_then(serde_json::Value::as_u64).unwrap());
        assert!(of_pod >= of_container && of_container > 0, "{counter}: {of_container} of {of_pod}");
    }
    let places = node.image_file_systems().await;
    assert!(!places.is_empty() && places.iter().all(|place| place.exists()), "{places:?}");
    assert!(own.cpu.as_ref().unwrap().usage_core_nano_seconds.as_ref().unwrap().value > first);
    let stop = cri::StopContainerRequest { container_id: id, timeout: 0 };
    node.runtime().stop_container(stop).await.unwrap();
}

pub(crate) async fn requests_and_processors_are_the_guests(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "cd /sys/fs/cgroup; cat cpu.weight cpuset.cpus memory.oom.group /proc/self/oom_score_adj";
    let mut config = node.container_config("requests", &world.image(), script);
    config.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        cpu_shares: 512,
        // Of the host's; the guest of this pod has one processor.
        cpuset_cpus: "1".into(),
        unified: map(&[("memory.oom.group", "1")]),
        oom_score_adj: 500,
        ..Default::default()
    });
    let (_, lines) = node.run(&pod, config).await;
    let lines: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(lines, ["20", "0", "1", "500"]);
}

/// While the engine does not read, the container waits, and nobody keeps what it writes.
pub(crate) async fn output_waits_for_its_reader(world: &World) {
    const BYTES: usize = 100_000_000;
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = format!(
        "head -c 999 /dev/zero | tr '\\0' x > /tmp/line; echo >> /tmp/line
        i=0; while [ $i -lt 1000 ]; do cat /tmp/line; i=$((i+1)); done > /tmp/block
        i=0; while [ $i -lt {} ]; do cat /tmp/block; i=$((i+1)); done",
        BYTES / 1_000_000
    );
    let shim = shim_of(&pod.id);
    let id = node.spawn(&pod, node.container_config("flood", &world.image(), &script)).await;
    let log = node.status(&id).await.log_path;
    let length = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    node.until("its output begins", async || (length() > 1_000_000).then_some(())).await;
    node.pause_containerd(true);
    let before = resident_bytes(shim);
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let (stopped, after) = (length(), resident_bytes(shim));
    node.pause_containerd(false);
    assert!(stopped < BYTES as u64, "the reader was stopped too late");
    assert!(after < before + (8 << 20), "{before} bytes, then {after}");
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let text = node
        .until("all of it arrives", async || {
            let text = std::fs::read(&log).unwrap();
            (text.iter().filter(|byte| **byte == b'\n').count() >= BYTES / 1000).then_some(text)
        })
        .await;
    assert_eq!(text.iter().filter(|byte| **byte == b'x').count(), BYTES / 1000 * 999);
    std::fs::remove_file(&log).unwrap();
}

fn shim_of(pod: &str) -> Pid {
    let has_id = |folder: &Path| {
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words[0].ends_with(b"containerd-shim-sealpod-v2") && words.contains(&pod.as_bytes())
    };
    let folders = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let number = |folder: PathBuf| folder.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    folders.filter(|folder| has_id(folder)).find_map(number).expect("the pod has a shim")
}

fn resident_bytes(process: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.as_raw_pid())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<u64>().unwrap() << 10
}

pub(crate) async fn much_output_arrives_whole(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "seq 1 400000";
    let (status, lines) = node.run(&pod, node.container_config("much", &world.image(), script)).await;
    assert_eq!(status.exit_code, 0);
    let lines = node
        .until("the last line arrives", async || {
            let lines = if lines.len() == 400_000 {
                lines.clone()
            } else {
                sealpod_tests::node::log_lines(status.log_path.as_ref())
            };
            (lines.len() >= 400_000).then_some(lines)
        })
        .await;
    assert_eq!(lines.len(), 400_000);
    assert!(lines.iter().enumerate().all(|(number, line)| line.text == (number + 1).to_string()));
}

pub(crate) async fn a_paused_container_stands_still(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let script = "while :; do echo tick; sleep 0.1; done";
    let id = node.spawn(&pod, node.container_config("paused", &world.image(), script)).await;
    let log = node.status(&id).await.log_path;
    let ticks = || sealpod_tests::node::log_lines(log.as_ref()).len();
    node.until("it ticks", async || (ticks() > 0).then_some(())).await;
    node.task("pause", &id);
    // What was on its way arrives.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = ticks();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(ticks(), before);
    node.task("resume", &id);
    node.until("it ticks again", async || (ticks() > before).then_some(())).await;
}
