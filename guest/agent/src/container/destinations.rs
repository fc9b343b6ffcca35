//! Where a container's mounts come to be: places in its image.
//!
//! An image's links lead elsewhere on the way to a destination, into another volume or to what the kernel shows. So each
//! destination is followed through the image first, and only the places where that ends are compared and put in order.
//! The image is unpacked, verified and nobody else's to change. What is inside a volume is not looked at here: `nested.rs`
//! finds its way in there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::disks::DeviceNode;
use super::spec::VolumeMount;

/// As many links as the kernel follows in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// How often destinations are followed again, as each volume hides the links of the image below its place.
const MOST_ROUNDS: usize = 8;
/// What the kernel shows, and the guest's device nodes.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Inside these are no places for volumes: the memory is all containers' to write to, the others have no folders.
const WITHOUT_FOLDERS: [&str; 3] = ["/dev/shm", "/dev/pts", "/dev/mqueue"];

/// Why something cannot be mounted where it is to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{place:?} is no folder in the image")]
    Kernels { place: &'static str },
    #[error("too many links lead from {destination:?} to another place in the image")]
    Links { destination: String },
    #[error("{destination:?} would be inside {place:?}, which is no folder in the image")]
    NoFolder { destination: String, place: PathBuf },
    #[error("{destination:?} leads to {place:?} in the image, where nothing can be mounted")]
    Reserved { destination: String, place: PathBuf },
    #[error("{one:?} and {other:?} are the same place in the image, {place:?}")]
    SamePlace { one: String, other: String, place: String },
    #[error("{destination:?} would be inside a disk of the host's, at {disk:?}: mount it beside the disk")]
    InsideDisk { destination: String, disk: String },
    #[error("device {device:?} would be inside the volume at {place:?}")]
    Device { device: String, place: String },
    #[error("the image's links lead the volumes' destinations into one another in circles")]
    Circle,
    #[error("cannot follow {destination:?} in the image")]
    Io { destination: String, source: io::Error },
}

/// Where everything of a container's is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destinations {
    /// At their places, from the top down: none hides one that belongs inside it.
    pub(super) volumes: Vec<VolumeMount>,
    /// The guest's own files for it, by the names that they have in `/etc`; but those that a volume is meant to bring.
    pub(super) etc: Vec<(&'static str, String)>,
}

impl Destinations {
    /// Finds all places below `root`, which must be the container's own and not run yet.
    pub(super) fn find(
        root: &Path,
        volumes: Vec<VolumeMount>,
        etc: &[&'static str],
        devices: &[DeviceNode],
    ) -> Result<Self, Error> {
        let is_folder = |place: &&str| match fs::symlink_metadata(below(root, Path::new(place))) {
            Ok(found) => found.is_dir(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if let Some(place) = KERNELS.into_iter().find(|place| !is_folder(place)) {
            return Err(Error::Kernels { place });
        }
        let places = settle(root, &volumes)?;
        let mut placed: Vec<_> = volumes.into_iter().zip(places.iter().cloned()).collect();
        placed.sort_by_key(|(_, place)| Path::new(place).components().count());
        compare(&placed)?;
        let covers = |path: &Path| placed.iter().find(|(_, place)| path.starts_with(place));
        if let Some((device, (_, place))) =
            devices.iter().find_map(|device| Some((device, covers(Path::new(&device.path))?)))
        {
            return Err(Error::Device { device: device.path.clone(), place: place.clone() });
        }
        let closed = places.into_iter().map(PathBuf::from).collect();
        let mut guests = Vec::new();
        for name in etc {
            let place = follow(root, &format!("/etc/{name}"), &closed)?;
            if covers(Path::new(&place)).is_none() {
                guests.push((*name, place));
            }
        }
        let at_its_place = |(volume, destination)| VolumeMount { destination, ..volume };
        let volumes = placed.into_iter().map(at_its_place).collect();
        Ok(Self { volumes, etc: guests })
    }
}

/// Follows all destinations until none is led otherwise by where the others are: a link of the image's that a volume
/// hides leads nowhere.
fn settle(root: &Path, volumes: &[VolumeMount]) -> Result<Vec<String>, Error> {
    let mut places = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let closed = places.iter().map(PathBuf::from).collect();
        let next: Vec<_> = volumes
            .iter()
            .map(|volume| follow(root, &volume.destination, &closed))
            .collect::<Result<_, _>>()?;
        if next == places {
            return Ok(places);
        }
        places = next;
    }
    Err(Error::Circle)
}

/// Follows a destination through the image below `root`. Links lead nowhere else, and what is missing has none.
///
/// Below the `closed` places, and those of the kernel's, the image is hidden: names there are taken as they are.
fn follow(root: &Path, destination: &str, closed: &BTreeSet<PathBuf>) -> Result<String, Error> {
    let is_hidden = |place: &Path| {
        place
            .ancestors()
            .any(|above| closed.contains(above) || KERNELS.iter().any(|own| above == Path::new(own)))
    };
    let io = |source| Error::Io { destination: destination.into(), source };
    let mut rest = names(Path::new(destination));
    let mut place = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            place.pop();
            continue;
        }
        let next = place.join(name);
        if is_hidden(&place) {
            place = next;
            continue;
        }
        let path = below(root, &next);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Error::Links { destination: destination.into() });
                }
                let target = fs::read_link(&path).map_err(io)?;
                if target.is_absolute() {
                    place = PathBuf::from("/");
                }
                rest.extend(names(&target));
            }
            Ok(found) if !found.is_dir() && !rest.is_empty() => {
                return Err(Error::NoFolder { destination: destination.into(), place: next });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            Ok(_) | Err(_) => place = next,
        }
    }
    allowed(destination, place)
}

/// The names of a path, the first last.
fn names(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

fn below(root: &Path, place: &Path) -> PathBuf {
    root.join(place.strip_prefix("/").unwrap_or(place))
}

/// A place as a word, if something may be mounted there.
fn allowed(destination: &str, place: PathBuf) -> Result<String, Error> {
    let without_folders =
        WITHOUT_FOLDERS.iter().any(|own| place.parent().is_some_and(|above| above.starts_with(own)));
    match place.to_str() {
        Some(word) if !without_folders && VolumeMount::check_destination(word).is_ok() => Ok(word.to_owned()),
        _ => Err(Error::Reserved { destination: destination.into(), place }),
    }
}

/// Refuses volumes at one place, and whatever would be inside a disk. The places must come from the top down.
fn compare(placed: &[(VolumeMount, String)]) -> Result<(), Error> {
    for (number, (volume, place)) in placed.iter().enumerate() {
        for (above, places) in &placed[..number] {
            if Path::new(place) == Path::new(places) {
                return Err(Error::SamePlace {
                    one: above.destination.clone(),
                    other: volume.destination.clone(),
                    place: place.clone(),
                });
            }
            if above.of_disk && Path::new(place).starts_with(places) {
                return Err(Error::InsideDisk {
                    destination: volume.destination.clone(),
                    disk: above.destination.clone(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// An image with folders, files and links (places and where they lead).
    fn image(folders: &[&str], files: &[&str], links: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(below(root.path(), Path::new(folder))).unwrap();
        }
        for file in files {
            fs::write(below(root.path(), Path::new(file)), "").unwrap();
        }
        for (place, target) in links {
            symlink(target, below(root.path(), Path::new(place))).unwrap();
        }
        root
    }

    fn volume(destination: &str) -> VolumeMount {
        let source = Path::new("/volumes").join(destination.replace('/', "_"));
        VolumeMount { destination: destination.into(), source, read_only: false, of_disk: false }
    }

    fn disk(destination: &str) -> VolumeMount {
        VolumeMount { of_disk: true, ..volume(destination) }
    }

    fn find(root: &tempfile::TempDir, volumes: &[VolumeMount]) -> Result<Vec<String>, Error> {
        let found = Destinations::find(root.path(), volumes.to_vec(), &[], &[])?;
        Ok(found.volumes.into_iter().map(|volume| volume.destination).collect())
    }

    fn refused(root: &tempfile::TempDir, volumes: &[VolumeMount]) -> String {
        find(root, volumes).unwrap_err().to_string()
    }

    #[test]
    fn a_destination_is_where_the_images_links_lead() {
        let root = image(
            &["/data/deep", "/run", "/var"],
            &["/data/file"],
            &[
                ("/absolute", "/data"),
                ("/var/relative", "../data/deep"),
                ("/var/run", "/run"),
                ("/twice", "absolute/deep"),
                ("/up", "../../../../data"),
                ("/dangling", "/not/there"),
                ("/upward", "/not/../data"),
                ("/root", "/"),
                ("/to-file", "data/file"),
            ],
        );
        for (destination, place) in [
            ("/data", "/data"),
            ("/data//deep/", "/data/deep"),
            ("/absolute", "/data"),
            ("/absolute/new/one", "/data/new/one"),
            ("/var/relative/x", "/data/deep/x"),
            ("/var/run/secrets", "/run/secrets"),
            ("/twice/x", "/data/deep/x"),
            ("/up/x", "/data/x"),
            ("/dangling/x", "/not/there/x"),
            ("/upward/x", "/data/x"),
            ("/root/data", "/data"),
            ("/to-file", "/data/file"),
            ("/new/folders", "/new/folders"),
        ] {
            assert_eq!(find(&root, &[volume(destination)]).unwrap(), [place], "{destination}");
        }
    }

    #[test]
    fn a_destination_that_leads_nowhere_is_refused() {
        let root = image(&["/a"], &["/file"], &[("/a/loop", "loop"), ("/one", "/other"), ("/other", "/one")]);
        for destination in ["/a/loop", "/a/loop/x", "/one", "/other/x"] {
            let refused = refused(&root, &[volume(destination)]);
            assert!(refused.contains("too many links") && refused.contains(destination), "{refused}");
        }
        let refused = refused(&root, &[volume("/file/x")]);
        assert!(refused.contains("\"/file/x\" would be inside \"/file\""), "{refused}");
    }

    #[test]
    fn no_link_leads_to_what_the_guest_makes_itself() {
        let root = image(
            &["/proc", "/dev/own", "/sys"],
            &[],
            &[
                ("/p", "/proc"),
                ("/q", "p/sys"),
                ("/s", "sys/fs/cgroup"),
                ("/d", "/dev"),
                ("/r", "/"),
                // What the image has there is hidden.
                ("/dev/link", "/srv"),
            ],
        );
        for destination in [
            "/p",
            "/p/x",
            "/q",
            "/q/kernel",
            "/s/x",
            "/d",
            "/r",
            "/r/proc/x",
            "/d/pts/x",
            "/d/shm/x",
            "/dev/mqueue/x",
        ] {
            let refused = refused(&root, &[volume(destination)]);
            assert!(refused.contains("nothing can be mounted"), "{refused}");
        }
        for (destination, place) in [
            ("/d/termination-log", "/dev/termination-log"),
            ("/d/shm", "/dev/shm"),
            ("/dev/link/x", "/dev/link/x"),
            ("/r/p-rocessed", "/p-rocessed"),
        ] {
            assert_eq!(find(&root, &[volume(destination)]).unwrap(), [place], "{destination}");
        }
        for place in KERNELS {
            let root = image(&["/elsewhere"], &[], &[(place, "/elsewhere")]);
            assert!(refused(&root, &[]).contains(place));
        }
    }

    #[test]
    fn no_mount_hides_one_that_belongs_inside_it() {
        let root = image(&["/data"], &[], &[("/a", "/data/deep/er"), ("/b", "/")]);
        let places = find(&root, &[volume("/a"), volume("/data/deep"), volume("/b/data"), volume("/z")]);
        assert_eq!(places.unwrap(), ["/data", "/z", "/data/deep", "/data/deep/er"]);
    }

    #[test]
    fn what_a_volume_hides_of_the_image_leads_nowhere() {
        let root = image(
            &["/opt/app", "/etc"],
            &[],
            &[("/app", "/opt/app/current"), ("/opt/app/current", "v1"), ("/opt/app/etc", "/etc")],
        );
        assert_eq!(find(&root, &[volume("/app/x")]).unwrap(), ["/opt/app/v1/x"]);
        for order in [[volume("/app/x"), volume("/opt/app")], [volume("/opt/app"), volume("/app/x")]] {
            assert_eq!(find(&root, &order).unwrap(), ["/opt/app", "/opt/app/current/x"]);
        }
        assert_eq!(
            find(&root, &[volume("/opt/app/etc/x"), volume("/opt")]).unwrap(),
            ["/opt", "/opt/app/etc/x"]
        );
    }

    #[test]
    fn volumes_whose_places_depend_on_one_another_are_refused() {
        let root =
            image(&["/x", "/y"], &[], &[("/p", "/x/l"), ("/x/l", "/y"), ("/r", "/y/m"), ("/y/m", "/x")]);
        assert!(matches!(find(&root, &[volume("/p"), volume("/r")]), Err(Error::Circle)));
    }

    #[test]
    fn two_volumes_are_never_at_one_place() {
        let root = image(&["/data"], &[], &[("/a", "/data")]);
        for (one, other) in [("/data", "/data/"), ("/a", "/data"), ("/data/x", "/a/x")] {
            let refused = refused(&root, &[volume(one), volume(other)]);
            assert!(refused.contains("the same place") && refused.contains(other), "{refused}");
        }
    }

    #[test]
    fn nothing_is_inside_a_disk_whatever_its_name() {
        let root = image(&["/data/deep"], &[], &[("/a", "/data"), ("/b", "/a/deep")]);
        for (inside, of_disk) in [
            ("/data/x", "/data"),
            ("/a/x", "/data"),
            ("/data/x", "/a"),
            ("/b", "/data/"),
            ("/data/deep/x/y", "/b"),
        ] {
            for order in [[volume(inside), disk(of_disk)], [disk(of_disk), disk(inside)]] {
                let refused = refused(&root, &order);
                assert!(refused.contains("inside a disk") && refused.contains(inside), "{refused}");
            }
        }
        assert_eq!(find(&root, &[disk("/a/x"), volume("/data")]).unwrap(), ["/data", "/data/x"]);
        assert_eq!(find(&root, &[disk("/data"), volume("/database")]).unwrap().len(), 2);
    }

    #[test]
    fn the_guests_files_are_where_the_image_has_theirs() {
        let root = image(
            &["/etc", "/run"],
            &["/etc/hosts"],
            &[("/etc/resolv.conf", "../run/resolve/stub.conf"), ("/var", "/etc")],
        );
        let etc = |volumes: &[VolumeMount]| {
            let found = Destinations::find(root.path(), volumes.to_vec(), &["resolv.conf", "hosts"], &[]);
            found.unwrap().etc.into_iter().map(|(_, place)| place).collect::<Vec<_>>()
        };
        assert_eq!(etc(&[]), ["/run/resolve/stub.conf", "/etc/hosts"]);
        // A volume at such a place, or above, is meant instead.
        assert_eq!(etc(&[volume("/run")]), ["/etc/hosts"]);
        assert_eq!(etc(&[volume("/var/hosts")]), ["/run/resolve/stub.conf"]);
        assert_eq!(etc(&[volume("/etc")]), Vec::<String>::new());
        let root = image(&["/etc"], &[], &[("/etc/hosts", "/proc/self/comm")]);
        assert!(Destinations::find(root.path(), Vec::new(), &["hosts"], &[]).is_err());
    }

    #[test]
    fn no_device_is_made_in_a_volume() {
        let root = image(&[], &[], &[("/d", "/dev")]);
        let device = DeviceNode { path: "/dev/own/disk".into(), major: 254, minor: 16, user: 0, group: 0 };
        let find = |place: &str| {
            Destinations::find(root.path(), vec![volume(place)], &[], std::slice::from_ref(&device))
        };
        for place in ["/dev/own", "/d/own", "/dev/own/disk"] {
            assert!(matches!(find(place), Err(Error::Device { .. })), "{place}");
        }
        find("/dev/other").unwrap();
    }
}
