//! Kernel modules, in the groups that `guest/image` put into the initrd.
//!
//! A group is a file `/modules/GROUP.list` that names the module files to load, one a line, in order of
//! their dependencies. A kernel that has everything built in has empty groups.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

/// What the transport needs.
pub(super) const BOOT: &str = "boot";
/// What vsock needs.
pub(super) const VSOCK: &str = "vsock";
/// What pods need, but not the first answer to the host.
const POD: &[&str] = &["network", "overlay"];
/// What any disk needs.
const BLOCK: &str = "block";
/// What an ephemeral disk needs beyond that: encryption.
const DISK: &str = "disk";
/// virtio's number for block devices.
const BLOCK_DEVICE: &str = "0x0002";

const FOLDER: &str = "/modules";

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The group's list cannot be read.
    #[error("cannot read the list of module group {group}")]
    List {
        /// The group.
        group: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused a module.
    #[error("cannot load module {module}")]
    Load {
        /// The file's name.
        module: String,
        /// Why.
        source: io::Error,
    },
}

/// Loads the modules of a group, in order. Those that are there already count as loaded.
pub(super) fn load(group: &'static str) -> Result<(), Error> {
    let list = match fs::read_to_string(Path::new(FOLDER).join(format!("{group}.list"))) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::List { group, source }),
    };
    for module in list.lines().filter(|line| !line.is_empty()) {
        let refused = |source: io::Error| Error::Load { module: module.into(), source };
        let file = File::open(Path::new(FOLDER).join(module)).map_err(refused)?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => return Err(refused(error.into())),
        }
    }
    Ok(())
}

/// Loads what pods need. Takes some tenths of a second on an emulated machine, so it is left for a blocking
/// thread, and for when the TPM is busy anyway.
pub(crate) fn load_for_pod() -> Result<(), Error> {
    POD.iter().try_for_each(|group| load(group))?;
    if has_block_device() { [BLOCK, DISK].iter().try_for_each(|group| load(group)) } else { Ok(()) }
}

/// Loads what disks need that the host plugs in later. What is loaded already costs next to nothing.
pub(crate) fn load_for_disks() -> Result<(), Error> {
    load(BLOCK)
}

fn has_block_device() -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    let mut kinds = devices.filter_map(|device| fs::read_to_string(device.path().join("device")).ok());
    kinds.any(|kind| kind.trim() == BLOCK_DEVICE)
}
