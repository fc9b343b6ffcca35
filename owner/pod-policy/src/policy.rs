//! What a pod is allowed: the data that the policy's rules decide by.

use std::collections::{BTreeMap, BTreeSet};

use sealpod_agent_protocol::{HostEntry, MountSource, VolumeLimits};
use serde::{Deserialize, Serialize};

/// What a pod is allowed. It stands in the policy as JSON, beside rules that are the same for every pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPolicy {
    /// Kind and name, as `Deployment/web`: for people.
    pub pod: String,
    /// What is allowed or not as a whole.
    pub allow: Allowances,
    /// Commands that may be executed in its containers.
    pub exec: Vec<Exec>,
    /// Ports of the pod's loopback to which the host may connect.
    pub ports: BTreeSet<u16>,
    /// Images of debug containers that people may add, to run in them what they like.
    pub debug: Vec<ImagePolicy>,
    /// Whether all containers share one process namespace.
    pub share_processes: bool,
    /// By name.
    pub containers: BTreeMap<String, ContainerPolicy>,
    /// Volumes whose files the host gives.
    pub volumes: Vec<FilesVolume>,
    /// The group of the pod's volumes.
    pub fs_group: Option<u32>,
    /// Whether variables of all services may be set, or only those of the service `kubernetes`.
    pub service_links: bool,
    /// Lines that `/etc/hosts` has, and whose names no other line may have.
    pub host_aliases: Vec<HostEntry>,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
}

impl PodPolicy {
    /// What the host must ask for and cannot know from kubelet: the limits of volumes that are not in memory.
    pub fn volume_limits(&self) -> VolumeLimits {
        let mounts = self.containers.values().flat_map(|container| container.mounts.values());
        let on_disk = mounts.filter(|mount| !mount.in_memory).flat_map(|mount| &mount.sources);
        let limit = |source: &MountSource| match source {
            MountSource::Empty { volume, size_bytes, .. } => Some((volume.clone(), (*size_bytes)?)),
            _ => None,
        };
        on_disk.filter_map(limit).collect()
    }
}

/// What is allowed or not, whatever a request says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowances {
    /// Whether the host reads what containers print.
    pub logs: bool,
    /// Whether the host reads why containers ended, in their own words.
    pub termination_messages: bool,
    /// Whether the host writes to containers' standard input.
    pub attach: bool,
    /// Whether files may be copied into and out of containers, as `kubectl cp` does it.
    pub copy: bool,
    /// Whether any command may be executed in containers.
    pub any_exec: bool,
    /// Whether the host may connect to any port of the pod's loopback.
    pub any_port: bool,
}

/// A command that may be executed, word by word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Whether it may have a terminal and standard input, as people want it and probes do not.
    pub interactive: bool,
}

/// What a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPolicy {
    /// Whether it runs before, or beside, those that the pod is for.
    pub init: bool,
    /// What it runs from.
    pub image: ImagePolicy,
    /// What it runs.
    pub command: Command,
    /// Its variables, beside those that its image has.
    pub environment: BTreeMap<String, Variable>,
    /// Who runs it.
    pub user: User,
    /// More groups.
    pub supplemental_groups: BTreeSet<u32>,
    /// What root may do, any of these sets; nothing stands for the usual.
    pub capabilities: Vec<Option<BTreeSet<String>>>,
    /// The working directory; nothing stands for the image's.
    pub working_directory: Option<String>,
    /// What is so and not otherwise.
    pub fixed: Fixed,
    /// By destination.
    pub mounts: BTreeMap<String, MountPolicy>,
    /// By path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, DevicePolicy>,
}

/// Who runs a container; nothing stands for what the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user's number.
    pub number: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
}

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePolicy {
    /// As the manifest names it.
    pub reference: String,
    /// The digest that it must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where the image policy's signature alone decides: the names under which it may be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// What its image says.
    Image,
    /// The image's entrypoint with these arguments.
    Arguments(Vec<Word>),
    /// Exactly this.
    Exactly(Vec<Word>),
}

/// A word of a command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word {
    /// Known.
    Text(String),
    /// With values that are known on the node only.
    MadeOf {
        /// One after the other.
        made_of: Vec<Part>,
    },
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Part {
    /// Known.
    Text(String),
    /// The value that the variable has in the request; without one the reference itself, as `$(NAME)`.
    Variable {
        /// Its name.
        variable: String,
    },
}

/// A variable of the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// What its value is.
    #[serde(flatten)]
    pub value: Expected,
    /// Whether it may be absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// What a value must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// This text.
    Exactly(String),
    /// A text with other variables' values in it.
    MadeOf(Vec<Part>),
    /// Of a kind.
    Like(Pattern),
    /// A name that begins so.
    Begins(String),
}

/// Kinds of values that only the node or the cluster knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// IP addresses.
    Address,
    /// Digits.
    Number,
    /// What Kubernetes' objects are called.
    Name,
    /// Anything at all: a Secret's, which the policy must not tell.
    Anything,
}

/// What can be one thing only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    /// Whether programs may gain privileges.
    pub allow_privilege_escalation: bool,
    /// Whether it may do everything within the guest.
    pub privileged: bool,
    /// Whether the root file system is read-only.
    pub read_only_root: bool,
    /// Whether it has standard input.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether it sees all of `/proc` and `/sys`.
    pub unmasked_paths: bool,
}

/// A disk of the host's as a block device of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePolicy {
    /// Whether it is read-only.
    pub read_only: bool,
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPolicy {
    /// Whether it is read-only.
    pub read_only: bool,
    /// Whether it may be absent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// What it may be, any of these. An empty folder's `size_bytes` is the most that it may say, and then it must say
    /// something; a disk is any disk with any file system, since all that is on it is the host's word.
    pub sources: Vec<MountSource>,
    /// Which part of an empty folder or a disk it is, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<Word>,
    /// The first letters of the volume's name, whose rest the cluster makes up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_begins: Option<String>,
    /// Whether an empty folder is in memory on the host, and so may have a size where the manifest says none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_memory: bool,
}

/// A volume whose files the host gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesVolume {
    /// Its name, or the first letters of it.
    pub name: String,
    /// Whether the cluster makes up the rest of the name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub begins: bool,
    /// Its files by path, each with its content's SHA-256 in hexadecimal where that is fixed; nothing stands for any
    /// files.
    pub files: Option<BTreeMap<String, Option<String>>>,
}
