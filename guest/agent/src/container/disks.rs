//! Disks that the host plugs into the running machine: block devices of containers, or file systems that they share.
//!
//! What is on such a disk is the host's word, and the host reads what is written to it, as with any volume of a
//! cluster's; a workload that minds encrypts it. The guest's own, the ephemeral disk, is none of these.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_remount};
use sealpod_agent_protocol::{Device, Failure, FailureKind};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::disks::{DISKS, with_serial};
use crate::ephemeral_disk;
use crate::failure::{Hint, failure, internal};

const FOLDER: &str = "/run/sealpod/disks";
/// What the kernel is asked to read from a disk of the host's, and no other of its many file systems.
const FILE_SYSTEMS: [&str; 2] = ["ext4", "xfs"];
/// Of a virtio disk's serial number, in bytes (`VIRTIO_BLK_ID_BYTES`).
const LONGEST_SERIAL: usize = 20;
/// How long a disk may take to appear after the host plugged it.
const PATIENCE: Duration = Duration::from_secs(15);
const MOMENT: Duration = Duration::from_millis(10);

/// The disks that containers use.
#[derive(Default)]
pub(super) struct Disks(Mutex<BTreeMap<Numbers, Use>>);

/// Major and minor: the kernel's own, where the host may give one disk several serial numbers.
type Numbers = (u32, u32);

enum Use {
    Device,
    Mounted { folder: PathBuf, file_system: String },
}

/// A block device of a container, found on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Disks {
    /// The disk of a container's device.
    pub(super) async fn device(&self, device: &Device) -> Result<DeviceNode, Failure> {
        let Device { path, disk, read_only, user, group } = device.clone();
        if !Device::can_be_at(&path) {
            return Err(failure(FailureKind::Invalid, format!("no device can be made at {path:?}"))
                .hint("give it a path of its own below /dev"));
        }
        let found = Found::wait(&disk).await?;
        if read_only && !found.read_only {
            return Err(failure(FailureKind::Conflict, format!("disk {disk:?} is not read-only")));
        }
        let mut used = self.0.lock().await;
        if let Some(Use::Mounted { .. }) = used.get(&found.numbers) {
            let message = format!("the file system of disk {disk:?} is in use");
            return Err(failure(FailureKind::Conflict, message));
        }
        used.insert(found.numbers, Use::Device);
        let (major, minor) = found.numbers;
        Ok(DeviceNode { path, major, minor, user, group })
    }

    /// Where the file system of a disk is, which is mounted when it is first asked for.
    pub(super) async fn file_system(
        &self,
        serial: &str,
        kind: &str,
        group: Option<u32>,
    ) -> Result<PathBuf, Failure> {
        if !FILE_SYSTEMS.contains(&kind) {
            let message = format!("the guest reads no {kind:?} from a disk");
            return Err(failure(FailureKind::Invalid, message).hint("use ext4"));
        }
        let found = Found::wait(serial).await?;
        let numbers = found.numbers;
        let mut used = self.0.lock().await;
        match used.get(&numbers) {
            Some(Use::Mounted { folder, file_system }) if file_system == kind => return Ok(folder.clone()),
            Some(_) => {
                let message = format!("disk {serial:?} is in use as something else");
                return Err(failure(FailureKind::Conflict, message));
            }
            None => {}
        }
        let folder = Path::new(FOLDER).join(&found.name);
        let (to, of) = (folder.clone(), kind.to_owned());
        let mounted = tokio::task::spawn_blocking(move || found.mount(&to, &of, group)).await;
        mounted.map_err(|error| internal("mount the disk", &error))?.map_err(|error| {
            internal(&format!("mount disk {serial:?} as {kind}"), &error)
                .hint("its driver formats the volume, and this guest's kernel must know the file system")
        })?;
        used.insert(numbers, Use::Mounted { folder: folder.clone(), file_system: kind.to_owned() });
        Ok(folder)
    }

    /// Whether there is anything that the machine's end could damage.
    pub(super) async fn are_used(&self) -> bool {
        !self.0.lock().await.is_empty()
    }

    /// Leaves the disks whole, when no process uses them any more.
    pub(super) async fn leave(&self) {
        let used = std::mem::take(&mut *self.0.lock().await);
        let left = tokio::task::spawn_blocking(move || {
            for used in used.into_values() {
                let Use::Mounted { folder, .. } = used else { continue };
                // Containers' own mounts of it cannot keep it from becoming read-only, which writes what is not written.
                if let Err(error) = mount_remount(folder.as_path(), MountFlags::RDONLY, c"") {
                    tracing::warn!(%error, folder = %folder.display(), "a disk is not left clean");
                }
            }
            rustix::fs::sync();
        });
        if let Err(error) = left.await {
            tracing::warn!(%error, "the disks are not left clean");
        }
    }
}

/// A disk of this machine's.
struct Found {
    name: String,
    numbers: Numbers,
    read_only: bool,
}

impl Found {
    /// Waits for the disk with a serial number. The host answers for those, and may take its time.
    async fn wait(serial: &str) -> Result<Self, Failure> {
        check_serial(serial)?;
        let wanted = serial.to_owned();
        let search = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match Self::find(&wanted).map_err(|error| internal("look for the disk", &error))? {
                    None if Instant::now() < deadline => std::thread::sleep(MOMENT),
                    found => return Ok::<_, Failure>(found),
                }
            }
        });
        let found = search.await.map_err(|error| internal("look for the disk", &error))??;
        found.ok_or_else(|| {
            let message = format!("the machine has no disk with the serial number {serial:?}");
            failure(FailureKind::NotFound, message)
        })
    }

    fn find(serial: &str) -> io::Result<Option<Self>> {
        let Some(name) = with_serial(serial)? else { return Ok(None) };
        let disk = Path::new(DISKS).join(&name);
        // The ephemeral disk has one, by whatever number the host calls it.
        if fs::read_dir(disk.join("holders"))?.next().is_some() {
            return Err(io::Error::other("the disk is the guest's own"));
        }
        let attribute = |name: &str| fs::read_to_string(disk.join(name));
        let numbers = attribute("dev")?;
        let parsed = numbers
            .trim()
            .split_once(':')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let numbers = parsed.ok_or_else(|| io::Error::other("a device without numbers"))?;
        Ok(Some(Self { name, numbers, read_only: attribute("ro")?.trim() == "1" }))
    }

    fn mount(&self, folder: &Path, kind: &str, group: Option<u32>) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let access = if self.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        let flags = MountFlags::NOSUID | MountFlags::NODEV | access;
        let kind = CString::new(kind).map_err(io::Error::other)?;
        mount(Path::new("/dev").join(&self.name), folder, kind.as_c_str(), flags, c"")?;
        if let (Some(group), false) = (group, self.read_only) {
            chown(folder, None, Some(group))?;
            let mode = fs::metadata(folder)?.permissions().mode();
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o2070))?;
        }
        Ok(())
    }
}

/// The guest's own disk is none that a container gets.
fn check_serial(serial: &str) -> Result<(), Failure> {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let short = (1..=LONGEST_SERIAL).contains(&serial.len());
    match short && serial.bytes().all(valid) && serial != ephemeral_disk::SERIAL {
        true => Ok(()),
        false => Err(failure(FailureKind::Invalid, format!("{serial:?} is no disk of a container's")).hint(
            "a serial number is 1 to 20 lower-case letters, digits and '-'; \"ephemeral\" is the guest's own",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_own_disk_is_no_containers() {
        for serial in ["ephemeral", "", "../etc", "A", "aaaaaaaaaaaaaaaaaaaaa"] {
            assert!(check_serial(serial).is_err(), "{serial:?}");
        }
        check_serial("disk-0").unwrap();
    }

    #[tokio::test]
    async fn other_file_systems_than_those_of_volumes_are_not_read() {
        let refused = Disks::default().file_system("disk-0", "minix", None).await.unwrap_err();
        assert!(refused.message.contains("minix"), "{refused:?}");
    }
}
