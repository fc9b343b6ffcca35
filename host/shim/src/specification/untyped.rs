//! What of a specification has no typed form: refused by name, so that no pod runs with less than it asked for.
//!
//! A name that is listed here either becomes a part of the typed request, or is refused elsewhere with a reason of its own,
//! or says nothing to a guest: what the host's kernel would need, and what the guest decides itself. Every other name that
//! says something is refused, also one that only newer engines know.

use serde_json::Value;

use super::resources::KILL_TOGETHER;
use super::{Error, PRIVILEGED_ONLY, refused};

/// The names in each object, by the object's path. Below others, anything goes.
const KNOWN: [(&str, &[&str]); 10] = [
    ("", &["ociVersion", "process", "root", "hostname", "mounts", "hooks", "annotations", "linux"]),
    (
        "process",
        &[
            "terminal",
            "consoleSize",
            "user",
            "args",
            "env",
            "cwd",
            "capabilities",
            "noNewPrivileges",
            "oomScoreAdj",
            // Of the node's kernel, which does not run the container.
            "rlimits",
            "apparmorProfile",
            "selinuxLabel",
        ],
    ),
    ("mounts", &["destination", "type", "source", "options"]),
    ("process.user", &["uid", "gid", "additionalGids", "username"]),
    // What a process may ever have is the bounding set; root has all of it.
    ("process.capabilities", &["bounding", "effective", "permitted", "inheritable", "ambient"]),
    (
        "linux",
        &[
            "namespaces",
            "resources",
            "cgroupsPath",
            "sysctl",
            "devices",
            "maskedPaths",
            "readonlyPaths",
            "uidMappings",
            "gidMappings",
            "intelRdt",
            "personality",
            "timeOffsets",
            // The guest filters system calls itself, as engines do.
            "seccomp",
            // Of the host's mounts, and files.
            "rootfsPropagation",
            "mountLabel",
        ],
    ),
    ("linux.resources", &["devices", "memory", "cpu", "pids", "hugepageLimits", "unified"]),
    ("linux.resources.memory", &["limit", "swap", "useHierarchy", "checkBeforeUpdate"]),
    // Which of its memory nodes is the host's concern.
    ("linux.resources.cpu", &["shares", "quota", "period", "cpus", "mems"]),
    // Swap is the guest's own: a limit of memory is one of both together.
    ("linux.resources.unified", &[KILL_TOGETHER, "memory.swap.max"]),
];
/// The profiles that engines load for every container, where the host has AppArmor, and what CRI-O says for none.
const ENGINES_PROFILES: [&str; 3] = ["cri-containerd.apparmor.d", "crio-default", "unconfined"];
/// As many system calls engines allow in any case (containerd and CRI-O: more than 300). A profile with fewer is not theirs.
const ENGINES_CALLS: usize = 200;

/// Refuses a specification that says more than the guest can be told.
pub(super) fn refuse(spec: &Value) -> Result<(), Error> {
    known(spec, "")?;
    let capabilities = |set: &str| {
        let set = spec.pointer("/process/capabilities").and_then(|sets| sets.get(set));
        set.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    };
    // CRI-O gives a privileged container all sets.
    if capabilities("ambient").next().is_some()
        && !capabilities("bounding").any(|name| name == PRIVILEGED_ONLY)
    {
        let why = "in the guest only root has capabilities at a program's start";
        return Err(refused("process.capabilities.ambient", why));
    }
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let profile = text("/process/apparmorProfile");
    if !profile.is_empty() && !ENGINES_PROFILES.contains(&profile) {
        return Err(refused(
            format!("the AppArmor profile {profile:?}"),
            "profiles are the host kernel's, which runs none of the pod's programs",
        ));
    }
    if let Some(seccomp) = spec.pointer("/linux/seccomp").filter(|seccomp| says_something(seccomp))
        && !is_engines(seccomp)
    {
        let why = "the guest filters system calls by its own; leave it out of the pod, or of the engine's configuration";
        return Err(refused("a seccomp profile of the node's", why));
    }
    Ok(())
}

/// Whether a filter of system calls (`linux.seccomp`) is one that an engine has for every container.
fn is_engines(seccomp: &Value) -> bool {
    let allows = |rule: &&Value| {
        let conditional = rule.get("args").is_some_and(says_something);
        rule.get("action").and_then(Value::as_str) == Some("SCMP_ACT_ALLOW") && !conditional
    };
    let rules = seccomp.get("syscalls").and_then(Value::as_array).into_iter().flatten();
    let allowed = rules.filter(allows).filter_map(|rule| rule.get("names")?.as_array()).map(Vec::len);
    seccomp.get("defaultAction").and_then(Value::as_str) == Some("SCMP_ACT_ERRNO")
        && allowed.sum::<usize>() >= ENGINES_CALLS
}

/// Refuses resources (`linux.resources` of a specification) that say more than the guest can be told.
pub(super) fn refuse_resources(resources: &Value) -> Result<(), Error> {
    known(resources, "linux.resources")
}

fn known(value: &Value, path: &str) -> Result<(), Error> {
    let Some((_, names)) = KNOWN.iter().find(|(object, _)| *object == path) else { return Ok(()) };
    for element in value.as_array().into_iter().flatten() {
        known(element, path)?;
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if !names.contains(&name.as_str()) && says_something(value) {
            let why = "the guest cannot be told; leave out what sets it, in the pod or on the node";
            return Err(refused(path, why));
        }
        known(value, &path)?;
    }
    Ok(())
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => all.iter().any(says_something),
        Value::Object(all) => all.values().any(says_something),
    }
}
