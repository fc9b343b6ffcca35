//! What `sealpod node install` writes, used by a stock containerd: the snapshotter as its unit starts it, and the shim by
//! the path that containerd was told.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use sealpod_node::{Installation, Options, Places, Removal, Status};
use sealpod_tests::node::{connect, cri};
use sealpod_tests::{Service, guest, program};
use tonic::transport::Channel;

/// SHA-256 of the shortest archive: 1024 zeros.
const EMPTY_LAYER: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
const PAUSE: &str = "registry.example/pause:1";

#[tokio::test]
async fn containerd_starts_the_shim_that_was_installed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let places = Places {
        root: None,
        prefix: at("opt"),
        configuration: at("etc/sealpod"),
        units: at("etc/systemd"),
        systemd: at("no-systemd"),
        selinux: at("no-selinux"),
        containerd: at("etc/containerd.toml"),
        containerd_root: None,
        crio: at("etc/crio"),
        data: at("data"),
        runtime: at("run"),
        programs: Vec::new(),
    };
    std::fs::create_dir(at("etc")).unwrap();
    let before = configuration(folder.path());
    std::fs::write(&places.containerd, &before).unwrap();
    let programs = at("from");
    std::fs::create_dir(&programs).unwrap();
    for name in ["sealpod", "containerd-shim-sealpod-v2", "sealpod-snapshotter"] {
        std::fs::copy(program(name), programs.join(name)).unwrap();
    }
    let options = Options {
        places: places.clone(),
        programs,
        guest: guest(),
        images: vec!["registry.example/guest/*".into()],
        containerd_version: None,
        restart: true,
    };
    Installation::plan(&options).unwrap().carry_out(&mut |_| {}).unwrap();

    let mut snapshotter =
        Service::start("the snapshotter", &mut unit_command(&places), &at("snapshotter.log"));
    snapshotter.until(|| std::os::unix::net::UnixStream::connect(places.socket()).ok());
    let mut command = Command::new("containerd");
    command.arg("--config").arg(&places.containerd);
    let mut containerd = Service::start("containerd", &mut command, &at("containerd.log"));
    let ctr = |arguments: &[&str]| {
        let output = Command::new("ctr").arg("--address").arg(at("containerd.sock")).args(arguments).output();
        output.unwrap()
    };
    containerd.until(|| ctr(&["version"]).status.success().then_some(()));

    let status = Status::of(&places).unwrap();
    assert!(status.is_well(), "{status:#?}");
    assert!(Installation::plan(&options).unwrap().is_done());

    pause_image(folder.path());
    let archive = at("pause.tar").display().to_string();
    let imported = ctr(&["--namespace", "k8s.io", "images", "import", "--snapshotter", "sealpod", &archive]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let channel = connect(at("containerd.sock"));
    // CRI hears of images after they are there.
    while !is_known(channel.clone()).await {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let images = image_mountpoint(channel.clone()).await;
    assert_eq!(images.parent(), Some(at("root").as_path()));
    assert_eq!(images.canonicalize().unwrap(), places.snapshots().canonicalize().unwrap());
    let refusal = run_pod(channel).await;
    assert!(refusal.contains("hostNetwork"), "expected the shim's own refusal, got {refusal}");

    drop(containerd);
    drop(snapshotter);
    Removal::plan(&places, false, true, true).unwrap().carry_out(&mut |_| {}).unwrap();
    assert_eq!(std::fs::read_to_string(&places.containerd).unwrap(), before);
    for gone in ["opt", "etc/sealpod", "etc/systemd", "data"] {
        assert!(!at(gone).exists(), "{gone}");
    }
    assert!(!images.is_symlink());
}

/// A containerd of its own.
fn configuration(folder: &Path) -> String {
    let place = folder.display();
    format!(
        r#"version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{place}/containerd.sock" # not the usual one
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
"#
    )
}

/// What systemd would run, with no more rights than it would give.
fn unit_command(places: &Places) -> Command {
    let unit = std::fs::read_to_string(places.units.join("sealpod-snapshotter.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let capabilities = value("CapabilityBoundingSet=").to_lowercase().replace("cap_", "+").replace(' ', ",");
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", &format!("--bounding-set=-all,{capabilities}"), "--"]);
    command.args(value("ExecStart=").split(' '));
    command
}

/// An image with nothing in it, as `docker save` writes it.
fn pause_image(folder: &Path) {
    let write = |name: &str, contents: &[u8]| std::fs::write(folder.join(name), contents).unwrap();
    write("layer.tar", &[0; 1024]);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/pause"]}},"rootfs":{{"type":"layers","diff_ids":["{EMPTY_LAYER}"]}}}}"#
    );
    write("config.json", config.as_bytes());
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{PAUSE}"],"Layers":["layer.tar"]}}]"#);
    write("manifest.json", manifest.as_bytes());
    let mut tar = Command::new("tar");
    tar.current_dir(folder).args(["cf", "pause.tar", "manifest.json", "config.json", "layer.tar"]);
    assert!(tar.status().unwrap().success());
}

/// Whether CRI has the image of pods' sandboxes.
async fn is_known(channel: Channel) -> bool {
    let image = cri::ImageSpec { image: PAUSE.into(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
    let status = ImageServiceClient::new(channel).image_status(request).await;
    status.is_ok_and(|status| status.into_inner().image.is_some())
}

/// Where CRI says that images are.
async fn image_mountpoint(channel: Channel) -> PathBuf {
    let mut client = ImageServiceClient::new(channel);
    let answer = client.image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let [images] = answer.image_filesystems.as_slice() else { panic!("expected one, got {answer:?}") };
    PathBuf::from(&images.fs_id.as_ref().unwrap().mountpoint)
}

/// Asks for a pod that the shim refuses before it would start a VM; gives the refusal.
async fn run_pod(channel: Channel) -> String {
    let namespaces = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() };
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "pod".into(),
            uid: "uid".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: "sealpod".into() };
    let answer = RuntimeServiceClient::new(channel).run_pod_sandbox(request).await;
    answer.expect_err("no VM shares the host's network").message().to_owned()
}
