//! The OCI runtime specification of a container and of an exec, built from the verified image config and the
//! host's small request. Nothing of it is ever taken from a specification that the host wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sealpod_agent_protocol::{CreateContainer, ExecProcess, Resources};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::control_group::{CPU_PERIOD_US, cpu_quota_us, own_cpus};
use super::disks::DeviceNode;
use super::reduce::effective_command;
use super::rootfs::{CGROUP, Folders};
use super::seccomp;
use super::user::User;

/// Where programs are looked for if the image does not say.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal is unless something else is said.
pub(super) const DEFAULT_TERM: &str = "xterm";
/// How many files a process may have open.
const OPEN_FILES: u64 = 1_048_576;

/// What root in a container may do: the usual set of capabilities, less those for raw sockets and device
/// nodes, which would reach the pod's network and the guest's devices.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All that there are (capabilities(7)): what a privileged container has.
#[rustfmt::skip]
pub(super) const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
    "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
    "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
];

/// What leaks facts about the guest, or tunes it.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

const READ_ONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What an image's config says about the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageProcess {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    pub(crate) user: String,
}

/// Why a container cannot be made as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the image has no command, and none was given")]
    NoCommand,
    #[error("working directory {0:?} is not an absolute path")]
    WorkingDirectory(String),
    #[error("{0:?} cannot be the name of an environment variable")]
    VariableName(String),
    #[error("{0} holds a NUL character")]
    Nul(&'static str),
    #[error("{0:?} is no capability")]
    Capability(String),
    #[error("nothing can be mounted at {0:?}, which the guest makes itself, or which is no path")]
    Destination(String),
    #[error("oom_score_adj is {0}, expected -1000 to 1000")]
    OomScore(i32),
    #[error("cannot say which processors: {0}")]
    Processors(#[from] std::io::Error),
    #[error("no filter of system calls can be made")]
    Seccomp(#[from] libcontainer::oci_spec::OciSpecError),
    #[error("the specification cannot be written")]
    Json(#[from] serde_json::Error),
}

/// The process of a container before its user was looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<String>,
    pub(super) working_directory: String,
    pub(super) user: String,
    pub(super) terminal: bool,
}

impl Process {
    /// The main process: what the image says, as far as the request does not replace it.
    pub(super) fn main(
        image: &ImageProcess,
        request: &CreateContainer,
        hostname: &str,
    ) -> Result<Self, Error> {
        let mut environment = merge_environment(&image.environment, &request.environment)?;
        add_default(&mut environment, "PATH", DEFAULT_PATH);
        add_default(&mut environment, "HOSTNAME", hostname);
        let process = Self {
            arguments: effective_command(request, image),
            environment,
            working_directory: request.working_directory.clone().unwrap_or(image.working_directory.clone()),
            user: request.user.clone().unwrap_or(image.user.clone()),
            terminal: request.terminal,
        };
        process.checked()
    }

    /// An exec: what its container's process has (`specification` is that container's), as far as the request
    /// does not replace it.
    pub(super) fn exec(specification: &Value, request: &ExecProcess) -> Result<Self, Error> {
        let process = &specification["process"];
        let environment: Vec<String> = strings(&process["env"])
            .into_iter()
            // Home is the user's.
            .filter(|variable| request.user.is_none() || !variable.starts_with("HOME="))
            .collect();
        let working_directory = process["cwd"].as_str().unwrap_or("/").to_owned();
        let process = Self {
            arguments: request.command.clone(),
            environment: merge_environment(&environment, &request.environment)?,
            working_directory: request.working_directory.clone().unwrap_or(working_directory),
            user: request.user.clone().unwrap_or_default(),
            terminal: request.terminal,
        };
        process.checked()
    }

    fn checked(mut self) -> Result<Self, Error> {
        if self.arguments.first().is_none_or(String::is_empty) {
            return Err(Error::NoCommand);
        }
        if self.working_directory.is_empty() {
            self.working_directory = "/".into();
        }
        if !self.working_directory.starts_with('/') {
            return Err(Error::WorkingDirectory(self.working_directory));
        }
        if self.terminal {
            add_default(&mut self.environment, "TERM", DEFAULT_TERM);
        }
        let nul = |strings: &[String]| strings.iter().any(|string| string.contains('\0'));
        match self {
            Self { ref arguments, .. } if nul(arguments) => Err(Error::Nul("an argument")),
            Self { ref environment, .. } if nul(environment) => Err(Error::Nul("an environment variable")),
            Self { ref working_directory, .. } if working_directory.contains('\0') => {
                Err(Error::Nul("the working directory"))
            }
            checked => Ok(checked),
        }
    }

    /// The OCI form.
    pub(super) fn to_json(&self, user: &UserJson, privileges: &Privileges) -> Value {
        let mut environment = self.environment.clone();
        add_default(&mut environment, "HOME", &user.home);
        let capabilities = &privileges.capabilities;
        let mut json = json!({
            "terminal": self.terminal,
            "user": user.ids,
            "args": self.arguments,
            "env": environment,
            "cwd": self.working_directory,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        });
        // Left out, not false: the runtime asks only whether it is there when it decides when to filter.
        if privileges.filter == Filter::AtTheEnd {
            json["noNewPrivileges"] = true.into();
        }
        json
    }
}

/// What a process may do beyond what its user may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Privileges {
    capabilities: BTreeSet<String>,
    /// Who filters its system calls, and when.
    pub(super) filter: Filter,
}

/// Who filters system calls, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// We do, as the last step before the program, under "no new privileges".
    AtTheEnd,
    /// The runtime does, while it still has the privilege to: programs may gain privileges later.
    BeforeCapabilities,
    /// Nobody.
    None,
}

/// The capability to make device nodes.
const MAKE_DEVICES: &str = "CAP_MKNOD";

impl Privileges {
    /// Those of a container.
    pub(super) fn of_request(request: &CreateContainer) -> Result<Self, Error> {
        let named = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        if request.privileged {
            return Ok(Self { capabilities: named(ALL_CAPABILITIES), filter: Filter::None });
        }
        let mut capabilities: BTreeSet<String> = match &request.capabilities {
            Some(given) => given.clone(),
            None => named(CAPABILITIES),
        };
        if let Some(unknown) = capabilities.iter().find(|name| !ALL_CAPABILITIES.contains(&name.as_str())) {
            return Err(Error::Capability(unknown.clone()));
        }
        // Engines give it to everybody. Here the devices that it makes would be the guest's: its TPM, its disk.
        capabilities.remove(MAKE_DEVICES);
        let filter =
            if request.allow_privilege_escalation { Filter::BeforeCapabilities } else { Filter::AtTheEnd };
        Ok(Self { capabilities, filter })
    }

    /// Those of an exec: its container's, but never more than its parent had.
    pub(super) fn of_exec(specification: &Value) -> Self {
        let capabilities = strings(&specification["process"]["capabilities"]["bounding"]);
        let filter = match specification["annotations"][PRIVILEGED].is_string() {
            true => Filter::None,
            // Also where its container may gain privileges: an exec is the host's.
            false => Filter::AtTheEnd,
        };
        Self { capabilities: capabilities.into_iter().collect(), filter }
    }
}

/// Marks the specification of a privileged container, for its execs.
const PRIVILEGED: &str = "sealpod.privileged";

/// A volume in a container, found on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeMount {
    pub(super) destination: String,
    pub(super) source: PathBuf,
    pub(super) read_only: bool,
    /// Whether it is the file system of a disk of the host's.
    pub(super) of_disk: bool,
}

impl VolumeMount {
    /// Refuses what would hide the kernel's own file systems, or is no path.
    pub(super) fn check_destination(destination: &str) -> Result<(), Error> {
        let path = Path::new(destination);
        let plain = path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
        let kernels = ["/proc", "/sys"].iter().any(|kernels| path.starts_with(kernels))
            || ["/dev", "/dev/pts", "/dev/mqueue"].iter().any(|kernels| path == Path::new(kernels));
        match path.is_absolute()
            && path.parent().is_some()
            && plain
            && !kernels
            && !destination.contains('\0')
        {
            true => Ok(()),
            false => Err(Error::Destination(destination.into())),
        }
    }
}

/// A user in OCI form, and its home.
pub(super) struct UserJson {
    ids: Value,
    home: String,
}

impl From<&User> for UserJson {
    fn from(user: &User) -> Self {
        Self::new(user, &BTreeSet::new())
    }
}

impl UserJson {
    fn new(user: &User, more_groups: &BTreeSet<u32>) -> Self {
        // The first group too, as engines have it: a program that changes that one must not lose it.
        let groups: BTreeSet<_> = user.additional_gids.iter().chain(more_groups).chain([&user.gid]).collect();
        let ids = json!({"uid": user.uid, "gid": user.gid, "additionalGids": groups});
        Self { ids, home: user.home.clone() }
    }

    /// The user that a container runs as.
    pub(super) fn of_container(specification: &Value) -> Self {
        Self { ids: specification["process"]["user"].clone(), home: "/".into() }
    }
}

/// Where on this machine a container's files are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    pub(super) volumes: &'a [VolumeMount],
    /// The guest's own files for it, by their names.
    pub(super) etc: &'a [(&'static str, String)],
    pub(super) devices: &'a [DeviceNode],
    pub(super) folders: &'a Folders,
}

/// The specification of a container.
pub(super) fn container(
    request: &CreateContainer,
    process: &Process,
    user: &User,
    places: Places<'_>,
    process_namespace: Option<&Path>,
) -> Result<Value, Error> {
    let Places { devices, folders, .. } = places;
    let privileges = Privileges::of_request(request)?;
    let user = UserJson::new(user, &request.supplemental_groups);
    let hide = !request.privileged && !request.unmasked_paths;
    let paths = |paths: &'static [&'static str]| if hide { paths } else { &[] };
    let pid_namespace = match process_namespace {
        Some(path) => json!({"type": "pid", "path": path}),
        None => json!({"type": "pid"}),
    };
    let mut json = json!({
        "ociVersion": "1.0.2",
        "root": {"path": folders.root, "readonly": request.read_only_root},
        "mounts": mounts(request, places),
        "process": process.to_json(&user, &privileges),
        "linux": {
            // The network, IPC and host name are the pod's.
            "namespaces": [pid_namespace, {"type": "mount"}, {"type": "cgroup"}],
            "cgroupsPath": format!("{CGROUP}/{}", request.id),
            "resources": resources(&request.resources)?,
            "devices": devices.iter().map(device).collect::<Vec<_>>(),
            "maskedPaths": paths(MASKED_PATHS),
            "readonlyPaths": paths(READ_ONLY_PATHS),
        },
    });
    if privileges.filter == Filter::BeforeCapabilities {
        json["linux"]["seccomp"] = serde_json::to_value(seccomp::profile()?)?;
    }
    if let Some(score) = request.resources.oom_score_adj {
        if !(-1000..=1000).contains(&score) {
            return Err(Error::OomScore(score));
        }
        json["process"]["oomScoreAdj"] = score.into();
    }
    if request.privileged {
        json["annotations"] = json!({ PRIVILEGED: "true" });
    }
    Ok(json)
}

fn mounts(request: &CreateContainer, places: Places<'_>) -> Value {
    let Places { volumes, etc, folders, .. } = places;
    let access = |read_only: bool| if read_only { "ro" } else { "rw" };
    let kernels = access(!request.privileged);
    let file = |(name, destination): &(&str, String)| {
        json!({
            "destination": destination,
            "type": "bind",
            "source": folders.etc.join(name),
            "options": ["rbind", "nosuid", "nodev", "noexec", access(request.read_only_root)],
        })
    };
    let volume = |volume: &VolumeMount| {
        json!({
            "destination": volume.destination,
            "type": "bind",
            "source": volume.source,
            "options": ["rbind", "nosuid", "nodev", access(volume.read_only)],
        })
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/shm", "type": "bind", "source": super::SHARED_MEMORY,
               "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", kernels]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", kernels]}),
    ];
    // A volume at such a place is meant instead.
    let is_volumes = |place: &Value| {
        let place = place["destination"].as_str().map(Path::new);
        volumes.iter().any(|volume| place == Some(Path::new(&volume.destination)))
    };
    mounts.retain(|mount| !is_volumes(mount));
    mounts.extend(etc.iter().map(file));
    mounts.extend(volumes.iter().map(volume));
    mounts.into()
}

/// Readable and writable for its owner and group, as block devices are.
fn device(device: &DeviceNode) -> Value {
    let DeviceNode { path, major, minor, user, group } = device;
    json!({"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660, "uid": user, "gid": group})
}

/// cgroup v2 limits.
fn resources(resources: &Resources) -> Result<Value, Error> {
    let mut json = json!({});
    if let Some(bytes) = resources.memory_bytes {
        // "swap" is the sum of both: a limit means the same with an ephemeral disk and without.
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        json["memory"] = json!({"limit": limit, "swap": limit});
    }
    if let Some(millis) = resources.cpu_millis {
        let quota = i64::try_from(cpu_quota_us(millis)).unwrap_or(i64::MAX);
        json["cpu"] = json!({"quota": quota, "period": CPU_PERIOD_US});
    }
    if let Some(cpus) = &resources.cpus {
        json["cpu"]["cpus"] = own_cpus(cpus)?.into();
    }
    if let Some(weight) = resources.cpu_weight {
        // As a file of cgroup v2's own: "shares" would be converted there and back, with loss.
        json["unified"]["cpu.weight"] = weight.clamp(1, 10_000).to_string().into();
    }
    if let Some(together) = resources.kill_together {
        json["unified"]["memory.oom.group"] = u8::from(together).to_string().into();
    }
    if let Some(pids) = resources.pids {
        json["pids"] = json!({"limit": i64::try_from(pids).unwrap_or(i64::MAX)});
    }
    Ok(json)
}

fn merge_environment(base: &[String], more: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    if let Some(name) = more.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(Error::VariableName(name.clone()));
    }
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let kept = base.iter().filter(|variable| !more.contains_key(&name(variable))).cloned();
    Ok(kept.chain(more.iter().map(|(name, value)| format!("{name}={value}"))).collect())
}

fn add_default(environment: &mut Vec<String>, name: &str, value: &str) {
    let prefix = format!("{name}=");
    if !environment.iter().any(|variable| variable.starts_with(&prefix)) {
        environment.push(format!("{prefix}{value}"));
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests;
