//! The agent's policy, which decides each request of the host's before anything of it is carried out.
//!
//! The guest's agent decides by it; the owner's tools check and explain it. The policy is Rego (`package agent_policy`) from the measured init data. The rule named like the
//! request decides it (`CreateContainer`, or as others write it `CreateContainerRequest`); `input` is the
//! request's own JSON.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use sealpod_agent_protocol::{CreateContainer, Failure, FailureKind, Request};

/// The name under which errors mention the policy.
const SOURCE: &str = "policy.rego";
/// The package that a policy must be in.
const PACKAGE: &str = "data.agent_policy";
/// What the engine says of a rule that the policy does not have.
const NO_SUCH_RULE: &str = "not a valid rule path";
/// The longest that one decision may take: a policy that never ends decides nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Decides requests.
pub struct Policy(Option<Mutex<Rego>>);

struct Rego {
    engine: Engine,
}

/// Why a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not Rego that we understand.
    #[error("the agent's policy cannot be parsed: {0}")]
    Parse(String),
    /// It would never be asked.
    #[error("the agent's policy is in {actual}, expected {PACKAGE}")]
    Package {
        /// Its package.
        actual: String,
    },
}

/// What the guest itself knows of a container that is to be made: beside the request's own fields in `input`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// The digest of the image's manifest, as `image_digest`.
    pub digest: String,
    /// The program and the arguments that will run, after the image's config was taken into account.
    pub effective_command: Vec<String>,
}

/// What a policy says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Denied,
    /// No rule of that name.
    Silent,
}

impl Policy {
    /// The rules of `policy.rego`, or those that hold without one.
    ///
    /// # Errors
    /// If it is no Rego, or not in the package `agent_policy`.
    pub fn new(rego: Option<&str>) -> Result<Self, Error> {
        let Some(rego) = rego else { return Ok(Self(None)) };
        let mut engine = Engine::new();
        let check_interval = NonZeroU32::new(1000).unwrap_or(NonZeroU32::MIN);
        engine.set_execution_timer_config(ExecutionTimerConfig { limit: PATIENCE, check_interval });
        let package = engine
            .add_policy(SOURCE.into(), rego.into())
            .map_err(|error| Error::Parse(last_line(&error.to_string())))?;
        if package != PACKAGE {
            return Err(Error::Package { actual: package });
        }
        Ok(Self(Some(Mutex::new(Rego { engine }))))
    }

    /// Decides a request. `image` is what the guest knows of the image that a `CreateContainer` names.
    ///
    /// # Errors
    /// Why it is denied, as [`FailureKind::DeniedByPolicy`].
    pub fn decide(&self, request: &Request, image: Option<&ImageFacts>) -> Result<(), Failure> {
        let name = request.name();
        let denied = |why: &str| Failure {
            kind: FailureKind::DeniedByPolicy,
            message: format!("the agent's policy does not allow {name}: {why}"),
            hint: Some(format!(
                "the pod's owner can allow it in policy.rego of the init data, by the rule {name}"
            )),
            denial: None,
        };
        let Some(rego) = &self.0 else {
            return match allowed_without_policy(request) {
                true => Ok(()),
                false => Err(denied("the pod has no policy, and without one this is not allowed")),
            };
        };
        let mut rego = rego.lock().unwrap_or_else(PoisonError::into_inner);
        match rego.verdict(name, input(request, image)) {
            Ok(Verdict::Allowed) => Ok(()),
            Ok(Verdict::Denied) => Err(denied(&format!("rule {name} is false"))),
            Ok(Verdict::Silent) if needs_permission(request) => {
                Err(denied(&format!("it has no rule {name}")))
            }
            Ok(Verdict::Silent) => Ok(()),
            Err(error) => Err(denied(&format!("rule {name} cannot be evaluated: {error}"))),
        }
    }
}

impl Rego {
    fn verdict(&mut self, name: &str, input: serde_json::Value) -> Result<Verdict, String> {
        for rule in [name.to_owned(), format!("{name}Request")] {
            self.engine.set_input(Value::from(input.clone()));
            match self.engine.eval_rule(format!("{PACKAGE}.{rule}")) {
                Ok(Value::Bool(true)) => return Ok(Verdict::Allowed),
                // Whatever is not plainly true, undefined included, permits nothing.
                Ok(_) => return Ok(Verdict::Denied),
                Err(error) if error.to_string() == NO_SUCH_RULE => (),
                Err(error) => return Err(last_line(&error.to_string())),
            }
        }
        Ok(Verdict::Silent)
    }
}

/// Whether a policy must speak for this request; the others it may forbid.
fn needs_permission(request: &Request) -> bool {
    matches!(
        request,
        Request::CreateContainer(_)
            | Request::ExecProcess(_)
            | Request::ReadStdout(_)
            | Request::ReadStderr(_)
            | Request::WriteStdin(_)
            | Request::WriteVolume(_)
    )
}

/// Without a policy, a container runs as its (signed) image says, and nobody looks into it.
fn allowed_without_policy(request: &Request) -> bool {
    match request {
        Request::CreateContainer(create) => !overrides_image(create),
        other => !needs_permission(other),
    }
}

/// Whether the container would be another than its image says. Names, limits, streams and a read-only root change
/// nothing of what it does; mounts and lines of `/etc/hosts` do.
fn overrides_image(create: &CreateContainer) -> bool {
    let CreateContainer {
        id: _,
        name: _,
        image: _,
        command,
        arguments,
        environment,
        user,
        supplemental_groups,
        working_directory,
        terminal: _,
        stdin: _,
        read_only_root: _,
        capabilities,
        allow_privilege_escalation: _,
        unmasked_paths,
        privileged,
        mounts,
        hosts: _,
        resources: _,
    } = create;
    let given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    given(command)
        || given(arguments)
        || !environment.is_empty()
        || user.is_some()
        || !supplemental_groups.is_empty()
        || working_directory.is_some()
        || capabilities.is_some()
        || *unmasked_paths
        || *privileged
        || !mounts.is_empty()
}

/// The policy's `input`: the request as it came over the wire, and what the guest itself knows.
fn input(request: &Request, image: Option<&ImageFacts>) -> serde_json::Value {
    let mut json = serde_json::to_value(request).unwrap_or_default();
    let mut input = json.get_mut("input").map(serde_json::Value::take).unwrap_or_default();
    if let (Some(fields), Some(image)) = (input.as_object_mut(), image) {
        fields.insert("image_digest".into(), image.digest.as_str().into());
        fields.insert("effective_command".into(), image.effective_command.as_slice().into());
    }
    input
}

/// Rego errors quote the source over several lines; the console takes one.
fn last_line(error: &str) -> String {
    error.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use sealpod_agent_protocol::{
        ContainerRef, ExecProcess, Mount, MountSource, ProcessRef, PullImage, StartPod, WriteVolume,
    };

    use super::*;

    fn create() -> CreateContainer {
        CreateContainer { id: "a".into(), image: "registry/app:1".into(), ..CreateContainer::default() }
    }

    fn exec() -> Request {
        let command = vec!["id".to_owned()];
        Request::ExecProcess(Box::new(ExecProcess { container: "a".into(), command, ..Default::default() }))
    }

    fn process() -> ProcessRef {
        ProcessRef { container: "a".into(), exec: None }
    }

    fn allows(policy: Option<&str>, request: Request) -> bool {
        Policy::new(policy).unwrap().decide(&request, Some(&facts("sha256:1234"))).is_ok()
    }

    fn facts(digest: &str) -> ImageFacts {
        ImageFacts { digest: digest.into(), effective_command: vec!["/app".into()] }
    }

    fn rego(rules: &str) -> String {
        format!("package agent_policy\n{rules}\n")
    }

    #[test]
    fn without_a_policy_an_image_runs_only_as_it_is() {
        assert!(allows(None, Request::CreateContainer(Box::new(create()))));
        let overrides: [fn(&mut CreateContainer); 10] = [
            |c| c.command = Some(vec!["sh".into()]),
            |c| c.arguments = Some(vec!["-c".into()]),
            |c| c.environment.extend([("LD_PRELOAD".into(), "/evil.so".into())]),
            |c| c.user = Some("0".into()),
            |c| c.working_directory = Some("/".into()),
            |c| c.supplemental_groups.extend([0]),
            |c| c.capabilities = Some(["CAP_SYS_ADMIN".into()].into()),
            |c| c.unmasked_paths = true,
            |c| c.privileged = true,
            |c| {
                c.mounts.push(Mount {
                    destination: "/app".into(),
                    read_only: false,
                    source: MountSource::Files { volume: "evil".into(), file: None },
                });
            },
        ];
        for change in overrides {
            let mut create = create();
            change(&mut create);
            assert!(!allows(None, Request::CreateContainer(Box::new(create.clone()))), "{create:?}");
        }
    }

    #[test]
    fn without_a_policy_nobody_looks_into_a_container() {
        for request in [
            exec(),
            Request::ReadStdout(process()),
            Request::ReadStderr(process()),
            Request::WriteStdin(process()),
            Request::WriteVolume(Box::new(WriteVolume {
                volume: "v".into(),
                group: None,
                files: Vec::new(),
            })),
        ] {
            assert!(!allows(None, request.clone()), "{request:?}");
        }
    }

    #[test]
    fn what_a_pod_cannot_do_without_is_always_allowed() {
        for policy in [None, Some(rego(""))] {
            for request in [
                Request::Info,
                Request::StartPod(StartPod::default()),
                Request::Attest,
                Request::PullImage(PullImage { image: "i".into() }),
                Request::StartContainer(ContainerRef { container: "a".into() }),
                Request::WaitProcess(process()),
                Request::ListContainers,
                Request::RemoveContainer(ContainerRef { container: "a".into() }),
                Request::StopPod,
            ] {
                assert!(allows(policy.as_deref(), request.clone()), "{request:?}");
            }
        }
    }

    #[test]
    fn a_policy_is_asked_for_what_needs_permission() {
        let requests = [Request::CreateContainer(Box::new(create())), exec(), Request::ReadStdout(process())];
        for request in requests {
            let name = request.name();
            assert!(!allows(Some(&rego("")), request.clone()), "no rule {name}");
            assert!(!allows(Some(&rego(&format!("{name} := false"))), request.clone()), "false {name}");
            assert!(!allows(Some(&rego(&format!("{name} := \"yes\""))), request.clone()), "text {name}");
            assert!(
                !allows(Some(&rego(&format!("{name} if input.nothing"))), request.clone()),
                "undefined {name}"
            );
            assert!(allows(Some(&rego(&format!("{name} := true"))), request.clone()), "true {name}");
            assert!(allows(Some(&rego(&format!("default {name}Request := true"))), request.clone()));
        }
    }

    #[test]
    fn a_policy_can_forbid_what_is_otherwise_allowed() {
        let pull = Request::PullImage(PullImage { image: "registry/other:1".into() });
        let policy = rego("PullImage if startswith(input.image, \"registry/app\")");
        assert!(!allows(Some(&policy), pull));
        let pull = Request::PullImage(PullImage { image: "registry/app:1".into() });
        assert!(allows(Some(&policy), pull));
    }

    #[test]
    fn the_input_is_the_request_and_the_images_digest() {
        let policy = rego(
            "CreateContainer if {\n input.image_digest == \"sha256:1234\"\n input.effective_command == [\"/app\"]\n input.environment.A == \"1\"\n \
             input.user == null\n}",
        );
        let mut create = create();
        create.environment.insert("A".into(), "1".into());
        assert!(allows(Some(&policy), Request::CreateContainer(Box::new(create.clone()))));
        create.environment.insert("A".into(), "2".into());
        assert!(!allows(Some(&policy), Request::CreateContainer(Box::new(create))));
        let other = Policy::new(Some(&policy)).unwrap();
        let create = Request::CreateContainer(Box::new(self::create()));
        assert!(other.decide(&create, Some(&facts("sha256:9999"))).is_err());
    }

    #[test]
    fn the_name_of_the_request_wins_over_its_other_name() {
        let policy = rego("ExecProcess := false\nExecProcessRequest := true");
        assert!(!allows(Some(&policy), exec()));
    }

    #[test]
    fn a_denial_names_the_rule_and_the_request() {
        let failure = Policy::new(Some(&rego(""))).unwrap().decide(&exec(), None).unwrap_err();
        assert_eq!(failure.kind, FailureKind::DeniedByPolicy);
        assert!(failure.message.contains("ExecProcess"), "{}", failure.message);
        assert!(failure.hint.unwrap().contains("ExecProcess"));
    }

    #[test]
    fn a_policy_that_cannot_decide_is_refused() {
        assert!(matches!(Policy::new(Some("package agent_policy\nx :=")), Err(Error::Parse(_))));
        assert!(matches!(Policy::new(Some("package policy\nx := 1")), Err(Error::Package { .. })));
    }
}
