//! The invariants of ARCHITECTURE.md that the dependency graph can show.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A crate of this workspace: its name, its zone, and the workspace's crates that it depends on.
struct Member {
    name: String,
    zone: String,
    dependencies: Vec<String>,
}

fn members() -> Vec<Member> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let manifest = text(&package["manifest_path"]);
            let inside = Path::new(&manifest).strip_prefix(root).unwrap();
            Member {
                name: text(&package["name"]),
                zone: inside.iter().next().unwrap().to_string_lossy().into_owned(),
                dependencies: package["dependencies"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|dependency| text(&dependency["name"]))
                    .collect(),
            }
        })
        .collect()
}

#[test]
fn zones_depend_on_common_and_on_themselves_only() {
    let members = members();
    let zone_of =
        |name: &str| members.iter().find(|member| member.name == name).map(|member| member.zone.as_str());
    for member in
        members.iter().filter(|member| ["common", "guest", "host", "owner"].contains(&member.zone.as_str()))
    {
        for dependency in &member.dependencies {
            if let Some(zone) = zone_of(dependency) {
                assert!(
                    zone == "common" || zone == member.zone,
                    "{} ({}) depends on {dependency} ({zone})",
                    member.name,
                    member.zone
                );
            }
        }
    }
}

#[test]
fn the_host_cannot_name_a_key() {
    let members = members();
    for host in members.iter().filter(|member| member.zone == "host") {
        let mut reached = vec![host.name.clone()];
        let mut index = 0;
        while let Some(name) = reached.get(index).cloned() {
            index += 1;
            if let Some(member) = members.iter().find(|member| member.name == name) {
                for dependency in &member.dependencies {
                    if !reached.contains(dependency) {
                        reached.push(dependency.clone());
                    }
                }
            }
        }
        assert!(!reached.iter().any(|name| name == "sealpod-ocicrypt"), "{} reaches ocicrypt", host.name);
    }
}

#[test]
fn every_crate_has_a_zone_and_is_named_for_its_folder() {
    for member in members() {
        assert!(
            ["benches", "cli", "common", "deploy", "guest", "host", "owner", "tests"]
                .contains(&member.zone.as_str()),
            "{} is in no zone",
            member.name
        );
        assert!(member.name.starts_with("sealpod-"), "{} is not named sealpod-…", member.name);
    }
}

#[test]
fn the_verifier_has_no_network_clock_file_or_environment() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../owner/verifier/src");
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for word in
                ["std::fs", "std::net", "std::env", "SystemTime::now", "Instant::now", "tokio", "reqwest"]
            {
                assert!(!text.contains(word), "{} uses {word}", path.display());
            }
        }
    }
}
