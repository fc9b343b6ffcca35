//! Kernel modules, in the groups that `guest/image` put into the initrd.
//!
//! A group is a file `/modules/GROUP.list` that names the module files to load, one a line, in order of
//! their dependencies. A kernel that has everything built in has empty groups.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read};
use rustix::system::finit_module;

/// What the loader needs, and the transport to the host, and any disk; the other groups build on it.
pub const BOOT: &str = "boot.list";
/// What vsock needs.
pub const VSOCK: &str = "vsock.list";
/// Network cards.
pub const NETWORK: &str = "network.list";
/// Containers' root file systems.
pub const OVERLAY: &str = "overlay.list";
/// What the ephemeral disk needs: encryption.
pub const ENCRYPTION: &str = "encryption.list";

const FOLDER: &str = "/modules";
/// Of a list, at most.
const LIST_BYTES: usize = 4096;

/// Why a group was not loaded.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Error {
    /// Its list cannot be read.
    #[error("cannot read the kernel modules' list {list}: {why}")]
    List {
        /// The list.
        list: &'static str,
        /// Why.
        why: Errno,
    },
    /// The kernel refused a module.
    #[error("cannot load kernel module {number} of {list}: {why}")]
    Load {
        /// The list.
        list: &'static str,
        /// Which of its lines, from 1.
        number: usize,
        /// Why.
        why: Errno,
    },
}

/// Loads the modules of a group, in order. Those that are there already count as loaded.
///
/// # Errors
/// [`Error`] where the group or one of its files cannot be read, or the kernel refuses one.
pub fn load(list: &'static str) -> Result<(), Error> {
    let unreadable = |why| Error::List { list, why };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut space = [0; LIST_BYTES];
    let folder = match openat(CWD, FOLDER, flags | OFlags::DIRECTORY, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let length = match openat(&folder, list, flags, Mode::empty()) {
        Ok(file) => read(&file, &mut space).map_err(unreadable)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let names = space.get(..length).filter(|names| names.len() < LIST_BYTES);
    let names = names.ok_or_else(|| unreadable(Errno::FBIG))?;
    for (index, name) in names.split(|byte| *byte == b'\n').enumerate().filter(|(_, name)| !name.is_empty()) {
        let refused = |why| Error::Load { list, number: index + 1, why };
        let module = openat(&folder, name, flags, Mode::empty()).map_err(refused)?;
        match finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => return Err(refused(error)),
        }
    }
    Ok(())
}
