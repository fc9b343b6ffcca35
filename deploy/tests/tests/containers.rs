//! The Containerfiles: what they name is there, and no image runs as root. `images.rs` builds them.

use std::path::Path;
use std::process::Command;

use sealpod_deploy_tests::{repository, run, text};
use serde_json::Value;

const FILES: [&str; 2] = ["deploy/containers/kbs.Containerfile", "deploy/containers/node.Containerfile"];

/// The instructions, each with its arguments; continued lines are joined, comments left out.
fn instructions(file: &str) -> Vec<(String, String)> {
    let text = text(file);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let instructions = joined.lines().filter(|line| !line.trim().is_empty());
    instructions
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{file}: {line:?}"));
            (word.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect()
}

fn all(file: &str, word: &str) -> Vec<String> {
    instructions(file).into_iter().filter(|(it, _)| it == word).map(|(_, rest)| rest).collect()
}

#[test]
fn bases_are_pinned_and_named_in_full() {
    for file in FILES {
        let bases = all(file, "FROM");
        assert_eq!(bases.len(), 2, "{file}: a stage that builds, and one that is shipped");
        for base in bases {
            let image = base.split(' ').next().unwrap();
            let (name, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{file}: {image} has no tag"));
            assert!(name.starts_with("docker.io/library/"), "{file}: {name}");
            assert!(tag.contains('.'), "{file}: {image} is a tag that moves from release to release");
        }
    }
}

#[test]
fn the_compiler_is_the_repositorys() {
    let toolchain = text("rust-toolchain.toml");
    let channel =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    for file in FILES {
        let build = &all(file, "FROM")[0];
        assert!(build.starts_with(&format!("docker.io/library/rust:{channel}-")), "{file}: {build}");
        // The base image has only what compiling takes; rustup would fetch the rest that the file asks for.
        assert_eq!(all(file, "ENV"), ["RUSTUP_TOOLCHAIN=$RUST_VERSION"], "{file}");
    }
}

#[test]
fn no_image_runs_as_root() {
    for file in FILES {
        assert_eq!(all(file, "USER"), ["65532:65532"], "{file}");
    }
}

#[test]
fn what_is_built_and_copied_is_in_the_repository() {
    let output = run(Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository()));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages: Vec<_> =
        metadata["packages"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for file in FILES {
        let commands = all(file, "RUN").join(" ");
        let words: Vec<_> = commands.split(' ').collect();
        let named: Vec<_> =
            words.windows(2).filter(|pair| pair[0] == "--package").map(|pair| pair[1]).collect();
        assert!(!named.is_empty(), "{file}");
        for package in named {
            assert!(packages.contains(&package), "{file}: there is no package {package}");
        }
        for copy in all(file, "COPY").iter().filter(|it| !it.contains("--from=") && !it.starts_with(". ")) {
            let source = copy.split(' ').find(|word| !word.starts_with("--")).unwrap();
            assert!(repository().join(source).exists(), "{file}: there is no {source}");
        }
    }
}

#[test]
fn the_image_starts_what_the_chart_expects() {
    let [kbs, node] = FILES;
    assert_eq!(all(kbs, "ENTRYPOINT"), [r#"["/usr/local/bin/sealpod-kbs"]"#]);
    assert!(text("deploy/helm/sealpod/templates/broker.yaml").contains("/etc/sealpod-kbs/config/kbs.toml"));
    assert!(all(kbs, "CMD")[0].contains("/etc/sealpod-kbs/config/kbs.toml"));
    let script = "/usr/local/bin/sealpod-node";
    assert_eq!(all(node, "ENTRYPOINT"), [format!(r#"["{script}"]"#)]);
    assert!(text("deploy/helm/sealpod/templates/node-installer.yaml").contains(script));
    assert!(all(node, "COPY").iter().any(|copy| copy.ends_with(script)));
}

#[test]
fn builds_leave_no_trace_in_images() {
    let ignored = text(".containerignore");
    assert_eq!(ignored, text(".dockerignore"), "both engines ignore the same");
    for folder in ["/target", "/.git"] {
        assert!(ignored.lines().any(|line| line == folder), "{folder}");
    }
}

#[test]
fn scripts_are_clean() {
    for script in ["deploy/containers/sealpod-node", "deploy/helm/render.sh", "deploy/selinux/link.sh"] {
        let path = repository().join(script);
        assert!(Path::new(&path).is_file());
        let output = run(Command::new("shellcheck").arg(&path));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
