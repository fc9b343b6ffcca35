//! Whole specifications, as containerd 1.6 and CRI-O write them, and the same with one thing changed.

mod crio;

use serde_json::{Value, json};

use super::*;

/// A pod's sandbox.
fn sandbox() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65535, "gid": 65535},
            "args": ["/pause"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "noNewPrivileges": true,
            "oomScoreAdj": -998
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web-0",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/4f2a/shm", "options": ["rbind", "ro"]}
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": "4f2a",
            "io.kubernetes.cri.sandbox-memory": "268435456",
            "io.kubernetes.cri.sandbox-cpu-quota": "150000",
            "io.kubernetes.cri.sandbox-cpu-period": "100000"
        },
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
            "cgroupsPath": "/kubepods/burstable/pod0a1b/4f2a",
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network", "path": "/var/run/netns/cni-1"}
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

/// A container of that pod, with the capabilities that engines give.
fn main_container() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 1000, "gid": 0, "additionalGids": [0, 2000]},
            "args": ["/bin/serve", "--port", "80"],
            "env": ["PATH=/bin", "HOSTNAME=web-0", "EMPTY=", "FORMULA=a=b"],
            "cwd": "/srv",
            "capabilities": {"bounding": ENGINES_CAPABILITIES, "effective": ENGINES_CAPABILITIES},
            "oomScoreAdj": 999
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "options": ["rbind", "rprivate", "rw"],
             "source": "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~empty-dir/cache"}
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "4f2a",
            "io.kubernetes.cri.container-name": "serve",
            "io.kubernetes.cri.image-name": "registry.example/serve:1"
        },
        "linux": {
            "resources": {"memory": {"limit": 67_108_864}, "cpu": {"shares": 1024}},
            "cgroupsPath": "/kubepods/burstable/pod0a1b/9e1b",
            "namespaces": [
                {"type": "pid"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
                {"type": "mount"}, {"type": "network", "path": "/proc/7/ns/net"}
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn spec(json: &Value) -> Spec {
    serde_json::from_value(json.clone()).unwrap()
}

/// The value at a pointer (RFC 6901), made where it is missing.
fn set(json: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.into(), value);
}

fn changed(mut json: Value, pointer: &str, value: Value) -> Spec {
    set(&mut json, pointer, value);
    spec(&json)
}

/// As in a pod whose volumes have no limits.
fn container(
    id: &str,
    spec: &Spec,
    image: Option<&str>,
    stdin: bool,
) -> Result<ContainerSpecification, Error> {
    super::container(id, spec, image, stdin, &VolumeLimits::default())
}

fn request_of(json: &Value) -> CreateContainer {
    container("9e1b", &spec(json), None, false).unwrap().request
}

#[test]
fn a_sandbox_is_a_vm_with_the_pods_names_network_and_size() {
    let spec = spec(&sandbox());
    assert_eq!(role(&spec, "4f2a").unwrap(), Role { kind: Kind::Sandbox, sandbox: "4f2a".into() });
    let expected = PodSpecification {
        hostname: "web-0".into(),
        network_namespace: "/var/run/netns/cni-1".into(),
        init_data: None,
        dns: Dns::default(),
        sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".into(), "0".into())]),
        volume_limits: VolumeLimits::default(),
        memory_bytes: Some(256 << 20),
        overhead_bytes: None,
        cpus: Some(2),
        cgroup: Some("/kubepods/burstable/pod0a1b/4f2a".into()),
    };
    assert_eq!(pod(&spec).unwrap(), expected);
}

#[test]
fn a_container_is_the_few_words_that_the_guest_builds_it_from() {
    let request = request_of(&main_container());
    let expected = CreateContainer {
        id: "9e1b".into(),
        name: Some("serve".into()),
        image: "registry.example/serve:1".into(),
        command: Some(["/bin/serve", "--port", "80"].map(str::to_owned).into()),
        environment: [("PATH", "/bin"), ("HOSTNAME", "web-0"), ("EMPTY", ""), ("FORMULA", "a=b")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        user: Some("1000".into()),
        supplemental_groups: [2000].into(),
        working_directory: Some("/srv".into()),
        allow_privilege_escalation: true,
        mounts: vec![sealpod_agent_protocol::Mount {
            destination: "/data".into(),
            read_only: false,
            source: sealpod_agent_protocol::MountSource::Empty {
                volume: "cache".into(),
                size_bytes: None,
                group: None,
                sub_path: None,
            },
        }],
        resources: Resources {
            memory_bytes: Some(64 << 20),
            cpu_weight: Some(39),
            oom_score_adj: Some(999),
            ..Resources::default()
        },
        ..CreateContainer::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn volumes_have_the_limits_of_their_pod() {
    let mut json = sandbox();
    let annotation = |text: &str| Value::from(text);
    json["annotations"][VolumeLimits::ANNOTATION] = annotation("cache=65536 other=1");
    let limits = pod(&spec(&json)).unwrap().volume_limits;
    // What the container's own annotations say is no matter.
    let mut whole = main_container();
    whole["annotations"][VolumeLimits::ANNOTATION] = annotation("cache=1");
    let request = super::container("9e1b", &spec(&whole), None, false, &limits).unwrap().request;
    let [mount] = request.mounts.as_slice() else { panic!("{:?}", request.mounts) };
    let sealpod_agent_protocol::MountSource::Empty { volume, size_bytes, .. } = &mount.source else {
        panic!("{mount:?}")
    };
    assert_eq!((volume.as_str(), *size_bytes), ("cache", Some(65536)));

    json["annotations"][VolumeLimits::ANNOTATION] = annotation("cache=much");
    let refusal = pod(&spec(&json)).unwrap_err().to_string();
    assert!(refusal.contains(VolumeLimits::ANNOTATION) && refusal.contains("\"much\""), "{refusal}");
}

#[test]
fn the_images_own_user_is_left_to_the_guest() {
    let mut json = main_container();
    set(&mut json, "/process/user", json!({"uid": USER_OF_IMAGE, "gid": 0}));
    assert_eq!(request_of(&json).user, None);
    set(&mut json, "/process/user", json!({"uid": 5, "gid": 6}));
    assert_eq!(request_of(&json).user.as_deref(), Some("5:6"));
    set(&mut json, "/process/user", json!({"uid": 5, "gid": USER_OF_IMAGE}));
    assert_eq!(request_of(&json).user.as_deref(), Some("5"));
}

#[test]
fn what_a_security_context_takes_away_is_taken_away() {
    let mut json = main_container();
    set(&mut json, "/process/noNewPrivileges", true.into());
    set(&mut json, "/root/readonly", true.into());
    set(&mut json, "/process/capabilities/bounding", json!(["CAP_NET_RAW"]));
    let request = request_of(&json);
    assert!(!request.allow_privilege_escalation && request.read_only_root);
    assert_eq!(request.capabilities, Some(["CAP_NET_RAW".to_owned()].into()));
    set(&mut json, "/process/capabilities/bounding", json!([]));
    assert_eq!(request_of(&json).capabilities, Some(BTreeSet::new()));
}

#[test]
fn privileged_and_unmasked_are_told_apart() {
    let mut json = main_container();
    set(&mut json, "/linux/maskedPaths", json!([]));
    let unmasked = request_of(&json);
    assert!(unmasked.unmasked_paths && !unmasked.privileged);
    set(&mut json, "/process/capabilities/bounding", json!(["CAP_SYS_ADMIN", PRIVILEGED_ONLY]));
    let privileged = request_of(&json);
    assert!(privileged.privileged && !privileged.unmasked_paths);
    assert_eq!(privileged.capabilities, None);
}

#[test]
fn what_a_pod_cannot_have_is_refused_by_the_name_that_its_author_knows() {
    let without = |kind: &str| {
        let mut json = sandbox();
        let namespaces = json["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        spec(&json)
    };
    for (spec, name) in [
        (without("network"), "hostNetwork"),
        (without("pid"), "hostPID"),
        (without("ipc"), "hostIPC"),
        (changed(sandbox(), "/hooks", json!({"prestart": [{"path": "/bin/hook"}]})), "OCI hook"),
        (
            changed(
                sandbox(),
                "/linux/uidMappings",
                json!([{"hostID": 100_000, "containerID": 0, "size": 65_536}]),
            ),
            "hostUsers",
        ),
    ] {
        let refusal = pod(&spec).unwrap_err().to_string();
        assert!(refusal.contains(name) && refusal.contains(" is refused: "), "{refusal}");
    }
}

#[test]
fn what_a_container_cannot_have_is_refused_by_name() {
    for (pointer, value, name) in [
        (
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]),
            "/dev/fuse",
        ),
        ("/hooks", json!({"poststop": [{"path": "/bin/hook"}]}), "OCI hook"),
        ("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 2_097_152}]), "huge pages"),
        ("/linux/intelRdt", json!({"closID": "a"}), "Intel RDT"),
        ("/linux/personality", json!({"domain": "LINUX32"}), "personality"),
        ("/mounts", json!([{"destination": "/host", "type": "bind", "source": "/etc"}]), "hostPath /etc"),
        ("/linux/namespaces", json!([{"type": "mount"}]), "hostPID"),
    ] {
        let error = container("9e1b", &changed(main_container(), pointer, value), None, false);
        let refusal = error.unwrap_err().to_string();
        assert!(refusal.contains(name) && refusal.contains(" is refused: "), "{refusal}");
    }
}

#[test]
fn a_volume_where_the_engine_has_something_of_its_own_is_the_pods() {
    let engines = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/4f2a";
    let places = ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
    for (place, engines_file) in places.iter().zip(["shm", "hostname", "hosts", "resolv.conf"]) {
        let with = |source: String| {
            let mount =
                json!([{"destination": place, "type": "bind", "source": source, "options": ["rbind"]}]);
            container("9e1b", &changed(main_container(), "/mounts", mount), None, false)
        };
        let volume = with("/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~empty-dir/own".into()).unwrap();
        assert_eq!(volume.request.mounts[0].destination, *place);
        assert!(with("/srv/own".into()).unwrap_err().to_string().contains("hostPath /srv/own"));
        if *place != "/etc/hosts" {
            assert_eq!(with(format!("{engines}/{engines_file}")).unwrap().request.mounts, []);
        }
    }
    // The kernel's own are not the engine's to bind.
    let bind = json!([{"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}]);
    let refusal = container("9e1b", &changed(main_container(), "/mounts", bind), None, false).unwrap_err();
    assert!(refusal.to_string().contains("hostPath /proc"), "{refusal}");
}

#[test]
fn what_has_no_typed_form_is_refused_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let read = |json: &Value| {
        std::fs::write(folder.path().join(FILE), json.to_string()).unwrap();
        read_all(folder.path())
    };
    for whole in [sandbox(), main_container()] {
        read(&whole).unwrap();
    }
    let no_object = json!({});
    for (pointer, value, name) in [
        ("/domainname", json!("example"), "domainname"),
        ("/vm", json!({"kernel": {"path": "/k"}}), "vm"),
        ("/process/scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_RT"}), "process.ioPriority"),
        ("/process/capabilities/ambient", json!(["CAP_CHOWN"]), "process.capabilities.ambient"),
        ("/process/user/umask", json!(18), "process.user.umask"),
        ("/process/apparmorProfile", json!("mine"), "AppArmor profile \"mine\""),
        ("/linux/netDevices", json!({"eth1": {"name": "eth1"}}), "linux.netDevices"),
        ("/linux/resources/blockIO", json!({"weight": 10}), "linux.resources.blockIO"),
        ("/linux/resources/memory/swappiness", json!(60), "linux.resources.memory.swappiness"),
        ("/linux/resources/cpu/realtimeRuntime", json!(1), "linux.resources.cpu.realtimeRuntime"),
        ("/linux/resources/unified", json!({"memory.high": "1"}), "linux.resources.unified.memory.high"),
        ("/mounts/0/uidMappings", json!([{"hostID": 1}]), "mounts.uidMappings"),
    ] {
        let mut json = main_container();
        if let Some(mounts) = pointer.strip_prefix("/mounts/0/") {
            json["mounts"][0][mounts] = value;
        } else {
            set(&mut json, pointer, value);
        }
        let refusal = read(&json).unwrap_err().to_string();
        assert!(refusal.contains(name) && refusal.contains(" is refused: "), "{pointer}: {refusal}");
        // What is empty says nothing.
        if !pointer.starts_with("/mounts") {
            set(&mut json, pointer, no_object.clone());
            untyped::refuse(&json).unwrap();
        }
    }
    let mut json = main_container();
    for (pointer, value) in [
        ("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}])),
        ("/process/selinuxLabel", json!("system_u:system_r:container_t:s0:c1,c2")),
        ("/process/apparmorProfile", json!("cri-containerd.apparmor.d")),
        ("/linux/seccomp", seccomp("SCMP_ACT_ERRNO", 320)),
        ("/linux/resources/unified", json!({"memory.oom.group": "1", "memory.swap.max": "0"})),
    ] {
        set(&mut json, pointer, value);
    }
    read(&json).unwrap();
    assert!(
        update(br#"{"blockIO": {"weight": 10}}"#)
            .unwrap_err()
            .to_string()
            .contains("linux.resources.blockIO")
    );
    let mut json = main_container();
    set(&mut json, "/linux/sysctl", json!({"net.core.somaxconn": "1"}));
    let refusal = container("9e1b", &spec(&json), None, false).unwrap_err().to_string();
    assert!(refusal.contains("sysctl is refused: "), "{refusal}");
}

/// A profile with rules for as many system calls.
fn seccomp(otherwise: &str, allowed: usize) -> Value {
    let names: Vec<_> = (0..allowed).map(|number| format!("call{number}")).collect();
    let rules = json!([
        {"names": names, "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
    ]);
    json!({"defaultAction": otherwise, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
}

#[test]
fn a_profile_of_the_nodes_is_refused() {
    let conditional = |mut profile: Value| {
        profile["syscalls"][0]["args"] = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
        profile
    };
    for profile in [
        seccomp("SCMP_ACT_ERRNO", 60),
        seccomp("SCMP_ACT_LOG", 320),
        json!({"defaultAction": "SCMP_ACT_ERRNO"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}),
        conditional(seccomp("SCMP_ACT_ERRNO", 320)),
        json!("SCMP_ACT_ERRNO"),
    ] {
        let mut json = main_container();
        set(&mut json, "/linux/seccomp", profile.clone());
        let refusal = untyped::refuse(&json).unwrap_err();
        assert!(
            refusal.to_string().contains("a seccomp profile of the node's is refused: "),
            "{profile}: {refusal}"
        );
    }
    for none in [Value::Null, json!({})] {
        let mut json = main_container();
        set(&mut json, "/linux/seccomp", none);
        untyped::refuse(&json).unwrap();
    }
}

#[test]
fn a_container_shares_the_processes_of_who_has_the_number() {
    let with = |namespace: Value| {
        container("9e1b", &changed(main_container(), "/linux/namespaces", json!([namespace])), None, false)
    };
    assert_eq!(with(json!({"type": "pid"})).unwrap().shares_processes_of, None);
    let shared = with(json!({"type": "pid", "path": "/proc/4711/ns/pid"}));
    assert_eq!(shared.unwrap().shares_processes_of, Some(4711));
    for path in
        ["/proc/self/ns/pid", "/run/ns/pid", "/proc/1/ns/net", "/proc/-1/ns/pid", "/proc/1/../1/ns/pid"]
    {
        let refusal = with(json!({"type": "pid", "path": path})).unwrap_err().to_string();
        assert!(refusal.contains(path) && refusal.contains(" is refused: "), "{refusal}");
    }
}

#[test]
fn what_is_missing_is_said() {
    for (pointer, word) in [("/process", "process"), ("/linux", "linux"), ("/annotations", "image's name")] {
        let error = container("9e1b", &changed(main_container(), pointer, Value::Null), None, false);
        let text = error.unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(read(folder.path()).unwrap_err().to_string().contains("config.json"));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(read(folder.path()), Err(Error::Parse(_))));
}

#[test]
fn an_exec_has_its_words_and_streams_and_what_the_guest_knows_is_left_to_it() {
    let process = json!({
        "terminal": false,
        "user": {"uid": 1000, "gid": 0},
        "args": ["/bin/sh", "-c", "id"],
        "env": ["PATH=/bin"],
        "cwd": "/srv"
    });
    let request = exec("9e1b", "probe", process.to_string().as_bytes(), true, true).unwrap();
    let expected = ExecProcess {
        container: "9e1b".into(),
        exec: "probe".into(),
        command: ["/bin/sh", "-c", "id"].map(str::to_owned).into(),
        terminal: true,
        stdin: true,
        ..ExecProcess::default()
    };
    assert_eq!(request, expected);
    assert!(exec("9e1b", "probe", b"{", false, false).is_err());
}
