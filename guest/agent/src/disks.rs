//! The machine's disks, by the serial numbers that the host gives them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::modules;

/// Every disk has a folder here, of its name.
pub(crate) const DISKS: &str = "/sys/block";
/// What the machine has for the drivers of virtio.
const VIRTIO: &str = "/sys/bus/virtio/devices";
/// A disk's number among its kinds (virtio 1.2, 5), as sysfs writes it.
const DISK: &str = "0x0002";

/// The name of the disk with a serial number: that of its device in `/dev`, and of its folder in [`DISKS`].
///
/// # Errors
/// If the disks' driver cannot be loaded, or sysfs not be read.
pub(crate) fn with_serial(serial: &str) -> io::Result<Option<String>> {
    if !any(Path::new(VIRTIO))? {
        return Ok(None);
    }
    load_driver()?;
    named(Path::new(DISKS), serial)
}

/// Once: a disk is looked for again and again until it is there.
fn load_driver() -> io::Result<()> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*loaded {
        modules::load(modules::DISKS).map_err(io::Error::other)?;
        *loaded = true;
    }
    Ok(())
}

/// Whether there is a disk at all. Most machines have none, and need no driver.
fn any(devices: &Path) -> io::Result<bool> {
    for device in fs::read_dir(devices)? {
        // What has gone meanwhile is no disk.
        let kind = fs::read_to_string(device?.path().join("device")).unwrap_or_default();
        if kind.trim_end() == DISK {
            return Ok(true);
        }
    }
    Ok(false)
}

fn named(disks: &Path, serial: &str) -> io::Result<Option<String>> {
    for disk in fs::read_dir(disks)? {
        let disk = disk?;
        // Disks of other kinds have none.
        let found = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(disk.file_name().into_string().ok());
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in entries {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn the_driver_is_wanted_where_a_disk_is() {
        let without =
            folder(&[("virtio0/device", "0x0003\n"), ("virtio1/device", "0x0001\n"), ("virtio2/x", "")]);
        assert!(!any(without.path()).unwrap());
        let with = folder(&[("virtio0/device", "0x0003\n"), ("virtio1/device", "0x0002\n")]);
        assert!(any(with.path()).unwrap());
        assert!(any(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_disk_is_found_by_the_whole_of_its_serial_number() {
        let disks = folder(&[("dm-0/size", "8"), ("vda/serial", "data-1"), ("vdb/serial", "data-10\n")]);
        for (serial, name) in [("data-1", Some("vda")), ("data-10", Some("vdb")), ("data", None), ("8", None)]
        {
            assert_eq!(named(disks.path(), serial).unwrap().as_deref(), name, "{serial}");
        }
    }
}
