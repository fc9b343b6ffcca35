//! Pods as wholes.

use std::path::Path;
use std::process::Command;

use sealpod_tests::node::control_groups::Limited;
use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{RUNTIME, cri, log_lines, map};
use sealpod_tests::{ImageOptions, InitData};

use crate::containers::{default_profile, security};
use crate::volumes::{Part, kubelets, mount};
use crate::world::World;

pub(crate) async fn an_encrypted_image_runs_and_the_host_asks_for_no_layer(world: &World) {
    let node = world.node().await;
    let image = world.image();
    node.pull(&image).await;
    let pod = node.run_pod("first", &world.init_data()).await;
    let mut as_it_is =
        cri::ContainerConfig { command: Vec::new(), ..node.container_config("main", &image, "") };
    security(&mut as_it_is).seccomp = Some(default_profile());
    let (status, lines) = node.run(&pod, as_it_is).await;
    assert_eq!((status.exit_code, lines[0].text.as_str()), (0, "as the image says"), "{lines:?}");

    // Who asked the registry for what: the host by its own address, the guest by its pod's.
    let address = node.address(&pod).await;
    let log = world.owner().registry_log();
    let asked = |who: &str, what: &str| {
        log.lines()
            .filter(|line| line.starts_with(who) && line.contains(" /v2/guest/tools/") && line.contains(what))
            .count()
    };
    assert_eq!(
        asked(ADDRESS, "GET /v2/guest/tools/blobs"),
        1,
        "the host fetches the config, and no layer: {log}"
    );
    assert_eq!(
        asked(&address, "GET /v2/guest/tools/blobs"),
        3,
        "the guest fetches the signature, the config and the layer: {log}"
    );
    node.remove(&pod).await;
    assert!(!node.is_ready(&pod).await);
}

pub(crate) async fn a_pod_has_the_size_the_place_and_the_parameters_that_it_asked_for(world: &World) {
    let node = world.node().await;
    node.pull(&world.image()).await;
    let mut config = node.pod_config("sized", Some(&world.init_data()));
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls = map(&[("net.ipv4.ip_unprivileged_port_start", "123")]);
    linux.resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 512 << 20,
        cpu_quota: 150_000,
        cpu_period: 100_000,
        ..Default::default()
    });
    let pod = node.try_run_pod(config, RUNTIME).await.unwrap_or_else(|status| panic!("{}", status.message()));
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; nproc; grep MemTotal /proc/meminfo";
    let (_, lines) = node.run(&pod, node.container_config("main", &world.image(), script)).await;
    assert_eq!((lines[0].text.as_str(), lines[1].text.as_str()), ("123", "2"));
    let memory: u64 = lines[2].text.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The limit and 256 MiB for the guest itself, less what the kernel keeps.
    assert!((640 << 10..768 << 10).contains(&memory), "{memory} KiB");
    // QEMU is in the pod's control group, in each hierarchy.
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.runtime().pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", info["pid"])).unwrap();
    let memory_group =
        groups.lines().find(|line| line.contains(":memory:") || line.starts_with("0::")).unwrap();
    assert!(memory_group.ends_with(&pod.id), "{groups}");
    let program = std::fs::read_to_string(format!("/proc/{}/comm", info["pid"])).unwrap();
    assert!(program.starts_with("qemu-system"), "{program}");
    node.remove(&pod).await;
}

/// Kubelet allows a pod its containers' limits and its RuntimeClass's overhead, and the host kills what takes more.
pub(crate) async fn a_pod_stays_within_what_kubelet_allows_it(world: &World) {
    let node = world.node().await;
    node.pull(&world.image()).await;
    let start = async |name: &str, overhead_mib: u64| {
        let group = Limited::to_memory(name, (128 + overhead_mib) << 20);
        let mut config = node.pod_config(name, Some(&world.init_data()));
        let linux = config.linux.as_mut().unwrap();
        linux.cgroup_parent = group.as_parent();
        let limits = cri::LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
        linux.resources = Some(limits);
        (node.try_run_pod(config, RUNTIME).await, group)
    };
    let (refused, _) = start("no-overhead", 0).await;
    let said = refused.unwrap_err().message().to_owned();
    assert!(
        said.contains(
            "the RuntimeClass's overhead in the pod's limit: expected memory of 256 MiB or more, got 0 MiB"
        ),
        "{said}"
    );

    let (pod, group) = start("full", 384).await;
    let pod = pod.unwrap_or_else(|status| panic!("{}", status.message()));
    // As much as the guest has for programs, so that all of its memory is used; and instructions enough to fill what
    // emulation keeps.
    let fill = "exec 2> /dev/null; grep MemTotal /proc/meminfo
        for i in 1 2 3; do dd if=/dev/zero of=/dev/null bs=256M count=1; find / -xdev; done | sha256sum > /dev/null
        echo filled; sleep 1000";
    let id = node.spawn(&pod, node.container_config("main", &world.image(), fill)).await;
    let log = node.status(&id).await.log_path;
    let lines = async || Some(log_lines(Path::new(&log))).filter(|lines| lines.len() == 2);
    let lines = node.until("the guest's memory was full", lines).await;
    assert_eq!(lines[1].text, "filled");
    let memory: u64 = lines[0].text.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Limits and overhead but for QEMU's part (384 MiB), less what the kernel keeps.
    assert!((256 << 10..384 << 10).contains(&memory), "{memory} KiB");
    assert_eq!(node.exec(&id, "echo alive").await.unwrap().stdout, b"alive\n");
    assert!(node.is_ready(&pod).await);
    let most = group.most_memory();
    assert!(most > 384 << 20, "{most} bytes: the VM's memory was not all used");
    node.remove(&pod).await;
}

pub(crate) async fn what_a_confidential_pod_cannot_have_is_refused_with_the_reason(world: &World) {
    let node = world.node().await;
    let options = |change: fn(&mut cri::NamespaceOption)| {
        let mut options = cri::NamespaceOption::default();
        change(&mut options);
        options
    };
    let host = i32::from(cri::NamespaceMode::Node);
    assert_eq!(host, 2);
    for (name, change, word) in [
        ("host-network", (|o| o.network = 2) as fn(&mut cri::NamespaceOption), "hostNetwork"),
        ("host-pid", |o| o.pid = 2, "hostPID"),
        ("host-ipc", |o| o.ipc = 2, "hostIPC"),
    ] {
        let mut config = node.pod_config(name, None);
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().namespace_options = Some(options(change));
        let refused = node.try_run_pod(config, RUNTIME).await.unwrap_err();
        assert!(
            refused.message().contains(word) && refused.message().contains("refused: "),
            "{}",
            refused.message()
        );
    }
    let pod = world.pod(&node).await;
    // containerd itself takes none that is not shared.
    let shared = Part::of(&node.path("shared"), kubelets(&node, &pod, "empty-dir", "shared"));
    assert!(Command::new("mount").arg("--make-shared").arg(&shared.0).status().unwrap().success());
    let profile = node.path("own.json");
    std::fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )
    .unwrap();
    let profile = cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
    };
    let both_ways = i32::from(cri::MountPropagation::PropagationBidirectional);
    type Tampering<'a> = (&'a str, &'a dyn Fn(&mut cri::ContainerConfig));
    let tampered: [Tampering<'_>; 3] = [
        ("hostPath /etc", &|config| config.mounts = vec![mount("/host", Path::new("/etc"), false)]),
        ("propagation", &|config| {
            config.mounts = vec![cri::Mount { propagation: both_ways, ..mount("/shared", &shared.0, false) }];
            security(config).privileged = true;
        }),
        ("seccomp", &|config| security(config).seccomp = Some(profile.clone())),
    ];
    for (word, tamper) in tampered {
        let mut config = node.container_config("refused", &world.image(), "true");
        tamper(&mut config);
        let refused = match node.try_create(&pod, config).await {
            Ok(id) => node.try_start(&id).await.expect_err(word),
            Err(status) => status,
        };
        let said = refused.message();
        assert!(said.contains(word) && said.contains("refused: "), "{word}: {said}");
        let all = cri::ListContainersRequest::default();
        for container in node.runtime().list_containers(all).await.unwrap().into_inner().containers {
            if container.metadata.is_some_and(|metadata| metadata.name == "refused") {
                let remove = cri::RemoveContainerRequest { container_id: container.id };
                node.runtime().remove_container(remove).await.unwrap();
            }
        }
    }
}

pub(crate) async fn what_the_policy_does_not_allow_is_refused_by_name(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let mut config = node.container_config("forbidden", &world.image(), "");
    config.command = vec!["/bin/forbidden".into()];
    let id = node.try_create(&pod, config).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("CreateContainer"), "{}", refused.message());

    let id = node.spawn(&pod, node.container_config("execs", &world.image(), "sleep 1000")).await;
    let refused = node.exec(&id, "cat /forbidden").await.unwrap_err();
    assert!(refused.message().contains("ExecProcess"), "{}", refused.message());

    // An image that its owner did not sign, and a pod whose init data the broker does not know.
    let owner = world.owner();
    let unsigned = ImageOptions { signed: false, ..ImageOptions::default() };
    let image = owner.publish("guest/unsigned", &owner.root("tools"), &unsigned);
    node.pull(&image).await;
    let id = node.try_create(&pod, node.container_config("unsigned", &image, "true")).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("no signature"), "{}", refused.message());
    let stranger = owner.init_data(&InitData {
        agent_policy: Some("package agent_policy\nCreateContainer := true\n"),
        registered: false,
        ..InitData::default()
    });
    let pod = node.run_pod("stranger", &stranger).await;
    let id = node.try_create(&pod, node.container_config("main", &world.image(), "true")).await.unwrap();
    let refused = node.try_start(&id).await.unwrap_err();
    assert!(refused.message().contains("sealpod kbs why"), "{}", refused.message());
    node.remove(&pod).await;
}

pub(crate) async fn a_runc_pod_runs_beside(world: &World) {
    let node = world.node().await;
    let shared = world.pod(&node).await;
    let owner = world.owner();
    let plain = ImageOptions { encrypted: false, signed: false, ..ImageOptions::default() };
    let image = owner.publish("plain/tools", &owner.root("plain"), &plain);
    node.pull(&image).await;
    let pod = node.try_run_pod(node.pod_config("beside", None), "").await;
    let pod = pod.unwrap_or_else(|status| panic!("{}", status.message()));
    let kernel = "cat /proc/sys/kernel/osrelease";
    let (status, lines) = node.run(&pod, node.container_config("main", &image, kernel)).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    let hosts = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(lines[0].text, hosts.trim_end());
    let (_, lines) = node.run(&shared, node.container_config("kernel", &world.image(), kernel)).await;
    assert_ne!(lines[0].text, hosts.trim_end());
    node.remove(&pod).await;
}

pub(crate) async fn containers_of_a_pod_share_processes_where_it_says_so(world: &World) {
    let node = world.node().await;
    let image = world.image();
    node.pull(&image).await;
    let mut config = node.pod_config("processes", Some(&world.init_data()));
    let shares = cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options = Some(shares.clone());
    let pod = node.try_run_pod(config, RUNTIME).await.unwrap();
    let container = |name: &str, script: &str, options: cri::NamespaceOption| {
        let mut config = node.container_config(name, &image, script);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options = Some(options);
        config
    };
    let first = node.spawn(&pod, container("first", "sleep 1111 & sleep 2222", shares.clone())).await;
    let script =
        "until ps -o args | grep -q '^sleep 1111'; do sleep 0.1; done; ps -o pid,args | grep '^ *1 ';
        ls -A /proc/1/root | grep -c .;
        kill $(ps -o pid,args | grep 'sleep 2222$' | grep -v -e '-c' | sed 's/^ *//; s/ .*//'); echo done";
    let mut second = container("second", script, shares.clone());
    let security = second.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.capabilities =
        Some(cri::Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() });
    let (status, lines) = node.run(&pod, second).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    assert!(lines[0].text.contains("process-namespace"), "its first process is the pod's: {lines:?}");
    assert_eq!(lines[1].text, "0", "which sees nothing that a tracer could see through it");
    // What it leaves ends with its own process, though that is not the first of the namespace.
    assert_eq!(node.ended(&first).await.exit_code, 143);
    let script = "while ps -o args | grep -q '^sleep 1111'; do sleep 0.1; done";
    assert_eq!(node.run(&pod, container("third", script, shares)).await.0.exit_code, 0);
    node.remove(&pod).await;
}

pub(crate) async fn a_debug_container_sees_its_targets_processes(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let target = node.spawn(&pod, node.container_config("target", &world.image(), "exec sleep 3333")).await;
    let other = node.spawn(&pod, node.container_config("other", &world.image(), "exec sleep 4444")).await;
    let debugs = |name: &str, target: &str| {
        let script = "ps -o args | grep '[s]leep'; readlink /proc/1/exe";
        let mut config = node.container_config(name, &world.image(), script);
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options = Some(cri::NamespaceOption {
            pid: cri::NamespaceMode::Target.into(),
            target_id: target.into(),
            ..Default::default()
        });
        // With a capability that its target does not have it could not look into that.
        security.capabilities =
            Some(cri::Capability { drop_capabilities: vec!["NET_RAW".into()], ..Default::default() });
        config
    };
    for (name, id, seen) in [("debugger-1", &target, "sleep 3333"), ("debugger-2", &other, "sleep 4444")] {
        let (_, lines) = node.run(&pod, debugs(name, id)).await;
        let text: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(text, [seen, "/bin/busybox"]);
    }
    let stop = cri::StopContainerRequest { container_id: target.clone(), timeout: 0 };
    node.runtime().stop_container(stop).await.unwrap();
    assert!(node.try_create(&pod, debugs("debugger-3", &target)).await.is_err());
}
