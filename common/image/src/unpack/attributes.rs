//! What files have besides their content: owner, mode, times, extended attributes, and overlayfs's own mark.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fgetxattr, flistxattr, fremovexattr, fsetxattr, fstat, futimens, mknodat, utimensat,
};
use rustix::io::Errno;

use super::UnpackError;
use super::archive::Metadata;

const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";
/// As long as the list of a file's attributes may be on Linux, and the value of one.
const MAX_ATTRIBUTE_LENGTH: usize = 64 * 1024;
/// Directories that no layer describes are like this.
const IMPLIED_MODE: u32 = 0o755;

impl Metadata {
    /// Of a directory that no layer describes.
    pub(super) fn implied() -> Self {
        Self { mode: IMPLIED_MODE, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

/// Owner before mode, for a change of the owner takes set-user-id away; the time last of all.
pub(super) fn apply(file: &OwnedFd, metadata: &Metadata, path: &[u8]) -> Result<(), UnpackError> {
    let io = |error: Errno| UnpackError::io(path, error);
    fchown(file, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid))).map_err(io)?;
    fchmod(file, Mode::from_raw_mode(metadata.mode)).map_err(io)?;
    set_extended(file, &metadata.xattrs, path)?;
    futimens(file, &times(metadata)).map_err(io)
}

/// Gives extended attributes that a layer has.
pub(super) fn set_extended(
    file: &OwnedFd,
    attributes: &[(Vec<u8>, Vec<u8>)],
    path: &[u8],
) -> Result<(), UnpackError> {
    for (name, value) in attributes {
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            return Err(UnpackError::refused(path, "with an attribute that is the file system's own"));
        }
        match fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A tmpfs keeps no attributes of users; nothing that runs relies on them for safety.
            Err(Errno::NOTSUP) if name.starts_with(b"user.") => {}
            Err(error) => return Err(UnpackError::io(path, error)),
        }
    }
    Ok(())
}

/// Takes extended attributes away, but for overlayfs's own.
pub(super) fn remove_extended(file: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
    for name in extended(file).map_err(|error| UnpackError::io(path, error))? {
        fremovexattr(file, OsStr::from_bytes(&name)).map_err(|error| UnpackError::io(path, error))?;
    }
    Ok(())
}

/// For what cannot be opened.
pub(super) fn apply_by_name(parent: &impl AsFd, name: &OsStr, metadata: &Metadata) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(parent, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes a device or a pipe.
pub(super) fn node(
    parent: &impl AsFd,
    name: &OsStr,
    kind: FileType,
    device: u64,
    metadata: &Metadata,
) -> Result<(), Errno> {
    mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?;
    let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    // It is no symbolic link: it was made a moment ago, in a folder of ours.
    chmodat(parent, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
    utimensat(parent, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes one directory like another.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let there = fstat(from)?;
    fchown(to, Some(Uid::from_raw(there.st_uid)), Some(Gid::from_raw(there.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(there.st_mode))?;
    let mut value = vec![0; MAX_ATTRIBUTE_LENGTH];
    for name in extended(from)? {
        let name = OsStr::from_bytes(&name);
        let length = fgetxattr(from, name, value.as_mut_slice())?;
        fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    let mtime = Timespec { tv_sec: there.st_mtime, tv_nsec: i64::try_from(there.st_mtime_nsec).unwrap_or(0) };
    futimens(to, &Timestamps { last_access: mtime, last_modification: mtime })
}

/// The names of the extended attributes, without overlayfs's own.
fn extended(file: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut list = vec![0; MAX_ATTRIBUTE_LENGTH];
    let length = match flistxattr(file, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error),
    };
    list.truncate(length);
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter(|name| !name.starts_with(OVERLAY_PREFIX)).map(<[u8]>::to_vec).collect())
}

/// Hides all that lower layers have in this directory.
pub(super) fn make_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    fsetxattr(directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
}

/// Whether a directory hides all that lower layers have in it.
pub(super) fn is_opaque(directory: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(directory, OPAQUE_ATTRIBUTE, value.as_mut_slice()) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether this is overlayfs's form of a whiteout.
pub(super) fn is_whiteout(there: &Stat) -> bool {
    FileType::from_raw_mode(there.st_mode) == FileType::CharacterDevice && there.st_rdev == 0
}

fn times(metadata: &Metadata) -> Timestamps {
    let (seconds, nanoseconds) = metadata.mtime;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
