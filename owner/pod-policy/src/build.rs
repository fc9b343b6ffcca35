//! From a pod as its author wrote it to what it is allowed: exactly what kubelet and a container engine will ask for.

mod command;
mod disks;
mod environment;
mod security;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use sealpod_agent_protocol::HostEntry;
use sealpod_image::reference::Reference;

use crate::kubernetes::{Container, PodSpec};
use crate::manifest::{Manifest, ObjectKind, Pod};
use crate::policy::{Allowances, ContainerPolicy, Exec, ImagePolicy, PodPolicy};

/// What a pod's author allows beyond what the manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Commands that people may execute.
    pub exec: Vec<Vec<String>>,
    /// Whether they may execute any command.
    pub any_exec: bool,
    /// Whether the host reads what containers print.
    pub logs: bool,
    /// Whether the host reads why containers ended, in their own words.
    pub termination_messages: bool,
    /// Whether people may type into containers.
    pub attach: bool,
    /// Whether people may copy files into and out of containers.
    pub copy: bool,
    /// Ports of the pod's loopback to which people may connect.
    pub ports: BTreeSet<u16>,
    /// Whether they may connect to any.
    pub any_port: bool,
    /// Images of debug containers that they may add.
    pub debug: Vec<String>,
    /// Objects whose content the cluster may choose, by kind and name.
    pub any_content: BTreeSet<(ObjectKind, String)>,
}

/// Why a pod cannot have a policy.
#[derive(Debug, thiserror::Error)]
#[error("{pod}: {what}: {why}")]
pub struct Refusal {
    /// Kind and name of the pod.
    pub pod: String,
    /// The field, as `containers.web.env.A`.
    pub what: String,
    /// A sentence.
    pub why: String,
}

/// What a refusal is before it knows its pod.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    what: String,
    why: String,
}

type Result<T, E = Problem> = std::result::Result<T, E>;

fn problem(what: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem { what: what.into(), why: why.into() }
}

/// What everything of a pod is built with.
struct Context<'a> {
    pod: &'a Pod,
    manifest: &'a Manifest,
    options: &'a Options,
    service_links: bool,
}

/// What a pod of the manifest is allowed.
///
/// # Errors
/// [`Refusal`]: what the guest cannot have, or what only the cluster knows and nobody allowed.
pub fn build(manifest: &Manifest, pod: &Pod, options: &Options) -> std::result::Result<PodPolicy, Refusal> {
    let spec = &pod.template.spec;
    let service_links = spec.enable_service_links.unwrap_or(true);
    let context = Context { pod, manifest, options, service_links };
    context.policy(spec).map_err(|Problem { what, why }| Refusal { pod: pod.name().into(), what, why })
}

impl Context<'_> {
    fn policy(&self, spec: &PodSpec) -> Result<PodPolicy> {
        refuse_what_is_the_hosts(spec)?;
        security::refuse_other_groups(spec)?;
        let all = [(true, &spec.init_containers), (false, &spec.containers)];
        let mut containers = BTreeMap::new();
        let mut exec = BTreeSet::new();
        let mut volumes = BTreeMap::new();
        for (init, container) in
            all.into_iter().flat_map(|(init, all)| all.iter().map(move |one| (init, one)))
        {
            let name = &container.name;
            let inside = |problem: Problem| {
                let words =
                    ["containers", name, problem.what.as_str()].into_iter().filter(|word| !word.is_empty());
                Problem { what: words.collect::<Vec<_>>().join("."), ..problem }
            };
            let policy = self.container(spec, container, init, &mut volumes).map_err(inside)?;
            if containers.insert(name.clone(), policy).is_some() {
                return Err(problem(format!("containers.{name}"), "there are two containers of this name"));
            }
            exec.extend(command::of_probes_and_hooks(container));
        }
        exec.extend(
            self.options.exec.iter().map(|command| Exec { command: command.clone(), interactive: true }),
        );
        let sysctls = spec.security_context.sysctls.iter();
        Ok(PodPolicy {
            pod: self.pod.name().into(),
            allow: Allowances {
                logs: self.options.logs,
                termination_messages: self.options.termination_messages,
                attach: self.options.attach,
                copy: self.options.copy,
                any_exec: self.options.any_exec,
                any_port: self.options.any_port,
            },
            exec: exec.into_iter().collect(),
            ports: self.options.ports.clone(),
            debug: self.options.debug.iter().map(|text| image(text)).collect::<Result<_>>()?,
            share_processes: spec.share_process_namespace,
            containers,
            volumes: volumes.into_values().collect(),
            fs_group: spec.security_context.fs_group.filter(|group| *group != 0),
            service_links: self.service_links,
            host_aliases: spec.host_aliases.iter().map(host_entry).collect::<Result<_>>()?,
            sysctls: sysctls.map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone())).collect(),
        })
    }

    fn container(
        &self,
        spec: &PodSpec,
        container: &Container,
        init: bool,
        volumes: &mut volumes::Files,
    ) -> Result<ContainerPolicy> {
        let environment = self.environment(container)?;
        let mounts = self.mounts(spec, container, &environment, volumes)?;
        let security = security::of(spec, container)?;
        Ok(ContainerPolicy {
            init,
            image: match &container.image {
                Some(name) => image(name)?,
                None => return Err(problem("image", "there is none")),
            },
            command: environment.command(container),
            user: security.user,
            supplemental_groups: security.supplemental_groups,
            capabilities: security.capabilities,
            working_directory: container.working_dir.clone().filter(|folder| !folder.is_empty()),
            fixed: security.fixed,
            mounts,
            devices: disks::devices(spec, container)?,
            environment: environment.variables,
        })
    }
}

fn refuse_what_is_the_hosts(spec: &PodSpec) -> Result<()> {
    let of_vm = "a confidential pod runs in a VM, which shares nothing with the host's processes";
    for (present, what, why) in [
        (
            spec.host_network,
            "hostNetwork",
            "a confidential pod cannot share the network of a machine that it does not trust",
        ),
        (spec.host_pid, "hostPID", of_vm),
        (spec.host_ipc, "hostIPC", of_vm),
        (
            spec.host_users == Some(false),
            "hostUsers",
            "users of the guest are apart from the host's already; leave it out",
        ),
        (spec.containers.is_empty(), "containers", "there is none"),
    ] {
        if present {
            return Err(problem(what, why));
        }
    }
    Ok(())
}

fn image(text: &str) -> Result<ImagePolicy> {
    let reference = Reference::parse(text).map_err(|error| problem("image", error.to_string()))?;
    let digest = reference.digest().map(|digest| digest.to_string());
    // Engines name it in full; others as it was written.
    let names = digest.is_none().then(|| BTreeSet::from([reference.to_string(), text.to_owned()]));
    Ok(ImagePolicy { reference: text.into(), digest, names: names.map(|names| names.into_iter().collect()) })
}

fn host_entry(alias: &crate::kubernetes::HostAlias) -> Result<HostEntry> {
    let address = alias
        .ip
        .parse::<std::net::IpAddr>()
        .map_err(|_| problem("hostAliases", format!("{:?} is no IP address", alias.ip)))?;
    Ok(HostEntry { address: address.to_string(), names: alias.hostnames.clone() })
}
