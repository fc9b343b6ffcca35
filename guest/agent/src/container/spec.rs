//! The OCI runtime specification of a container and of an exec, built from the verified image config and the
//! host's small request. Nothing of it is ever taken from a specification that the host wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sealpod_agent_protocol::{CreateContainer, ExecProcess, Resources};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::control_group::{CPU_PERIOD_US, cpu_quota_us};
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
const ALL_CAPABILITIES: &[&str] = &[
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
    #[error("nothing can be mounted at {0:?}")]
    Destination(String),
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
            // The runtime would not filter an exec.
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
}

impl VolumeMount {
    /// Refuses what would hide the kernel's own file systems, or is no path.
    pub(super) fn check_destination(destination: &str) -> Result<(), Error> {
        let path = Path::new(destination);
        let plain = path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
        let kernels = ["/proc", "/sys"].iter().any(|kernels| path.starts_with(kernels));
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
        let groups: BTreeSet<_> = user.additional_gids.iter().chain(more_groups).collect();
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
    let Places { volumes, devices, folders } = places;
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
        "mounts": mounts(folders, request, volumes),
        "process": process.to_json(&user, &privileges),
        "linux": {
            // The network, IPC and host name are the pod's.
            "namespaces": [pid_namespace, {"type": "mount"}, {"type": "cgroup"}],
            "cgroupsPath": format!("{CGROUP}/{}", request.id),
            "resources": resources(&request.resources),
            "devices": devices.iter().map(device).collect::<Vec<_>>(),
            "maskedPaths": paths(MASKED_PATHS),
            "readonlyPaths": paths(READ_ONLY_PATHS),
        },
    });
    if privileges.filter == Filter::BeforeCapabilities {
        json["linux"]["seccomp"] = serde_json::to_value(seccomp::profile()?)?;
    }
    if request.privileged {
        json["annotations"] = json!({ PRIVILEGED: "true" });
    }
    Ok(json)
}

fn mounts(folders: &Folders, request: &CreateContainer, volumes: &[VolumeMount]) -> Value {
    let access = |read_only: bool| if read_only { "ro" } else { "rw" };
    let kernels = access(!request.privileged);
    let file = |name: &str| {
        json!({
            "destination": Path::new("/etc").join(name),
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
        file("resolv.conf"),
        file("hosts"),
        file("hostname"),
    ];
    mounts.extend(volumes.iter().map(volume));
    mounts.into()
}

/// Readable and writable for its owner and group, as block devices are.
fn device(device: &DeviceNode) -> Value {
    let DeviceNode { path, major, minor, user, group } = device;
    json!({"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660, "uid": user, "gid": group})
}

/// cgroup v2 limits.
fn resources(resources: &Resources) -> Value {
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
        json["cpu"]["cpus"] = cpus.as_str().into();
    }
    if let Some(weight) = resources.cpu_weight {
        // As a file of cgroup v2's own: "shares" would be converted there and back, with loss.
        json["unified"] = json!({"cpu.weight": weight.clamp(1, 10_000).to_string()});
    }
    if let Some(pids) = resources.pids {
        json["pids"] = json!({"limit": i64::try_from(pids).unwrap_or(i64::MAX)});
    }
    json
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
mod tests {
    use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};

    use super::*;

    fn image() -> ImageProcess {
        ImageProcess {
            entrypoint: vec!["/entry".into()],
            command: vec!["serve".into()],
            environment: vec!["A=1".into(), "PATH=/bin".into()],
            working_directory: "/srv".into(),
            user: "app".into(),
        }
    }

    fn request() -> CreateContainer {
        CreateContainer { id: "c1".into(), image: "i".into(), ..CreateContainer::default() }
    }

    fn user() -> User {
        User { uid: 1000, gid: 1001, additional_gids: vec![29], home: "/home/app".into() }
    }

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(ToString::to_string).collect())
    }

    fn main(change: impl FnOnce(&mut CreateContainer)) -> Process {
        let mut request = request();
        change(&mut request);
        Process::main(&image(), &request, "pod").unwrap()
    }

    /// Without volumes.
    fn bare(request: &CreateContainer, process: &Process) -> Value {
        let places = Places { volumes: &[], devices: &[], folders: &Folders::of(&request.id) };
        container(request, process, &user(), places, None).unwrap()
    }

    fn specification(change: impl FnOnce(&mut CreateContainer)) -> Spec {
        let mut request = request();
        change(&mut request);
        let process = Process::main(&image(), &request, "pod").unwrap();
        let volumes =
            [VolumeMount { destination: "/data".into(), source: "/volume".into(), read_only: true }];
        let devices = [DeviceNode { path: "/dev/xvda".into(), major: 254, minor: 16, user: 0, group: 6 }];
        let folders = Folders::of(&request.id);
        let places = Places { volumes: &volumes, devices: &devices, folders: &folders };
        let json = container(&request, &process, &user(), places, None);
        serde_json::from_value(json.unwrap()).unwrap()
    }

    #[test]
    fn command_and_arguments_replace_entrypoint_and_command() {
        assert_eq!(main(|_| ()).arguments, ["/entry", "serve"]);
        assert_eq!(main(|r| r.arguments = list(&["check"])).arguments, ["/entry", "check"]);
        assert_eq!(main(|r| r.command = list(&["sh"])).arguments, ["sh"]);
        let both = main(|r| {
            r.command = list(&["sh"]);
            r.arguments = list(&["-c", "id"]);
        });
        assert_eq!(both.arguments, ["sh", "-c", "id"]);
        assert_eq!(main(|r| r.arguments = list(&[])).arguments, ["/entry", "serve"]);
    }

    #[test]
    fn an_image_without_a_command_needs_one() {
        let image = ImageProcess::default();
        assert!(matches!(Process::main(&image, &request(), "pod"), Err(Error::NoCommand)));
    }

    #[test]
    fn the_environment_is_the_images_and_what_was_added() {
        let process = main(|r| {
            r.environment = [("A".into(), "2".into()), ("B".into(), "3=4".into())].into();
        });
        assert_eq!(process.environment, ["PATH=/bin", "A=2", "B=3=4", "HOSTNAME=pod"]);
    }

    #[test]
    fn defaults_fill_what_the_image_leaves_out() {
        let image = ImageProcess { command: vec!["sh".into()], ..ImageProcess::default() };
        let process = Process::main(&image, &CreateContainer { terminal: true, ..request() }, "pod").unwrap();
        assert_eq!(process.working_directory, "/");
        assert!(process.environment.contains(&format!("PATH={DEFAULT_PATH}")));
        assert!(process.environment.contains(&"TERM=xterm".into()));
        let json = process.to_json(&(&user()).into(), &Privileges::of_request(&request()).unwrap());
        assert!(strings(&json["env"]).contains(&"HOME=/home/app".into()));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let changes: [fn(&mut CreateContainer); 6] = [
            |r| r.command = list(&["sh\0"]),
            |r| r.command = list(&[""]),
            |r| r.working_directory = Some("relative".into()),
            |r| r.working_directory = Some("/a\0b".into()),
            |r| r.environment = [("A=B".into(), "C".into())].into(),
            |r| r.environment = [("A".into(), "\0".into())].into(),
        ];
        for change in changes {
            let mut request = request();
            change(&mut request);
            assert!(Process::main(&image(), &request, "pod").is_err(), "{request:?}");
        }
    }

    #[test]
    fn a_container_has_namespaces_of_its_own_but_the_pods_network() {
        let spec = specification(|_| ());
        let namespaces: Vec<_> =
            spec.linux().as_ref().unwrap().namespaces().iter().flatten().map(|ns| ns.typ()).collect();
        use LinuxNamespaceType::{Cgroup, Mount, Pid};
        assert_eq!(namespaces, [Pid, Mount, Cgroup]);
    }

    #[test]
    fn privileges_are_limited() {
        let spec = specification(|_| ());
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), CAPABILITIES.len());
        assert!(capabilities.ambient().is_none());
        assert!(capabilities.inheritable().is_none());
        for name in ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"] {
            assert!(!CAPABILITIES.contains(&name), "{name}");
        }
        // Engines ask for it on everybody's behalf.
        let asked = ["CAP_MKNOD", "CAP_KILL"].map(str::to_owned);
        let spec_of_engine = specification(|request| request.capabilities = Some(asked.into()));
        let given = spec_of_engine.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding();
        assert_eq!(given.as_ref().unwrap().len(), 1, "{given:?}");
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".into()));
        assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".into()));
        assert_eq!(process.user().uid(), 1000);
        assert_eq!(process.user().additional_gids().as_deref(), Some([29].as_slice()));
    }

    #[test]
    fn sys_and_cgroups_are_read_only() {
        let spec = specification(|_| ());
        for path in ["/sys", "/sys/fs/cgroup"] {
            let mount = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new(path)).unwrap();
            assert!(mount.options().as_ref().unwrap().contains(&"ro".into()), "{path}");
        }
    }

    #[test]
    fn a_read_only_root_has_read_only_files_in_etc() {
        let spec = specification(|r| r.read_only_root = true);
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let hosts =
            spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/etc/hosts")).unwrap();
        assert!(hosts.options().as_ref().unwrap().contains(&"ro".into()));
    }

    #[test]
    fn privileges_are_those_that_were_asked_for() {
        let asked: BTreeSet<String> = ["CAP_NET_RAW".to_owned()].into();
        let spec = specification(|r| {
            r.capabilities = Some(asked.clone());
            r.allow_privilege_escalation = true;
            r.supplemental_groups = [29, 4000].into();
        });
        let process = spec.process().as_ref().unwrap();
        let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert_eq!(bounding.len(), 1);
        // The runtime filters before it drops what it takes to do so.
        assert_eq!(process.no_new_privileges(), None);
        assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
        assert_eq!(process.user().additional_gids().as_deref(), Some([29, 4000].as_slice()));

        let none = Privileges::of_request(&CreateContainer { capabilities: Some([].into()), ..request() });
        assert!(none.unwrap().capabilities.is_empty());
        let unknown = CreateContainer { capabilities: Some(["NET_RAW".into()].into()), ..request() };
        assert!(matches!(Privileges::of_request(&unknown), Err(Error::Capability(_))));
    }

    #[test]
    fn privileged_means_all_within_the_guest() {
        let request = CreateContainer { privileged: true, ..request() };
        let main = Process::main(&image(), &request, "pod").unwrap();
        let json = bare(&request, &main);
        let spec: Spec = serde_json::from_value(json.clone()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        assert!(linux.masked_paths().as_ref().unwrap().is_empty());
        assert_eq!(Privileges::of_exec(&json), Privileges::of_request(&request).unwrap());
        let sys = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/sys")).unwrap();
        assert!(sys.options().as_ref().unwrap().contains(&"rw".into()));
    }

    #[test]
    fn execs_of_a_container_never_gain_privileges() {
        let request = CreateContainer { allow_privilege_escalation: true, ..request() };
        let main = Process::main(&image(), &request, "pod").unwrap();
        let json = bare(&request, &main);
        assert_eq!(Privileges::of_exec(&json).filter, Filter::AtTheEnd);
    }

    #[test]
    fn volumes_come_last_and_hide_nothing_of_the_kernels() {
        let spec = specification(|_| ());
        let last = spec.mounts().as_ref().unwrap().last().unwrap().clone();
        assert_eq!(last.destination(), Path::new("/data"));
        assert!(last.options().as_ref().unwrap().contains(&"ro".into()));
        for destination in ["/data", "/a/b", "/dev/termination-log", "/process"] {
            VolumeMount::check_destination(destination).unwrap();
        }
        for destination in ["", "/", "data", "/../etc", "/a/../b", "/proc", "/proc/sys", "/sys/fs", "/a\0"] {
            assert!(VolumeMount::check_destination(destination).is_err(), "{destination:?}");
        }
    }

    #[test]
    fn a_device_is_its_owners() {
        let spec = specification(|_| ());
        let device = &spec.linux().as_ref().unwrap().devices().as_ref().unwrap()[0];
        assert_eq!(
            (device.path().as_path(), device.major(), device.minor()),
            (Path::new("/dev/xvda"), 254, 16)
        );
        assert_eq!((device.file_mode(), device.uid(), device.gid()), (Some(0o660), Some(0), Some(6)));
    }

    #[test]
    fn limits_become_cgroup_settings() {
        let spec = specification(|r| {
            r.resources = Resources {
                memory_bytes: Some(64 << 20),
                cpu_millis: Some(1500),
                pids: Some(10),
                ..Resources::default()
            };
        });
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().clone();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(150_000));
        assert_eq!(resources.cpu().as_ref().unwrap().period(), Some(100_000));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), 10);
        let none = specification(|_| ());
        let resources = none.linux().as_ref().unwrap().resources().as_ref().unwrap().clone();
        assert!(resources.memory().is_none() && resources.cpu().is_none() && resources.pids().is_none());
    }

    #[test]
    fn an_exec_inherits_from_its_container() {
        let request = request();
        let main = Process::main(&image(), &request, "pod").unwrap();
        let specification = bare(&request, &main);
        let mut exec = ExecProcess { command: vec!["id".into()], ..ExecProcess::default() };
        exec.environment.insert("A".into(), "9".into());
        let process = Process::exec(&specification, &exec).unwrap();
        assert_eq!(process.arguments, ["id"]);
        assert_eq!(process.working_directory, "/srv");
        assert!(process.environment.contains(&"A=9".into()));
        assert!(process.environment.contains(&"HOME=/home/app".into()));
        let privileges = Privileges::of_exec(&specification);
        assert_eq!(privileges, Privileges::of_request(&request).unwrap());
        let json = process.to_json(&UserJson::of_container(&specification), &privileges);
        assert_eq!(json["user"]["uid"], 1000);
        exec.user = Some("root".into());
        let process = Process::exec(&specification, &exec).unwrap();
        assert!(!process.environment.iter().any(|variable| variable.starts_with("HOME=")));
    }
}
