//! A container's file system: the image's layers under a layer of its own.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags, XattrFlags, getxattr, listxattr, mkdirat, openat2, setxattr};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::parts;

/// Where a container's files are.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// The bundle of the OCI runtime, and all that follows.
    pub(super) bundle: PathBuf,
    /// What the container sees as `/`.
    pub(super) root: PathBuf,
    /// The container's own copies of `/etc/hosts` and its like.
    pub(super) etc: PathBuf,
    /// The console socket of its process.
    pub(super) console: PathBuf,
    /// Where parts of volumes, and volumes with others inside them, are mounted for it.
    pub(super) parts: PathBuf,
    /// Its cgroup.
    pub(super) cgroup: PathBuf,
}

/// The files in `/etc` that the guest makes for each container.
pub(super) const ETC: [&str; 3] = ["resolv.conf", "hosts", "hostname"];
/// The OCI runtime's own records of containers.
pub(super) const RUNTIME: &str = "/run/sealpod/runtime";
/// The parent of all containers' cgroups, as a cgroup path.
pub(super) const CGROUP: &str = "/sealpod";
/// Where control groups are mounted.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";
/// The folder of the group that holds those of all containers.
pub(crate) const POD_CGROUP: &str = "/sys/fs/cgroup/sealpod";
const CONTAINERS: &str = "/run/sealpod/containers";
const PARTS: &str = "/run/sealpod/parts";

impl Folders {
    /// Those of the container `id`, which must have been checked.
    pub(super) fn of(id: &str) -> Self {
        let bundle = Path::new(CONTAINERS).join(id);
        Self {
            root: bundle.join("rootfs"),
            etc: bundle.join("etc"),
            console: bundle.join("console.sock"),
            parts: Path::new(PARTS).join(id),
            cgroup: Path::new(CGROUPS).join(CGROUP.trim_start_matches('/')).join(id),
            bundle,
        }
    }

    /// A path for an exec's console socket: its own for each, and short, as sockets' names must be.
    pub(super) fn exec_console(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.bundle.join(format!("{}.sock", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Mounts the root file system of a container from the unpacked layers, lowest first.
    ///
    /// Changes the working directory: the kernel takes at most a page of options, so layers go by short
    /// relative names.
    pub(super) fn mount_root(&self, layers: &[PathBuf]) -> io::Result<()> {
        for folder in ["layers", "upper", "work", "rootfs"] {
            fs::create_dir_all(self.bundle.join(folder))?;
        }
        // What overlayfs shows of the root itself is the container's own layer's.
        if let Some(uppermost) = layers.last() {
            copy_attributes(uppermost, &self.bundle.join("upper"))?;
        }
        let folder = self.bundle.join("layers");
        if layers.is_empty() {
            fs::create_dir(folder.join("0"))?;
        }
        for (number, layer) in layers.iter().enumerate() {
            symlink(layer, folder.join(number.to_string()))?;
        }
        std::env::set_current_dir(&folder)?;
        let options = overlay_options(layers.len().max(1));
        let options = CString::new(options).map_err(io::Error::other)?;
        // No devices from an image: nothing else keeps a container from the guest's TPM or console.
        mount("overlay", &self.root, "overlay", MountFlags::NODEV, options.as_c_str())?;
        Ok(())
    }

    /// Removes all that is left of a container whose processes have ended.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        match unmount(&self.root, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => (),
            Err(error) => return Err(error.into()),
        }
        parts::remove(&self.parts)?;
        for folder in [self.bundle.clone(), Path::new(RUNTIME).join(id)] {
            not_found_is_fine(fs::remove_dir_all(folder))?;
        }
        not_found_is_fine(fs::remove_dir(&self.cgroup))
    }
}

/// Gives a folder the owner, the mode and the extended attributes of another; what is overlayfs's own stays away.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    std::os::unix::fs::chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, metadata.permissions())?;
    let mut names = vec![0; listxattr(from, &mut [0u8; 0])?];
    let length = listxattr(from, names.as_mut_slice())?;
    names.truncate(length);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut value = vec![0; getxattr(from, &name, &mut [0u8; 0])?];
        let length = getxattr(from, &name, value.as_mut_slice())?;
        value.truncate(length);
        setxattr(to, &name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

fn not_found_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Overlay wants the uppermost layer first.
fn overlay_options(layers: usize) -> String {
    let names: Vec<_> = (0..layers).rev().map(|number| number.to_string()).collect();
    format!("lowerdir={},upperdir=../upper,workdir=../work", names.join(":"))
}

/// Creates a folder of the container with its parents, never outside of its root.
pub(super) fn create_folder(root: &Path, folder: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut path = PathBuf::from(".");
    let mut parent = openat2(&root, &path, flags, Mode::empty(), inside)?;
    for component in folder.components() {
        let Component::Normal(name) = component else { continue };
        path.push(name);
        match openat2(&root, &path, flags, Mode::empty(), inside) {
            Ok(found) => parent = found,
            Err(Errno::NOENT) => {
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                parent = openat2(&root, &path, flags, Mode::empty(), inside)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_sockets_path_is_not_too_long_for_the_ids_that_engines_make() {
        let folders = Folders::of(&"a".repeat(64));
        let (one, other) = (folders.exec_console(), folders.exec_console());
        assert_ne!(one, other);
        for path in [one, other, folders.console] {
            assert!(path.as_os_str().len() < 108, "{path:?}");
        }
    }

    #[test]
    fn the_uppermost_layer_comes_first() {
        assert_eq!(overlay_options(3), "lowerdir=2:1:0,upperdir=../upper,workdir=../work");
    }

    #[test]
    fn as_many_layers_as_overlayfs_takes_fit_into_a_page() {
        assert!(overlay_options(500).len() < 4096);
    }

    #[test]
    fn the_root_itself_is_as_the_image_says() {
        let (layer, upper) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(layer.path(), PermissionsExt::from_mode(0o1751)).unwrap();
        copy_attributes(layer.path(), upper.path()).unwrap();
        assert_eq!(fs::metadata(upper.path()).unwrap().mode() & 0o7777, 0o1751);
    }

    #[test]
    fn a_working_directory_is_created_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        create_folder(root.path(), Path::new("/a/b/c")).unwrap();
        create_folder(root.path(), Path::new("/a/b/c")).unwrap();
        assert!(root.path().join("a/b/c").is_dir());
    }

    #[test]
    fn a_working_directory_never_leaves_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("link")).unwrap();
        // The link's target does not exist inside the root, so there is nothing to create below it.
        assert!(create_folder(root.path(), Path::new("/link/evil")).is_err());
        create_folder(root.path(), Path::new("/../../up")).unwrap();
        assert!(root.path().join("up").is_dir());
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
    }
}
