//! `sealpod policy explain`, `diff` and `test`: what a policy says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use sealpod_agent_policy::{Denial, ImageFacts, Policy};
use sealpod_agent_protocol::Request;
use sealpod_pod_policy::{Difference, Given, Statement, differences};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::output;

/// Say in words what a pod is bound to and what it is allowed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod policy explain sealed.yaml
  kubectl get deployment web --output yaml | sealpod policy explain")]
pub(super) struct ExplainArgs {
    /// A manifest with the annotation, init data (TOML) or a policy (Rego); - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say in words how two manifests, init data or policies differ; exit status 1 if they do, 2 for trouble
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod policy diff sealed.yaml newer.yaml")]
pub(super) struct DiffArgs {
    /// What was before: a manifest with the annotation, init data (TOML) or a policy (Rego)
    old: PathBuf,
    /// What is now
    new: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Try a request: would the guest allow it? Exit status 1 if not, 2 for trouble
#[derive(Debug, Args)]
#[command(
    after_help = "The request is JSON as the guest gets it: {\"request\": \"ExecProcess\", \"input\": {…}}. For CreateContainer, \
\"image\" beside these says what the guest knows of the image: digest, entrypoint, environment, user, \
working_directory and effective_command; what is left out is taken from the request, as for an image \
that says nothing itself.

Examples:
  echo '{\"request\": \"ReadStdout\",
         \"input\": {\"container\": \"web\", \"exec\": null}}' |
      sealpod policy test sealed.yaml --request -
  echo '{\"request\": \"ExecProcess\",
         \"input\": {\"container\": \"web\", \"exec\": \"1\", \"command\": [\"sh\"],
           \"environment\": {}, \"user\": null, \"working_directory\": null,
           \"terminal\": false, \"stdin\": false}}' |
      sealpod policy test sealed.yaml --request -"
)]
pub(super) struct TestArgs {
    /// A manifest with the annotation, init data (TOML) or a policy (Rego)
    file: PathBuf,
    /// The request (JSON); - for standard input
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Which pod of a manifest that has several, as Deployment/web
    #[arg(long, value_name = "KIND/NAME")]
    pod: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Explained {
    pod: Option<String>,
    statements: Vec<Statement>,
}

pub(super) fn explain(args: ExplainArgs) -> Result<()> {
    let all = explained(&args.file)?;
    if args.json {
        return output::json(&all);
    }
    for (number, Explained { pod, statements }) in all.iter().enumerate() {
        if let Some(pod) = pod.as_ref().filter(|_| all.len() > 1) {
            let space = if number > 0 { "\n" } else { "" };
            output::line(format!("{space}{pod}:"))?;
        }
        for Statement { about, says } in statements {
            output::line(format!("{about}: {says}"))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct PodDifferences {
    pod: Option<String>,
    differences: Vec<Difference>,
}

pub(super) fn diff(args: DiffArgs) -> Result<ExitCode> {
    let (old, new) = (explained(&args.old)?, explained(&args.new)?);
    let all: Vec<_> = pairs(old, new)
        .into_iter()
        .map(|(pod, old, new)| PodDifferences { pod, differences: differences(&old, &new) })
        .filter(|one| !one.differences.is_empty())
        .collect();
    if args.json {
        output::json(&all)?;
    } else {
        for one in &all {
            for Difference { about, old, new } in &one.differences {
                let pod = one.pod.as_ref().map(|pod| format!("{pod}: ")).unwrap_or_default();
                let change = match (old, new) {
                    (Some(old), Some(new)) => format!("was {old}, is {new}"),
                    (None, Some(new)) => format!("new: {new}"),
                    (Some(old), None) => format!("gone: {old}"),
                    (None, None) => continue,
                };
                output::line(format!("{pod}{about}: {change}"))?;
            }
        }
    }
    Ok(if all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Pair = (Option<String>, Vec<Statement>, Vec<Statement>);

/// One pod is compared with one, whatever their names; several by their names.
fn pairs(old: Vec<Explained>, new: Vec<Explained>) -> Vec<Pair> {
    match (<[_; 1]>::try_from(old), <[_; 1]>::try_from(new)) {
        (Ok([old]), Ok([new])) => vec![(new.pod, old.statements, new.statements)],
        (old, new) => {
            let all = |one: Result<[Explained; 1], Vec<Explained>>| one.map_or_else(|all| all, Vec::from);
            let (mut old, mut new) = (all(old), all(new));
            let mut names: Vec<_> = new.iter().chain(&old).map(|one| one.pod.clone()).collect();
            let mut seen = std::collections::BTreeSet::new();
            names.retain(|name| seen.insert(name.clone()));
            let take = |all: &mut Vec<Explained>, name: &Option<String>| {
                let at = all.iter().position(|one| one.pod == *name);
                at.map(|at| all.remove(at).statements).unwrap_or_default()
            };
            let pair = |name| (take(&mut old, &name), take(&mut new, &name), name);
            names.into_iter().map(pair).map(|(old, new, name)| (name, old, new)).collect()
        }
    }
}

fn explained(file: &Path) -> Result<Vec<Explained>> {
    let given = Given::read(&super::read(file)?).context(super::name(file))?;
    let explain =
        |one: &Given| Explained { pod: one.pod.clone(), statements: sealpod_pod_policy::explain(one) };
    Ok(given.iter().map(explain).collect())
}

/// A request, and what the guest knows of the image that it names.
#[derive(Debug)]
struct Replay {
    request: Request,
    image: Option<ImageFacts>,
}

/// [`ImageFacts`], as far as somebody wrote them down.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Facts {
    target: Option<String>,
    digest: Option<String>,
    entrypoint: Vec<String>,
    environment: std::collections::BTreeMap<String, String>,
    user: String,
    working_directory: String,
    effective_command: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Outcome<'a> {
    pod: Option<&'a str>,
    allowed: bool,
    #[serde(flatten)]
    denial: Option<&'a Denial>,
}

pub(super) fn test(args: TestArgs) -> Result<ExitCode> {
    let given = Given::read(&super::read(&args.file)?).context(super::name(&args.file))?;
    let given = choose(&given, args.pod.as_deref())?;
    let policy = Policy::new(given.policy.as_deref()).context(super::name(&args.file))?;
    let replay = replay(&super::read(&args.request)?).context(super::name(&args.request))?;
    let denial = policy.examine(&replay.request, replay.image.as_ref()).err();
    let name = replay.request.name();
    if args.json {
        let pod = given.pod.as_deref();
        output::json(&Outcome { pod, allowed: denial.is_none(), denial: denial.as_ref() })?;
    } else {
        match &denial {
            None => output::line(format!("allowed: {name}"))?,
            Some(denial) => {
                output::line(format!("denied: {name}: {}", denial.why))?;
                for reason in &denial.reasons {
                    output::line(format!(
                        "  {}: expected {}, came {}",
                        reason.field, reason.expected, reason.actual
                    ))?;
                }
            }
        }
    }
    Ok(if denial.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose<'a>(given: &'a [Given], pod: Option<&str>) -> Result<&'a Given> {
    let names = || given.iter().filter_map(|one| one.pod.clone()).collect::<Vec<_>>().join(", ");
    match (pod, given) {
        (None, [one]) => Ok(one),
        (None, _) => {
            Err(Error::new("there are several pods in it").hint(format!("add --pod with one of {}", names())))
        }
        (Some(pod), _) => given
            .iter()
            .find(|one| one.pod.as_deref() == Some(pod))
            .ok_or_else(|| Error::new(format!("there is no {pod} in it, but {}", names()))),
    }
}

fn replay(text: &str) -> Result<Replay> {
    let mut json: Value = serde_json::from_str(text).context("this is no JSON")?;
    let facts = json.as_object_mut().and_then(|fields| fields.remove("image"));
    let request: Request = serde_json::from_value(json)
        .context("this is no request")
        .hint("as {\"request\": \"ExecProcess\", \"input\": {…}}, with all fields of the request")?;
    let facts: Facts = facts.map(serde_json::from_value).transpose().context("image")?.unwrap_or_default();
    let Request::CreateContainer(create) = &request else { return Ok(Replay { request, image: None }) };
    let of_reference = || Some(create.image.split_once('@')?.1.to_owned());
    let words = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let asked = match create.command.is_some() {
        true => [words(&create.command), words(&create.arguments)].concat(),
        false => [facts.entrypoint.clone(), words(&create.arguments)].concat(),
    };
    let image = ImageFacts {
        target: facts.target,
        digest: facts.digest.or_else(of_reference).unwrap_or_default(),
        effective_command: facts.effective_command.unwrap_or(asked),
        entrypoint: facts.entrypoint,
        environment: facts.environment,
        user: facts.user,
        working_directory: facts.working_directory,
    };
    Ok(Replay { request, image: Some(image) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_of_an_image_is_taken_from_the_request() {
        let text = r#"{"request": "CreateContainer", "image": {"entrypoint": ["/entry"]}, "input": {"id": "a", "name": "web",
            "image": "r/web@sha256:12", "command": null, "arguments": ["x"], "environment": {}, "user": null,
            "supplemental_groups": [], "working_directory": null, "terminal": false, "stdin": false,
            "read_only_root": false, "capabilities": null, "allow_privilege_escalation": true, "unmasked_paths": false,
            "privileged": false, "mounts": [], "hosts": [], "resources": {"memory_bytes": null, "cpu_millis": null,
            "cpu_weight": null, "cpus": null, "pids": null}}}"#;
        let image = replay(text).unwrap().image.unwrap();
        assert_eq!(
            (image.digest.as_str(), image.effective_command.join(" ")),
            ("sha256:12", "/entry x".into())
        );
        assert!(replay(&text.replace("entrypoint", "entry")).is_err());
        for text in ["", "{}", "[]", r#"{"request": "Nothing", "input": {}}"#] {
            assert!(replay(text).is_err(), "{text}");
        }
    }

    #[test]
    fn several_pods_are_compared_by_name() {
        let one = |pod: &str, says: &str| Explained {
            pod: Some(pod.into()),
            statements: vec![Statement { about: "logs".into(), says: says.into() }],
        };
        let all = pairs(vec![one("a", "1"), one("b", "2")], vec![one("b", "2"), one("c", "3")]);
        let counts: Vec<_> =
            all.iter().map(|(pod, old, new)| (pod.as_deref().unwrap(), old.len(), new.len())).collect();
        assert_eq!(counts, [("b", 1, 1), ("c", 0, 1), ("a", 1, 0)]);
        assert_eq!(pairs(vec![one("a", "1")], vec![one("b", "2")]).len(), 1);
    }
}
