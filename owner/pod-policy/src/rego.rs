//! The policy as text: the pod's data in JSON, and rules that are the same for every pod.

use crate::policy::PodPolicy;

/// What stands before the data.
const HEAD: &str = "package agent_policy

# Made by `sealpod policy generate`; `sealpod policy explain` says it in words. What is allowed to this pod:
pod := ";
/// What stands after it.
const RULES: &str = concat!(
    include_str!("rules/requests.rego"),
    "\n",
    include_str!("rules/pod.rego"),
    "\n",
    include_str!("rules/container.rego"),
    "\n",
    include_str!("rules/environment.rego"),
    "\n",
    include_str!("rules/mounts.rego"),
    "\n",
    include_str!("rules/exec.rego"),
    "\n",
    include_str!("rules/people.rego"),
    "\n",
    include_str!("rules/files.rego"),
);

/// The policy's text (Rego). The same pod gives the same text.
///
/// # Errors
/// None that data of this type has.
pub fn render(policy: &PodPolicy) -> Result<String, serde_json::Error> {
    Ok(format!("{HEAD}{}\n\n{RULES}", serde_json::to_string_pretty(policy)?))
}

/// The pod's data, if [`render`] made this text and nobody changed it since.
pub fn read_back(rego: &str) -> Option<PodPolicy> {
    let json = rego.strip_prefix(HEAD)?.strip_suffix(RULES)?;
    let policy = serde_json::from_str(json).ok()?;
    (render(&policy).ok()? == rego).then_some(policy)
}
