//! The pod's volumes: folders in the guest's own memory or on its encrypted disk, which containers share by name.
//!
//! A volume of files is replaced as a whole, in the way that kubelet does it and programs watch for: the files
//! stand in a folder of their own, `..data` links to it, and what a container opens leads through `..data`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, mount};
use sealpod_agent_protocol::{
    Failure, FailureKind, Mount, MountSource, VolumeFile, VolumeLimits, WriteVolume,
};

use crate::failure::{Hint, failure, internal};

const VOLUMES: &str = "/run/sealpod/volumes";
const DATA: &str = "..data";
const NEXT: &str = "..data_next";
/// Volumes, and files in one of them: more than any pod has.
const MOST: usize = 4096;

/// The pod's volumes by name.
pub(crate) struct Volumes {
    root: PathBuf,
    all: Mutex<BTreeMap<String, Volume>>,
}

enum Volume {
    /// How often it was written.
    Files(u64),
    Empty,
}

impl Volumes {
    pub(crate) fn new() -> Self {
        Self { root: VOLUMES.into(), all: Mutex::default() }
    }

    /// Gives a volume its files, or replaces them all at once.
    pub(crate) fn write(&self, request: &WriteVolume) -> Result<(), Failure> {
        let name = check_name(&request.volume)?;
        let files = request.files.iter().map(parse_file).collect::<Result<Vec<_>, _>>()?;
        if files.len() > MOST {
            return Err(failure(FailureKind::Invalid, format!("a volume has {MOST} files at most")));
        }
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let version = match all.get(name) {
            Some(Volume::Files(version)) => version + 1,
            Some(Volume::Empty) => return Err(other_kind(name)),
            None => 0,
        };
        self.check_room(&all, name)?;
        let folder = self.root.join(name);
        replace(&folder, version, &files, request.group)
            .map_err(|error| internal("write the volume's files", &error))?;
        all.insert(name.into(), Volume::Files(version));
        Ok(())
    }

    /// What a mount of this source shows; what is empty is made when it is first asked for.
    pub(super) fn path(&self, source: &MountSource) -> Result<PathBuf, Failure> {
        match source {
            MountSource::Files { volume, file } => {
                let name = check_name(volume)?;
                let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(Volume::Files(version)) = all.get(name) else {
                    return Err(failure(FailureKind::NotFound, format!("volume {name:?} has no files"))
                        .hint("send WriteVolume first"));
                };
                let folder = self.root.join(name);
                let Some(file) = file else { return Ok(folder) };
                // The file itself, not the link that a later write moves on: as with kubelet's `subPath`.
                let data = folder.join(data(*version));
                let path = check_path(file)?;
                is_inside(&data, path).map_err(|_| {
                    failure(FailureKind::NotFound, format!("volume {name:?} has no file {file:?}"))
                })?;
                Ok(data.join(path))
            }
            MountSource::Empty { volume, size_bytes, group, .. } => {
                check_size(volume, *size_bytes)?;
                self.path_of_empty(volume, |folder| make_empty(folder, *size_bytes, *group))
            }
            MountSource::EmptyFile { volume: other } | MountSource::Disk { disk: other, .. } => {
                Err(failure(FailureKind::Invalid, format!("{other:?} is no volume of the pod's")))
            }
        }
    }

    fn path_of_empty(
        &self,
        volume: &str,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, Failure> {
        let name = check_name(volume)?;
        let path = self.root.join(name);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(name) {
            Some(Volume::Empty) => return Ok(path),
            Some(Volume::Files(_)) => return Err(other_kind(name)),
            None => self.check_room(&all, name)?,
        }
        make(&path).map_err(|error| internal("make the volume", &error))?;
        all.insert(name.into(), Volume::Empty);
        Ok(path)
    }

    fn check_room(&self, all: &BTreeMap<String, Volume>, name: &str) -> Result<(), Failure> {
        match all.contains_key(name) || all.len() < MOST {
            true => Ok(()),
            false => Err(failure(FailureKind::Exhausted, format!("a pod has {MOST} volumes at most"))),
        }
    }
}

/// Nobody but the agent writes to a volume of files, which it finds its way in by links.
pub(super) fn refuse_writable_files(mounts: &[Mount]) -> Result<(), Failure> {
    let is_writable_files =
        |mount: &&Mount| matches!(mount.source, MountSource::Files { .. }) && !mount.read_only;
    match mounts.iter().find(is_writable_files) {
        None => Ok(()),
        Some(mount) => {
            let message = format!("the files at {:?} would not be read-only", mount.destination);
            Err(failure(FailureKind::Invalid, message).hint("a container writes to an empty volume"))
        }
    }
}

fn other_kind(name: &str) -> Failure {
    failure(FailureKind::Conflict, format!("volume {name:?} is of another kind"))
}

/// Names become folders' names.
fn check_name(name: &str) -> Result<&str, Failure> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    match (1..=253).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(valid) {
        true => Ok(name),
        false => Err(failure(FailureKind::Invalid, format!("volume name {name:?} is not allowed"))
            .hint("names are 1 to 253 letters, digits, '_', '.' and '-', the first no '.'")),
    }
}

/// The kernel takes 0, and what it would round up to more than it can count, for no limit.
fn check_size(volume: &str, size_bytes: Option<u64>) -> Result<(), Failure> {
    match size_bytes.is_none_or(|bytes| (1..=VolumeLimits::MOST).contains(&bytes)) {
        true => Ok(()),
        false => {
            let message = format!("volume {volume:?} cannot be limited to {} bytes", size_bytes.unwrap_or(0));
            Err(failure(FailureKind::Invalid, message).hint("leave the limit out where there is none"))
        }
    }
}

/// A relative path of plain names, none of which could be taken for the volume's own links.
pub(super) fn check_path(path: &str) -> Result<&Path, Failure> {
    let plain = |component: Component<'_>| match component {
        Component::Normal(name) => !name.as_encoded_bytes().starts_with(b".."),
        _ => false,
    };
    let parsed = Path::new(path);
    let normal = path.split('/').all(|name| !name.is_empty() && name != ".");
    match path.len() <= 4096 && normal && !path.contains('\0') && parsed.components().all(plain) {
        true => Ok(parsed),
        false => Err(failure(FailureKind::Invalid, format!("{path:?} cannot be a file of a volume"))
            .hint("relative, of plain names, none beginning with \"..\"")),
    }
}

struct ParsedFile<'a> {
    path: &'a Path,
    mode: u32,
    user: Option<u32>,
    content: Vec<u8>,
}

fn parse_file(file: &VolumeFile) -> Result<ParsedFile<'_>, Failure> {
    let path = check_path(&file.path)?;
    if file.mode > 0o777 {
        let message = format!("mode {:o} of {:?} is more than permissions", file.mode, file.path);
        return Err(failure(FailureKind::Invalid, message));
    }
    let content = STANDARD
        .decode(&file.content)
        .map_err(|_| failure(FailureKind::Invalid, format!("the content of {:?} is no base64", file.path)))?;
    Ok(ParsedFile { path, mode: file.mode, user: file.user, content })
}

/// Writes a new set of files beside the old one, moves `..data` over to it, and removes the old one.
fn replace(folder: &Path, version: u64, files: &[ParsedFile<'_>], group: Option<u32>) -> io::Result<()> {
    make_folder(folder, group)?;
    let next = folder.join(data(version));
    // Left over from a write that failed half way.
    not_found_is_fine(fs::remove_dir_all(&next))?;
    make_folder(&next, group)?;
    for file in files {
        write_file(&next, file, group)?;
    }
    not_found_is_fine(fs::remove_file(folder.join(NEXT)))?;
    symlink(data(version), folder.join(NEXT))?;
    fs::rename(folder.join(NEXT), folder.join(DATA))?;
    link_names(folder, &next)?;
    match version.checked_sub(1) {
        // A write that failed at its end may have removed it.
        Some(old) => not_found_is_fine(fs::remove_dir_all(folder.join(data(old)))),
        None => Ok(()),
    }
}

/// The name of the folder with a version's files.
fn data(version: u64) -> String {
    format!("..{version}")
}

/// Whether there is such a file, without a link on the way to it.
fn is_inside(folder: &Path, path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    openat2(&folder, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
    Ok(())
}

fn write_file(folder: &Path, file: &ParsedFile<'_>, group: Option<u32>) -> io::Result<()> {
    let mut parent = folder.to_owned();
    for name in file.path.parent().iter().flat_map(|parent| parent.components()) {
        parent.push(name);
        make_folder(&parent, group)?;
    }
    let path = folder.join(file.path);
    let mut written = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    written.write_all(&file.content)?;
    chown(&path, file.user, group)?;
    // After the owner, whose change would take bits away; and not bent by the umask.
    written.set_permissions(fs::Permissions::from_mode(file.mode))
}

/// A link through `..data` for each first name; names that are gone lose theirs.
fn link_names(folder: &Path, data: &Path) -> io::Result<()> {
    for entry in fs::read_dir(data)? {
        let name = entry?.file_name();
        match symlink(Path::new(DATA).join(&name), folder.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            other => other?,
        }
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && fs::symlink_metadata(data.join(&name)).is_err() {
            fs::remove_file(folder.join(&name))?;
        }
    }
    Ok(())
}

fn make_folder(folder: &Path, group: Option<u32>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    chown(folder, None, group)
}

/// A folder that everybody may write to, as kubelet makes it; with a limit it is a file system of its own.
fn make_empty(folder: &Path, size_bytes: Option<u64>, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if let Some(bytes) = size_bytes {
        let options = std::ffi::CString::new(format!("size={bytes}")).map_err(io::Error::other)?;
        mount("volume", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    }
    chown(folder, None, group)?;
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

fn not_found_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("volumes");
        (folder, Volumes { root, all: Mutex::default() })
    }

    fn file(path: &str, content: &str) -> VolumeFile {
        VolumeFile { path: path.into(), mode: 0o640, user: None, content: STANDARD.encode(content) }
    }

    fn write(volumes: &Volumes, files: Vec<VolumeFile>) -> Result<(), Failure> {
        volumes.write(&WriteVolume { volume: "config".into(), group: None, files })
    }

    fn empty(volume: &str) -> MountSource {
        MountSource::Empty { volume: volume.into(), size_bytes: None, group: None, sub_path: None }
    }

    fn files(file: Option<&str>) -> MountSource {
        MountSource::Files { volume: "config".into(), file: file.map(str::to_owned) }
    }

    #[test]
    fn files_are_mounted_read_only() {
        let mount = |read_only, source| Mount { destination: "/a".into(), read_only, source };
        let refused = refuse_writable_files(&[mount(false, files(None))]).unwrap_err();
        assert!(refused.message.contains("read-only"), "{refused:?}");
        refuse_writable_files(&[mount(true, files(None)), mount(false, empty("cache"))]).unwrap();
    }

    #[test]
    fn a_write_replaces_all_files_at_once() {
        let (_folder, volumes) = volumes();
        write(&volumes, vec![file("a", "1"), file("b/c", "2"), file("gone", "3")]).unwrap();
        let path = volumes.path(&files(None)).unwrap();
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "1");
        assert_eq!(fs::read_link(path.join("b")).unwrap(), Path::new("..data/b"));
        assert_eq!(fs::metadata(path.join("a")).unwrap().permissions().mode() & 0o7777, 0o640);
        // What was opened through the old data stays readable.
        let old = File::open(path.join("a")).unwrap();
        write(&volumes, vec![file("a", "4"), file("b/c", "5")]).unwrap();
        assert_eq!(io::read_to_string(old).unwrap(), "1");
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "4");
        assert_eq!(fs::read_to_string(path.join("b/c")).unwrap(), "5");
        assert!(!path.join("gone").exists() && fs::symlink_metadata(path.join("gone")).is_err());
        let names = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["..1", "..data", "a", "b"]);
    }

    /// As kubelet has a token that only its container's user reads.
    #[test]
    fn a_file_is_its_owners() {
        use std::os::unix::fs::MetadataExt;
        let (_folder, volumes) = volumes();
        let own = rustix::process::getuid().as_raw();
        write(&volumes, vec![VolumeFile { user: Some(own), ..file("token", "secret") }]).unwrap();
        let path = volumes.path(&files(Some("token"))).unwrap();
        assert_eq!(fs::metadata(path).unwrap().uid(), own);
        // Only root gives files away.
        if own == 0 {
            write(&volumes, vec![VolumeFile { user: Some(4000), ..file("token", "secret") }]).unwrap();
            let path = volumes.path(&files(Some("token"))).unwrap();
            assert_eq!(fs::metadata(path).unwrap().uid(), 4000);
        }
    }

    #[test]
    fn one_file_of_a_volume_is_that_of_its_time() {
        let (_folder, volumes) = volumes();
        write(&volumes, vec![file("b/c", "2")]).unwrap();
        let path = volumes.path(&files(Some("b/c"))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2");
        assert_eq!(volumes.path(&files(Some("other"))).unwrap_err().kind, FailureKind::NotFound);
        assert_eq!(volumes.path(&files(Some("../config/b/c"))).unwrap_err().kind, FailureKind::Invalid);
        // A later write makes another file, and the first is gone with its version.
        write(&volumes, vec![file("b/c", "3")]).unwrap();
        let next = volumes.path(&files(Some("b/c"))).unwrap();
        assert_eq!(fs::read_to_string(next).unwrap(), "3");
        assert!(!path.exists());
    }

    #[test]
    fn no_link_leads_out_of_a_volume() {
        let (folder, volumes) = volumes();
        write(&volumes, vec![file("a", "1")]).unwrap();
        let inside = volumes.path(&files(None)).unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "2").unwrap();
        symlink(&outside, inside.join("..0/out")).unwrap();
        for file in ["out", "out/kept"] {
            assert_eq!(volumes.path(&files(Some(file))).unwrap_err().kind, FailureKind::NotFound, "{file}");
        }
        fs::remove_file(inside.join(DATA)).unwrap();
        symlink(&outside, inside.join(DATA)).unwrap();
        write(&volumes, vec![file("a", "3")]).unwrap();
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "2");
        assert_eq!(fs::read_to_string(inside.join("a")).unwrap(), "3");
    }

    #[test]
    fn files_cannot_leave_their_volume() {
        let (_folder, volumes) = volumes();
        for path in ["", "/a", "../a", "a/../../b", "a//b", "./a", "a/", "..data/a", "..0/a", "a\0b", "a/."] {
            let failure = write(&volumes, vec![file(path, "x")]).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Invalid, "{path:?}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a\0", "\u{e4}", &"a".repeat(254)] {
            let request = WriteVolume { volume: name.into(), group: None, files: Vec::new() };
            assert_eq!(volumes.write(&request).unwrap_err().kind, FailureKind::Invalid, "{name:?}");
        }
        let twice = write(&volumes, vec![file("a", "1"), file("a", "2")]);
        assert!(twice.is_err());
        let mode = VolumeFile { mode: 0o4755, ..file("a", "1") };
        assert_eq!(write(&volumes, vec![mode]).unwrap_err().kind, FailureKind::Invalid);
        let text = VolumeFile { content: "no base64!".into(), ..file("a", "1") };
        assert_eq!(write(&volumes, vec![text]).unwrap_err().kind, FailureKind::Invalid);
    }

    #[test]
    fn an_empty_volume_is_one_for_all_who_name_it() {
        let (_folder, volumes) = volumes();
        let source = empty("cache");
        let path = volumes.path(&source).unwrap();
        fs::write(path.join("note"), "kept").unwrap();
        assert_eq!(volumes.path(&source).unwrap(), path);
        assert_eq!(fs::read_to_string(path.join("note")).unwrap(), "kept");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        // Not by another kind, in either direction.
        let as_files = WriteVolume { volume: "cache".into(), group: None, files: Vec::new() };
        assert_eq!(volumes.write(&as_files).unwrap_err().kind, FailureKind::Conflict);
        write(&volumes, Vec::new()).unwrap();
        let source = empty("config");
        assert_eq!(volumes.path(&source).unwrap_err().kind, FailureKind::Conflict);
    }

    #[test]
    fn a_limit_that_would_be_none_is_refused() {
        let (_folder, volumes) = volumes();
        for size_bytes in [0, VolumeLimits::MOST + 1, u64::MAX] {
            let source = MountSource::Empty {
                volume: "cache".into(),
                size_bytes: Some(size_bytes),
                group: None,
                sub_path: None,
            };
            let refused = volumes.path(&source).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Invalid, "{size_bytes}: {refused:?}");
        }
        assert!(volumes.path(&empty("cache")).is_ok(), "nothing was made of it");
    }

    #[test]
    fn a_volume_that_was_not_written_is_not_there() {
        let (_folder, volumes) = volumes();
        assert_eq!(volumes.path(&files(None)).unwrap_err().kind, FailureKind::NotFound);
    }
}
