//! A node in a temporary folder.

// Each test program uses a part of it.
#![allow(dead_code)]

pub(crate) mod running;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sealpod_node::{Error, Installation, Options, Places, Removal};
use tempfile::TempDir;

/// Stands for the node's folder in data files.
const FOLDER: &str = "@";
const GUEST: &str = r#"{"version":2,"kernel":"vmlinuz","initrd":"initrd","agent":"agent","firmware":"CODE.fd",
    "firmware_variables":"VARS.fd","cmdline":"panic=-1","low_memory_mib":256,"machine":"q35"}"#;

pub(crate) struct Node {
    folder: TempDir,
    pub options: Options,
}

impl Node {
    /// One with containerd's own files, no systemd, and programs to install.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let places = Places {
            root: None,
            prefix: at("opt/sealpod"),
            configuration: at("etc/sealpod"),
            units: at("etc/systemd/system"),
            systemd: at("run/systemd/system"),
            selinux: at("selinux/enforce"),
            containerd: at("etc/containerd/config.toml"),
            containerd_root: Some(at("lib/containerd")),
            crio: at("etc/crio"),
            data: at("lib/sealpod"),
            runtime: at("run/sealpod"),
            programs: Vec::new(),
        };
        let options = Options {
            places,
            programs: at("from"),
            guest: at("from/guest"),
            images: vec!["registry.example/confidential/*".into()],
            containerd_version: None,
            restart: true,
        };
        let node = Self { folder, options };
        for name in ["sealpod", "containerd-shim-sealpod-v2", "sealpod-snapshotter"] {
            node.program(&format!("from/{name}"), &format!("#!/bin/sh\necho {name} 0.1.0\n"));
        }
        for (name, text) in [
            ("guest.json", GUEST),
            ("vmlinuz", "k"),
            ("initrd", "i"),
            ("agent", "a"),
            ("CODE.fd", "c"),
            ("VARS.fd", "v"),
        ] {
            node.write(&format!("from/guest/{name}"), text);
        }
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The link at the folder that CRI names for our images, below a root of containerd's.
    pub(crate) fn image_mountpoint(&self, root: &str) -> PathBuf {
        self.path(root).join("io.containerd.snapshotter.v1.sealpod")
    }

    /// Writes a file; `@` in it becomes the node's folder.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let folder = self.folder.path().display().to_string();
        std::fs::write(path, text.replace(FOLDER, &folder)).unwrap();
    }

    pub(crate) fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Files below a folder with their contents, in which the node's folder is `@`. Links are followed.
    pub(crate) fn files(&self, below: &str) -> BTreeMap<String, String> {
        let folder = self.folder.path().display().to_string();
        let files = tree(&self.path(below));
        files.into_iter().map(|(name, text)| (name, text.replace(&folder, FOLDER))).collect()
    }

    pub(crate) fn plan(&self) -> Result<Installation, Error> {
        Installation::plan(&self.options)
    }

    pub(crate) fn install(&self) -> Result<Vec<String>, Error> {
        let mut said = Vec::new();
        self.plan()?.carry_out(&mut |line| said.push(line.to_owned()))?;
        Ok(said)
    }

    pub(crate) fn uninstall(&self) -> Result<Vec<String>, Error> {
        let mut said = Vec::new();
        let removal = Removal::plan(&self.options.places, false, false, true)?;
        removal.carry_out(&mut |line| said.push(line.to_owned()))?;
        Ok(said)
    }
}

/// Files below a folder with their contents.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.exists() {
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            files.insert(name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
        }
    }
    files
}
