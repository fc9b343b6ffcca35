//! The directory tree that a layer becomes, in overlayfs's own form.
//!
//! Every name is resolved by the kernel within the tree (`RESOLVE_IN_ROOT`): a symbolic link of the layer's own, or
//! `..` behind one, leads nowhere else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::UnpackError;
use super::archive::{Archive, Data, Entry, Kind, Metadata};
use super::name::{Meaning, Name};

const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
const COPY_LENGTH: usize = 64 * 1024;
/// Directories that the archive does not describe are made like this.
const IMPLIED_MODE: u32 = 0o755;

/// A tree that is being made.
pub(super) struct Tree {
    root: OwnedFd,
    /// Directories that the archive describes. Their metadata come last, for what is put into them changes it.
    described: BTreeMap<Name, Metadata>,
}

impl Tree {
    /// Begins with an existing empty folder.
    pub(super) fn open(folder: &Path) -> Result<Self, UnpackError> {
        let root = openat(CWD, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| UnpackError::io(b".", error))?;
        Ok(Self { root, described: BTreeMap::new() })
    }

    /// Adds a member, with its content from the archive.
    pub(super) fn add<R: Read>(&mut self, entry: Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        let path = entry.path.clone();
        match Name::parse(&path)?.meaning(&path)? {
            Meaning::Ignored => Ok(()),
            Meaning::Root => match entry.kind {
                Kind::Directory => {
                    self.described.insert(Name::parse(b".")?, entry.metadata);
                    Ok(())
                }
                _ => Err(UnpackError::refused(&path, "in place of the root directory")),
            },
            Meaning::Opaque(folder) => {
                let folder = self.folder(&folder, &path)?;
                make_opaque(&self.reopen(&folder, &path)?, &path)
            }
            Meaning::Whiteout(folder, hidden) => {
                let folder = self.folder(&folder, &path)?;
                // Something that this very layer has under the name stays: whiteouts are about lower layers.
                match mknodat(
                    &folder,
                    OsStr::from_bytes(&hidden),
                    FileType::CharacterDevice,
                    Mode::empty(),
                    0,
                ) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(error) => Err(UnpackError::io(&path, error)),
                }
            }
            Meaning::Member(folder, name) => {
                let parent = self.folder(&folder, &path)?;
                self.member(&parent, folder.child(&name), OsStr::from_bytes(&name), entry, archive)
            }
        }
    }

    /// Gives directories their metadata.
    pub(super) fn finish(self) -> Result<(), UnpackError> {
        // Deepest first: a directory without write permission, or with an old time, stays as it is.
        for (name, metadata) in self.described.iter().rev() {
            let path = name.path();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            match openat2(&self.root, OsStr::from_bytes(&path), flags, Mode::empty(), resolve) {
                Ok(directory) => apply(&directory, metadata, &path)?,
                // A later member of the archive took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(UnpackError::io(&path, error)),
            }
        }
        Ok(())
    }

    fn member<R: Read>(
        &mut self,
        parent: &OwnedFd,
        full: Name,
        name: &OsStr,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let Entry { path, kind, metadata } = entry;
        let io = |error: Errno| UnpackError::io(&path, error);
        let hid_lower = self.clear(parent, name, matches!(kind, Kind::Directory), &path)?;
        match kind {
            Kind::Directory => {
                match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(io(error)),
                }
                if hid_lower {
                    let directory = openat(
                        parent,
                        name,
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::empty(),
                    );
                    make_opaque(&directory.map_err(io)?, &path)?;
                }
                self.described.insert(full, metadata);
                Ok(())
            }
            Kind::File { data } => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file =
                    File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(io)?);
                write_content(&mut file, &data, archive, &path)?;
                apply(&file.into(), &metadata, &path)
            }
            Kind::Symlink { target } => {
                symlinkat(OsStr::from_bytes(&target), parent, name).map_err(io)?;
                apply_by_name(parent, name, &metadata).map_err(io)
            }
            Kind::HardLink { target } => self.link(parent, name, &target, &path),
            Kind::CharacterDevice { major: 0, minor: 0 } => {
                Err(UnpackError::refused(&path, "a device that would act as a whiteout"))
            }
            Kind::CharacterDevice { major, minor } => {
                let device = makedev(major, minor);
                node(parent, name, FileType::CharacterDevice, device, &metadata).map_err(io)
            }
            Kind::BlockDevice { major, minor } => {
                node(parent, name, FileType::BlockDevice, makedev(major, minor), &metadata).map_err(io)
            }
            Kind::Fifo => node(parent, name, FileType::Fifo, 0, &metadata).map_err(io),
        }
    }

    fn link(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        target: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let Some((folder, last)) = Name::parse(target)?.split() else {
            return Err(UnpackError::refused(path, "a hard link to the root"));
        };
        let missing =
            || UnpackError::refused(path, "a hard link to something that is not in the layer before it");
        let folder = self.resolve(&folder).map_err(|_| missing())?;
        // The link itself is what is linked to, never what a symbolic link leads to.
        linkat(&folder, OsStr::from_bytes(&last), parent, name, AtFlags::empty()).map_err(|error| match error
        {
            Errno::NOENT => missing(),
            error => UnpackError::io(path, error),
        })
    }

    /// Makes room for a member: a later one replaces an earlier one of the same name. Whether what was there hid
    /// something in lower layers.
    fn clear(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        directory: bool,
        path: &[u8],
    ) -> Result<bool, UnpackError> {
        let io = |error: Errno| UnpackError::io(path, error);
        let there = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(io(error)),
        };
        match FileType::from_raw_mode(there.st_mode) {
            FileType::Directory if directory => Ok(false),
            FileType::Directory => {
                remove_tree(parent, name).map_err(|error| UnpackError::io(path, error))?;
                Ok(false)
            }
            kind => {
                unlinkat(parent, name, AtFlags::empty()).map_err(io)?;
                Ok(kind == FileType::CharacterDevice && there.st_rdev == 0)
            }
        }
    }

    /// Opens a folder, making what is missing of it.
    fn folder(&self, name: &Name, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        match self.resolve(name) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(UnpackError::io(path, error)),
        }
        let mut parent = self.resolve(&name.ancestor(0)).map_err(|error| UnpackError::io(path, error))?;
        for (index, part) in name.parts().iter().enumerate() {
            let ancestor = name.ancestor(index + 1);
            parent = match self.resolve(&ancestor) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => {
                    mkdirat(&parent, OsStr::from_bytes(part), Mode::from_raw_mode(IMPLIED_MODE))
                        .map_err(|error| UnpackError::io(path, error))?;
                    self.resolve(&ancestor).map_err(|error| UnpackError::io(path, error))?
                }
                Err(error) => return Err(UnpackError::io(path, error)),
            };
        }
        Ok(parent)
    }

    fn resolve(&self, name: &Name) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, OsStr::from_bytes(&name.path()), flags, Mode::empty(), resolve)
    }

    /// The same folder, open for more than as a place.
    fn reopen(&self, folder: &OwnedFd, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| UnpackError::io(path, error))
    }
}

fn write_content<R: Read>(
    file: &mut File,
    data: &Data,
    archive: &mut Archive<R>,
    path: &[u8],
) -> Result<(), UnpackError> {
    let io = |error: std::io::Error| UnpackError::io(path, error);
    file.set_len(data.real_size).map_err(io)?;
    let mut buffer = vec![0; COPY_LENGTH];
    for (offset, length) in &data.segments {
        file.seek(SeekFrom::Start(*offset)).map_err(io)?;
        let mut left = *length;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(COPY_LENGTH).min(COPY_LENGTH);
            let count = archive.read_data(buffer.get_mut(..wanted).unwrap_or_default())?;
            if count == 0 {
                return Err(UnpackError::Malformed("a file has less content than its header says".into()));
            }
            file.write_all(buffer.get(..count).unwrap_or_default()).map_err(io)?;
            left = left.saturating_sub(count as u64);
        }
    }
    Ok(())
}

fn make_opaque(directory: &OwnedFd, path: &[u8]) -> Result<(), UnpackError> {
    fsetxattr(directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
        .map_err(|error| UnpackError::io(path, error))
}

/// Owner before mode, for a change of the owner takes set-user-id away; the time last of all.
fn apply(file: &OwnedFd, metadata: &Metadata, path: &[u8]) -> Result<(), UnpackError> {
    let io = |error: Errno| UnpackError::io(path, error);
    fchown(file, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid))).map_err(io)?;
    fchmod(file, Mode::from_raw_mode(metadata.mode)).map_err(io)?;
    for (name, value) in &metadata.xattrs {
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            return Err(UnpackError::refused(path, "with an attribute that is the file system's own"));
        }
        match fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A tmpfs keeps no attributes of users; nothing that runs relies on them for safety.
            Err(Errno::NOTSUP) if name.starts_with(b"user.") => {}
            Err(error) => return Err(io(error)),
        }
    }
    futimens(file, &times(metadata)).map_err(io)
}

/// For what cannot be opened.
fn apply_by_name(parent: &OwnedFd, name: &OsStr, metadata: &Metadata) -> Result<(), Errno> {
    let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    utimensat(parent, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
}

fn node(
    parent: &OwnedFd,
    name: &OsStr,
    kind: FileType,
    device: u64,
    metadata: &Metadata,
) -> Result<(), Errno> {
    mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)?;
    let owner = (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)));
    chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    // It is no symbolic link: it was made a moment ago, in a folder of ours.
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
    utimensat(parent, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(metadata: &Metadata) -> Timestamps {
    let (seconds, nanoseconds) = metadata.mtime;
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Removes a directory that an earlier member of the layer made.
fn remove_tree(parent: &OwnedFd, name: &OsStr) -> Result<(), std::io::Error> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(parent)));
    path.push(name);
    std::fs::remove_dir_all(path)
}
