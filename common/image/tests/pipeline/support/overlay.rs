//! What a container sees of an image: its layers, mounted as the guest mounts them.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A mounted image; unmounted when dropped.
pub(crate) struct Merged {
    folder: TempDir,
}

impl Merged {
    /// Of layers, lowest first.
    pub(crate) fn of(layers: &[PathBuf]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
        let place = folder.path().to_str().unwrap();
        let options = format!("lowerdir={},upperdir={place}/upper,workdir={place}/work", lower.join(":"));
        let options = CString::new(options).unwrap();
        mount("overlay", folder.path().join("merged"), "overlay", MountFlags::empty(), options.as_c_str())
            .expect("overlayfs is needed for this test");
        Self { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("merged")
    }

    pub(crate) fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}
