//! Kernel modules beyond those of the boot, in groups. They come in the agent's ROM, where the host may have put
//! anything; the measured initrd says what must be there: `/modules/GROUP.list` has a line for each module
//! ([`Entry`]), in order of their dependencies. A kernel that has everything built in has empty groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::init_module;
use sealpod_loader::modules::FOLDER;
use sealpod_loader::rom::{Entry, Rom};

/// What vsock needs.
pub(crate) const VSOCK: &str = "vsock";
/// Disks.
pub(crate) const DISKS: &str = "disks";
/// Network cards.
pub(crate) const NETWORK: &str = "network";
/// Containers' root file systems.
pub(crate) const OVERLAY: &str = "overlay";
/// What the ephemeral disk needs: encryption.
pub(crate) const ENCRYPTION: &str = "encryption";

/// Why a group was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}", .path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("{} does not say in line {line} what it should be", .path.display())]
    Line { path: PathBuf, line: usize },
    #[error("cannot open the agent's ROM")]
    Rom(#[source] io::Error),
    #[error("cannot read {module} from the agent's ROM")]
    Read { module: String, source: io::Error },
    #[error("{module} is not the module that was measured: expected BLAKE2b {expected}, got {actual}")]
    Other { module: String, expected: String, actual: String },
    #[error("the kernel does not take {module}")]
    Refused { module: String, source: io::Error },
}

/// Loads the modules of a group, in order. Those that are there already count as loaded.
pub(crate) fn load(group: &str) -> Result<(), Error> {
    let path = Path::new(FOLDER).join(format!("{group}.list"));
    let list = fs::read_to_string(&path).map_err(|source| Error::List { path: path.clone(), source })?;
    if list.is_empty() {
        return Ok(());
    }
    let rom = Rom::open().map_err(|error| Error::Rom(error.into()))?;
    for (index, line) in list.lines().enumerate() {
        let entry =
            Entry::of_line(line).ok_or_else(|| Error::Line { path: path.clone(), line: index + 1 })?;
        match init_module(&read(&rom, entry)?, c"") {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => {
                return Err(Error::Refused { module: entry.name.to_owned(), source: error.into() });
            }
        }
    }
    Ok(())
}

/// A file's content, which has its digest.
fn read(rom: &Rom, entry: Entry<'_>) -> Result<Vec<u8>, Error> {
    let module = || entry.name.to_owned();
    let mut content = vec![0; entry.length];
    rom.read(entry.offset, &mut content)
        .map_err(|error| Error::Read { module: module(), source: error.into() })?;
    let actual = blake2b_simd::blake2b(&content).to_hex();
    if actual.as_str() != entry.digest {
        let (expected, actual) = (entry.digest.to_owned(), actual.to_string());
        return Err(Error::Other { module: module(), expected, actual });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_rom_is_taken_if_it_has_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rom");
        let mut content = vec![0; 8192];
        content[4096..4103].copy_from_slice(b"one two");
        fs::write(&path, content).unwrap();
        let rom = Rom::of_file(fs::File::open(&path).unwrap().into()).unwrap();
        let digest = blake2b_simd::blake2b(b"one").to_hex();
        let entry = Entry { name: "one.ko", offset: 4096, length: 3, digest: &digest };
        assert_eq!(read(&rom, entry).unwrap(), b"one");

        let others = [
            Entry { offset: 0, ..entry },
            Entry { length: 2, ..entry },
            Entry { digest: "", ..entry },
            Entry { digest: &digest[1..], ..entry },
        ];
        for other in others {
            let error = read(&rom, other).unwrap_err();
            assert!(matches!(error, Error::Other { .. }), "{other:?}: {error}");
            assert!(error.to_string().contains("one.ko is not the module that was measured"), "{error}");
        }
        let cut = read(&rom, Entry { offset: 8192, ..entry }).unwrap_err();
        assert!(matches!(cut, Error::Read { .. }), "{cut}");
    }
}
