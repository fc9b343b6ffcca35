//! The directory tree that a layer becomes, in overlayfs's own form.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::archive::{Archive, Data, Entry, Kind, Metadata};
use super::attributes::{
    apply, apply_by_name, is_whiteout, make_opaque, node, remove_extended, set_extended,
};
use super::folder::{Folder, Root};
use super::inherit::Implied;
use super::name::{Meaning, Name};
use super::{Budget, UnpackError};

const COPY_LENGTH: usize = 64 * 1024;

/// A tree that is being made. Directories get their metadata last, for what is put into them changes it; here they
/// stand by their path, with no symbolic link on the way.
pub(super) struct Tree<'a> {
    root: Root,
    budget: &'a Budget,
    /// Directories that the archive describes. Their extended attributes are not kept here, but given at once.
    described: BTreeMap<Vec<u8>, Metadata>,
    /// Directories that it has without a word about them.
    implied: Implied,
}

impl<'a> Tree<'a> {
    /// Begins with an existing empty folder.
    pub(super) fn open(folder: &Path, budget: &'a Budget) -> Result<Self, UnpackError> {
        let root = Root::open(folder).map_err(|error| UnpackError::io(b".", error))?;
        Ok(Self { root, budget, described: BTreeMap::new(), implied: Implied::from([Vec::new()]) })
    }

    /// Adds a member, with its content from the archive.
    pub(super) fn add<R: Read>(&mut self, entry: Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        let path = entry.path.clone();
        let io = |error: Errno| UnpackError::io(&path, error);
        match Name::parse(&path)?.meaning(&path)? {
            Meaning::Ignored => Ok(()),
            Meaning::Root => match entry.kind {
                Kind::Directory => {
                    let root = self.root.folder().map_err(io)?;
                    self.describe(&root, Vec::new(), entry.metadata, &path)
                }
                _ => Err(UnpackError::refused(&path, "in place of the root directory")),
            },
            Meaning::Opaque(folder) => {
                let folder = self.folder(&folder, &path)?;
                make_opaque(&folder.reopen().map_err(io)?).map_err(io)
            }
            Meaning::Whiteout(folder, hidden) => {
                let folder = self.folder(&folder, &path)?;
                self.whiteout(&folder, OsStr::from_bytes(&hidden)).map_err(io)
            }
            Meaning::Member(folder, name) => {
                let parent = self.folder(&folder, &path)?;
                self.member(&parent, OsStr::from_bytes(&name), entry, archive)
            }
        }
    }

    /// Gives directories their metadata. Those that the archive does not describe are told.
    pub(super) fn finish(self) -> Result<Implied, UnpackError> {
        let implied = Metadata::implied();
        let implied = self.implied.iter().map(|path| (path, &implied));
        // Deepest first: a directory without write permission, or with an old time, stays as it is.
        for (path, metadata) in implied.chain(self.described.iter().rev()) {
            let directory = self.root.resolve(path).and_then(|folder| folder.reopen());
            apply(&directory.map_err(|error| UnpackError::io(path, error))?, metadata, path)?;
        }
        Ok(self.implied)
    }

    fn member<R: Read>(
        &mut self,
        parent: &Folder,
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
                let folder = parent.own_child(name).map_err(io)?;
                if hid_lower {
                    make_opaque(&folder.reopen().map_err(io)?).map_err(io)?;
                }
                self.describe(&folder, parent.path_of(name), metadata, &path)
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

    /// Keeps a directory's metadata for the end. Extended attributes are given now: there can be a megabyte of them,
    /// for each of millions of directories.
    fn describe(
        &mut self,
        folder: &Folder,
        place: Vec<u8>,
        mut metadata: Metadata,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let attributes = std::mem::take(&mut metadata.xattrs);
        let again = self.described.contains_key(&place);
        if again || !attributes.is_empty() {
            let directory = folder.reopen().map_err(|error| UnpackError::io(path, error))?;
            if again {
                remove_extended(&directory, path)?;
            }
            set_extended(&directory, &attributes, path)?;
        }
        self.implied.remove(&place);
        self.described.insert(place, metadata);
        Ok(())
    }

    fn link(&mut self, parent: &Folder, name: &OsStr, target: &[u8], path: &[u8]) -> Result<(), UnpackError> {
        // Some tools write the target with a slash before it; there is no other root than the layer's.
        let relative = target.iter().position(|byte| *byte != b'/').and_then(|start| target.get(start..));
        let Some((folder, last)) = Name::parse(relative.unwrap_or_default())?.split() else {
            return Err(UnpackError::refused(path, "a hard link to the root"));
        };
        let missing =
            || UnpackError::refused(path, "a hard link to something that is not in the layer before it");
        let folder = self.root.resolve(&folder.path()).map_err(|_| missing())?;
        let last = OsStr::from_bytes(&last);
        match statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if is_whiteout(&there) => return Err(missing()),
            Ok(_) => {}
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(UnpackError::io(path, error)),
        }
        // The link itself is what is linked to, never what a symbolic link leads to.
        linkat(&folder, last, parent, name, AtFlags::empty()).map_err(|error| UnpackError::io(path, error))
    }

    /// Hides what lower layers have under a name. What this very layer has under it, before or after, stays.
    fn whiteout(&mut self, folder: &Folder, name: &OsStr) -> Result<(), Errno> {
        match mknodat(folder, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
        match folder.own_child(name) {
            // A directory would show what lower layers have in it, and looks like theirs unless it is described.
            Ok(directory) => {
                make_opaque(&directory.reopen()?)?;
                let place = folder.path_of(name);
                if self.implied.remove(&place) {
                    self.described.insert(place, Metadata::implied());
                }
                Ok(())
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes room for a member: a later one replaces an earlier one of the same name. Whether what was there hid
    /// something in lower layers.
    fn clear(
        &mut self,
        parent: &Folder,
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
                parent.remove_tree(name).map_err(|error| UnpackError::io(path, error))?;
                self.forget(&parent.path_of(name));
                Ok(false)
            }
            _ => {
                unlinkat(parent, name, AtFlags::empty()).map_err(io)?;
                Ok(is_whiteout(&there))
            }
        }
    }

    /// A directory is gone, and all that was in it.
    fn forget(&mut self, place: &[u8]) {
        let below = [place, b"/"].concat();
        let is_below = |path: &&Vec<u8>| path.starts_with(&below);
        let described: Vec<_> = self
            .described
            .range(below.clone()..)
            .map(|(path, _)| path)
            .take_while(is_below)
            .cloned()
            .collect();
        let implied: Vec<_> = self.implied.range(below.clone()..).take_while(is_below).cloned().collect();
        for path in described.iter().chain(&implied).map(Vec::as_slice).chain([place]) {
            self.described.remove(path);
            self.implied.remove(path);
        }
    }

    /// Opens a folder, making what is missing of it.
    fn folder(&mut self, name: &Name, path: &[u8]) -> Result<Folder, UnpackError> {
        if let Ok(folder) = self.root.resolve(&name.path()) {
            return Ok(folder);
        }
        let mut folder = self.root.folder().map_err(|error| UnpackError::io(path, error))?;
        for part in name.parts() {
            let part = OsStr::from_bytes(part);
            folder = match self.root.child(&folder, part) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.imply(&folder, part, path)?,
                Err(error) => return Err(UnpackError::io(path, error)),
            };
        }
        Ok(folder)
    }

    /// Makes a directory that the archive has not described, or not yet.
    fn imply(&mut self, parent: &Folder, name: &OsStr, path: &[u8]) -> Result<Folder, UnpackError> {
        let io = |error: Errno| UnpackError::io(path, error);
        let hid_lower = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => false,
            Ok(there) if is_whiteout(&there) => {
                unlinkat(parent, name, AtFlags::empty()).map_err(io)?;
                true
            }
            Ok(_) => {
                return Err(UnpackError::refused(path, "which lies below something that is no directory"));
            }
            Err(error) => return Err(io(error)),
        };
        self.budget.take_entry()?;
        mkdirat(parent, name, Mode::from_raw_mode(0o700)).map_err(io)?;
        let folder = parent.own_child(name).map_err(io)?;
        if hid_lower {
            make_opaque(&folder.reopen().map_err(io)?).map_err(io)?;
            // Nothing below shows, so there is nothing to look like.
            self.described.insert(parent.path_of(name), Metadata::implied());
        } else {
            self.implied.insert(parent.path_of(name));
        }
        Ok(folder)
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
