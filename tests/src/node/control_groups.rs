//! The control groups of this program's pods: all are in one, in each hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::namespaces;

const ROOT: &str = "/sys/fs/cgroup";

/// A pod's own, as kubelet makes it for a pod whose containers have limits. It goes with this.
#[derive(Debug)]
pub struct Limited {
    name: String,
}

impl Limited {
    /// One that allows so much memory.
    ///
    /// # Panics
    ///
    /// Where the kernel makes none.
    pub fn to_memory(name: &str, bytes: u64) -> Self {
        let limited = Self { name: format!("pod-{name}") };
        let (hierarchy, file) = match Path::new(ROOT).join("memory") {
            version_1 if version_1.is_dir() => (version_1, "memory.limit_in_bytes"),
            _ => (ROOT.into(), "memory.max"),
        };
        let parent = hierarchy.join(own());
        fs::create_dir_all(parent.join(&limited.name)).expect("a control group");
        if file == "memory.max" {
            for folder in [&hierarchy, &parent] {
                fs::write(folder.join("cgroup.subtree_control"), "+memory").expect("a controller");
            }
        }
        fs::write(parent.join(&limited.name).join(file), bytes.to_string()).expect("a limit");
        limited
    }

    /// The most memory that it has held, in bytes.
    ///
    /// # Panics
    ///
    /// Where the kernel does not say.
    pub fn most_memory(&self) -> u64 {
        let files = ["memory.max_usage_in_bytes", "memory.peak"];
        let paths =
            parents().into_iter().flat_map(|parent| files.map(|file| parent.join(&self.name).join(file)));
        let mut texts = paths.filter_map(|path| fs::read_to_string(path).ok());
        texts.next().and_then(|text| text.trim().parse().ok()).expect("the kernel counts it")
    }

    /// CRI's `cgroup_parent`.
    pub fn as_parent(&self) -> String {
        format!("{}/{}", parent(), self.name)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        for folder in parents() {
            let _ = fs::remove_dir(folder.join(&self.name));
        }
    }
}

/// Those of pods, in each hierarchy.
pub fn of_pods() -> Vec<PathBuf> {
    let entries = parents().into_iter().filter_map(|folder| fs::read_dir(folder).ok());
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

/// Puts a process beside the pods, in a control group of its own: it gets as much of the processors as a pod.
///
/// # Panics
///
/// Where it cannot enter.
pub fn put_among_pods(name: &str, process: Pid) {
    // Version 1 has one for processors; version 2 one for everything.
    let hierarchies = [Path::new(ROOT).join("cpu"), ROOT.into()];
    let hierarchy = hierarchies.into_iter().find(|hierarchy| hierarchy.is_dir()).expect("control groups");
    let group = hierarchy.join(own()).join(name);
    fs::create_dir_all(&group).expect("a control group");
    fs::write(group.join("cgroup.procs"), process.as_raw_pid().to_string()).expect("it may enter");
}

/// CRI's `cgroup_parent` of pods that have no limit together.
pub(super) fn parent() -> String {
    format!("/{}", own())
}

/// Removes them, as far as their processes have ended: runc leaves its own to containerd, and whoever is killed leaves all.
pub(super) fn remove_all() {
    parents().iter().for_each(|folder| remove(folder));
}

fn remove(folder: &Path) {
    // Its files are the kernel's.
    let folders = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|path| path.is_dir()).for_each(|folder| remove(&folder));
    let _ = fs::remove_dir(folder);
}

/// Version 2 has one; version 1 one in the folder of each controller.
fn parents() -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([ROOT.into()]).map(|hierarchy| hierarchy.join(own())).collect()
}

fn own() -> String {
    format!("sealpod-tests-{}", namespaces::number())
}
