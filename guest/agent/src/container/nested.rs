//! Volumes inside other volumes.
//!
//! Containers that run write to a volume while it is mounted for another: a link in it may lead anywhere, now or in a
//! moment. The runtime follows such links anywhere in the new container. So what belongs inside a volume is mounted there
//! before the runtime sees it, in a mount of the volume that is this container's own, by a way that never leaves the volume.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};

use super::spec::VolumeMount;

/// Why a volume is not where it is to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot show the volume at {place:?}")]
    Volume { place: String, source: io::Error },
    #[error(
        "cannot mount anything at {place:?}, inside the volume at {volume:?}, whose links lead down only"
    )]
    Inside { place: String, volume: String, source: io::Error },
}

/// Mounts each volume that has its place inside another's there; gives those that are left, with all that is inside
/// them. They must come from the top down; mounts are made below `places`.
pub(super) fn mount(volumes: &[VolumeMount], places: &Path) -> Result<Vec<VolumeMount>, Error> {
    let destination = |number: usize| Path::new(&volumes[number].destination);
    let parent =
        |number: usize| (0..number).rev().find(|above| destination(number).starts_with(destination(*above)));
    let parents: Vec<_> = (0..volumes.len()).map(parent).collect();
    let own = |number: usize| places.join(format!("own-{number}"));
    let is_involved = |number: usize| parents[number].is_some() || parents.contains(&Some(number));
    for (number, volume) in volumes.iter().enumerate().filter(|(number, _)| is_involved(*number)) {
        show(volume, &own(number))
            .map_err(|source| Error::Volume { place: volume.destination.clone(), source })?;
    }
    // From the bottom up: each goes to its place with all that is inside it.
    for (number, parent) in parents.iter().enumerate().rev() {
        let Some(parent) = *parent else { continue };
        let inside = destination(number).strip_prefix(destination(parent)).unwrap_or(Path::new(""));
        attach(&own(number), &own(parent), inside).map_err(|source| Error::Inside {
            place: volumes[number].destination.clone(),
            volume: volumes[parent].destination.clone(),
            source,
        })?;
    }
    let outermost = volumes.iter().enumerate().filter(|(number, _)| parents[*number].is_none());
    let at_its_place = |(number, volume): (usize, &VolumeMount)| match is_involved(number) {
        true => VolumeMount { source: own(number), ..volume.clone() },
        false => volume.clone(),
    };
    Ok(outermost.map(at_its_place).collect())
}

/// Mounts a volume at a place of its own, as the container is to see it.
fn show(volume: &VolumeMount, place: &PathBuf) -> io::Result<()> {
    match fs::metadata(&volume.source)?.is_dir() {
        true => fs::create_dir_all(place)?,
        false => {
            place.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::create_new(place)?;
        }
    }
    let tree =
        open_tree(CWD, &volume.source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    move_mount(&tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let access = if volume.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    Ok(mount_remount(place, MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | access, c"")?)
}

/// Mounts all of `volume` at a path inside `parent`, which is made where it is missing.
fn attach(volume: &Path, parent: &Path, inside: &Path) -> io::Result<()> {
    let place = open(parent, inside, volume.is_dir())?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, volume, flags)?;
    let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(&tree, c"", &place, c"", by_descriptors)?)
}

/// Opens what is at a path inside a volume, over links that lead down in it only, and into nothing that is mounted there.
fn open(volume: &Path, inside: &Path, is_folder: bool) -> io::Result<OwnedFd> {
    let folders = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let mut place = rustix::fs::open(volume, folders, Mode::empty())?;
    let mut names = inside.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let folder = is_folder || names.peek().is_some();
        let flags = if folder { folders } else { OFlags::PATH | OFlags::CLOEXEC };
        let found = match openat2(&place, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT) => {
                if folder {
                    mkdirat(&place, name, Mode::from_raw_mode(0o755))?;
                } else {
                    let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    openat2(&place, name, new, Mode::from_raw_mode(0o644), resolve)?;
                }
                openat2(&place, name, flags, Mode::empty(), resolve)
            }
            other => other,
        };
        place = found?;
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::super::parts;
    use super::*;

    /// Runs a test with mounts of its own; tells whether it could.
    fn apart(test: impl FnOnce(&Path) + Send) {
        let folder = tempfile::tempdir().unwrap();
        let run = std::thread::scope(|scope| {
            let tested = scope.spawn(|| {
                // SAFETY: this thread ends here, and nothing in it minds mounts of its own.
                let apart = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
                if apart.is_err() {
                    return false;
                }
                let own = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", own).unwrap();
                test(folder.path());
                true
            });
            tested.join().unwrap()
        });
        if !run {
            eprintln!("not tested: only root makes mounts");
        }
    }

    /// A volume of its own folder, with a file that tells its name.
    fn volume(folder: &Path, name: &str, destination: &str) -> VolumeMount {
        let source = folder.join(name);
        fs::create_dir(&source).unwrap();
        fs::write(source.join("name"), name).unwrap();
        VolumeMount { destination: destination.into(), source, read_only: false, of_disk: false }
    }

    fn name(folder: &Path) -> String {
        fs::read_to_string(folder.join("name")).unwrap()
    }

    #[test]
    fn volumes_are_inside_one_another_for_one_container_only() {
        apart(|folder| {
            let read_only = VolumeMount { read_only: true, ..volume(folder, "three", "/a/b/c/d") };
            let file = VolumeMount {
                destination: "/a/new/file".into(),
                source: folder.join("three/name"),
                ..read_only.clone()
            };
            let given = [
                volume(folder, "one", "/a"),
                volume(folder, "alone", "/alone"),
                volume(folder, "two", "/a/b"),
                file,
                read_only,
            ];
            let places = folder.join("places");
            let left = mount(&given, &places).unwrap();
            let destinations: Vec<_> = left.iter().map(|volume| volume.destination.as_str()).collect();
            assert_eq!(destinations, ["/a", "/alone"]);
            assert_eq!(left[1], given[1]);
            let one = &left[0].source;
            for (place, expected) in [("", "one"), ("b", "two"), ("b/c/d", "three")] {
                assert_eq!(name(&one.join(place)), expected);
            }
            assert_eq!(fs::read_to_string(one.join("new/file")).unwrap(), "three");
            fs::write(one.join("b/written"), "").unwrap();
            let refused = fs::write(one.join("b/c/d/written"), "").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            // The volumes themselves show none of it but what it is mounted on.
            assert!(!folder.join("one/b/name").exists() && folder.join("two/written").exists());
            assert_eq!(fs::read_to_string(folder.join("one/new/file")).unwrap(), "");
            fs::write(folder.join("three/later"), "").unwrap();
            parts::remove(&places).unwrap();
            assert!(!places.exists() && folder.join("three/later").exists());
        });
    }

    #[test]
    fn nothing_is_mounted_outside_the_volume_that_it_belongs_in() {
        apart(|folder| {
            let outside = volume(folder, "outside", "/outside");
            let one = volume(folder, "one", "/a");
            fs::create_dir(one.source.join("down")).unwrap();
            fs::create_dir(one.source.join("beside")).unwrap();
            for (link, target) in [
                ("absolute", "/"),
                ("up", "../outside"),
                ("around", "down/../../outside"),
                ("magic", "/proc/self/root"),
                ("loop", "loop"),
                ("dangling", "not-there"),
                ("inside", "down"),
                ("down/back", "../beside"),
                ("to-file", "name"),
            ] {
                symlink(target, one.source.join(link)).unwrap();
            }
            let inside = |number: usize, destination: &str| {
                let two = volume(folder, &format!("two-{number}"), destination);
                let places = folder.join(format!("places-{number}"));
                mount(&[one.clone(), two], &places).map(|left| left[0].source.clone())
            };
            for (number, place) in [
                "absolute",
                "absolute/etc",
                "up",
                "up/x",
                "around/x",
                "magic",
                "magic/x",
                "loop/x",
                "dangling",
                "to-file",
                "down/back/x",
                "name",
            ]
            .into_iter()
            .enumerate()
            {
                let refused = inside(number, &format!("/a/{place}")).unwrap_err();
                assert!(matches!(refused, Error::Inside { .. }), "{place}: {refused:?}");
            }
            assert_eq!(fs::read_dir(&outside.source).unwrap().count(), 1);
            // Down is in the volume.
            assert_eq!(name(&inside(20, "/a/inside/x").unwrap().join("down/x")), "two-20");
        });
    }

    #[test]
    fn no_link_leads_into_what_is_mounted_beside() {
        apart(|folder| {
            let one = volume(folder, "one", "/a");
            fs::create_dir(one.source.join("b")).unwrap();
            symlink("b", one.source.join("c")).unwrap();
            let given = [one, volume(folder, "two", "/a/b"), volume(folder, "three", "/a/c")];
            let refused = mount(&given, &folder.join("places")).unwrap_err();
            assert!(matches!(refused, Error::Inside { .. }), "{refused:?}");
        });
    }

    #[test]
    fn nothing_is_made_in_a_volume_that_is_read_only() {
        apart(|folder| {
            let one = VolumeMount { read_only: true, ..volume(folder, "one", "/a") };
            let given = [one, volume(folder, "two", "/a/b")];
            assert!(mount(&given, &folder.join("places")).is_err());
            fs::create_dir(folder.join("one/b")).unwrap();
            let left = mount(&given, &folder.join("more-places")).unwrap();
            assert_eq!(name(&left[0].source.join("b")), "two");
            unmount(&left[0].source, UnmountFlags::DETACH).unwrap();
        });
    }
}
