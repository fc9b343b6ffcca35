//! Parts of volumes (`subPath`): kubelet mounts the folder beside the volume, and the kernel says which folder it is.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";

/// Which folder of a volume is mounted at a place; nothing for the volume itself.
pub(super) fn path(volume: &Path, place: &Path) -> io::Result<Option<String>> {
    // kubelet's folder may be known by a link.
    let (volume, place) = (volume.canonicalize()?, place.canonicalize()?);
    find(&std::fs::read_to_string(MOUNTS)?, &volume, &place)
}

/// `mounts` is what proc(5) says of mountinfo.
fn find(mounts: &str, volume: &Path, place: &Path) -> io::Result<Option<String>> {
    let mounts: Vec<_> = mounts.lines().filter_map(Mount::read).collect();
    let unclear = || io::Error::other("the kernel does not say which folder of the volume it is");
    let part = mounts.iter().rfind(|mount| mount.place == place).ok_or_else(unclear)?;
    // The deepest mount that the volume is in, and of those at one place the last.
    let holder = mounts
        .iter()
        .filter(|mount| volume.starts_with(&mount.place))
        .max_by_key(|mount| mount.place.components().count())
        .ok_or_else(unclear)?;
    let volume = holder.root.join(volume.strip_prefix(&holder.place).map_err(io::Error::other)?);
    match part.root.strip_prefix(&volume) {
        Ok(inside) if part.device == holder.device => {
            let inside = inside.to_str().ok_or_else(unclear)?;
            Ok(Some(inside.to_owned()).filter(|inside| !inside.is_empty()))
        }
        _ => Err(unclear()),
    }
}

/// A line of mountinfo.
#[derive(Debug)]
struct Mount {
    device: String,
    /// What is mounted, within its file system.
    root: PathBuf,
    place: PathBuf,
}

impl Mount {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ').skip(2);
        let device = words.next()?.to_owned();
        Some(Self { device, root: unescape(words.next()?), place: unescape(words.next()?) })
    }
}

/// The kernel writes blanks and their like as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let code = more.get(..3).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = more.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/0a1b";

    fn inside(mounts: &str, volume: &str) -> io::Result<Option<String>> {
        let volume = format!("{POD}/volumes/kubernetes.io~empty-dir/{volume}");
        find(mounts, Path::new(&volume), Path::new(&format!("{POD}/volume-subpaths/cache/web/0")))
    }

    #[test]
    fn the_folder_of_a_volume_on_the_nodes_disk_is_found() {
        // /var is a file system of its own, below its root.
        let mounts = |root: &str| {
            format!(
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 /state /var rw - ext4 /dev/sda2 rw\n\
                 24 23 8:2 /state/lib/kubelet/pods/0a1b/volumes/kubernetes.io~empty-dir/{root} {POD}/volume-subpaths/cache/web/0 rw - ext4 /dev/sda2 rw\n"
            )
        };
        let of = |root: &str| inside(&mounts(root), "cache");
        assert_eq!(of("cache/a/b").unwrap().as_deref(), Some("a/b"));
        assert_eq!(of("cache/with\\040blank").unwrap().as_deref(), Some("with blank"));
        assert_eq!(of("cache").unwrap(), None);
        assert!(of("other/a").is_err() && of("cached/a").is_err());
    }

    #[test]
    fn the_folder_of_a_volume_in_memory_is_found() {
        let mounts = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:50 / {POD}/volumes/kubernetes.io~empty-dir/cache rw - tmpfs tmpfs rw\n\
             31 22 0:50 /a {POD}/volume-subpaths/cache/web/0 rw - tmpfs tmpfs rw\n"
        );
        assert_eq!(inside(&mounts, "cache").unwrap().as_deref(), Some("a"));
        // Of another file system, it is no part of the volume.
        assert!(inside(&mounts.replace("31 22 0:50", "31 22 0:51"), "cache").is_err());
        assert!(inside("", "cache").is_err());
    }
}
