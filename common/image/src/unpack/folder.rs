//! Folders of a tree that is being made, found and made without ever leaving it.
//!
//! Every name is resolved by the kernel within the tree (`RESOLVE_IN_ROOT`): a symbolic link of the layer's own, or
//! `..` behind one, leads nowhere else.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A tree's root.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// A folder of the tree, as a place.
#[derive(Debug)]
pub(super) struct Folder {
    descriptor: OwnedFd,
    /// Where it is in the tree, with no symbolic link on the way; empty for the root.
    path: Vec<u8>,
}

impl Root {
    /// Of an existing folder.
    pub(super) fn open(folder: &Path) -> Result<Self, Errno> {
        openat(CWD, folder, PLACE, Mode::empty()).map(Self)
    }

    /// The root itself.
    pub(super) fn folder(&self) -> Result<Folder, Errno> {
        self.resolve(b"")
    }

    /// The folder under a path, behind the tree's own symbolic links too.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Folder, Errno> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let name = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
        match openat2(&self.0, name, PLACE, Mode::empty(), inside | ResolveFlags::NO_SYMLINKS) {
            Ok(descriptor) => Ok(Folder { descriptor, path: path.to_vec() }),
            Err(Errno::LOOP) => {
                let descriptor = openat2(&self.0, name, PLACE, Mode::empty(), inside)?;
                let path = self.path_of(&descriptor)?;
                Ok(Folder { descriptor, path })
            }
            Err(error) => Err(error),
        }
    }

    /// A folder in a folder, as [`Self::resolve`], but without the way from the root where it is not needed.
    pub(super) fn child(&self, parent: &Folder, name: &OsStr) -> Result<Folder, Errno> {
        match parent.own_child(name) {
            Err(Errno::NOTDIR | Errno::LOOP) => self.resolve(&parent.path_of(name)),
            other => other,
        }
    }

    fn path_of(&self, descriptor: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let (root, full) = (kernel_path(&self.0)?, kernel_path(descriptor)?);
        let inside = Path::new(&full).strip_prefix(&root).map_err(|_| Errno::XDEV)?;
        Ok(inside.as_os_str().as_bytes().to_vec())
    }
}

impl Folder {
    /// The path of something in this folder.
    pub(super) fn path_of(&self, name: &OsStr) -> Vec<u8> {
        let separator: &[u8] = if self.path.is_empty() { b"" } else { b"/" };
        [&self.path, separator, name.as_bytes()].concat()
    }

    /// A folder in this one that is no symbolic link.
    pub(super) fn own_child(&self, name: &OsStr) -> Result<Self, Errno> {
        let descriptor = openat(&self.descriptor, name, PLACE | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(Self { descriptor, path: self.path_of(name) })
    }

    /// The same folder, open for more than as a place.
    pub(super) fn reopen(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.descriptor, ".", flags, Mode::empty())
    }

    /// Removes a directory in this folder, with all that is in it.
    pub(super) fn remove_tree(&self, name: &OsStr) -> std::io::Result<()> {
        std::fs::remove_dir_all(proc_path(&self.descriptor).join(name))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn proc_path(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn kernel_path(descriptor: &OwnedFd) -> Result<OsString, Errno> {
    let path = rustix::fs::readlink(proc_path(descriptor), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()))
}
