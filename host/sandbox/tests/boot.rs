//! A real machine with a real kernel: the one test of this crate that boots. Guests with an agent are
//! booted by the tests of the whole.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sealpod_sandbox::{Ending, Error, GuestImage, Network, Observer, Sandbox, SandboxConfig, Stage};

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
