//! What a layer leaves unsaid of a directory comes from the layers below it.
//!
//! A layer may hold `tmp/file` and say nothing of `tmp` itself. Overlayfs shows a directory with the attributes of
//! the uppermost layer that has it, so the unpacked layer must have there what the layers below have: a `/tmp` that
//! all may write to would not be one any more otherwise.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::UnpackError;
use super::attributes::{copy, is_opaque};

/// Directories, by their path in the tree, that a layer has but does not describe.
pub(crate) type Implied = BTreeSet<Vec<u8>>;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Gives a layer's implied directories the attributes that they have in the layers below it, lowest first, whose own
/// have theirs already. What no layer below has stays as it is.
pub(crate) fn inherit(tree: &Path, implied: &Implied, below: &[PathBuf]) -> Result<(), UnpackError> {
    let open = |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty());
    let io = |path: &[u8]| {
        let path = path.to_vec();
        move |error: Errno| UnpackError::io(&path, error)
    };
    let tree = open(tree).map_err(io(b"."))?;
    let below = below.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>().map_err(io(b"."))?;
    for path in implied {
        let Found::Directory { directory, cut_off: false } = find(&tree, path).map_err(io(path))? else {
            continue;
        };
        for layer in below.iter().rev() {
            match find(layer, path).map_err(io(path))? {
                Found::Directory { directory: lower, .. } => {
                    copy(&lower, &directory).map_err(io(path))?;
                    break;
                }
                Found::Nothing => {}
                Found::Hidden => break,
            }
        }
    }
    Ok(())
}

/// Whether a layer hides all that is below it. Overlayfs does not heed the mark on a layer's root.
pub(crate) fn hides_all_below(tree: &Path) -> Result<bool, Errno> {
    openat(CWD, tree, DIRECTORY, Mode::empty()).and_then(|root| is_opaque(&root))
}

/// What a layer has under a path.
enum Found {
    Directory {
        directory: OwnedFd,
        /// A directory above hides all that lower layers have under it.
        cut_off: bool,
    },
    /// Nothing: what is below shows.
    Nothing,
    /// Nothing, or no directory, and what is below does not show.
    Hidden,
}

fn find(root: &OwnedFd, path: &[u8]) -> Result<Found, Errno> {
    let mut directory = openat(root, ".", DIRECTORY, Mode::empty())?;
    let mut cut_off = false;
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        cut_off |= is_opaque(&directory)?;
        directory = match openat(&directory, OsStr::from_bytes(part), DIRECTORY, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) if cut_off => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::Hidden),
            Err(error) => return Err(error),
        };
    }
    Ok(Found::Directory { directory, cut_off })
}
