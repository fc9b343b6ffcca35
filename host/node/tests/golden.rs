//! containerd's configuration before and after, from `tests/data`. `UPDATE=1 cargo test` writes what is expected.

mod support;

use std::path::{Path, PathBuf};

use support::{Node, tree};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn cases(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut cases: Vec<_> =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path())).collect();
    cases.retain(|(name, _)| name != "refused");
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// A node with a case's files, for the version of containerd that begins the case's name.
fn node(name: &str, before: &Path) -> Node {
    let mut node = Node::new();
    for (file, text) in tree(before).iter().filter(|(file, _)| file.ends_with(".toml")) {
        node.write(&format!("etc/containerd/{file}"), text);
    }
    // The one that is installed checks the configurations that are for it.
    node.options.containerd_version = Some(name.split('-').next().unwrap().into());
    node
}

#[test]
fn each_configuration_becomes_what_is_expected_and_itself_again() {
    for (name, case) in cases(&data()) {
        let node = node(&name, &case.join("before"));
        let before = node.files("etc/containerd");
        node.install().unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut after = node.files("etc/containerd");
        after.retain(|file, _| file.ends_with(".toml"));
        if std::env::var_os("UPDATE").is_some() {
            for (file, text) in &after {
                let path = case.join("after").join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
        }
        for (file, expected) in tree(&case.join("after")) {
            assert_eq!(after.get(&file), Some(&expected), "{name}: {file}");
        }
        assert_eq!(after.len(), tree(&case.join("after")).len(), "{name}: {:?}", after.keys());

        let again = node.plan().unwrap();
        assert!(again.is_done(), "{name}: {:#?}", again.lines());
        node.uninstall().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(node.files("etc/containerd"), before, "{name} is as it was");
    }
}

#[test]
fn what_cannot_be_edited_is_refused_and_left_alone() {
    for (name, case) in cases(&data().join("refused")) {
        let node = node(&name, &case);
        let before = node.files("");
        let error = node.install().expect_err(&name);
        let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap();
        assert!(error.to_string().contains(expected.trim()), "{name}: {error}");
        assert!(error.hint().is_some(), "{name}");
        assert_eq!(node.files(""), before, "{name}");
    }
}

#[test]
fn what_others_added_since_stays_when_ours_goes() {
    for (name, case) in cases(&data()) {
        let node = node(&name, &case.join("before"));
        node.install().unwrap();
        let edited: Vec<_> = node
            .files("etc/containerd")
            .into_keys()
            .filter_map(|file| file.strip_suffix(".before-sealpod").map(str::to_owned))
            .collect();
        for file in &edited {
            let path = format!("etc/containerd/{file}");
            let text = node.read(&path);
            node.write(&path, &format!("{text}\n# theirs\n[debug]\nlevel = \"debug\"\n"));
        }
        assert!(node.plan().unwrap().is_done(), "{name}: an edit by others needs no new one");
        node.uninstall().unwrap();
        for file in edited {
            let text = node.read(&format!("etc/containerd/{file}"));
            assert!(text.ends_with("\n# theirs\n[debug]\nlevel = \"debug\"\n"), "{name}: {text}");
            assert!(!text.contains("sealpod"), "{name}: {text}");
            let table: toml::Table = text.parse().unwrap();
            let before = std::fs::read_to_string(case.join("before").join(&file)).unwrap_or_default();
            let folder = node.path("").display().to_string();
            let mut expected: toml::Table =
                before.replace('@', folder.trim_end_matches('/')).parse().unwrap();
            expected.insert("debug".into(), "level = \"debug\"".parse::<toml::Table>().unwrap().into());
            assert_eq!(table, expected, "{name}");
        }
    }
}
