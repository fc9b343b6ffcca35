//! Runtime specifications, as CRI-O writes them.

use serde_json::{Value, json};

use super::{Crio, CrioPod, PodNetwork};
use crate::node::{INIT_DATA, MASKED_PATHS, control_groups, pack};

const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_KILL",
];
/// What an image is called that CRI-O has under no name.
const ID: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

impl Crio {
    /// That of a pod's sandbox, with the files that it names.
    pub fn sandbox(&self, network: &PodNetwork, init_data: Option<&str>) -> Value {
        let id = self.id();
        let mut annotations = json!({
            "io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.SandboxID": id,
            "io.kubernetes.cri-o.ContainerID": id,
            "io.kubernetes.cri-o.Name": "k8s_web_default_0a1b_0",
            "io.kubernetes.cri-o.Image": "registry.k8s.io/pause:3.10",
            "io.kubernetes.cri-o.ImageName": "registry.k8s.io/pause:3.10",
            "io.kubernetes.cri-o.HostNetwork": "false",
            "io.kubernetes.cri-o.PodLinuxOverhead": "null",
            "io.kubernetes.cri-o.PodLinuxResources": r#"{"cpu_period":100000,"cpu_quota":-1,"cpu_shares":2,"memory_limit_in_bytes":268435456}"#,
            "io.kubernetes.pod.uid": "0a1b",
            "io.kubernetes.container.name": "POD"
        });
        if let Some(init_data) = init_data {
            annotations[INIT_DATA] = pack(init_data).into();
        }
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 65535, "gid": 65535},
                "args": ["/pause"],
                "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
                "cwd": "/",
                "oomScoreAdj": -998
            },
            "root": {"path": self.folder.join("storage").join(&id), "readonly": true},
            "hostname": "web",
            "mounts": self.mounts(&id, &id),
            "annotations": annotations,
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
                "cgroupsPath": format!("{}/crio-{id}", control_groups::parent()),
                "namespaces": namespaces(network),
                "maskedPaths": MASKED_PATHS,
                "readonlyPaths": ["/proc/sys"]
            }
        })
    }

    /// That of a container of a pod which runs a script, with the files that it names. The image has a volume.
    pub fn container(&self, pod: &CrioPod, image: &str, script: &str) -> Value {
        let id = self.id();
        let userdata = self.bundle(&id);
        let mut mounts = self.mounts(&pod.infra.id, &id);
        for (name, destination) in
            [("passwd", "/etc/passwd"), ("group", "/etc/group"), ("mounts/4711", "/srv/volume")]
        {
            mounts.push(bind(destination, &userdata.join(name).display().to_string()));
        }
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin", "TERM=xterm", "HOSTNAME=web"],
                "cwd": "/",
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
                "oomScoreAdj": 1000
            },
            "root": {"path": self.folder.join("storage").join(&id)},
            "hostname": "web",
            "mounts": mounts,
            "annotations": {
                "io.kubernetes.cri-o.ContainerType": "container",
                "io.kubernetes.cri-o.SandboxID": pod.infra.id,
                "io.kubernetes.cri-o.ContainerID": id,
                "io.kubernetes.cri-o.Name": "k8s_main_web_default_0a1b_0",
                "io.kubernetes.cri-o.Image": ID,
                "io.kubernetes.cri-o.ImageName": image,
                "io.kubernetes.cri-o.ImageRef": ID,
                "io.kubernetes.cri-o.TTY": "false",
                "io.kubernetes.pod.uid": "0a1b",
                "io.kubernetes.container.name": "main"
            },
            "linux": {
                "resources": {"memory": {"limit": 67_108_864, "swap": 67_108_864}, "cpu": {"shares": 2}},
                "cgroupsPath": format!("{}/crio-{id}", control_groups::parent()),
                "namespaces": namespaces(&pod.network),
                "maskedPaths": MASKED_PATHS,
                "readonlyPaths": ["/proc/sys"],
                "seccomp": default_filter()
            }
        })
    }

    /// The mounts of every container, whose files are made.
    fn mounts(&self, sandbox: &str, id: &str) -> Vec<Value> {
        let (pod, own) = (self.bundle(sandbox), self.bundle(id));
        std::fs::create_dir_all(pod.join("shm")).expect("a folder");
        std::fs::create_dir_all(own.join("mounts/4711")).expect("a folder");
        for (path, text) in [
            (pod.join("resolv.conf"), "search default.svc.cluster.local\nnameserver 192.0.2.53\n"),
            (pod.join("hostname"), "web\n"),
            (own.join(".containerenv"), ""),
            (own.join("passwd"), "root:x:0:0:root:/root:/bin/sh\n"),
            (own.join("group"), "root:x:0:\n"),
        ] {
            std::fs::write(path, text).expect("a file");
        }
        let of_pod = |name: &str| pod.join(name).display().to_string();
        vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}),
            bind("/dev/shm", &of_pod("shm")),
            bind("/etc/resolv.conf", &of_pod("resolv.conf")),
            bind("/etc/hostname", &of_pod("hostname")),
            bind("/run/.containerenv", &own.join(".containerenv").display().to_string()),
        ]
    }
}

/// Those of a pod's sandbox, and of each of its containers.
fn namespaces(network: &PodNetwork) -> Value {
    let [net, ipc, uts] = network.paths();
    json!([
        {"type": "pid"},
        {"type": "mount"},
        {"type": "network", "path": net},
        {"type": "ipc", "path": ipc},
        {"type": "uts", "path": uts}
    ])
}

fn bind(destination: &str, source: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rw", "rbind", "rprivate"]})
}

/// The filter of system calls that CRI-O has for every container: containers/common's, of which rules count by the
/// container's capabilities and the machine's architecture.
fn default_filter() -> Value {
    let profile =
        std::fs::read_to_string("/usr/share/containers/seccomp.json").expect("`make setup` installs it");
    let mut profile: Value = serde_json::from_str(&profile).expect("a profile is JSON");
    let names = |words: &Value| words.as_array().cloned().unwrap_or_default();
    let is_had = |capability: &Value| CAPABILITIES.iter().any(|had| capability == had);
    let counts = |rule: &Value| {
        let architectures = names(&rule["includes"]["arches"]);
        (architectures.is_empty() || architectures.contains(&"amd64".into()))
            && names(&rule["includes"]["caps"]).iter().all(is_had)
            && !names(&rule["excludes"]["caps"]).iter().any(is_had)
    };
    let mut rules = names(&profile["syscalls"]);
    rules.retain(counts);
    for rule in &mut rules {
        let rule = rule.as_object_mut().expect("a rule is an object");
        rule.retain(|name, value| {
            matches!(&**name, "names" | "action" | "errnoRet" | "args") && !value.is_null()
        });
    }
    json!({
        "defaultAction": profile["defaultAction"].take(),
        "defaultErrnoRet": profile["defaultErrnoRet"].take(),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules
    })
}
