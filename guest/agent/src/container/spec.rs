//! The OCI runtime specification of a container and of an exec, built from the verified image config and the
//! host's small request. Nothing of it is ever taken from a specification that the host wrote.

use std::collections::BTreeMap;
use std::path::Path;

use sealpod_agent_protocol::{CreateContainer, ExecProcess, Resources};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rootfs::{CGROUP, Folders};
use super::user::User;

/// Where programs are looked for if the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
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
        let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
        let (command, arguments) = (given(&request.command), given(&request.arguments));
        let arguments = match (command, arguments) {
            (Some(command), arguments) => [command, arguments.unwrap_or_default()].concat(),
            (None, Some(arguments)) => [image.entrypoint.clone(), arguments].concat(),
            (None, None) => [image.entrypoint.clone(), image.command.clone()].concat(),
        };
        let mut environment = merge_environment(&image.environment, &request.environment)?;
        add_default(&mut environment, "PATH", DEFAULT_PATH);
        add_default(&mut environment, "HOSTNAME", hostname);
        let process = Self {
            arguments,
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
            add_default(&mut self.environment, "TERM", "xterm");
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
    pub(super) fn to_json(&self, user: &UserJson) -> Value {
        let mut environment = self.environment.clone();
        add_default(&mut environment, "HOME", &user.home);
        json!({
            "terminal": self.terminal,
            "user": user.ids,
            "args": self.arguments,
            "env": environment,
            "cwd": self.working_directory,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            "noNewPrivileges": true,
        })
    }
}

/// A user in OCI form, and its home.
pub(super) struct UserJson {
    ids: Value,
    home: String,
}

impl From<&User> for UserJson {
    fn from(user: &User) -> Self {
        let ids = json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids});
        Self { ids, home: user.home.clone() }
    }
}

impl UserJson {
    /// The user that a container runs as.
    pub(super) fn of_container(specification: &Value) -> Self {
        Self { ids: specification["process"]["user"].clone(), home: "/".into() }
    }
}

/// The specification of a container.
pub(super) fn container(
    request: &CreateContainer,
    process: &Process,
    user: &User,
    folders: &Folders,
) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": folders.root, "readonly": request.read_only_root},
        "mounts": mounts(folders, request.read_only_root),
        "process": process.to_json(&user.into()),
        "linux": {
            // The network, IPC and host name are the pod's.
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "cgroupsPath": format!("{CGROUP}/{}", request.id),
            "resources": resources(&request.resources),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
        },
    })
}

fn mounts(folders: &Folders, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    let file = |name: &str| {
        json!({
            "destination": Path::new("/etc").join(name),
            "type": "bind",
            "source": folders.etc.join(name),
            "options": ["rbind", "nosuid", "nodev", "noexec", access],
        })
    };
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "bind", "source": super::SHARED_MEMORY,
         "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        file("resolv.conf"),
        file("hosts"),
        file("hostname"),
    ])
}

/// cgroup v2 limits. CPU time is counted in periods of 100 ms, as everywhere.
fn resources(resources: &Resources) -> Value {
    const PERIOD_US: u64 = 100_000;
    let mut json = json!({});
    if let Some(bytes) = resources.memory_bytes {
        // "swap" is the sum of both: a limit means the same with an ephemeral disk and without.
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        json["memory"] = json!({"limit": limit, "swap": limit});
    }
    if let Some(millis) = resources.cpu_millis {
        let quota = millis.saturating_mul(PERIOD_US / 1000).max(1000);
        json["cpu"] = json!({"quota": i64::try_from(quota).unwrap_or(i64::MAX), "period": PERIOD_US});
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

    fn specification(change: impl FnOnce(&mut CreateContainer)) -> Spec {
        let mut request = request();
        change(&mut request);
        let process = Process::main(&image(), &request, "pod").unwrap();
        let json = container(&request, &process, &user(), &Folders::of(&request.id));
        serde_json::from_value(json).unwrap()
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
        let json = process.to_json(&(&user()).into());
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
    fn limits_become_cgroup_settings() {
        let spec = specification(|r| {
            r.resources = Resources { memory_bytes: Some(64 << 20), cpu_millis: Some(1500), pids: Some(10) };
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
        let specification = container(&request, &main, &user(), &Folders::of("c1"));
        let mut exec = ExecProcess { command: vec!["id".into()], ..ExecProcess::default() };
        exec.environment.insert("A".into(), "9".into());
        let process = Process::exec(&specification, &exec).unwrap();
        assert_eq!(process.arguments, ["id"]);
        assert_eq!(process.working_directory, "/srv");
        assert!(process.environment.contains(&"A=9".into()));
        assert!(process.environment.contains(&"HOME=/home/app".into()));
        let json = process.to_json(&UserJson::of_container(&specification));
        assert_eq!(json["user"]["uid"], 1000);
        exec.user = Some("root".into());
        let process = Process::exec(&specification, &exec).unwrap();
        assert!(!process.environment.iter().any(|variable| variable.starts_with("HOME=")));
    }
}
