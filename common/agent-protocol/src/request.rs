//! The requests and their answers: everything that crosses from host to guest.
//!
//! The same JSON form is what the agent's policy sees as its `input`, so a field's name here is a
//! name that policies rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// What the host asks of the guest. The agent's policy decides each one by the name of its variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", content = "input", deny_unknown_fields)]
pub enum Request {
    /// Who answers, and how it is doing. Allowed at any time.
    Info,
    /// Gives the pod its names, network and init data. Once, before everything else.
    StartPod(StartPod),
    /// Attests to the key broker now rather than at the first need of a secret.
    Attest,
    /// Pulls, verifies, decrypts and unpacks an image.
    PullImage(PullImage),
    /// Prepares a container from an image pulled before.
    CreateContainer(Box<CreateContainer>),
    /// Runs the main process of a container.
    StartContainer(ContainerRef),
    /// Prepares and runs one more process in a running container.
    ExecProcess(Box<ExecProcess>),
    /// Ends what is left of such a process and forgets it.
    RemoveExec(ProcessRef),
    /// Sends a signal to a process.
    SignalProcess(SignalProcess),
    /// Sets the size of a process's terminal.
    ResizeTerminal(ResizeTerminal),
    /// Waits until a process ends.
    WaitProcess(ProcessRef),
    /// Turns this call's stream into the standard input of a process.
    WriteStdin(ProcessRef),
    /// Turns this call's stream into the standard output (or the terminal) of a process.
    ReadStdout(ProcessRef),
    /// Turns this call's stream into the standard error of a process.
    ReadStderr(ProcessRef),
    /// Turns this call's stream into a TCP connection to a port of the pod's loopback.
    ForwardPort(ForwardPort),
    /// Lists the containers and their states.
    ListContainers,
    /// Stops all processes of a container where they are.
    PauseContainer(ContainerRef),
    /// Lets them go on.
    ResumeContainer(ContainerRef),
    /// Changes a container's limits.
    UpdateContainer(UpdateContainer),
    /// What a container, or the pod, has used and uses.
    ReadStatistics(StatisticsOf),
    /// What a container that has ended wrote into its empty file, for those who ask why it ended.
    ReadTerminationMessage(ContainerRef),
    /// Gives a volume of files its content, or replaces it as a whole.
    WriteVolume(Box<WriteVolume>),
    /// Ends what is left of a container and forgets it.
    RemoveContainer(ContainerRef),
    /// Ends all containers and powers the guest off.
    StopPod,
}

impl Request {
    /// The variant's name: what policies, logs and denials call this request.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::StartPod(_) => "StartPod",
            Self::Attest => "Attest",
            Self::PullImage(_) => "PullImage",
            Self::CreateContainer(_) => "CreateContainer",
            Self::StartContainer(_) => "StartContainer",
            Self::ExecProcess(_) => "ExecProcess",
            Self::RemoveExec(_) => "RemoveExec",
            Self::SignalProcess(_) => "SignalProcess",
            Self::ResizeTerminal(_) => "ResizeTerminal",
            Self::WaitProcess(_) => "WaitProcess",
            Self::WriteStdin(_) => "WriteStdin",
            Self::ReadStdout(_) => "ReadStdout",
            Self::ReadStderr(_) => "ReadStderr",
            Self::ForwardPort(_) => "ForwardPort",
            Self::ListContainers => "ListContainers",
            Self::PauseContainer(_) => "PauseContainer",
            Self::ResumeContainer(_) => "ResumeContainer",
            Self::UpdateContainer(_) => "UpdateContainer",
            Self::ReadStatistics(_) => "ReadStatistics",
            Self::ReadTerminationMessage(_) => "ReadTerminationMessage",
            Self::WriteVolume(_) => "WriteVolume",
            Self::RemoveContainer(_) => "RemoveContainer",
            Self::StopPod => "StopPod",
        }
    }

    /// Whether this call's stream stays open for as long as a process runs, or longer.
    pub(crate) fn lasts(&self) -> bool {
        self.opens_stream() || matches!(self, Self::WaitProcess(_))
    }

    /// Whether this ends a process, or what is left of one.
    pub(crate) fn ends(&self) -> bool {
        matches!(self, Self::SignalProcess(_) | Self::RemoveContainer(_) | Self::RemoveExec(_))
    }

    /// Whether this call's stream carries raw bytes after the answer.
    pub fn opens_stream(&self) -> bool {
        matches!(self, Self::WriteStdin(_) | Self::ReadStdout(_) | Self::ReadStderr(_) | Self::ForwardPort(_))
    }
}

/// The pod as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartPod {
    /// The pod's host name (RFC 1123 label or name).
    pub hostname: String,
    /// The raw init data (TOML), whose digest the agent extends into PCR 8 before anything of it takes effect.
    pub init_data: Option<String>,
    /// Addresses and routes of the guest's interfaces.
    pub interfaces: Vec<Interface>,
    /// What `/etc/resolv.conf` says.
    pub dns: Dns,
    /// More lines of `/etc/hosts`.
    pub hosts: Vec<HostEntry>,
    /// Kernel parameters of the pod's namespaces, as `net.ipv4.ip_unprivileged_port_start`.
    pub sysctls: BTreeMap<String, String>,
}

/// One network interface of the guest, found by its MAC address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// As `52:54:00:12:34:56`.
    pub mac: String,
    /// The name it gets in the guest, such as `eth0`.
    pub name: String,
    /// Addresses with prefix length, IPv4 or IPv6, as `10.0.2.15/24`.
    pub addresses: Vec<String>,
    /// Maximum transmission unit, in bytes.
    pub mtu: Option<u32>,
    /// Routes through this interface.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Destination as `0.0.0.0/0`.
    pub destination: String,
    /// The next hop, absent for a link route.
    pub gateway: Option<String>,
}

/// The resolver's configuration, as resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Name servers' addresses.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options such as `ndots:5`.
    pub options: Vec<String>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// The address.
    pub address: String,
    /// Its names.
    pub names: Vec<String>,
}

/// Which image to pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// The reference as the user gave it; the image policy is evaluated on it.
    pub image: String,
}

/// A container, in the few words from which the guest builds the OCI runtime specification itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateContainer {
    /// Chosen by the host: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, 128 bytes at most.
    pub id: String,
    /// Its name in the pod, where it has one.
    pub name: Option<String>,
    /// A reference that [`Request::PullImage`] pulled in this pod.
    pub image: String,
    /// Replaces the image's entrypoint.
    pub command: Option<Vec<String>>,
    /// Replaces the image's command (the arguments of the entrypoint).
    pub arguments: Option<Vec<String>>,
    /// Added to the image's environment, replacing variables of the same name.
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's user: `user[:group]`, names or numbers, looked up in the image.
    pub user: Option<String>,
    /// More groups of the user's, by number.
    pub supplemental_groups: BTreeSet<u32>,
    /// Replaces the image's working directory.
    pub working_directory: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whether the host will write to standard input; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Whether the root file system is read-only.
    pub read_only_root: bool,
    /// Replaces the set of capabilities that root has, as `CAP_NET_RAW`.
    pub capabilities: Option<BTreeSet<String>>,
    /// Whether programs may gain privileges that their parents do not have (set-user-id).
    pub allow_privilege_escalation: bool,
    /// Whether paths of `/proc` and `/sys` that are hidden or read-only elsewhere are not (`procMount: Unmasked`).
    pub unmasked_paths: bool,
    /// Whether it may do within the guest what it likes: all capabilities, all system calls, all paths.
    pub privileged: bool,
    /// Whose processes it sees and may signal beside its own; absent for nobody's.
    pub process_namespace: Option<SharedProcesses>,
    /// Volumes and where it sees them.
    pub mounts: Vec<Mount>,
    /// Disks of the machine's that it sees as block devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Lines of its own `/etc/hosts`, instead of the pod's.
    pub hosts: Vec<HostEntry>,
    /// Limits.
    pub resources: Resources,
}

/// Whose process namespace a container shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SharedProcesses {
    /// The pod's, which all containers that ask for it share (`shareProcessNamespace`).
    Pod,
    /// Another container's (an ephemeral container's target).
    Container {
        /// Its id.
        container: String,
    },
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where the container sees it: an absolute path without `..`.
    pub destination: String,
    /// Whether it is read-only for the container.
    pub read_only: bool,
    /// What is seen there.
    pub source: MountSource,
}

/// Names below `/dev` that every container has.
#[rustfmt::skip]
const EVERYBODYS_DEVICES: [&str; 16] = [
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
    "stdout", "tty", "urandom", "zero",
];

/// A disk of the machine's as a block device of a container. What is on it is the host's word, like all disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Where the container sees it: a path below `/dev` without `..`.
    pub path: String,
    /// The disk's serial number, as [`MountSource::Disk`] has it.
    pub disk: String,
    /// Whether the machine takes no writes to it.
    pub read_only: bool,
    /// The user who owns the device.
    pub user: u32,
    /// The group that owns it.
    pub group: u32,
}

impl Device {
    /// Whether a container can have a device at this path: one below `/dev`, where nothing is without it.
    pub fn can_be_at(path: &str) -> bool {
        let Some(inside) = path.strip_prefix("/dev/") else { return false };
        let plain = |name: &str| !matches!(name, "" | "." | "..");
        let first = inside.split('/').next().unwrap_or_default();
        inside.split('/').all(plain) && !inside.contains('\0') && !EVERYBODYS_DEVICES.contains(&first)
    }
}

/// What a mount shows. Containers of the pod that name the same volume share it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSource {
    /// Files that [`Request::WriteVolume`] gave (a ConfigMap, a Secret, projected tokens).
    Files {
        /// The volume's name in the pod.
        volume: String,
        /// One file of the volume instead of all.
        file: Option<String>,
    },
    /// An empty folder that lives as long as the pod, in the guest's memory or on its encrypted disk.
    Empty {
        /// The volume's name in the pod.
        volume: String,
        /// The most that it may hold, in bytes: 1 to [`VolumeLimits::MOST`](crate::VolumeLimits::MOST).
        size_bytes: Option<u64>,
        /// The group that owns it, if not root's.
        group: Option<u32>,
        /// A folder inside instead of all, which is made where it is missing: a relative path of plain names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub_path: Option<String>,
    },
    /// An empty file of the container's own that everybody may write to (its termination log).
    EmptyFile {
        /// Its name in the pod, by which a policy knows it.
        volume: String,
    },
    /// A file system on a disk of the machine's.
    Disk {
        /// The disk's serial number: 1 to 20 of `[a-z0-9-]`.
        disk: String,
        /// The file system's type, as `ext4`.
        file_system: String,
        /// The group that its root folder is given to.
        group: Option<u32>,
        /// A folder inside instead of all, which is made where it is missing: a relative path of plain names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sub_path: Option<String>,
    },
}

impl MountSource {
    /// The folder of the volume that is shown instead of all.
    pub fn sub_path(&self) -> Option<&str> {
        match self {
            Self::Empty { sub_path, .. } | Self::Disk { sub_path, .. } => sub_path.as_deref(),
            Self::Files { .. } | Self::EmptyFile { .. } => None,
        }
    }
}

/// The content of a volume of files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteVolume {
    /// The volume's name in the pod.
    pub volume: String,
    /// The group that owns the files, if not root's.
    pub group: Option<u32>,
    /// All its files.
    pub files: Vec<VolumeFile>,
}

/// One file of a volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Relative to the volume, of names only: no `.`, no `..`.
    pub path: String,
    /// Permissions, as `0o644`.
    pub mode: u32,
    /// The user who owns it, if not root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Its bytes, in standard base64 (RFC 4648, section 4).
    pub content: String,
}

// Contents are the workload's: they do not print.
impl fmt::Debug for WriteVolume {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, group, files } = self;
        formatter
            .debug_struct("WriteVolume")
            .field("volume", volume)
            .field("group", group)
            .field("files", files)
            .finish()
    }
}

impl fmt::Debug for VolumeFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode, user, content: _ } = self;
        formatter
            .debug_struct("VolumeFile")
            .field("path", path)
            .field("mode", mode)
            .field("user", user)
            .finish_non_exhaustive()
    }
}

/// New limits for a container; what is absent stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateContainer {
    /// The container's id.
    pub container: String,
    /// The limits.
    pub resources: Resources,
}

/// Whose statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsOf {
    /// The container's id; absent for the pod as a whole.
    pub container: Option<String>,
}

/// A container's limits (cgroup v2), and what becomes of it where there is too little.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// `memory.max`, in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time per wall time, in thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// `cpu.weight`, 1 to 10000: the share of contended CPU time.
    pub cpu_weight: Option<u64>,
    /// `cpuset.cpus`: the processors it may use, as `0-2,4`.
    pub cpus: Option<String>,
    /// `pids.max`.
    pub pids: Option<u64>,
    /// `memory.oom.group`: whether all processes are killed where one would be for want of memory.
    #[serde(default)]
    pub kill_together: Option<bool>,
    /// -1000 to 1000: whose process is killed first where the guest has no memory left (proc(5), `oom_score_adj`). That of
    /// a container which runs does not change.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

/// Names a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRef {
    /// The container's id.
    pub container: String,
}

/// Names a process: a container's own, or one that [`Request::ExecProcess`] started in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// The container's id.
    pub container: String,
    /// The exec's id, absent for the container's own process.
    pub exec: Option<String>,
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardPort {
    /// A TCP port of `127.0.0.1`, or where nobody listens there, of `::1`; never one of the guest's own.
    pub port: u16,
}

/// One more process in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecProcess {
    /// The container's id.
    pub container: String,
    /// Chosen by the host, as a container's id.
    pub exec: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub environment: BTreeMap<String, String>,
    /// Another user than the container's.
    pub user: Option<String>,
    /// Another working directory than the container's.
    pub working_directory: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whether the host will write to standard input.
    pub stdin: bool,
}

/// A signal for a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalProcess {
    /// Which.
    pub process: ProcessRef,
    /// The signal's number, 1 to 64.
    pub signal: u8,
    /// Whether every process of the container gets it.
    pub all: bool,
}

/// A terminal's new size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeTerminal {
    /// Which.
    pub process: ProcessRef,
    /// Character cells.
    pub rows: u16,
    /// Character cells.
    pub columns: u16,
}

/// The guest's answer to a request that it carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "output", deny_unknown_fields)]
pub enum Reply {
    /// Done; nothing more to say. For the stream requests: raw bytes follow.
    Done,
    /// To [`Request::Info`].
    Info(Info),
    /// To [`Request::PullImage`].
    Image(PulledImage),
    /// To [`Request::WaitProcess`].
    Exit(ExitStatus),
    /// To [`Request::ListContainers`].
    Containers(Vec<ContainerState>),
    /// To [`Request::ReadStatistics`].
    Statistics(Statistics),
    /// To [`Request::ReadTerminationMessage`].
    TerminationMessage(TerminationMessage),
}

/// Why a container ended, in its own words.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminationMessage {
    /// Its end, at most [`Self::LONGEST`] bytes, in standard base64 (RFC 4648, section 4).
    pub content: String,
}

impl TerminationMessage {
    /// What Kubernetes takes of a container's message, in bytes.
    pub const LONGEST: usize = 4096;
}

// Contents are the workload's: they do not print.
impl fmt::Debug for TerminationMessage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TerminationMessage").finish_non_exhaustive()
    }
}

/// What a control group has used and uses (cgroup v2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// CPU time, in microseconds (`cpu.stat`).
    pub cpu_usage_us: u64,
    /// Of it, in user mode.
    pub cpu_user_us: u64,
    /// Of it, in the kernel.
    pub cpu_system_us: u64,
    /// Periods in which it was held back.
    pub cpu_throttled_periods: u64,
    /// How long it was held back, in microseconds.
    pub cpu_throttled_us: u64,
    /// Memory in use, in bytes (`memory.current`).
    pub memory_bytes: u64,
    /// The most that it may use, if limited.
    pub memory_limit_bytes: Option<u64>,
    /// Of the memory in use, what belongs to no file (`anon`).
    pub memory_anonymous_bytes: u64,
    /// Of the memory in use, file pages (`file`).
    pub memory_file_bytes: u64,
    /// Of the file pages, those that could be given back at once (`inactive_file`).
    pub memory_inactive_file_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to wait.
    pub major_page_faults: u64,
    /// Swap space in use, in bytes.
    pub swap_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// The most of them, if limited.
    pub pids_limit: Option<u64>,
    /// How often the kernel killed for want of memory.
    pub out_of_memory_kills: u64,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// The agent's version.
    pub version: String,
    /// Milliseconds from the kernel's start to the agent's readiness.
    pub ready_after_ms: u64,
    /// The agent's resident memory, in bytes.
    pub resident_bytes: u64,
    /// The TEE that evidence comes from, such as `tpm`.
    pub tee: String,
}

/// An image that is ready for containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PulledImage {
    /// The manifest's digest.
    pub digest: String,
    /// Compressed bytes that were read from the registry.
    pub bytes: u64,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitStatus {
    /// The exit code, or 128 + the signal's number.
    pub code: u8,
    /// When, in milliseconds since the Unix epoch.
    pub exited_at_ms: u64,
    /// Whether the kernel killed it for want of memory.
    pub out_of_memory: bool,
}

/// A container's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its image's reference.
    pub image: String,
    /// Where in its life it is.
    pub phase: Phase,
}

/// Where in its life a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Prepared, its process waits.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are stopped where they are.
    Paused,
    /// Its process ended.
    Stopped,
}
