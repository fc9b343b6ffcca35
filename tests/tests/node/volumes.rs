//! Volumes as kubelet prepares them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sealpod_tests::Node;
use sealpod_tests::node::cri;

use crate::world::World;

/// Where kubelet would keep a volume of a pod.
fn kubelets(node: &Node, plugin: &str, name: &str) -> PathBuf {
    let folder = node.path("kubelet/pods/0a1b/volumes").join(format!("kubernetes.io~{plugin}")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// As kubelet writes: a folder for each version, and a link that moves.
fn write(volume: &Path, version: &str, files: &[(&str, &str)]) {
    let data = volume.join(format!("..{version}"));
    std::fs::create_dir(&data).unwrap();
    for (name, text) in files {
        std::fs::write(data.join(name), text).unwrap();
        let _ = symlink(Path::new("..data").join(name), volume.join(name));
    }
    symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

fn mount(container_path: &str, host_path: &Path, readonly: bool) -> cri::Mount {
    let host_path = host_path.display().to_string();
    cri::Mount { container_path: container_path.into(), host_path, readonly, ..Default::default() }
}

pub(crate) async fn files_of_the_host_arrive_and_are_updated(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let settings = kubelets(&node, "configmap", "settings");
    write(&settings, "1", &[("colour", "green"), ("other", "x")]);
    let hosts = node.path("kubelet/pods/0a1b/etc-hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n192.0.2.7 database\n").unwrap();
    let script = "cat /etc/settings/colour /single; grep -c database /etc/hosts; touch /etc/settings/x 2>&1
        until grep -q red /etc/settings/colour; do sleep 0.1; done; ls /etc/settings; cat /single";
    let mut config = node.container_config("files", &world.image(), script);
    let subpath = node.path("kubelet/pods/0a1b/volume-subpaths/settings/files/0");
    std::fs::create_dir_all(subpath.parent().unwrap()).unwrap();
    std::fs::write(&subpath, "one file\n").unwrap();
    config.mounts = vec![
        mount("/etc/settings", &settings, true),
        mount("/single", &subpath, true),
        mount("/etc/hosts", &hosts, false),
    ];
    let id = node.spawn(&pod, config).await;
    let log = node.status(&id).await.log_path;
    let lines =
        || sealpod_tests::node::log_lines(log.as_ref()).into_iter().map(|line| line.text).collect::<Vec<_>>();
    node.until("the first words", async || (lines().len() >= 3).then_some(())).await;
    write(&settings, "2", &[("colour", "red\n")]);
    assert_eq!(node.ended(&id).await.exit_code, 0);
    let lines = lines();
    assert_eq!(lines[..2], ["greenone file", "1"]);
    assert!(lines[2].contains("Read-only file system"), "{lines:?}");
    assert_eq!(lines[3..], ["colour", "one file"]);
}

pub(crate) async fn empty_volumes_are_shared_and_bounded(world: &World) {
    let node = world.node().await;
    let pod = world.pod(&node).await;
    let cache = kubelets(&node, "empty-dir", "cache");
    let log = node.path("kubelet/pods/0a1b/containers/writer/4f2a");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(&log, "").unwrap();
    let mut writer = node.container_config(
        "writer",
        &world.image(),
        "id -u; echo note > /cache/note; echo last words > /dev/termination-log",
    );
    writer.mounts = vec![mount("/cache", &cache, false), mount("/dev/termination-log", &log, false)];
    writer.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_user =
        Some(cri::Int64Value { value: 4000 });
    let (status, lines) = node.run(&pod, writer).await;
    assert_eq!(status.exit_code, 0, "{lines:?}");
    let mut reader = node.container_config("reader", &world.image(), "cat /seen/note; touch /seen/x 2>&1");
    reader.mounts = vec![mount("/seen", &cache, true)];
    let (_, lines) = node.run(&pod, reader).await;
    assert!(lines[0].text == "note" && lines[1].text.contains("Read-only"), "{lines:?}");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0, "nothing of it is on the host");
}
