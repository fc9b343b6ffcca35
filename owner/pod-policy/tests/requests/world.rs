//! A shop's pod, and what the shim asks for on its behalf.

use std::collections::BTreeMap;

use sealpod_agent_policy::{Denial, ImageFacts, Policy};
use sealpod_agent_protocol::{CreateContainer, HostEntry, Mount, MountSource, Request};
use sealpod_pod_policy::{Manifest, Options, build, render};

pub(crate) const SHOP: &str = include_str!("../manifests/shop.yaml");
pub(crate) const DIGEST: &str = "sha256:9a79be611e0267e1d943da0737c6c51be67865a0d0aa4a48f0f1ab9bcd2d7a22";

pub(crate) fn policy_of(manifest: &str, options: &Options) -> Policy {
    let manifest = Manifest::read(manifest).unwrap();
    let policy = build(&manifest, &manifest.pods()[0], options).unwrap();
    Policy::new(Some(&render(&policy).unwrap())).unwrap()
}

pub(crate) fn shop() -> Policy {
    policy_of(SHOP, &Options::default())
}

pub(crate) fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n")
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

pub(crate) fn variables(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

pub(crate) fn host(address: &str, names: &[&str]) -> HostEntry {
    HostEntry { address: address.into(), names: words(names) }
}

pub(crate) fn mount(destination: &str, read_only: bool, source: MountSource) -> Mount {
    Mount { destination: destination.into(), read_only, source }
}

pub(crate) fn empty(volume: &str, size_bytes: Option<u64>, group: Option<u32>) -> MountSource {
    MountSource::Empty { volume: volume.into(), size_bytes, group, sub_path: None }
}

pub(crate) fn files(volume: &str, file: Option<&str>) -> MountSource {
    MountSource::Files { volume: volume.into(), file: file.map(str::to_owned) }
}

/// As the shim makes it of containerd's specification, and the guest reduces it by the image's config.
pub(crate) fn web() -> (CreateContainer, ImageFacts) {
    let command = words(&[
        "/usr/bin/web",
        "--node=worker-1.example",
        "--literal=$(MODE)",
        "--db=10.96.0.20",
        "serve",
        "production",
        "$(MISSING)",
    ]);
    let request = CreateContainer {
        id: "4f2a".into(),
        name: Some("web".into()),
        image: format!("registry.example/shop/web@{DIGEST}"),
        command: Some(command.clone()),
        environment: variables(&[
            ("MODE", "production"),
            ("DB_PASSWORD", "hunter2"),
            ("DB_URL", "postgres://shop:hunter2@db/shop"),
            ("NODE", "worker-1.example"),
            ("POD", "web-6d4b75cb6d-x8k2p"),
            ("POD_IP", "10.244.1.7"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
            ("DB_SERVICE_HOST", "10.96.0.20"),
            ("DB_PORT_5432_TCP", "tcp://[fd00::20]:5432"),
        ]),
        user: Some("1000".into()),
        supplemental_groups: [2000, 3000].into(),
        working_directory: Some("/srv".into()),
        read_only_root: true,
        capabilities: Some(["CAP_NET_BIND_SERVICE".to_owned()].into()),
        mounts: vec![
            mount("/etc/web", true, files("settings", None)),
            mount("/etc/one.conf", true, files("settings.web.1", Some("file"))),
            mount("/var/cache/web", false, empty("cache", None, Some(2000))),
            mount("/scratch", false, empty("scratch", Some(64 << 20), Some(2000))),
            mount("/run/database", true, files("database", None)),
            mount(
                "/dev/termination-log",
                false,
                MountSource::EmptyFile { volume: "termination-log-web".into() },
            ),
            mount(
                "/var/run/secrets/kubernetes.io/serviceaccount",
                true,
                files("kube-api-access-7xk2p", None),
            ),
            mount("/dev/shm", false, empty("shm", Some(1 << 30), Some(2000))),
        ],
        hosts: vec![
            host("10.244.1.7", &["web-6d4b75cb6d-x8k2p"]),
            host("192.0.2.7", &["db.internal", "db"]),
            host("127.0.0.1", &["self"]),
        ],
        ..CreateContainer::default()
    };
    let facts = ImageFacts {
        digest: DIGEST.into(),
        entrypoint: words(&["/entry"]),
        // The image has LANG with the manifest's value, so the guest took it out of the request.
        environment: variables(&[("PATH", "/usr/bin"), ("HOSTNAME", "web"), ("LANG", "C.UTF-8")]),
        effective_command: command,
        ..ImageFacts::default()
    };
    (request, facts)
}

pub(crate) fn examine(policy: &Policy, request: &CreateContainer, facts: &ImageFacts) -> Result<(), Denial> {
    policy.examine(&Request::CreateContainer(Box::new(request.clone())), Some(facts))
}

pub(crate) fn fields(denied: Result<(), Denial>) -> Vec<String> {
    denied.unwrap_err().reasons.into_iter().map(|reason| reason.field).collect()
}
