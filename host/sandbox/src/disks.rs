//! Disks that are plugged into a running VM.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::Mutex;

use crate::arguments::DISKS;
use crate::error::Error;
use crate::qmp::Qmp;

/// Plugs disks into a running VM.
#[derive(Clone, Debug)]
pub struct Disks {
    qmp: Qmp,
    /// What was plugged; it stays.
    plugged: Arc<Mutex<Vec<Disk>>>,
}

/// A block device or a file of this machine's that the guest is to see as a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The serial number by which the guest finds it: 1 to 20 of `[a-z0-9-]`, the first a letter.
    pub serial: String,
    /// The device or file.
    pub path: PathBuf,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
}

impl Disks {
    pub(crate) fn new(qmp: Qmp) -> Self {
        Self { qmp, plugged: Arc::default() }
    }

    /// Whether any was plugged, which the guest must have the time to leave clean.
    pub(crate) async fn are_used(&self) -> bool {
        !self.plugged.lock().await.is_empty()
    }

    /// Plugs a disk, unless it was plugged before. It stays until the VM ends.
    ///
    /// # Errors
    /// If it cannot be opened, QEMU refuses it, or it was plugged with another access.
    pub async fn plug(&self, disk: &Disk) -> Result<(), Error> {
        let mut plugged = self.plugged.lock().await;
        match plugged.iter().find(|other| other.path == disk.path) {
            Some(other) if other.read_only == disk.read_only => return Ok(()),
            Some(_) => {
                let reason = "it is in the pod already, and not with the same access".into();
                return Err(Error::Plug { path: disk.path.clone(), reason });
            }
            None => {}
        }
        self.plug_new(disk).await?;
        plugged.push(disk.clone());
        Ok(())
    }

    async fn plug_new(&self, disk: &Disk) -> Result<(), Error> {
        let Disk { serial, path, read_only } = disk;
        let refused = |reason: String| Error::Plug { path: path.clone(), reason };
        let metadata = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?;
        let driver = if metadata.file_type().is_block_device() { "host_device" } else { "file" };
        let file = json!({"driver": driver, "filename": path, "read-only": read_only, "discard": "unmap"});
        let node = json!({
            "node-name": serial, "driver": "raw", "read-only": read_only, "discard": "unmap", "file": file
        });
        self.qmp.execute("blockdev-add", node).await.map_err(refused)?;
        // Errors are the guest's to see: the VM would stop otherwise.
        let device = json!({
            "driver": "virtio-blk-pci", "id": serial, "bus": DISKS, "drive": serial, "serial": serial,
            "werror": "report", "rerror": "report"
        });
        let plugged = self.qmp.execute("device_add", device).await;
        if plugged.is_err() {
            // It is the first error that says why; the device is there if QEMU was only slow.
            let _ = self.qmp.execute("device_del", json!({"id": serial})).await;
            let _ = self.qmp.execute("blockdev-del", json!({"node-name": serial})).await;
        }
        plugged.map_err(refused)
    }
}
