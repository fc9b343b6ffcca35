//! What CRI-O writes.

use super::*;

const STORAGE: &str = "/run/containers/storage/overlay-containers";

fn userdata(id: &str) -> String {
    format!("{STORAGE}/{id}/userdata")
}

fn bind(destination: &str, source: String) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["ro", "bind"]})
}

/// What both kinds of containers have.
fn mounts(id: &str) -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}),
        bind("/dev/shm", format!("{STORAGE}/4f2a/userdata/shm")),
        bind("/etc/hostname", format!("{}/hostname", userdata("4f2a"))),
        bind("/run/.containerenv", format!("{}/.containerenv", userdata(id))),
    ]
}

/// The pod's sandbox.
fn infra() -> Value {
    let mut json = sandbox();
    set(&mut json, "/mounts", mounts("4f2a").into());
    let annotations = json!({
        "io.kubernetes.cri-o.ContainerType": "sandbox",
        "io.kubernetes.cri-o.SandboxID": "4f2a",
        "io.kubernetes.cri-o.ContainerID": "4f2a",
        "io.kubernetes.cri-o.PodLinuxOverhead": r#"{"cpu_period":100000,"cpu_quota":25000,"memory_limit_in_bytes":402653184}"#,
        "io.kubernetes.cri-o.PodLinuxResources": r#"{"cpu_period":100000,"cpu_quota":150000,"memory_limit_in_bytes":268435456}"#,
        "io.kubernetes.container.name": "POD"
    });
    set(&mut json, "/annotations", annotations);
    set(&mut json, "/linux/cgroupsPath", "kubepods-pod0a1b.slice:crio:4f2a".into());
    let namespaces = json!([
        {"type": "pid"},
        {"type": "mount"},
        {"type": "network", "path": "/var/run/netns/6c8e"},
        {"type": "ipc", "path": "/var/run/ipcns/6c8e"},
        {"type": "uts", "path": "/var/run/utsns/6c8e"}
    ]);
    set(&mut json, "/linux/namespaces", namespaces);
    json
}

/// A container of that pod, whose image has a volume.
fn web() -> Value {
    let mut json = main_container();
    let mut all = mounts("9e1b");
    all.extend([
        bind("/etc/passwd", format!("{}/passwd", userdata("9e1b"))),
        bind("/etc/group", format!("{}/group", userdata("9e1b"))),
        bind("/run/secrets", format!("{}/run/secrets", userdata("9e1b"))),
        bind("/etc/localtime", format!("{}/localtime", userdata("9e1b"))),
        bind("/var/data", format!("{}/mounts/77", userdata("9e1b"))),
        bind("/cache", "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~empty-dir/cache".into()),
    ]);
    set(&mut json, "/mounts", all.into());
    let annotations = json!({
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.cri-o.SandboxID": "4f2a",
        "io.kubernetes.cri-o.ContainerID": "9e1b",
        "io.kubernetes.cri-o.Image": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "io.kubernetes.cri-o.ImageName": "registry.example/serve:1",
        "io.kubernetes.container.name": "serve"
    });
    set(&mut json, "/annotations", annotations);
    json
}

fn container_of(json: &Value) -> Result<CreateContainer, Error> {
    container("9e1b", &spec(json), None, false).map(|container| container.request)
}

#[test]
fn a_sandbox_is_a_pod() {
    let spec = spec(&infra());
    assert_eq!(role(&spec, "4f2a").unwrap(), Role { kind: Kind::Sandbox, sandbox: "4f2a".into() });
    assert!(role(&spec, "9e1b").unwrap_err().to_string().contains("leave it out"));
    let pod = pod(&spec).unwrap();
    assert_eq!(pod.network_namespace, Path::new("/var/run/netns/6c8e"));
    assert_eq!((pod.memory_bytes, pod.cpus), (Some(256 << 20), Some(2)));
    assert_eq!(pod.overhead_bytes, Some(384 << 20));
    assert_eq!(pod.cgroup.unwrap(), Path::new("kubepods-pod0a1b.slice:crio:4f2a"));
}

#[test]
fn a_container_has_the_mounts_that_its_author_asked_for() {
    let request = container_of(&web()).unwrap();
    assert_eq!(request.name.as_deref(), Some("serve"));
    assert_eq!(request.image, "registry.example/serve:1");
    assert_eq!(request.mounts.iter().map(|mount| mount.destination.as_str()).collect::<Vec<_>>(), ["/cache"]);
}

#[test]
fn a_path_of_the_hosts_is_refused_wherever_it_is_to_be() {
    for destination in
        ["/etc/hosts", "/etc/passwd", "/etc/group", "/run/secrets", "/etc/localtime", "/run/.containerenv"]
    {
        for source in [destination.to_owned(), format!("{STORAGE}/passwd"), "/srv/userdata/passwd".into()] {
            let mut json = web();
            set(&mut json, "/mounts", json!([bind(destination, source.clone())]));
            let refusal = container_of(&json).unwrap_err().to_string();
            assert!(refusal.contains(&format!("hostPath {source} ")), "{refusal}");
        }
    }
    // At another place it is no file of CRI-O's own.
    let mut json = web();
    set(&mut json, "/mounts", json!([bind("/data", format!("{}/passwd", userdata("9e1b")))]));
    assert!(container_of(&json).unwrap_err().to_string().contains("hostPath"));
}

#[test]
fn a_privileged_container_has_all_sets_of_capabilities() {
    let mut json = web();
    let all = json!(["CAP_CHOWN", "CAP_SYS_ADMIN", PRIVILEGED_ONLY]);
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        set_of(&mut json, set, all.clone());
    }
    set(&mut json, "/linux/maskedPaths", json!([]));
    untyped::refuse(&json).unwrap();
    assert!(container_of(&json).unwrap().privileged);
}

fn set_of(json: &mut Value, name: &str, names: Value) {
    set(json, &format!("/process/capabilities/{name}"), names);
}

#[test]
fn a_tmpfs_is_refused_by_name() {
    let mut json = web();
    set(&mut json, "/mounts", json!([{"destination": "/run", "type": "tmpfs", "source": "tmpfs"}]));
    let refusal = container_of(&json).unwrap_err().to_string();
    assert!(refusal.contains("tmpfs at \"/run\" is refused: "), "{refusal}");
}

#[test]
fn namespaces_of_the_host_are_refused_though_they_have_a_path() {
    for (number, kind, name) in [(2, "net", "hostNetwork"), (3, "ipc", "hostIPC")] {
        let mut json = infra();
        set(&mut json, &format!("/linux/namespaces/{number}/path"), format!("/proc/self/ns/{kind}").into());
        let refusal = pod(&spec(&json)).unwrap_err().to_string();
        assert!(refusal.contains(name) && refusal.contains(" is refused: "), "{refusal}");
    }
}

#[test]
fn a_container_is_in_its_pods_network_namespace() {
    let with = |path: Value| {
        let namespace = json!([{"type": "network", "path": path}]);
        spec(&{
            let mut json = web();
            set(&mut json, "/linux/namespaces", namespace);
            json
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let (own, others) = (folder.path().join("own"), folder.path().join("others"));
    for path in [&own, &others] {
        std::fs::write(path, "").unwrap();
    }
    assert!(belongs(&with(json!(own)), &own, 7).is_ok());
    assert!(belongs(&with(json!("/proc/7/ns/net")), &own, 7).is_ok());
    for path in [json!(others), json!("/proc/8/ns/net"), json!("/gone"), Value::Null] {
        let refusal = belongs(&with(path), &own, 7).unwrap_err().to_string();
        assert!(refusal.contains("another pod's"), "{refusal}");
    }
    assert!(belongs(&with(json!("/gone")), Path::new("/gone"), 7).is_err());
}
