//! Real machines with a real kernel: how they end. Pods in them are tested by the tests of the whole.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sealpod_sandbox::{
    Accelerator, Ending, Error, GuestImage, Network, Observer, Sandbox, SandboxConfig, Stage,
};

/// Held by each test: what one leaves behind must not be taken for another's.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The folder of the guest that `make guest` builds.
fn guest() -> GuestImage {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-image");
    let folder = std::env::var_os("SEALPOD_GUEST").map_or(built, PathBuf::from);
    GuestImage::open(folder).expect("a guest is needed: run `make guest`")
}

/// Folders of VMs that this process owns.
fn runtime_folders() -> Vec<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let own = format!("sealpod-vm-{}-", std::process::id());
    let entries = std::fs::read_dir(base).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&own)).collect()
}

/// Where KVM cannot boot this kernel, as in some nested machines, this also proves that the choice of the
/// accelerator noticed.
#[tokio::test]
async fn a_guest_that_dies_is_reported_with_its_last_words_and_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd.cpio");
    // An archive of nothing: the kernel finds no init and no root file system.
    std::fs::write(&initrd, [0; 512]).unwrap();
    let guest = GuestImage { initrd, cmdline: "console=ttyS0 panic=-1".into(), ..guest() };
    let stages = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let stages = stages.clone();
        Observer::new(move |stage, _| stages.lock().unwrap().push(stage))
    };
    let ports = vec!["0:80".parse().unwrap()];
    let config = SandboxConfig {
        firmware: false,
        ephemeral_disk_mib: 64,
        extra_cmdline: "sealpod.word=seen".into(),
        network: Network::User { ports },
        observer,
        ..SandboxConfig::new(guest)
    };

    let error = Sandbox::start(config).await.unwrap_err();

    let Error::Died(reason) = &error else { panic!("{error}") };
    assert_eq!(reason.ending, Ending::Reset, "{error}");
    assert!(reason.console.contains("Kernel panic - not syncing"), "{error}");
    assert_eq!(
        *stages.lock().unwrap(),
        [Stage::Preparing, Stage::TpmReady, Stage::Spawned, Stage::FirstByte]
    );
    assert_eq!(runtime_folders(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_disk_without_a_place_is_refused_by_its_name_and_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let disk = SandboxConfig {
        firmware: false,
        ephemeral_disk_mib: 64,
        ephemeral_disk_folder: "/nowhere".into(),
        ..SandboxConfig::new(guest())
    };

    let error = Sandbox::start(disk).await.unwrap_err();

    assert!(error.to_string().contains("cannot make the ephemeral disk in /nowhere"), "{error}");
    assert_eq!(runtime_folders(), Vec::<PathBuf>::new());
}

/// The agent is no part of the measurement; what is, says which one it must be.
#[tokio::test]
async fn a_guest_whose_agent_was_altered_does_not_start() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let genuine = guest();
    let agent = folder.path().join("agent");
    let mut content = std::fs::read(&genuine.agent).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&agent, content).unwrap();
    let config = SandboxConfig { firmware: false, ..SandboxConfig::new(GuestImage { agent, ..genuine }) };

    let error = Sandbox::start(config).await.unwrap_err();

    let Error::Died(reason) = &error else { panic!("{error}") };
    assert!(reason.console.contains("not the agent that was measured"), "{error}");
    assert_eq!(runtime_folders(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_guest_that_never_answers_is_given_up_with_its_last_words_and_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd.cpio");
    std::fs::write(&initrd, [0; 512]).unwrap();
    // Its kernel panics, and stays as it is.
    let guest = GuestImage { initrd, cmdline: "console=ttyS0 panic=0".into(), ..guest() };
    let start_limit = Duration::from_secs(10);
    let config = SandboxConfig {
        firmware: false,
        accelerator: Accelerator::Tcg,
        start_limit,
        ..SandboxConfig::new(guest)
    };

    let error = Sandbox::start(config).await.unwrap_err();

    let Error::NotReady { limit, stage, console } = &error else { panic!("{error}") };
    assert_eq!((*limit, stage.as_str()), (start_limit, "the guest writes to its console"), "{error}");
    assert!(!console.is_empty(), "{error}");
    assert_eq!(runtime_folders(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_pod_whose_machine_hangs_or_ends_is_told_to_have_failed_and_why() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let config = SandboxConfig {
        firmware: false,
        answer_limit: Duration::from_secs(2),
        ..SandboxConfig::new(guest())
    };
    let mut sandbox = Sandbox::start(config).await.unwrap();
    let qemu = Pid::from_raw(sandbox.pid().cast_signed()).unwrap();
    let early = tokio::time::timeout(Duration::from_secs(3), sandbox.failed()).await;
    assert!(early.is_err(), "a guest that answers: {early:?}");

    kill_process(qemu, Signal::STOP).unwrap();
    let error = sandbox.failed().await;
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    assert!(error.to_string().contains("no answer to Info within 2s"), "{error}");

    kill_process(qemu, Signal::KILL).unwrap();
    let error = sandbox.failed().await;
    let Error::Ended(reason) = &error else { panic!("{error}") };
    assert!(matches!(reason.ending, Ending::Failed { .. }), "{error}");
    assert!(!reason.console.is_empty(), "{error}");
    drop(sandbox);
    assert_eq!(runtime_folders(), Vec::<PathBuf>::new());
}
