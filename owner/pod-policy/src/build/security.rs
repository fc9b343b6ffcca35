//! Who runs a container, and what it may do: the container's security context over the pod's.

use std::collections::BTreeSet;

use crate::kubernetes::{Container, PodSpec};
use crate::policy::{Fixed, User};

use super::{Result, problem};

/// What containerd gives if nothing is said.
const CONTAINERD: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// What CRI-O gives if nothing is said.
const CRI_O: [&str; 9] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETPCAP", "SETUID"];
const ALL: &str = "ALL";
/// With this one and nothing hidden, the shim takes a container for a privileged one.
const PRIVILEGED_ONLY: &str = "SYS_MODULE";

/// The type of a profile that is a file of the node's.
const LOCALHOST: &str = "Localhost";
const HUGE_PAGES: &str = "hugepages-";
/// The policy by which a user has the groups of the image's `/etc/group` too.
const MERGE: &str = "Merge";

pub(super) struct Security {
    pub(super) user: User,
    pub(super) supplemental_groups: BTreeSet<u32>,
    pub(super) capabilities: Vec<Option<BTreeSet<String>>>,
    pub(super) fixed: Fixed,
}

/// A user whose group is not told gets the image's groups from the guest, whatever else is asked for.
pub(super) fn refuse_other_groups(spec: &PodSpec) -> Result<()> {
    match spec.security_context.supplemental_groups_policy.as_deref() {
        None | Some(MERGE) => Ok(()),
        Some(other) => Err(problem(
            "securityContext.supplementalGroupsPolicy",
            format!(
                "{other} cannot be had: the guest gives a user the groups that list it in the image's /etc/group; \
                 say Merge, or leave it out"
            ),
        )),
    }
}

pub(super) fn of(spec: &PodSpec, container: &Container) -> Result<Security> {
    let (of_pod, own) = (&spec.security_context, &container.security_context);
    let user = User {
        number: own.run_as_user.or(of_pod.run_as_user),
        group: own.run_as_group.or(of_pod.run_as_group),
    };
    // Engines write root's group as they write none, and the guest then takes the one that the image has for the user.
    if user.group == Some(0) && user.number != Some(0) {
        return Err(problem(
            "securityContext.runAsGroup",
            "group 0 can be told for user 0 only: engines write it as they write no group; leave it out, in the pod's \
             securityContext too, where the user has group 0 in the image's /etc/passwd or is not in it",
        ));
    }
    for (name, profiles) in [
        ("seccompProfile", [&own.seccomp_profile, &of_pod.seccomp_profile]),
        ("appArmorProfile", [&own.app_armor_profile, &of_pod.app_armor_profile]),
    ] {
        if profiles.into_iter().flatten().any(|profile| profile.kind == LOCALHOST) {
            let why = "the guest has none of the node's profiles; it filters system calls by one of its own";
            return Err(problem(format!("securityContext.{name}"), why));
        }
    }
    for limit in container.resources.limits.keys() {
        if limit.starts_with(HUGE_PAGES) {
            return Err(problem(format!("resources.limits.{limit}"), "the guest has no huge pages to give"));
        }
    }
    if !container.resources.claims.is_empty() {
        return Err(problem("resources.claims", "the guest cannot have devices of the node's"));
    }
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    if unmasked && !own.privileged && own.capabilities.add.iter().any(|name| plain(name) == PRIVILEGED_ONLY) {
        return Err(problem(
            "securityContext",
            "procMount Unmasked with the capability SYS_MODULE is what a privileged container has; say privileged: true",
        ));
    }
    Ok(Security {
        user,
        supplemental_groups: of_pod.supplemental_groups.iter().copied().chain(of_pod.fs_group).collect(),
        capabilities: capabilities(container)?,
        fixed: Fixed {
            allow_privilege_escalation: own.allow_privilege_escalation.unwrap_or(true),
            privileged: own.privileged,
            read_only_root: own.read_only_root_filesystem,
            stdin: container.stdin,
            terminal: container.tty,
            unmasked_paths: unmasked && !own.privileged,
        },
    })
}

fn plain(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// What each engine will ask for: its own set with those added and dropped; nothing where that is containerd's.
fn capabilities(container: &Container) -> Result<Vec<Option<BTreeSet<String>>>> {
    let security = &container.security_context;
    if security.privileged {
        return Ok(vec![None]);
    }
    let names = |list: &[String]| list.iter().map(|name| plain(name)).collect::<BTreeSet<_>>();
    let (add, drop) = (names(&security.capabilities.add), names(&security.capabilities.drop));
    if add.contains(ALL) {
        return Err(problem(
            "securityContext.capabilities",
            "which ones ALL are depends on the node; name those that it needs, or say privileged: true",
        ));
    }
    let usual: BTreeSet<_> = CONTAINERD.iter().map(ToString::to_string).collect();
    let set = |base: &[&str]| {
        let base = base.iter().map(ToString::to_string).filter(|_| !drop.contains(ALL));
        let set: BTreeSet<_> = base.chain(add.iter().cloned()).filter(|name| !drop.contains(name)).collect();
        (set != usual).then(|| set.iter().map(|name| format!("CAP_{name}")).collect())
    };
    let sets = BTreeSet::from([set(&CONTAINERD), set(&CRI_O)]);
    Ok(sets.into_iter().collect())
}
