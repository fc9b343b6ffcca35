//! Kernel modules, in the groups that `guest/image` put into the initrd.
//!
//! A group is a file `/modules/GROUP.list` that names the module files to load, one a line, in order of
//! their dependencies. A kernel that has everything built in has empty groups.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

/// What the loader needs, and the transport to the host, and any disk; the other groups build on it.
pub const BOOT: &str = "boot";
/// What vsock needs.
pub const VSOCK: &str = "vsock";
/// Network cards.
pub const NETWORK: &str = "network";
/// Containers' root file systems.
pub const OVERLAY: &str = "overlay";
/// What the ephemeral disk needs: encryption.
pub const ENCRYPTION: &str = "encryption";

const FOLDER: &str = "/modules";

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
///
/// # Errors
/// [`Error`] where the group or one of its files cannot be read, or the kernel refuses one.
pub fn load(group: &'static str) -> Result<(), Error> {
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
