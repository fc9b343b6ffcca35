//! The agent's policy, which decides each request of the host's before anything of it is carried out.
//!
//! The guest's agent decides by it; the owner's tools check and explain it. The policy is Rego (`package agent_policy`) from the measured init data. The rule named like the
//! request decides it (`CreateContainer`, or as others write it `CreateContainerRequest`); `input` is the
//! request's own JSON, and what the guest itself knows beside it.
//!
//! A policy may say why it denies: `CreateContainer_denials` is a set of objects with the texts or values `field`,
//! `expected` and `actual`. It decides nothing.

mod denial;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig, Value};
use sealpod_agent_protocol::{CreateContainer, Failure, Request};
use sealpod_evidence::HashAlgorithm;

pub use denial::{Denial, Reason};

/// The name under which errors mention the policy.
const SOURCE: &str = "policy.rego";
/// The package that a policy must be in.
const PACKAGE: &str = "data.agent_policy";
/// What the engine says of a rule that the policy does not have.
const NO_SUCH_RULE: &str = "not a valid rule path";
/// The longest that one decision may take: a policy that never ends decides nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest line, in characters: a variable's value may stand in one. Init data as a whole is no longer.
const LONGEST_LINE: NonZeroU32 = NonZeroU32::new(1 << 20).unwrap();
/// The member of `input` that says whether a container would be another than its image says.
const OVERRIDES_IMAGE: &str = "overrides_image";

/// The kernel parameters that a pod may set without a word of its owner's: those that Kubernetes calls safe. Others
/// could lead the network's frames to what listens on a container's loopback.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Decides requests.
pub struct Policy(Option<Mutex<Rego>>);

struct Rego {
    engine: Engine,
    /// Whether the policy names [`OVERRIDES_IMAGE`]. Those that `sealpod policy generate` makes refuse members that
    /// they do not know, so that none gets one without asking.
    asks_for_overrides: bool,
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
    /// The name of the container whose processes it would see, as `target`.
    pub target: Option<String>,
    /// The digest of the image's manifest, as `image_digest`.
    pub digest: String,
    /// What its config says, as `image_entrypoint`.
    pub entrypoint: Vec<String>,
    /// The variables that the container has without the request's, as `image_environment`.
    pub environment: BTreeMap<String, String>,
    /// What its config says, as `image_user`.
    pub user: String,
    /// What its config says, as `image_working_directory`.
    pub working_directory: String,
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
        Self::with_patience(rego, PATIENCE)
    }

    fn with_patience(rego: Option<&str>, limit: Duration) -> Result<Self, Error> {
        let Some(rego) = rego else { return Ok(Self(None)) };
        let mut engine = Engine::new();
        let check_interval = NonZeroU32::new(1000).unwrap_or(NonZeroU32::MIN);
        engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval });
        engine.set_policy_length_config(PolicyLengthConfig { max_col: LONGEST_LINE, ..Default::default() });
        let package = engine
            .add_policy(SOURCE.into(), rego.into())
            .map_err(|error| Error::Parse(last_line(&error.to_string())))?;
        if package != PACKAGE {
            return Err(Error::Package { actual: package });
        }
        let asks_for_overrides = rego.contains(OVERRIDES_IMAGE);
        Ok(Self(Some(Mutex::new(Rego { engine, asks_for_overrides }))))
    }

    /// Decides a request. `image` is what the guest knows of the image that a `CreateContainer` names.
    ///
    /// # Errors
    /// Why it is denied, as [`sealpod_agent_protocol::FailureKind::DeniedByPolicy`].
    pub fn decide(&self, request: &Request, image: Option<&ImageFacts>) -> Result<(), Failure> {
        self.examine(request, image).map_err(|denial| denial.into())
    }

    /// As [`Self::decide`], with the reasons one by one.
    ///
    /// # Errors
    /// [`Denial`].
    pub fn examine(&self, request: &Request, image: Option<&ImageFacts>) -> Result<(), Denial> {
        let name = request.name();
        let denied = |why: String| Denial { request: name, why, reasons: Vec::new() };
        let Some(rego) = &self.0 else {
            return match allowed_without_policy(request) {
                true => Ok(()),
                false => Err(denied("the pod has no policy, and without one this is not allowed".into())),
            };
        };
        let mut rego = rego.lock().unwrap_or_else(PoisonError::into_inner);
        let mut input = input(request, image);
        if let (true, Request::CreateContainer(create), Some(fields)) =
            (rego.asks_for_overrides, request, input.as_object_mut())
        {
            fields.insert(OVERRIDES_IMAGE.into(), overrides_image(create).into());
        }
        match rego.verdict(name, &input) {
            Ok(Verdict::Allowed) => Ok(()),
            Ok(Verdict::Denied) => {
                let reasons = rego.reasons(name, &input);
                Err(Denial { reasons, ..denied(format!("rule {name} is false")) })
            }
            // A policy that says nothing allows no more than none.
            Ok(Verdict::Silent) if !needs_permission(request) && allowed_without_policy(request) => Ok(()),
            Ok(Verdict::Silent) => Err(denied(format!("it has no rule {name}"))),
            Err(error) => Err(denied(format!("rule {name} cannot be evaluated: {error}"))),
        }
    }
}

impl Rego {
    fn verdict(&mut self, name: &str, input: &serde_json::Value) -> Result<Verdict, String> {
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

    /// Why the policy denies, as far as it says so.
    fn reasons(&mut self, name: &str, input: &serde_json::Value) -> Vec<Reason> {
        self.engine.set_input(Value::from(input.clone()));
        let said = self.engine.eval_rule(format!("{PACKAGE}.{name}_denials"));
        said.ok().and_then(|said| serde_json::to_value(said).ok()).map(Reason::read).unwrap_or_default()
    }
}

/// Whether a policy must speak for this request; the others it may forbid. (Of `StartPod` it must speak where that
/// is not [allowed without a policy](allowed_without_policy).)
fn needs_permission(request: &Request) -> bool {
    matches!(
        request,
        Request::CreateContainer(_)
            | Request::ExecProcess(_)
            | Request::ReadStdout(_)
            | Request::ReadStderr(_)
            | Request::ReadTerminationMessage(_)
            | Request::WriteStdin(_)
            | Request::WriteVolume(_)
            | Request::ForwardPort(_)
    )
}

/// Without a policy, a container runs as its (signed) image says, and nobody looks into it. Name servers are the
/// network's, which is the host's in any case.
fn allowed_without_policy(request: &Request) -> bool {
    match request {
        Request::StartPod(start) => {
            let safe = |name: &String| SAFE_SYSCTLS.contains(&name.as_str());
            start.hosts.is_empty() && start.sysctls.keys().all(safe)
        }
        Request::CreateContainer(create) => !overrides_image(create),
        other => !needs_permission(other),
    }
}

/// Whether the container would be another than its image says. Names, limits, streams and a read-only root change
/// nothing of what it does; mounts, devices, lines of `/etc/hosts` (they lead names elsewhere) and programs that gain
/// privileges do. Container engines ask for the last of these unless told otherwise (`allowPrivilegeEscalation: false`).
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
        allow_privilege_escalation,
        unmasked_paths,
        privileged,
        process_namespace,
        mounts,
        devices,
        hosts,
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
        || *allow_privilege_escalation
        || *unmasked_paths
        || *privileged
        || process_namespace.is_some()
        || !mounts.is_empty()
        || !devices.is_empty()
        || !hosts.is_empty()
}

/// The policy's `input`: the request as it came over the wire, and what the guest itself knows.
fn input(request: &Request, image: Option<&ImageFacts>) -> serde_json::Value {
    let mut json = serde_json::to_value(request).unwrap_or_default();
    let mut input = json.get_mut("input").map(serde_json::Value::take).unwrap_or_default();
    if let (Some(fields), Some(image)) = (input.as_object_mut(), image) {
        let ImageFacts {
            target,
            digest,
            entrypoint,
            environment,
            user,
            working_directory,
            effective_command,
        } = image;
        fields.extend([
            ("target".into(), target.as_deref().into()),
            ("image_digest".into(), digest.as_str().into()),
            ("image_entrypoint".into(), entrypoint.as_slice().into()),
            ("image_environment".into(), serde_json::to_value(environment).unwrap_or_default()),
            ("image_user".into(), user.as_str().into()),
            ("image_working_directory".into(), working_directory.as_str().into()),
            ("effective_command".into(), effective_command.as_slice().into()),
        ]);
    }
    if let Some(files) = input.get_mut("files").and_then(serde_json::Value::as_array_mut) {
        files.iter_mut().for_each(add_digest);
    }
    input
}

/// A file's digest, by which a policy knows its content without holding it. What is no base64 gets none.
fn add_digest(file: &mut serde_json::Value) {
    let content = file.get("content").and_then(serde_json::Value::as_str);
    let Some(content) = content.and_then(|content| STANDARD.decode(content).ok()) else { return };
    let digest: String =
        HashAlgorithm::Sha256.digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(fields) = file.as_object_mut() {
        fields.insert("sha256".into(), digest.into());
    }
}

/// Rego errors quote the source over several lines; the console takes one.
fn last_line(error: &str) -> String {
    error.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use sealpod_agent_protocol::{
        ContainerRef, Device, ExecProcess, FailureKind, HostEntry, Mount, MountSource, ProcessRef, PullImage,
        StartPod, VolumeFile, WriteVolume,
    };

    use super::*;

    fn create() -> CreateContainer {
        CreateContainer { id: "a".into(), image: "registry/app:1".into(), ..CreateContainer::default() }
    }

    /// Leads a name to another address.
    fn elsewhere() -> HostEntry {
        HostEntry { address: "192.0.2.7".into(), names: vec!["database".into()] }
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
        ImageFacts {
            digest: digest.into(),
            effective_command: vec!["/app".into()],
            environment: [("LANG".to_owned(), "C".to_owned())].into(),
            user: "app".into(),
            ..ImageFacts::default()
        }
    }

    fn rego(rules: &str) -> String {
        format!("package agent_policy\n{rules}\n")
    }

    #[test]
    fn an_image_runs_only_as_it_is_without_a_policy_and_by_one_that_says_so() {
        let policies = [
            None,
            Some(rego("CreateContainer if input.overrides_image == false")),
            Some(rego("CreateContainer if not input.overrides_image")),
        ];
        let allows = |create: CreateContainer| {
            let request = Request::CreateContainer(Box::new(create));
            policies.each_ref().map(|policy| self::allows(policy.as_deref(), request.clone()))
        };
        assert_eq!(allows(create()), [true; 3]);
        let overrides: [fn(&mut CreateContainer); 13] = [
            |c| c.command = Some(vec!["sh".into()]),
            |c| c.arguments = Some(vec!["-c".into()]),
            |c| c.environment.extend([("LD_PRELOAD".into(), "/evil.so".into())]),
            |c| c.user = Some("0".into()),
            |c| c.working_directory = Some("/".into()),
            |c| c.supplemental_groups.extend([0]),
            |c| c.capabilities = Some(["CAP_SYS_ADMIN".into()].into()),
            |c| c.allow_privilege_escalation = true,
            |c| c.unmasked_paths = true,
            |c| c.privileged = true,
            |c| c.hosts.push(elsewhere()),
            |c| {
                c.devices.push(Device {
                    path: "/dev/sda".into(),
                    disk: "evil".into(),
                    read_only: false,
                    user: 0,
                    group: 0,
                });
            },
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
            assert_eq!(allows(create.clone()), [false; 3], "{create:?}");
        }
    }

    #[test]
    fn without_a_policy_the_host_leads_no_name_elsewhere() {
        let start = StartPod { hosts: vec![elsewhere()], ..StartPod::default() };
        assert!(!allows(None, Request::StartPod(start.clone())));
        assert!(!allows(Some(&rego("")), Request::StartPod(start.clone())), "a silent policy is none");
        assert!(!allows(
            Some(&rego("StartPod if count(input.hosts) == 0")),
            Request::StartPod(start.clone())
        ));
        assert!(allows(Some(&rego("StartPod := true")), Request::StartPod(start)));
    }

    #[test]
    fn kernel_parameters_are_the_safe_ones_unless_a_policy_allows_others() {
        let start = |name: &str| {
            let sysctls = [(name.to_owned(), "1".to_owned())].into();
            Request::StartPod(StartPod { sysctls, ..StartPod::default() })
        };
        let silent = rego("");
        for name in SAFE_SYSCTLS {
            assert!(allows(None, start(name)) && allows(Some(&silent), start(name)), "{name}");
        }
        for name in [
            "net.ipv4.conf.all.route_localnet",
            "net.ipv4.conf.all.accept_local",
            "net.ipv4.ip_forward",
            "net.core.somaxconn",
            "net/ipv4/tcp_syncookies",
            "net.ipv4.tcp_syncookies.",
            "kernel.shmmax",
            "",
        ] {
            assert!(!allows(None, start(name)) && !allows(Some(&silent), start(name)), "{name}");
            let named = rego(&format!("StartPod if input.sysctls[\"{name}\"]"));
            assert!(allows(Some(&named), start(name)), "{name}");
        }
    }

    #[test]
    fn without_a_policy_nobody_looks_into_a_container() {
        for request in [
            exec(),
            Request::ReadStdout(process()),
            Request::ReadStderr(process()),
            Request::ReadTerminationMessage(ContainerRef { container: "a".into() }),
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
        let requests = [
            Request::CreateContainer(Box::new(create())),
            exec(),
            Request::ReadStdout(process()),
            Request::ReadTerminationMessage(ContainerRef { container: "a".into() }),
        ];
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
             input.user == null\n input.image_user == \"app\"\n input.image_environment.LANG == \"C\"\n}",
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
    fn a_policy_that_refuses_what_it_does_not_know_is_told_no_more_than_it_asks_for() {
        let strict = "CreateContainer if count({name | some name, value in input; value == true}) == 0";
        let mut create = create();
        create.user = Some("0".into());
        assert!(allows(Some(&rego(strict)), Request::CreateContainer(Box::new(create))));
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
    fn a_line_may_be_long() {
        let long = "x".repeat(200_000);
        let policy = rego(&format!("ExecProcess if input.command == [\"{long}\"]"));
        let exec = ExecProcess { container: "a".into(), command: vec![long], ..Default::default() };
        assert!(allows(Some(&policy), Request::ExecProcess(Box::new(exec))));
    }

    #[test]
    fn a_files_digest_stands_beside_its_content() {
        let policy = rego(
            "WriteVolume if input.files[0].sha256 == \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"",
        );
        let write = |content: &str| {
            let file = VolumeFile { path: "a".into(), mode: 0o644, user: None, content: content.into() };
            let (volume, files) = ("v".into(), vec![file]);
            Request::WriteVolume(Box::new(WriteVolume { volume, group: None, files }))
        };
        assert!(allows(Some(&policy), write("YWJj")));
        assert!(!allows(Some(&policy), write("YWJk")));
        assert!(!allows(Some(&policy), write("no base64!")));
    }

    #[test]
    fn a_denial_says_what_the_policy_says_of_it() {
        let policy = rego(
            "ExecProcess := false\nExecProcess_denials contains {\"field\": \"command\", \"expected\": [\"ls\"], \
             \"actual\": input.command}\nExecProcess_denials contains 1",
        );
        let policy = Policy::new(Some(&policy)).unwrap();
        let denial = policy.examine(&exec(), None).unwrap_err();
        let reason =
            Reason { field: "command".into(), expected: "[\"ls\"]".into(), actual: "[\"id\"]".into() };
        assert_eq!((denial.request, denial.reasons), ("ExecProcess", vec![reason]));
        let failure = policy.decide(&exec(), None).unwrap_err();
        assert!(failure.message.ends_with("command: expected [\"ls\"], came [\"id\"]"), "{failure}");
    }

    #[test]
    fn reasons_permit_nothing_and_forbid_nothing() {
        let denials = "ExecProcess_denials contains {\"field\": \"a\", \"expected\": 1, \"actual\": 2}";
        assert!(allows(Some(&rego(&format!("ExecProcess := true\n{denials}"))), exec()));
        assert!(!allows(Some(&rego("ExecProcess := false\nExecProcess_denials := set()")), exec()));
        assert!(!allows(Some(&rego(denials)), exec()));
    }

    #[test]
    fn a_policy_that_does_not_end_denies_in_time_and_decides_on() {
        let policy = rego(
            "xs := numbers.range(1, 2000)\nendless if {\nsome a in xs\nsome b in xs\nsome c in xs\na + b + c < 0\n}\n\
             ExecProcess if endless\nPullImage if endless\nReadStdout := true",
        );
        let policy = Policy::with_patience(Some(&policy), Duration::from_millis(50)).unwrap();
        let start = std::time::Instant::now();
        let failure = policy.decide(&exec(), None).unwrap_err();
        assert_eq!(failure.kind, FailureKind::DeniedByPolicy);
        assert!(failure.message.contains("time limit"), "{failure}");
        // One that is otherwise allowed is denied too.
        assert!(policy.decide(&Request::PullImage(PullImage { image: "i".into() }), None).is_err());
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        assert!(policy.decide(&Request::ReadStdout(process()), None).is_ok());
    }

    #[test]
    fn a_policy_that_cannot_decide_is_refused() {
        assert!(matches!(Policy::new(Some("package agent_policy\nx :=")), Err(Error::Parse(_))));
        assert!(matches!(Policy::new(Some("package policy\nx := 1")), Err(Error::Package { .. })));
    }
}
