//! The pod's control group on the host: QEMU lives in it, so that kubelet's limits and accounts hold.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::Error;

const ROOT: &str = "/sys/fs/cgroup";
/// Where a group's limit is, by version 2 and version 1.
const MEMORY_LIMITS: [&str; 2] = ["memory.max", "memory.limit_in_bytes"];
/// Where a group's processor time is limited, by version 2 and version 1.
const CPU_QUOTAS: [&str; 2] = ["cpu.max", "cpu.cfs_quota_us"];
/// What is in the name of a pod's own group.
const POD: &str = "pod";
/// More than any machine has, in bytes.
const NO_LIMIT: u64 = 1 << 62;

/// The groups of a pod: one for each hierarchy of version 1, one of version 2.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the group that the engine named, where it is missing.
    pub(crate) fn create(named: &Path) -> Result<Self, Error> {
        let relative = relative(named)?;
        let mut cgroup = Self::default();
        for hierarchy in hierarchies(Path::new(ROOT)) {
            let folder = hierarchy.join(&relative);
            make(&hierarchy, &relative)
                .map_err(Error::io(format!("cannot make the control group {}", folder.display())))?;
            cgroup.folders.push(folder);
        }
        Ok(cgroup)
    }

    /// Finds the group that the engine named.
    pub(crate) fn find(named: &Path) -> Self {
        let Ok(relative) = relative(named) else { return Self::default() };
        let folders = hierarchies(Path::new(ROOT)).into_iter().map(|hierarchy| hierarchy.join(&relative));
        Self { folders: folders.filter(|folder| folder.is_dir()).collect() }
    }

    /// To what kubelet limits the memory of the pod as a whole, in bytes, as it does where each container has a limit.
    pub(crate) fn pods_memory_limit(&self) -> Option<u64> {
        // Version 2 says "max" where there is none; version 1 the largest number of pages.
        self.pods_limits(MEMORY_LIMITS).find(|bytes| *bytes < NO_LIMIT)
    }

    /// Whether kubelet limits the processor time of the pod as a whole.
    pub(crate) fn pods_cpu_is_limited(&self) -> bool {
        // Version 2 says "max 100000" where there is none, version 1 says -1.
        self.pods_limits(CPU_QUOTAS).next().is_some()
    }

    /// The first words of files of the pod's own group, which holds this one, as far as those are numbers.
    ///
    /// It is called `pod` with the UID (kubelet's cgroupfs driver), or a slice so (systemd); any other one is not one pod's.
    fn pods_limits(&self, files: [&'static str; 2]) -> impl Iterator<Item = u64> {
        let is_pods =
            |folder: &&Path| folder.file_name().is_some_and(|name| name.to_string_lossy().contains(POD));
        let pods = self.folders.iter().filter_map(|folder| folder.parent()).filter(is_pods);
        let texts = pods.flat_map(move |pod| files.map(|file| fs::read_to_string(pod.join(file))));
        texts.flatten().filter_map(|text| text.split_whitespace().next()?.parse().ok())
    }

    /// The files that take a process's id.
    pub(crate) fn procs(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join("cgroup.procs")).collect()
    }

    /// Removes the group; its processes must have ended.
    pub(crate) fn remove(&self) {
        for folder in &self.folders {
            if let Err(error) = fs::remove_dir(folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove the pod's control group");
            }
        }
    }
}

/// Version 2 has one; version 1 (and the mixture of both) a folder for each controller.
fn hierarchies(root: &Path) -> Vec<PathBuf> {
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut folders: Vec<_> = entries
        .flatten()
        // Links are other names of the same (`cpu` of `cpu,cpuacct`).
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|folder| folder.join("cgroup.procs").exists())
        .collect();
    folders.sort();
    folders
}

/// The path below a hierarchy: as it is, or put together from systemd's `slice:prefix:name`.
fn relative(named: &Path) -> Result<PathBuf, Error> {
    let text = named.to_string_lossy();
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => {
            let mut path = PathBuf::new();
            // `a-b-c.slice` lies in `a.slice/a-b.slice`.
            let stem = slice.strip_suffix(".slice").unwrap_or(slice);
            let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
            for end in ends.filter(|end| *end > 0) {
                path.push(format!("{}.slice", &stem[..end]));
            }
            path.push(format!("{prefix}-{name}.scope"));
            path
        }
        _ => named.strip_prefix("/").unwrap_or(named).to_owned(),
    };
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    match plain && path.components().next().is_some() {
        true => Ok(path),
        false => Err(Error::Invalid(format!("{text:?} is no control group"))),
    }
}

fn make(hierarchy: &Path, relative: &Path) -> io::Result<()> {
    let mut folder = hierarchy.to_owned();
    for name in relative.components() {
        let parent = folder.clone();
        folder.push(name);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        // Version 1: a new cpuset has neither processors nor memory, and takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(value), true) = (fs::read_to_string(parent.join(file)), !hierarchy.ends_with("cgroup"))
            {
                fs::write(folder.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_name_a_group_are_understood() {
        let path = |named: &str| relative(Path::new(named)).unwrap();
        assert_eq!(path("/kubepods/burstable/pod1/abc"), Path::new("kubepods/burstable/pod1/abc"));
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            Path::new(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
            )
        );
        for named in ["", "/", "/../x", "a/../../b"] {
            assert!(relative(Path::new(named)).is_err(), "{named:?}");
        }
    }

    #[test]
    fn a_limit_of_the_pods_processor_time_is_seen() {
        let folder = tempfile::Builder::new().prefix("pod").tempdir().unwrap();
        let cgroup = Cgroup { folders: vec![folder.path().join("4f2a")] };
        for (file, none, some) in
            [("cpu.max", "max 100000\n", "50000 100000\n"), ("cpu.cfs_quota_us", "-1\n", "50000\n")]
        {
            fs::write(folder.path().join(file), none).unwrap();
            assert!(!cgroup.pods_cpu_is_limited(), "{file}");
            fs::write(folder.path().join(file), some).unwrap();
            assert!(cgroup.pods_cpu_is_limited(), "{file}");
            fs::remove_file(folder.path().join(file)).unwrap();
        }
    }

    #[test]
    fn a_limit_of_the_pods_memory_is_seen() {
        let folder = tempfile::Builder::new().prefix("pod").tempdir().unwrap();
        let cgroup = Cgroup { folders: vec![folder.path().join("4f2a")] };
        assert_eq!(cgroup.pods_memory_limit(), None);
        for (file, none, some) in [
            ("memory.max", "max\n", "1048576\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n", "1048576\n"),
        ] {
            fs::write(folder.path().join(file), none).unwrap();
            assert_eq!(cgroup.pods_memory_limit(), None, "{file}");
            fs::write(folder.path().join(file), some).unwrap();
            assert_eq!(cgroup.pods_memory_limit(), Some(1 << 20), "{file}");
            let shared = folder.path().join("4f2a/9e1b");
            std::fs::create_dir_all(shared.parent().unwrap()).unwrap();
            std::fs::write(folder.path().join("4f2a").join(file), some).unwrap();
            assert_eq!(Cgroup { folders: vec![shared] }.pods_memory_limit(), None, "not a pod's");
            fs::remove_file(folder.path().join(file)).unwrap();
        }
    }

    #[test]
    fn a_group_is_made_with_what_its_parent_has() {
        let root = tempfile::tempdir().unwrap();
        let cpuset = root.path().join("cpuset");
        fs::create_dir(&cpuset).unwrap();
        for (file, text) in [("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n"), ("cgroup.procs", "")] {
            fs::write(cpuset.join(file), text).unwrap();
        }
        assert_eq!(hierarchies(root.path()), std::slice::from_ref(&cpuset));
        make(&cpuset, Path::new("a/b")).unwrap();
        assert_eq!(fs::read_to_string(cpuset.join("a/b/cpuset.cpus")).unwrap(), "0-1");
    }
}
