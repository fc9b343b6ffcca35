//! The kernel modules that it takes to hear the host, which are in the initrd.
//!
//! `/modules/boot.list` names their files, one a line, in order of their dependencies. A kernel that has everything built
//! in has an empty list.

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, read};
use rustix::system::finit_module;

/// Where the modules are, and the lists of those that are in the agent's ROM.
pub const FOLDER: &str = "/modules";

const LIST: &str = "boot.list";
/// Of the list, at most.
const LIST_BYTES: usize = 4096;

/// Why they were not loaded.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Error {
    /// The list cannot be read.
    #[error("cannot read the kernel modules' list {LIST}: {0}")]
    List(Errno),
    /// The kernel refused a module.
    #[error("cannot load kernel module {number} of {LIST}: {why}")]
    Load {
        /// Which of its lines, from 1.
        number: usize,
        /// Why.
        why: Errno,
    },
}

/// Loads them, in order. Those that are there already count as loaded.
///
/// # Errors
/// [`Error`] where the list or one of the files cannot be read, or the kernel refuses one.
pub fn load() -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut space = [0; LIST_BYTES];
    let folder = match openat(CWD, FOLDER, flags | OFlags::DIRECTORY, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::List(error)),
    };
    let length = match openat(&folder, LIST, flags, Mode::empty()) {
        Ok(file) => read(&file, &mut space).map_err(Error::List)?,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::List(error)),
    };
    let names = space.get(..length).filter(|names| names.len() < LIST_BYTES);
    let names = names.ok_or(Error::List(Errno::FBIG))?;
    for (index, name) in names.split(|byte| *byte == b'\n').enumerate().filter(|(_, name)| !name.is_empty()) {
        let refused = |why| Error::Load { number: index + 1, why };
        let module = openat(&folder, name, flags, Mode::empty()).map_err(refused)?;
        match finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => return Err(refused(error)),
        }
    }
    Ok(())
}
