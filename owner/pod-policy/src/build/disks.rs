//! Claims of persistent volumes: disks of the cluster's, as block devices or with a file system.

use std::collections::BTreeMap;

use sealpod_agent_protocol::{Device, MountSource};

use crate::kubernetes::{Claim, Container, PodSpec, Volume, VolumeMount};
use crate::policy::{DevicePolicy, MountPolicy, Word};

use super::{Result, problem};

/// Whether a volume is a disk, and what its claim says.
pub(super) fn claim(volume: &Volume) -> Option<Claim> {
    let Volume { persistent_volume_claim, ephemeral, .. } = volume;
    persistent_volume_claim.clone().or_else(|| ephemeral.as_ref().map(|_| Claim::default()))
}

/// A container's block devices, by path.
pub(super) fn devices(spec: &PodSpec, container: &Container) -> Result<BTreeMap<String, DevicePolicy>> {
    let mut devices = BTreeMap::new();
    for device in &container.volume_devices {
        let what = format!("volumeDevices.{}", device.name);
        let volume = spec.volumes.iter().find(|volume| volume.name == device.name);
        let volume = volume.ok_or_else(|| problem(what.clone(), "the pod has no volume of this name"))?;
        let claim = claim(volume)
            .ok_or_else(|| problem(what.clone(), "only the volume of a claim can be a block device"))?;
        if !Device::can_be_at(&device.device_path) {
            return Err(problem(
                what,
                "the guest makes devices below /dev only, and no other's (devicePath)",
            ));
        }
        let policy = DevicePolicy { read_only: claim.read_only };
        if devices.insert(device.device_path.clone(), policy).is_some() {
            return Err(problem(what, format!("there are two devices at {}", device.device_path)));
        }
    }
    Ok(devices)
}

/// Whether a mount is a claim's volume.
pub(super) fn is_disk(mount: &MountPolicy) -> bool {
    mount.sources.iter().any(|source| matches!(source, MountSource::Disk { .. }))
}

/// A claim's volume with a file system, or a part of it.
pub(super) fn mount(claim: &Claim, mount: &VolumeMount, sub_path: Option<Word>) -> MountPolicy {
    // Its name and file system are the driver's to say.
    let disk =
        MountSource::Disk { disk: String::new(), file_system: String::new(), group: None, sub_path: None };
    MountPolicy {
        read_only: mount.read_only || claim.read_only,
        optional: false,
        sources: vec![disk],
        sub_path,
        volume_begins: None,
        in_memory: false,
    }
}
