//! What a pod is bound to and what it is allowed, in words; and how two of these differ.

mod words;

use std::collections::BTreeMap;

use sealpod_agent_policy::Policy;
use sealpod_agent_protocol::MountSource;
use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::init_data::{self, KeyBroker, Settings};
use serde::Serialize;

use crate::given::Given;
use crate::policy::{ContainerPolicy, DevicePolicy, Exec, FilesVolume, ImagePolicy, MountPolicy, PodPolicy};
use crate::rego;

/// Requests that a policy must allow for them to be allowed, and what they are for people.
const PERMISSIONS: [(&str, &str); 8] = [
    ("CreateContainer", "making a container"),
    ("ExecProcess", "executing a command in a container"),
    ("ReadStdout", "reading a container's output"),
    ("ReadStderr", "reading a container's errors"),
    ("ReadTerminationMessage", "reading a container's termination message"),
    ("WriteStdin", "typing into a container"),
    ("WriteVolume", "giving a volume its files"),
    ("ForwardPort", "connecting to a port of the pod's loopback"),
];

/// One thing that is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// What it is about, as `container web: image`.
    pub about: String,
    /// What is so.
    pub says: String,
}

/// One thing that is not so in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is about.
    pub about: String,
    /// What was said of it.
    pub old: Option<String>,
    /// What is said of it now.
    pub new: Option<String>,
}

/// All that is so, in an order made for reading.
pub fn explain(given: &Given) -> Vec<Statement> {
    let mut all = Statements::default();
    if let Some(raw) = &given.init_data {
        all.init_data(raw);
    }
    match given.policy.as_deref().map(|text| (text, rego::read_back(text))) {
        Some((_, Some(policy))) => all.policy(&policy),
        Some((text, None)) => all.foreign_policy(text),
        None if given.init_data.is_some() => {
            all.add("policy", "none: images run as they are, and nobody looks into a container");
        }
        None => all.add("init data", "none: without it the pod gets no image and no secret"),
    }
    all.0
}

/// What is not so in both, in the order of the new one; what is gone comes last.
pub fn differences(old: &[Statement], new: &[Statement]) -> Vec<Difference> {
    let by_subject = |all: &[Statement]| -> BTreeMap<String, String> {
        all.iter().map(|one| (one.about.clone(), one.says.clone())).collect()
    };
    let (before, after) = (by_subject(old), by_subject(new));
    let changed = new.iter().filter_map(|one| {
        let old = before.get(&one.about);
        (old != Some(&one.says)).then(|| Difference {
            about: one.about.clone(),
            old: old.cloned(),
            new: Some(one.says.clone()),
        })
    });
    let gone = old.iter().filter(|one| !after.contains_key(&one.about)).map(|one| Difference {
        about: one.about.clone(),
        old: Some(one.says.clone()),
        new: None,
    });
    changed.chain(gone).collect()
}

#[derive(Default)]
struct Statements(Vec<Statement>);

impl Statements {
    fn add(&mut self, about: impl Into<String>, says: impl Into<String>) {
        self.0.push(Statement { about: about.into(), says: says.into() });
    }

    fn add_if(&mut self, is_so: bool, about: impl Into<String>, says: impl Into<String>) {
        if is_so {
            self.add(about, says);
        }
    }

    fn init_data(&mut self, raw: &str) {
        if let Ok(digest) = init_data::digest(raw) {
            self.add("init data", format!("digest {}", hex(&digest)));
        }
        let settings = match Settings::parse(raw) {
            Ok(settings) => settings,
            // It may be for other guests.
            Err(error) => return self.add("init data", format!("refused by this release's guests: {error}")),
        };
        if let Some(KeyBroker { url, cert }) = &settings.key_broker {
            self.add("key broker", url);
            let certificate = cert.as_ref().map(|pem| format!("pinned, SHA-256 of the PEM {}", digest(pem)));
            self.add(
                "key broker's certificate",
                certificate.unwrap_or_else(|| "any that is publicly trusted".into()),
            );
        }
        let image = &settings.image;
        let policy = image.image_security_policy_uri.as_ref().map(|uri| format!("from {uri}"));
        let inline = image.image_security_policy.as_ref();
        let inline = inline.map(|json| format!("in the init data, SHA-256 {}", digest(json)));
        self.add("image policy", policy.or(inline).unwrap_or_else(|| "none: no image may run".into()));
        if let Some(uri) = &image.authenticated_registry_credentials_uri {
            self.add("registries' credentials", format!("from {uri}"));
        }
        let registries = &image.plain_http_registries;
        self.add_if(!registries.is_empty(), "registries by plain HTTP", registries.join(", "));
        let more: Vec<_> = image.extra_root_certificates.iter().map(|pem| digest(pem)).collect();
        let says = format!("also those with SHA-256 {}", more.join(", "));
        self.add_if(!more.is_empty(), "registries' authorities", says);
    }

    fn foreign_policy(&mut self, text: &str) {
        self.add(
            "policy",
            format!("written by hand, or changed since it was generated; SHA-256 {}", digest(text)),
        );
        if let Err(error) = Policy::new(Some(text)) {
            return self.add("policy", format!("refused by this release's guests: {error}"));
        }
        for (name, what) in PERMISSIONS {
            let is_rule = |line: &str| {
                let line = line.strip_prefix("default ").unwrap_or(line);
                let behind = line.strip_prefix(name).map(|rest| rest.strip_prefix("Request").unwrap_or(rest));
                behind.is_some_and(|rest| rest.starts_with([' ', ':', '{', '=']))
            };
            let says = match text.lines().any(is_rule) {
                true => format!("the rule {name} decides"),
                false => format!("denied: there is no rule {name}"),
            };
            self.add(what, says);
        }
    }

    fn policy(&mut self, policy: &PodPolicy) {
        let PodPolicy {
            pod,
            allow,
            exec,
            ports,
            debug,
            share_processes,
            containers,
            volumes,
            fs_group,
            service_links,
            host_aliases,
            sysctls,
        } = policy;
        self.add("pod", pod);
        let allowed = |allowed: bool| if allowed { "allowed" } else { "denied" };
        self.add("logs", allowed(allow.logs));
        self.add("termination messages", allowed(allow.termination_messages));
        self.add("attach", allowed(allow.attach));
        self.add("cp", allowed(allow.copy));
        let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        match (allow.any_port, list.as_str()) {
            (true, _) => self.add("port-forward", "any port"),
            (false, "") => self.add("port-forward", "denied"),
            (false, list) => self.add("port-forward", format!("allowed to {list}")),
        }
        if debug.is_empty() {
            self.add("debug containers", "denied");
        }
        for image in debug {
            self.add("debug containers", format!("allowed, with any command: {}", image.reference));
        }
        if *share_processes {
            self.add("processes", "every container sees and may signal those of all containers");
        }
        match (allow.any_exec, exec.is_empty()) {
            (true, _) => self.add("exec", "any command"),
            (false, true) => self.add("exec", "denied"),
            (false, false) => {}
        }
        for Exec { command, interactive } in exec {
            let who = if *interactive { "by people" } else { "by probes and hooks: no terminal, no input" };
            self.add(format!("exec: {}", words::command(command)), format!("allowed, {who}"));
        }
        let services =
            if *service_links { "of any service of its namespace" } else { "of the service kubernetes" };
        self.add("variables of services", format!("allowed {services}"));
        for (name, container) in containers {
            self.container(name, container);
        }
        for volume in volumes {
            self.volume(volume);
        }
        if let Some(group) = fs_group {
            self.add("volumes' group", group.to_string());
        }
        for alias in host_aliases {
            self.add(format!("/etc/hosts: {}", alias.names.join(" ")), format!("at {}", alias.address));
        }
        for (name, value) in sysctls {
            self.add(format!("sysctl {name}"), value);
        }
    }

    fn container(&mut self, name: &str, container: &ContainerPolicy) {
        let ContainerPolicy {
            init,
            image,
            command,
            environment,
            user,
            supplemental_groups,
            capabilities,
            working_directory,
            fixed,
            mounts,
            devices,
        } = container;
        let kind = if *init { "init container" } else { "container" };
        let about = |what: &str| format!("{kind} {name}: {what}");
        self.add(about("image"), image_words(image));
        self.add(about("command"), words::of_command(command));
        self.add(about("user"), words::user(user));
        self.add_if(!supplemental_groups.is_empty(), about("more groups"), words::list(supplemental_groups));
        if let Some(folder) = working_directory {
            self.add(about("working directory"), folder);
        }
        self.add_if(fixed.privileged, about("privileged"), "yes, within the guest");
        if let Some(sets) = words::capabilities(capabilities) {
            self.add(about("capabilities"), sets);
        }
        self.add_if(!fixed.allow_privilege_escalation, about("gaining privileges"), "denied");
        self.add_if(fixed.read_only_root, about("root file system"), "read-only");
        self.add_if(fixed.unmasked_paths, about("/proc and /sys"), "all of them");
        self.add_if(fixed.terminal, about("terminal"), "yes");
        self.add_if(fixed.stdin, about("standard input"), "yes");
        for (variable, value) in environment {
            self.add(about(&format!("variable {variable}")), words::variable(value));
        }
        for (destination, mount) in mounts {
            self.add(about(&format!("mount {destination}")), mount_words(mount));
        }
        for (path, DevicePolicy { read_only }) in devices {
            let access = if *read_only { ", read-only" } else { "" };
            self.add(about(&format!("device {path}")), format!("a disk of the cluster's{access}"));
        }
    }

    fn volume(&mut self, volume: &FilesVolume) {
        let FilesVolume { name, begins, files } = volume;
        let about = format!("volume {name}{}", if *begins { "…" } else { "" });
        match files {
            None => self.add(about, "any files of any content"),
            Some(files) if files.is_empty() => self.add(about, "no files"),
            Some(files) => {
                for (path, digest) in files {
                    let says = digest.as_ref().map(|digest| format!("the content with SHA-256 {digest}"));
                    self.add(format!("{about}: {path}"), says.unwrap_or_else(|| "any content".into()));
                }
            }
        }
    }
}

fn image_words(image: &ImagePolicy) -> String {
    match (&image.digest, &image.names) {
        (Some(digest), _) if image.reference.ends_with(digest) => image.reference.clone(),
        (Some(digest), _) => format!("{}, which is {digest}", image.reference),
        (None, _) => format!("{}, any that its signer signed (the image policy decides)", image.reference),
    }
}

fn mount_words(mount: &MountPolicy) -> String {
    let MountPolicy { read_only, optional, sources, sub_path, volume_begins, in_memory } = mount;
    let source = |source: &MountSource| match source {
        MountSource::Files { volume, file: None } => format!("the files of {volume}"),
        MountSource::Files { volume, file: Some(_) } => format!("one file, {volume}"),
        MountSource::Empty { volume, size_bytes, .. } => {
            let place = if *in_memory { " in memory" } else { "" };
            let limit = size_bytes.map(|bytes| format!(", {bytes} bytes at most")).unwrap_or_default();
            format!("an empty folder{place}, {volume}{limit}")
        }
        MountSource::EmptyFile { volume } => format!("an empty file, {volume}"),
        MountSource::Disk { .. } => "a disk of the cluster's".into(),
    };
    let mut sources: Vec<_> = sources.iter().map(source).collect();
    sources.extend(volume_begins.iter().map(|begins| format!("the files of {begins}…")));
    let access = if *read_only { ", read-only" } else { "" };
    let presence = if *optional { ", or nothing" } else { "" };
    let part = sub_path.iter().map(|path| format!("the part {} of ", words::word(path))).collect::<String>();
    format!("{part}{}{access}{presence}", sources.join(" or "))
}

fn digest(text: &str) -> String {
    hex(&HashAlgorithm::Sha256.digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
