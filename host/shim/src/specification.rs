//! From the OCI runtime specification that a container engine wrote to the few words that the guest understands.
//!
//! The guest builds a specification of its own from the verified image; this one is read for what the pod's author
//! asked for. What has no typed form is refused by name, not dropped: a pod must not run with less than it asked for.

mod annotations;
mod disks;
mod images;
mod mounts;
mod parts;
mod resources;
mod untyped;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Process, Spec};
use sealpod_agent_protocol::{CreateContainer, Dns, ExecProcess, Resources, VolumeLimits};

pub(crate) use annotations::{Kind, Role};
pub(crate) use images::left_to_the_guest;
pub(crate) use mounts::{HostFolder, Volume};

use annotations::Annotations;
use mounts::Mounts;

/// The user id under which the snapshotter lists the user whom an image names: containerd looks names up on the
/// host, which has no files of the image. It stands for "as the image says".
const USER_OF_IMAGE: u32 = 1_397_048_656;

/// The capabilities that container engines give if nothing is said.
const ENGINES_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// One that only a privileged container has.
const PRIVILEGED_ONLY: &str = "CAP_SYS_MODULE";

/// Why a pod or a container is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the runtime specification cannot be read: {0}")]
    Parse(#[from] serde_json::Error),
    #[error("the runtime specification has no {0}")]
    Missing(&'static str),
    #[error("{what} is refused: {why}")]
    Refused { what: String, why: &'static str },
    #[error("{} is not as expected: {source}", path.display())]
    MountInfo { path: PathBuf, source: serde_json::Error },
    #[error("the volume's device {}: {source}", path.display())]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("the part (subPath) of a volume at {destination:?}: {problem}")]
    Part { destination: String, problem: std::io::Error },
    #[error("annotation {name}: {problem}")]
    Annotation { name: &'static str, problem: String },
    #[error("the root file system's option {option} cannot be read: {problem}")]
    Root { option: &'static str, problem: String },
}

fn refused(what: impl Into<String>, why: &'static str) -> Error {
    Error::Refused { what: what.into(), why }
}

/// Its file in a bundle.
pub(crate) const FILE: &str = "config.json";

/// Reads that of a bundle, as far as it is understood.
pub(crate) fn read(bundle: &Path) -> Result<Spec, Error> {
    Ok(serde_json::from_slice(&text(bundle)?)?)
}

/// Reads that of a bundle, which must say no more than is understood.
pub(crate) fn read_all(bundle: &Path) -> Result<Spec, Error> {
    let spec = serde_json::from_slice(&text(bundle)?)?;
    untyped::refuse(&spec)?;
    Ok(serde_json::from_value(spec)?)
}

fn text(bundle: &Path) -> Result<Vec<u8>, Error> {
    let path = bundle.join(FILE);
    std::fs::read(&path).map_err(|source| Error::File { path, source })
}

/// Whether the container with an id is a pod's sandbox, or in which one it is.
pub(crate) fn role(spec: &Spec, id: &str) -> Result<Role, Error> {
    Annotations::of(spec).role(id)
}

/// What a pod's sandbox is to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodSpecification {
    pub(crate) hostname: String,
    /// The network namespace that CNI made.
    pub(crate) network_namespace: PathBuf,
    /// The raw init data (TOML).
    pub(crate) init_data: Option<String>,
    pub(crate) dns: Dns,
    pub(crate) sysctls: BTreeMap<String, String>,
    /// What its volumes may hold that are not in memory.
    pub(crate) volume_limits: VolumeLimits,
    /// The sum of the containers' limits, where kubelet gave it.
    pub(crate) memory_bytes: Option<u64>,
    /// The memory of the RuntimeClass's overhead, where the engine says it.
    pub(crate) overhead_bytes: Option<u64>,
    pub(crate) cpus: Option<u32>,
    /// The pod's control group on the host, as the engine wrote it.
    pub(crate) cgroup: Option<PathBuf>,
}

/// Reads a sandbox's specification.
pub(crate) fn pod(spec: &Spec) -> Result<PodSpecification, Error> {
    let annotations = Annotations::of(spec);
    let linux = linux(spec)?;
    // containerd leaves out what is to be the host's; CRI-O names the host's.
    let namespace = |kind, own: &str| {
        namespace(linux, kind)
            .filter(|namespace| !namespace.path().as_ref().is_some_and(|path| is_same(path, own.as_ref())))
    };
    let network = namespace(LinuxNamespaceType::Network, "/proc/self/ns/net").ok_or_else(|| {
        refused(
            "hostNetwork",
            "a confidential pod cannot share the network of a machine that it does not trust",
        )
    })?;
    for (kind, own, what) in [
        (LinuxNamespaceType::Pid, "/proc/self/ns/pid", "hostPID"),
        (LinuxNamespaceType::Ipc, "/proc/self/ns/ipc", "hostIPC"),
    ] {
        if namespace(kind, own).is_none() {
            return Err(refused(
                what,
                "a confidential pod runs in a VM, which shares nothing with the host's processes",
            ));
        }
    }
    refuse_common(spec, linux)?;
    let mounts = Mounts::read(spec, annotations.pod())?;
    let (memory_bytes, cpus) = annotations.size();
    Ok(PodSpecification {
        hostname: spec.hostname().clone().unwrap_or_default(),
        network_namespace: network
            .path()
            .clone()
            .ok_or(Error::Missing("path of the pod's network namespace"))?,
        init_data: annotations.init_data()?,
        dns: mounts.dns()?,
        sysctls: linux.sysctl().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect(),
        volume_limits: annotations.volume_limits()?,
        memory_bytes,
        overhead_bytes: annotations.overhead(),
        cpus,
        cgroup: linux.cgroups_path().clone(),
    })
}

/// Refuses a container that is not in its pod's network namespace, which `path`, or that of the pod's process, is.
///
/// Annotations alone do not say whose a container is: CRI-O adds a pod's own to its sandbox last. Namespaces are the engine's
/// word.
pub(crate) fn belongs(spec: &Spec, path: &Path, process: u32) -> Result<(), Error> {
    let own = namespace(linux(spec)?, LinuxNamespaceType::Network).and_then(|own| own.path().as_deref());
    let pods = PathBuf::from(format!("/proc/{process}/ns/net"));
    match own.is_some_and(|own| own == pods || is_same(own, path)) {
        true => Ok(()),
        false => Err(refused(
            "a container outside its pod's network namespace",
            "it is another pod's; annotations of a container engine are not for a pod's author",
        )),
    }
}

/// What a container is to be, and which of its volumes lie on the host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContainerSpecification {
    pub(crate) request: CreateContainer,
    pub(crate) volumes: Vec<Volume>,
    /// By its number, whose process namespace it shares.
    pub(crate) shares_processes_of: Option<u32>,
}

/// Reads a container's specification. `image` is that which its engine has left to the guest, if it says so beside;
/// `limits` are its pod's.
pub(crate) fn container(
    id: &str,
    spec: &Spec,
    image: Option<&str>,
    stdin: bool,
    limits: &VolumeLimits,
) -> Result<ContainerSpecification, Error> {
    let annotations = Annotations::of(spec);
    let linux = linux(spec)?;
    let process = spec.process().as_ref().ok_or(Error::Missing("process"))?;
    refuse_common(spec, linux)?;
    if linux.sysctl().as_ref().is_some_and(|sysctl| !sysctl.is_empty()) {
        return Err(refused("a container's own sysctl", "kernel parameters are set for the pod as a whole"));
    }
    let shares_processes_of = shared_processes(linux)?;
    let group = process.user().additional_gids().iter().flatten().copied().collect::<BTreeSet<_>>();
    let capabilities = capabilities(process);
    let hidden = linux.masked_paths().iter().flatten().next().is_some();
    let privileged = !hidden && capabilities.contains(PRIVILEGED_ONLY);
    let devices = disks::devices(linux, privileged)?;
    let engines = ENGINES_CAPABILITIES.map(str::to_owned).into();
    let mounts = Mounts::read(spec, annotations.pod())?;
    let request = CreateContainer {
        id: id.into(),
        name: annotations.container_name(),
        image: annotations.image(image)?,
        command: Some(process.args().clone().unwrap_or_default()),
        arguments: None,
        environment: environment(process),
        user: user(process),
        supplemental_groups: group.into_iter().filter(|group| *group != process.user().gid()).collect(),
        working_directory: Some(process.cwd().to_string_lossy().into_owned()),
        terminal: process.terminal().unwrap_or_default(),
        stdin,
        read_only_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default(),
        capabilities: (!privileged && capabilities != engines).then_some(capabilities),
        allow_privilege_escalation: !process.no_new_privileges().unwrap_or_default(),
        unmasked_paths: !hidden && !privileged,
        privileged,
        process_namespace: None,
        hosts: mounts.hosts()?,
        mounts: mounts.typed(limits),
        devices: devices.iter().map(|(device, _)| device.clone()).collect(),
        resources: Resources {
            oom_score_adj: process.oom_score_adj(),
            ..linux.resources().as_ref().map(resources::typed).transpose()?.unwrap_or_default()
        },
    };
    let disks = devices.into_iter().map(|(_, disk)| Volume::Disk(disk));
    let volumes = mounts.volumes().into_iter().chain(disks).collect();
    Ok(ContainerSpecification { request, volumes, shares_processes_of })
}

/// Reads what an exec is to be: an OCI process in JSON, which under CRI-O is the container's but for the words. So
/// whether it has a terminal is asked for beside.
pub(crate) fn exec(
    container: &str,
    id: &str,
    json: &[u8],
    terminal: bool,
    stdin: bool,
) -> Result<ExecProcess, Error> {
    let process: Process = serde_json::from_slice(json)?;
    Ok(ExecProcess {
        container: container.into(),
        exec: id.into(),
        command: process.args().clone().unwrap_or_default(),
        // An engine starts from the container's own environment, user and folder, which the guest knows better.
        environment: BTreeMap::new(),
        user: None,
        working_directory: None,
        terminal,
        stdin,
    })
}

/// Reads new limits: OCI resources in JSON.
pub(crate) fn update(json: &[u8]) -> Result<Resources, Error> {
    let resources = serde_json::from_slice(json)?;
    untyped::refuse_resources(&resources)?;
    resources::typed(&serde_json::from_value(resources)?)
}

fn linux(spec: &Spec) -> Result<&Linux, Error> {
    spec.linux().as_ref().ok_or(Error::Missing("linux section"))
}

fn namespace(linux: &Linux, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind)
}

/// Whether two files are one, as those of a namespace are wherever they are bound.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// What neither a pod nor a container can have.
fn refuse_common(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        serde_json::to_value(hooks).is_ok_and(|hooks| {
            hooks.as_object().is_some_and(|kinds| {
                kinds.values().any(|kind| kind.as_array().is_some_and(|all| !all.is_empty()))
            })
        })
    });
    let given = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    for (present, what, why) in [
        (hooks, "an OCI hook", "it would run on the host, which the pod does not trust"),
        (
            given(linux.uid_mappings()) || given(linux.gid_mappings()),
            "a user namespace of the pod's (hostUsers: false)",
            "users of the guest are apart from the host's already",
        ),
        (linux.intel_rdt().is_some(), "Intel RDT", "the guest cannot control the processor's caches"),
        (linux.personality().is_some(), "a personality", "the guest runs one kind of programs"),
        (
            linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()),
            "a time namespace",
            "the guest has its own clock",
        ),
    ] {
        if present {
            return Err(refused(what, why));
        }
    }
    Ok(())
}

/// Whose process namespace a container is to share. Engines name it by the number that they have for its process: the
/// pod's (`shareProcessNamespace`), or that of an ephemeral container's target.
fn shared_processes(linux: &Linux) -> Result<Option<u32>, Error> {
    let namespace = namespace(linux, LinuxNamespaceType::Pid).ok_or_else(|| {
        refused("hostPID", "a confidential pod runs in a VM, which shares nothing with the host's processes")
    })?;
    let Some(path) = namespace.path() else { return Ok(None) };
    let number =
        path.to_str().and_then(|path| path.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?.parse().ok());
    number.map(Some).ok_or_else(|| {
        refused(format!("the process namespace {}", path.display()), "it is none of the pod's containers'")
    })
}

/// The bounding set: what the container may ever have.
fn capabilities(process: &Process) -> BTreeSet<String> {
    let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone());
    bounding
        .into_iter()
        .flatten()
        .map(|capability| format!("CAP_{}", capability.to_string().trim_start_matches("CAP_")))
        .collect()
}

fn environment(process: &Process) -> BTreeMap<String, String> {
    let variables = process.env().iter().flatten();
    variables
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// As the guest looks users up: a number without a group takes the image's group for it, as Kubernetes says.
fn user(process: &Process) -> Option<String> {
    match (process.user().uid(), process.user().gid()) {
        (USER_OF_IMAGE, _) => None,
        (uid, 0 | USER_OF_IMAGE) => Some(uid.to_string()),
        (uid, gid) => Some(format!("{uid}:{gid}")),
    }
}

#[cfg(test)]
mod tests;
