//! What the host may ask of a pod.

use sealpod_agent_protocol::{
    CallError, ContainerRef, CreateContainer, ExecProcess, FailureKind, ProcessRef, PullImage, Request,
    SignalProcess,
};
use sealpod_tests::{ImageOptions, InitData, Pod};

use crate::world::{STRICT_SCRIPT, World};

pub(crate) async fn a_rule_decides_by_the_requests_fields(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let id = pod.spawn(pod.container(&image, "sleep 1000")).await;
    let exec = |command: &str, name: &str| ExecProcess {
        container: id.clone(),
        exec: name.into(),
        command: vec![command.into()],
        ..ExecProcess::default()
    };
    let failure = pod.refused(Request::ExecProcess(Box::new(exec("/bin/forbidden", "one")))).await;
    assert_eq!(failure.kind, FailureKind::DeniedByPolicy);
    assert!(failure.message.contains("ExecProcess"), "{failure}");
    assert_eq!(pod.exec(exec("/bin/true", "two")).await.status.code, 0);

    let process = ProcessRef { container: id.clone(), exec: None };
    let signal =
        |signal| Request::SignalProcess(SignalProcess { process: process.clone(), signal, all: false });
    assert_eq!(pod.refused(signal(19)).await.kind, FailureKind::DeniedByPolicy);
    pod.done(signal(9)).await;
    pod.remove(&id).await;
}

pub(crate) async fn the_policy_sees_the_image_and_the_command_that_will_run(world: &World) {
    let (pod, image) = (world.strict_pod().await, world.image());
    let denied = async |container: CreateContainer| {
        let failure = pod.refused(Request::CreateContainer(Box::new(container))).await;
        assert_eq!(failure.kind, FailureKind::DeniedByPolicy, "{failure}");
    };
    let allowed = pod.container(&image, STRICT_SCRIPT);
    denied(CreateContainer { command: None, ..allowed.clone() }).await;
    denied(pod.container(&image, "sleep 1001")).await;

    // As good a signature and the same command, but another image: there the command is the image's own.
    let build = ["--entrypoint", "/bin/sh", "--entrypoint", "-c", "--cmd", STRICT_SCRIPT];
    let options = ImageOptions { build: &build, ..ImageOptions::default() };
    let other = world.owner().publish("other", world.root(), &options);
    pod.pull(&other).await;
    denied(CreateContainer { command: None, ..pod.container(&other, "") }).await;
    denied(pod.container(&other, STRICT_SCRIPT)).await;

    let id = pod.spawn(allowed).await;
    pod.remove(&id).await;
}

pub(crate) async fn nobody_reads_or_writes_what_no_rule_allows(world: &World) {
    let (pod, image) = (world.strict_pod().await, world.image());
    let id = pod.spawn(CreateContainer { stdin: true, ..pod.container(&image, STRICT_SCRIPT) }).await;
    let process = ProcessRef { container: id.clone(), exec: None };
    for request in [
        Request::ReadStdout(process.clone()),
        Request::ReadStderr(process.clone()),
        Request::WriteStdin(process.clone()),
    ] {
        let name = request.name();
        match pod.agent().open(request).await {
            Err(CallError::Refused(failure)) => {
                assert_eq!(failure.kind, FailureKind::DeniedByPolicy, "{name}: {failure}");
                assert!(failure.message.contains(name), "{failure}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    pod.remove(&id).await;
}

pub(crate) async fn a_pod_without_init_data_runs_nothing_and_shows_nothing(world: &World) {
    let image = world.image();
    let pod = Pod::start(world.owner(), None).await;
    let failure = pod.refused(Request::PullImage(PullImage { image: image.clone() })).await;
    assert_eq!(failure.kind, FailureKind::ImageRefused, "{failure}");
    let attest = pod.refused(Request::Attest).await;
    assert_eq!(attest.kind, FailureKind::Conflict, "{attest}");
    let exec = ExecProcess { container: "a".into(), exec: "b".into(), ..ExecProcess::default() };
    let failure = pod.refused(Request::ExecProcess(Box::new(exec))).await;
    assert_eq!(failure.kind, FailureKind::DeniedByPolicy, "{failure}");
    // A pod is started once: nobody adds another policy later.
    let second = Request::StartPod(sealpod_agent_protocol::StartPod {
        hostname: "again".into(),
        init_data: Some(world.init_data()),
        ..Default::default()
    });
    assert_eq!(pod.refused(second).await.kind, FailureKind::Conflict);
    let process = ProcessRef { container: "a".into(), exec: None };
    match pod.agent().open(Request::ReadStdout(process)).await {
        Err(CallError::Refused(failure)) => {
            assert!(matches!(failure.kind, FailureKind::DeniedByPolicy | FailureKind::NotFound), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    let start = Request::StartContainer(ContainerRef { container: "a".into() });
    assert_eq!(pod.refused(start).await.kind, FailureKind::NotFound);
    pod.stop().await;
}

pub(crate) async fn init_data_that_the_broker_does_not_know_gets_no_key(world: &World) {
    let owner = world.owner();
    // As a host would write it: everything is allowed.
    let policy = "package agent_policy\nStartPod := true\nExecProcess := true\nCreateContainer := true\n";
    let init_data = InitData { agent_policy: Some(policy), registered: false, ..InitData::default() };
    let pod = Pod::start(owner, Some(owner.init_data(&init_data))).await;
    let failure = pod.refused(Request::PullImage(PullImage { image: world.image() })).await;
    assert_eq!(failure.kind, FailureKind::DeniedByKeyBroker, "{failure}");
    // The guest and the host learn an id, the owner what it was.
    let denial = failure.denial.clone().expect("a denial has an id");
    assert!(!failure.message.contains("init_data"), "{failure}");
    let refusal = owner.refusal(&denial);
    let refusal = refusal.get(0).unwrap_or(&refusal);
    assert_eq!(refusal["failures"][0]["claim"], "init_data", "{refusal}");
    pod.stop().await;
}
