//! Disks of the host's: raw block volumes, and volumes whose driver leaves it to the runtime to mount them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{major, makedev, minor};
use sealpod_agent_protocol::{Device, Mount, MountSource};
use sealpod_sandbox::Disk;
use serde::Deserialize;

use super::{Error, refused};

/// Where CSI drivers tell runtimes what to mount: a folder for each volume, named by base64url of where it would be
/// mounted (the convention of Kata Containers' direct-assigned volumes).
const DIRECT_VOLUMES: &str = "/run/kata-containers/shared/direct-volumes";
const MOUNT_INFO: &str = "mountInfo.json";
const LONGEST_FILE: u64 = 64 << 10;
/// Options that change nothing of what a container sees.
const TUNING: [&str; 7] = ["defaults", "rw", "noatime", "nodiratime", "relatime", "discard", "nodiscard"];

/// The block devices of a container, and the disks that they are. Of other kinds there are none in the guest.
///
/// Engines give a privileged container the host's devices too, unless told otherwise, and a rule for all of them.
pub(super) fn devices(linux: &Linux, privileged: bool) -> Result<Vec<(Device, Disk)>, Error> {
    let asked_for = |device: &&LinuxDevice| {
        let numbers = (device.major(), device.minor());
        !privileged || own_rules(linux, device.typ(), numbers).next().is_some()
    };
    let devices = linux.devices().iter().flatten().filter(asked_for);
    devices.map(|device| block_device(linux, device)).collect()
}

fn block_device(linux: &Linux, device: &LinuxDevice) -> Result<(Device, Disk), Error> {
    let path = device.path().to_string_lossy().into_owned();
    if device.typ() != LinuxDeviceType::B {
        return Err(refused(
            format!("the device {path}"),
            "the host's devices do not exist in the guest, but for block devices",
        ));
    }
    let number = |number: i64| u32::try_from(number).unwrap_or_default();
    let numbers = (number(device.major()), number(device.minor()));
    let node = find_node(Path::new("/sys/dev/block"), numbers).ok_or_else(|| {
        let what = format!("the block device {}:{} at {path}", numbers.0, numbers.1);
        refused(what, "this node has no such device")
    })?;
    let disk = disk(node, !is_writable(linux, numbers))
        .map_err(|source| Error::Disk { path: device.path().clone(), source })?;
    let device = Device {
        path,
        disk: disk.serial.clone(),
        read_only: disk.read_only,
        user: device.uid().unwrap_or_default(),
        group: device.gid().unwrap_or_default(),
    };
    Ok((device, disk))
}

/// Engines tell a device's access by the rules of control groups.
fn is_writable(linux: &Linux, (major, minor): (u32, u32)) -> bool {
    own_rules(linux, LinuxDeviceType::B, (major.into(), minor.into()))
        .any(|rule| rule.access().as_deref().is_none_or(|access| access.contains('w')))
}

/// The rules that allow something with just this device.
fn own_rules(
    linux: &Linux,
    kind: LinuxDeviceType,
    (major, minor): (i64, i64),
) -> impl Iterator<Item = &LinuxDeviceCgroup> {
    let rules = linux.resources().iter().flat_map(|resources| resources.devices().iter().flatten());
    let kinds = [None, Some(LinuxDeviceType::A), Some(kind)];
    let numbers = (Some(major), Some(minor));
    rules.filter(move |rule| {
        rule.allow() && kinds.contains(&rule.typ()) && (rule.major(), rule.minor()) == numbers
    })
}

/// The kernel's own name of a device leads to its node.
fn find_node(devices: &Path, (major, minor): (u32, u32)) -> Option<PathBuf> {
    let text = std::fs::read_to_string(devices.join(format!("{major}:{minor}/uevent"))).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = Path::new("/dev").join(name);
    let metadata = std::fs::metadata(&node).ok()?;
    (metadata.file_type().is_block_device() && metadata.rdev() == makedev(major, minor)).then_some(node)
}

/// A device or a file as a disk. The same one has the same serial number in all containers of a pod.
fn disk(path: PathBuf, read_only: bool) -> std::io::Result<Disk> {
    let metadata = std::fs::metadata(&path)?;
    let access = if read_only { "r" } else { "w" };
    let serial = if metadata.file_type().is_block_device() {
        format!("b{access}-{}-{}", major(metadata.rdev()), minor(metadata.rdev()))
    } else if metadata.is_file() {
        let mut hasher = DefaultHasher::new();
        (metadata.dev(), metadata.ino()).hash(&mut hasher);
        format!("f{access}-{:016x}", hasher.finish())
    } else {
        return Err(std::io::Error::other("expected a block device or a file"));
    };
    Ok(Disk { serial, path, read_only })
}

/// `mountInfo.json` of a volume.
#[derive(Deserialize)]
struct MountInfo {
    device: PathBuf,
    #[serde(rename = "fstype", alias = "fs_type")]
    file_system: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    options: Vec<String>,
}

/// A CSI volume that is to be mounted at a place of the host's, and is not: the guest does it.
#[derive(Clone, Debug)]
pub(super) struct DirectVolume<'a> {
    pub(super) name: &'a str,
    /// Where the driver was asked to mount it.
    pub(super) place: &'a Path,
    /// Where the container sees it.
    pub(super) destination: &'a str,
    pub(super) read_only: bool,
    pub(super) sub_path: Option<String>,
}

impl DirectVolume<'_> {
    /// As a mount and a disk, by what its driver says of it.
    pub(super) fn disk(self) -> Result<(Mount, Disk), Error> {
        read_volume(Path::new(DIRECT_VOLUMES), self)
    }
}

fn read_volume(volumes: &Path, volume: DirectVolume<'_>) -> Result<(Mount, Disk), Error> {
    let DirectVolume { name, place, destination, read_only, sub_path } = volume;
    let what = || format!("the volume {name:?} at {destination:?}");
    let path = volumes.join(URL_SAFE.encode(place.as_os_str().as_encoded_bytes())).join(MOUNT_INFO);
    let mut text = Vec::new();
    match std::fs::File::open(&path).and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut text)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused(
                what(),
                "its driver mounts it on the host, whose files are not the pod's; ask for a raw block volume \
                 (volumeMode: Block), or for a direct-assigned one if the driver has them",
            ));
        }
        Err(source) => return Err(Error::File { path, source }),
        Ok(_) => {}
    }
    let info: MountInfo =
        serde_json::from_slice(&text).map_err(|source| Error::MountInfo { path, source })?;
    let unknown = |option: &&String| *option != "ro" && !TUNING.contains(&option.as_str());
    if let Some(option) = info.options.iter().find(unknown) {
        return Err(refused(format!("mount option {option:?} of {}", what()), "the guest does not know it"));
    }
    let disk_is_read_only = info.options.iter().any(|option| option == "ro");
    let disk = disk(info.device.clone(), disk_is_read_only)
        .map_err(|source| Error::Disk { path: info.device, source })?;
    let group = info.metadata.get("fsGroup").map(|group| group.parse()).transpose();
    let group = group.map_err(|_| refused(format!("fsGroup of {}", what()), "it is no number"))?;
    let source =
        MountSource::Disk { disk: disk.serial.clone(), file_system: info.file_system, group, sub_path };
    let read_only = read_only || disk_is_read_only;
    Ok((Mount { destination: destination.into(), read_only, source }, disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~csi/pvc-1/mount";

    fn linux(device: &str, access: &str) -> Linux {
        serde_json::from_str(&format!(
            "{{\"devices\": [{device}], \"resources\": {{\"devices\": [{{\"allow\": false, \"access\": \"rwm\"}},
                {{\"allow\": true, \"type\": \"b\", \"major\": 7, \"minor\": 3, \"access\": \"{access}\"}}]}}}}"
        ))
        .unwrap()
    }

    fn volume(info: &str) -> Result<(Mount, Disk), Error> {
        let volumes = tempfile::tempdir().unwrap();
        let folder = volumes.path().join(URL_SAFE.encode(PLACE));
        std::fs::create_dir(&folder).unwrap();
        let image = volumes.path().join("image");
        std::fs::write(&image, "").unwrap();
        let info = info.replace("IMAGE", image.to_str().unwrap());
        std::fs::write(folder.join(MOUNT_INFO), info).unwrap();
        let volume = DirectVolume {
            name: "pvc-1",
            place: Path::new(PLACE),
            destination: "/data",
            read_only: false,
            sub_path: None,
        };
        read_volume(volumes.path(), volume)
    }

    #[test]
    fn a_volume_is_what_its_driver_says() {
        let (mount, disk) = volume(
            r#"{"volume-type": "block", "device": "IMAGE", "fstype": "ext4", "metadata": {"fsGroup": "70"}, "options": ["noatime"]}"#,
        )
        .unwrap();
        assert!(disk.serial.starts_with("fw-") && !disk.read_only && !mount.read_only);
        let expected = MountSource::Disk {
            disk: disk.serial,
            file_system: "ext4".into(),
            group: Some(70),
            sub_path: None,
        };
        assert_eq!(mount.source, expected);
        let (mount, disk) = volume(r#"{"device": "IMAGE", "fs_type": "xfs", "options": ["ro"]}"#).unwrap();
        assert!(disk.serial.starts_with("fr-") && disk.read_only && mount.read_only);
    }

    #[test]
    fn a_volume_that_cannot_be_had_is_refused_with_a_reason() {
        for (info, words) in [
            (r#"{"device": "IMAGE", "fstype": "ext4", "options": ["dax"]}"#, "\"dax\""),
            (r#"{"device": "/dev", "fstype": "ext4"}"#, "expected a block device or a file"),
            (r#"{"device": "/nowhere", "fstype": "ext4"}"#, "/nowhere"),
            (r#"{"fstype": "ext4"}"#, "missing field `device`"),
            (r#"{"device": "IMAGE", "fstype": "ext4", "metadata": {"fsGroup": "wheel"}}"#, "fsGroup"),
        ] {
            let refusal = volume(info).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn only_block_devices_that_the_node_has_are_disks() {
        let character = r#"{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}"#;
        let refusal = devices(&linux(character, "rwm"), false).unwrap_err().to_string();
        assert!(refusal.contains("/dev/kvm") && refusal.contains("but for block devices"), "{refusal}");
        let gone = r#"{"path": "/dev/x", "type": "b", "major": 4000, "minor": 3}"#;
        let refusal = devices(&linux(gone, "rwm"), false).unwrap_err().to_string();
        assert!(refusal.contains("4000:3"), "{refusal}");
    }

    #[test]
    fn a_privileged_container_asked_for_none_of_the_hosts_devices() {
        let gone = r#"{"path": "/dev/x", "type": "b", "major": 4000, "minor": 3}"#;
        assert!(devices(&linux(gone, "rwm"), true).unwrap().is_empty());
        let own = r#"{"path": "/dev/x", "type": "b", "major": 7, "minor": 3}"#;
        match devices(&linux(own, "rwm"), true) {
            Ok(devices) => assert_eq!(devices.len(), 1),
            Err(refusal) => assert!(refusal.to_string().contains("7:3"), "{refusal}"),
        }
        // Of a device's plugin, with a rule of its own.
        let graphics = r#"{"path": "/dev/nvidia0", "type": "c", "major": 7, "minor": 3}"#;
        let mut linux = linux(graphics, "rwm");
        assert!(devices(&linux, true).unwrap().is_empty(), "its rule is a block device's");
        let rule = r#"{"allow": true, "type": "c", "major": 7, "minor": 3, "access": "rwm"}"#;
        let resources = format!(r#"{{"devices": [{rule}]}}"#);
        linux.set_resources(serde_json::from_str(&resources).unwrap());
        let refusal = devices(&linux, true).unwrap_err().to_string();
        assert!(refusal.contains("the device /dev/nvidia0"), "{refusal}");
    }

    #[test]
    fn the_rules_of_control_groups_say_who_may_write() {
        let device = r#"{"path": "/dev/x", "type": "b", "major": 7, "minor": 3}"#;
        assert!(is_writable(&linux(device, "rwm"), (7, 3)));
        assert!(!is_writable(&linux(device, "rm"), (7, 3)));
        assert!(!is_writable(&linux(device, "rwm"), (7, 4)));
    }
}
