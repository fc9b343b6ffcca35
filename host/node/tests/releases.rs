//! Newer releases of containerd than the distribution has, which `make containerds` fetches: each reads what the installer
//! writes for it.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use sealpod_node::{Error, Places, Status};
use support::running::{CONFIGURATION, Running};
use support::{Node, tree};

/// A release's folder.
fn release(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/containerd").join(name);
    assert!(folder.join("containerd").is_file(), "there is no containerd {name}: run `make containerds`");
    folder.canonicalize().unwrap()
}

/// A configuration in the newest form of 2.x.
const VERSION_3: &str = r#"version = 3
root = "@/containerd/root"
state = "@/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "@/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "@/cni"
"#;

/// What a release makes of a configuration.
fn dump(folder: &Path, places: &Places) -> toml::Table {
    let output = Command::new(folder.join("containerd"))
        .arg("--config")
        .arg(&places.containerd)
        .args(["config", "dump"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

/// The configurations in the data of `golden.rs` that are for releases of these numbers; some have no file.
fn configurations(major: char) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")).unwrap();
    let cases = entries.map(|entry| entry.unwrap());
    let mut cases: Vec<_> = cases
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path().join("before")))
        .filter(|(name, _)| name.starts_with(major))
        .collect();
    cases.sort();
    assert!(cases.len() > 3);
    cases
}

#[test]
fn each_release_knows_us_by_what_is_written_for_it() {
    for (name, major) in [("1.7", '1'), ("2", '2')] {
        let folder = release(name);
        for (case, before) in configurations(major) {
            let mut node = Node::new();
            for (file, text) in tree(&before) {
                node.write(&format!("etc/containerd/{file}"), &text);
            }
            node.options.places.programs = vec![folder.join("containerd")];
            let places = node.options.places.clone();
            let files = node.files("etc/containerd");
            let said = node.install().unwrap_or_else(|error| panic!("{name}, {case}: {error}")).join("\n");
            assert!(!said.contains("not checked"), "{name}, {case}: {said}");
            knows(&dump(&folder, &places), name, &places);
            assert!(node.plan().unwrap().is_done(), "{name}, {case}");
            node.uninstall().unwrap();
            assert_eq!(node.files("etc/containerd"), files, "{name}, {case}");
        }
    }
}

/// Looks for what pods need in what a release makes of its configuration.
fn knows(dump: &toml::Table, release: &str, places: &Places) {
    let plugins = &dump["plugins"];
    let runtime = match release {
        "1.7" => &plugins["io.containerd.grpc.v1.cri"],
        _ => &plugins["io.containerd.cri.v1.runtime"],
    };
    let runtime = &runtime["containerd"]["runtimes"]["sealpod"];
    assert_eq!(runtime["runtime_type"].as_str(), Some("io.containerd.sealpod.v2"));
    assert_eq!(runtime["runtime_path"].as_str(), places.shim().to_str());
    assert_eq!(runtime["snapshotter"].as_str(), Some("sealpod"));
    assert_eq!(runtime["options"]["ConfigPath"].as_str(), places.shim_configuration().to_str());
    let snapshotter = &dump["proxy_plugins"]["sealpod"];
    assert_eq!(snapshotter["type"].as_str(), Some("snapshot"));
    assert_eq!(snapshotter["address"].as_str(), places.socket().to_str());
    if release == "1.7" {
        return;
    }
    let images = &plugins["io.containerd.cri.v1.images"];
    assert_eq!(images["runtime_platforms"]["sealpod"]["snapshotter"].as_str(), Some("sealpod"));
    assert_eq!(snapshotter["exports"]["enable_remote_snapshot_annotations"].as_str(), Some("true"));
    let unpack = plugins["io.containerd.transfer.v1.local"]["unpack_config"].as_array().unwrap();
    let snapshotters: Vec<_> = unpack.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
    assert!(snapshotters.len() > 1 && snapshotters.last() == Some(&"sealpod"), "{snapshotters:?}");
}

#[test]
fn each_release_runs_with_us_and_without_us_again() {
    for (name, configuration) in [("1.7", CONFIGURATION), ("2", CONFIGURATION), ("2", VERSION_3)] {
        let node = Running::of(&release(name), configuration);
        node.0.install().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(node.restarts(), ["restart sealpod-snapshotter.service", "restart containerd.service"]);
        let is_ok = |line: &str| line.contains(" sealpod ") && line.trim_end().ends_with("ok");
        assert!(node.plugins().lines().any(is_ok), "{name}: {}", node.plugins());
        // The transfer service unpacks for snapshotters that are there only, and CRI uses it.
        let plugins = node.plugins();
        let failed = plugins.lines().filter(|line| line.trim_end().ends_with("error"));
        let failed: Vec<_> =
            failed.filter(|line| line.contains("transfer") || line.contains("cri")).collect();
        assert!(failed.is_empty(), "{name}: {failed:?}\n{}", node.0.read("containerd.log"));
        let status = Status::of(&node.0.options.places).unwrap();
        assert!(status.containerd.as_deref().unwrap().starts_with(name), "{status:?}");
        let part = status.parts.iter().find(|part| part.name == "containerd's configuration").unwrap();
        assert!(part.ok, "{name}: {part:?}");
        // Below the root that the configuration names.
        let mountpoint = node.0.image_mountpoint("containerd/root");
        assert_eq!(std::fs::read_link(&mountpoint).unwrap(), node.0.path("lib/sealpod/snapshots"), "{name}");
        node.0.uninstall().unwrap();
        assert!(!mountpoint.is_symlink(), "{name}");
        assert!(!node.plugins().contains(" sealpod "), "{name}");
        assert_eq!(node.0.files("etc/containerd")["config.toml"], configuration);
    }
}

#[test]
fn what_a_release_refuses_is_taken_back() {
    let node = Running::of(&release("2"), VERSION_3);
    let plan = node.0.plan().unwrap();
    // It comes after containerd was asked.
    node.0.write("etc/containerd/conf.d/broken.toml", "broken");
    let error = plan.carry_out(&mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Service { .. }), "{error}");
    assert!(error.to_string().ends_with("it runs again with the old one"), "{error}");
    assert!(node.plugins().contains("io.containerd.grpc.v1"), "it runs");
    let mut files = node.0.files("etc/containerd");
    assert_eq!(files.remove("conf.d/broken.toml").as_deref(), Some("broken"));
    assert_eq!(files.into_iter().collect::<Vec<_>>(), [("config.toml".into(), VERSION_3.into())]);

    std::fs::remove_file(node.0.path("etc/containerd/conf.d/broken.toml")).unwrap();
    node.0.install().unwrap();
    assert!(node.plugins().contains(" sealpod "));
}

#[test]
fn what_a_release_cannot_read_is_left_alone() {
    for (name, text, expected) in [
        ("1.7", "version = 2\nroot = 7\n", "its present configuration"),
        ("2", "version = 3\nroot = 7\n", "its present configuration"),
        // The folder is imported from now on.
        ("2", "version = 3\n", "the new configuration"),
    ] {
        let mut node = Node::new();
        node.options.places.programs = vec![release(name).join("containerd")];
        node.write("etc/containerd/config.toml", text);
        node.write("etc/containerd/conf.d/not-imported.toml", "broken");
        let before = node.files("");
        let error = node.install().unwrap_err();
        assert!(matches!(&error, Error::Refused { which, .. } if *which == expected), "{name}: {error}");
        assert_eq!(node.files(""), before, "{name}");
    }
}

#[test]
fn files_of_others_are_not_imported_along_with_ours() {
    let mut node = Node::new();
    node.options.places.programs = vec![release("2").join("containerd")];
    node.write("etc/containerd/config.toml", "version = 3\n");
    node.write("etc/containerd/conf.d/not-imported.toml", "version = 3\n[debug]\nlevel = \"debug\"\n");
    let before = node.files("");
    let error = node.install().unwrap_err();
    assert!(
        matches!(&error, Error::Changes(what) if what.starts_with("debug.level would be \"debug\"")),
        "{error}"
    );
    assert_eq!(node.files(""), before);
}
