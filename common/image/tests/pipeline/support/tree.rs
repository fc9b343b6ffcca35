//! Trees of files, to be compared.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use sealpod_image::digest::Digest;

/// All that is in a folder, by path; the folder itself is `.`.
pub(crate) type Snapshot = BTreeMap<String, Node>;

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same file, if it has several.
    pub(crate) linked_with: Option<String>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File { size: u64, digest: Digest },
    Directory,
    Symlink(Vec<u8>),
    Fifo,
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Socket,
}

/// Reads a folder.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut snapshot = Snapshot::new();
    add(root, ".", &mut snapshot, &mut HashMap::new());
    snapshot
}

/// The names in a folder, without the folder itself.
pub(crate) fn names(root: &Path) -> Vec<String> {
    snapshot(root).into_keys().filter(|name| name != ".").collect()
}

fn add(root: &Path, name: &str, snapshot: &mut Snapshot, links: &mut HashMap<u64, String>) {
    let path = root.join(name);
    let node = node(&path, name, links);
    let is_directory = node.kind == Kind::Directory;
    snapshot.insert(name.to_owned(), node);
    if is_directory {
        let mut below: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        below.sort();
        for entry in below {
            let entry = entry.into_string().unwrap();
            let inside = if name == "." { entry } else { format!("{name}/{entry}") };
            add(root, &inside, snapshot, links);
        }
    }
}

fn node(path: &Path, name: &str, links: &mut HashMap<u64, String>) -> Node {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let device = (major(metadata.rdev()), minor(metadata.rdev()));
    let kind = match () {
        () if kind.is_file() => {
            Kind::File { size: metadata.len(), digest: Digest::of(&std::fs::read(path).unwrap()) }
        }
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => {
            Kind::Symlink(std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
        }
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_char_device() => Kind::CharacterDevice(device.0, device.1),
        () if kind.is_block_device() => Kind::BlockDevice(device.0, device.1),
        () => Kind::Socket,
    };
    let linked = kind != Kind::Directory && metadata.nlink() > 1;
    Node {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        xattrs: xattrs(path),
        linked_with: linked.then(|| links.entry(metadata.ino()).or_insert_with(|| name.to_owned()).clone()),
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65536];
    let length = llistxattr(path, list.as_mut_slice()).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 65536];
            let length = lgetxattr(path, name.as_str(), value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}
