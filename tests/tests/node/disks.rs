//! Disks of a cluster's: raw block volumes, and volumes of CSI drivers that leave it to the runtime to mount them.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use sealpod_tests::Node;
use sealpod_tests::node::{LogLine, NodePod, cri};

use crate::volumes::Part;
use crate::world::World;

/// Where drivers say what there is to mount.
const DIRECT_VOLUMES: &str = "/run/kata-containers/shared/direct-volumes";

fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A file as a block device of this machine's.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn file(node: &Node, name: &str, bytes: u64) -> PathBuf {
    let path = node.path(name);
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn text(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

pub(crate) async fn a_raw_block_volume_is_a_device_of_the_container(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let file = file(&node, "block", 8 << 20);
    let device = Loop::over(&file);
    let devices = |device: &Loop, permissions: &str| {
        vec![cri::Device {
            container_path: "/dev/data".into(),
            host_path: device.0.clone(),
            permissions: permissions.into(),
        }]
    };
    let script = "[ -b /dev/data ] && echo words | dd of=/dev/data conv=fsync 2> /dev/null && echo written";
    let mut writer = node.container_config("block-writer", &world.image(), script);
    writer.devices = devices(&device, "mrw");
    let (status, lines) = node.run(&pod, writer).await;
    assert_eq!((status.exit_code, text(&lines)), (0, vec!["written"]));
    assert!(std::fs::read(&file).unwrap().starts_with(b"words\n"), "the volume has what was written");
    let mut again = node.container_config("block-again", &world.image(), "true");
    again.devices = devices(&device, "mr");
    let why = refusal(&node, &pod, again).await;
    assert!(why.contains("not with the same access"), "{why}");
    let copy = node.path("block-copy");
    std::fs::copy(&file, &copy).unwrap();
    let device = Loop::over(&copy);
    let script = "head -c 6 /dev/data; echo x | dd of=/dev/data conv=fsync 2> /dev/null || echo read-only";
    let mut reader = node.container_config("block-reader", &world.image(), script);
    reader.devices = devices(&device, "mr");
    let (_, lines) = node.run(&pod, reader).await;
    assert_eq!(text(&lines), ["words", "read-only"]);
}

pub(crate) async fn a_csi_volume_is_mounted_in_the_guest_and_left_clean(world: &World) {
    let node = world.node().await;
    let image = file(&node, "volume.ext4", 16 << 20);
    let content = node.path("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("old"), "from before\n").unwrap();
    run("mkfs.ext4", &["-q", "-d", content.to_str().unwrap(), image.to_str().unwrap()]);
    let place = place(&node, "csi", "pvc-1");
    let info = Path::new(DIRECT_VOLUMES).join(URL_SAFE.encode(place.to_str().unwrap()));
    std::fs::create_dir_all(&info).unwrap();
    let json = format!(
        r#"{{"volume-type": "block", "device": {image:?}, "fstype": "ext4", "metadata": {{"fsGroup": "70"}}, "options": ["rw"]}}"#
    );
    std::fs::write(info.join("mountInfo.json"), json).unwrap();

    node.pull(&world.image()).await;
    let pod = node.run_pod("csi", &world.init_data()).await;
    let mount = |readonly| {
        let host_path = place.display().to_string();
        vec![cri::Mount { container_path: "/db".into(), host_path, readonly, ..Default::default() }]
    };
    let script = "cat /db/old; id -G; echo new > /db/new; stat -c %g /db/new; sleep 1000";
    let mut writer = node.container_config("writer", &world.image(), script);
    writer.mounts = mount(false);
    let security = writer.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.run_as_user = Some(cri::Int64Value { value: 4000 });
    security.supplemental_groups = vec![70];
    let id = node.spawn(&pod, writer).await;
    let mut reader = node.container_config(
        "reader",
        &world.image(),
        "until cat /db/new; do sleep 0.1; done 2> /dev/null; touch /db/x 2> /dev/null || echo read-only",
    );
    reader.mounts = mount(true);
    let (_, lines) = node.run(&pod, reader).await;
    assert_eq!(text(&lines), ["new", "read-only"]);
    let log = node.status(&id).await.log_path;
    let lines = node
        .until("its last words", async || {
            let lines = sealpod_tests::node::log_lines(log.as_ref());
            (lines.len() == 3).then_some(lines)
        })
        .await;
    assert_eq!(text(&lines), ["from before", "0 70", "70"]);
    // A folder of it, which kubelet makes where nothing is mounted.
    let part = Part::of(&place.join("made/deep"), node.kubelets("csi", "volume-subpaths/pvc-1/part/0"));
    let mut config = node.container_config("part", &world.image(), "echo part > /part/file; ls /part");
    let host_path = part.0.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/part".into(), host_path, ..Default::default() }];
    let (_, lines) = node.run(&pod, config).await;
    assert_eq!(text(&lines), ["file"]);
    node.remove(&pod).await;
    let image = image.to_str().unwrap();
    assert_eq!(run("debugfs", &["-R", "cat /new", image]), "new\n");
    assert_eq!(run("debugfs", &["-R", "cat /made/deep/file", image]), "part\n");
    run("e2fsck", &["-f", "-n", image]);
    let header = run("dumpe2fs", &["-h", image]);
    assert!(!header.contains("needs_recovery"), "its journal is empty: {header}");
}

pub(crate) async fn a_volume_that_is_mounted_on_the_host_is_refused(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let place = place(&node, pod.name(), "pvc-2");
    let mut config = node.container_config("mounted", &world.image(), "true");
    let host_path = place.display().to_string();
    config.mounts = vec![cri::Mount { container_path: "/db".into(), host_path, ..Default::default() }];
    let why = refusal(&node, &pod, config).await;
    assert!(why.contains("pvc-2") && why.contains("volumeMode: Block"), "{why}");
}

/// Why a container does not start. The engine asks for it when it is to.
async fn refusal(node: &Node, pod: &NodePod, config: cri::ContainerConfig) -> String {
    let id = node.try_create(pod, config).await.unwrap();
    node.try_start(&id).await.unwrap_err().message().to_owned()
}

/// Where kubelet would have a driver mount a volume.
fn place(node: &Node, pod: &str, name: &str) -> PathBuf {
    let place = node.kubelets(pod, &format!("volumes/kubernetes.io~csi/{name}/mount"));
    std::fs::create_dir_all(&place).unwrap();
    place
}
