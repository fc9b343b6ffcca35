//! Parts of volumes (`subPath`): folders inside a volume.
//!
//! Containers write to the volume, or it is a disk whose content is the host's word: what stands there may be a link that
//! leads out of it, now or in a moment. So no link is followed on the way to the folder, and once found it is mounted at
//! a place of its own, which stays that folder whatever becomes of its name.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::umask;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Mounts a folder of a volume, which is made where it is missing. `path` must have been checked: plain names.
pub(super) fn mount(volume: &Path, path: &Path, place: &Path) -> io::Result<()> {
    let folder = open(volume, path)?;
    fs::create_dir_all(place)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&folder, c"", flags)?;
    Ok(move_mount(&tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Unmounts all that is mounted in a folder, and removes that.
pub(super) fn remove(places: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(places) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let place = entry?.path();
        match unmount(&place, UnmountFlags::DETACH) {
            // It was never mounted.
            Ok(()) | Err(Errno::INVAL) => (),
            Err(error) => return Err(error.into()),
        }
        // Not with what is inside: that would be the volume's.
        match fs::symlink_metadata(&place)?.is_dir() {
            true => fs::remove_dir(&place)?,
            false => fs::remove_file(&place)?,
        }
    }
    fs::remove_dir(places)
}

/// What is missing is made with the volume's mode, as kubelet does; a group is passed on by the mode.
fn open(volume: &Path, path: &Path) -> io::Result<OwnedFd> {
    // Not changed afterwards, when the name may be another's. The mask is a thread's own for that.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: this thread ends here, and nothing in it minds a file system context of its own.
            unsafe { unshare_unsafe(UnshareFlags::FS) }?;
            umask(Mode::empty());
            open_here(volume, path)
        });
        made.join().map_err(|_| io::Error::other("the thread ended early"))?
    })
}

fn open_here(volume: &Path, path: &Path) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(fs::metadata(volume)?.mode() & 0o7777);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = rustix::fs::open(volume, flags, Mode::empty())?;
    for name in path.components() {
        let Component::Normal(name) = name else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let inside = |folder: &OwnedFd| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            openat2(folder, name, flags, Mode::empty(), resolve)
        };
        folder = match inside(&folder) {
            Err(Errno::NOENT) => {
                mkdirat(&folder, name, mode)?;
                inside(&folder)?
            }
            other => other?,
        };
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_part_that_is_missing_is_made_like_its_volume() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), PermissionsExt::from_mode(0o2777)).unwrap();
        open(volume.path(), Path::new("a/b")).unwrap();
        let made = fs::metadata(volume.path().join("a/b")).unwrap();
        assert_eq!(made.mode() & 0o7777, 0o2777);
        // What is there stays as it is.
        fs::set_permissions(volume.path().join("a"), PermissionsExt::from_mode(0o711)).unwrap();
        open(volume.path(), Path::new("a/b")).unwrap();
        assert_eq!(fs::metadata(volume.path().join("a")).unwrap().mode() & 0o7777, 0o711);
    }

    #[test]
    fn a_part_never_leaves_its_volume() {
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(volume.path().join("real")).unwrap();
        fs::write(volume.path().join("file"), "").unwrap();
        for (name, target) in
            [("out", outside.path()), ("in", Path::new("real")), ("proc", Path::new("/proc/self/root"))]
        {
            symlink(target, volume.path().join(name)).unwrap();
        }
        for path in ["out", "out/a", "in", "in/a", "proc", "file", "..", "/etc", "real/.."] {
            assert!(open(volume.path(), Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
