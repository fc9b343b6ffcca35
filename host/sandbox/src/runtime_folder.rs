//! A VM's own folder: sockets, the firmware's variables, the TPM's state.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tempfile::TempDir;

use crate::error::Error;

const PREFIX: &str = "sealpod-vm-";
const LOCK: &str = "lock";

/// The folder. It is removed when dropped; if that did not happen, by a later start.
#[derive(Debug)]
pub(crate) struct RuntimeFolder {
    folder: TempDir,
    /// Held as long as the folder has an owner.
    _lock: File,
}

impl RuntimeFolder {
    /// Makes a folder that only this user can enter, after removing those whose owners are gone.
    pub(crate) fn create() -> Result<Self, Error> {
        let base = base();
        remove_abandoned(&base);
        Self::create_in(&base).map_err(Error::io(format!("cannot make a folder in {}", base.display())))
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let mut builder = tempfile::Builder::new();
        let folder =
            builder.prefix(&prefix).permissions(fs::Permissions::from_mode(0o700)).tempdir_in(base)?;
        let lock = File::create(folder.path().join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn base() -> PathBuf {
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    named.filter(|folder| folder.is_dir()).unwrap_or_else(std::env::temp_dir)
}

/// Removes what VMs left in their runtime folder (`$XDG_RUNTIME_DIR`, or the folder for temporary files) whose owners
/// were killed. Every start does so itself.
pub fn remove_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner_of) else { continue };
        let path = entry.path();
        if is_abandoned(&path, owner) {
            tracing::debug!(path = %path.display(), "removing what an earlier VM left");
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove what an earlier VM left");
            }
        }
    }
}

/// The process that made a folder of this name.
fn owner_of(name: &str) -> Option<u32> {
    let (owner, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    owner.parse().ok()
}

/// Whether there is no such process, or but its exit status, which nobody has asked for yet.
pub fn has_ended(process: u32) -> bool {
    // The name in parentheses may have any characters; the state follows it (proc(5)).
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

/// Whether the owner is gone. Its lock tells it from a process of the same number in another namespace.
fn is_abandoned(path: &Path, owner: u32) -> bool {
    let Ok(metadata) = path.symlink_metadata() else { return false };
    let ours = metadata.is_dir() && metadata.uid() == rustix::process::getuid().as_raw();
    if !ours || !has_ended(owner) {
        return false;
    }
    match File::open(path.join(LOCK)) {
        Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process number that is not in use: above the kernel's maximum.
    const NOBODY: u32 = 4_194_305;

    #[test]
    fn a_process_whose_status_nobody_asked_for_has_ended() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(!has_ended(child.id()));
        child.kill().unwrap();
        let began = std::time::Instant::now();
        while !has_ended(child.id()) {
            assert!(began.elapsed().as_secs() < 10, "it was killed");
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
        assert!(has_ended(child.id()) && !has_ended(std::process::id()));
    }

    fn leave(base: &Path, name: &str) -> PathBuf {
        let path = base.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("vars.fd"), "left").unwrap();
        File::create(path.join(LOCK)).unwrap();
        path
    }

    #[test]
    fn a_folder_is_private_and_goes_with_its_owner() {
        let base = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::create_in(base.path()).unwrap();
        assert_eq!(folder.folder.path().metadata().unwrap().mode() & 0o777, 0o700);
        fs::write(folder.join("vars.fd"), "x").unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_crashed_owners_left_is_swept_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let living = RuntimeFolder::create_in(base.path()).unwrap();
        let left = leave(base.path(), &format!("{PREFIX}{NOBODY}-abcdef"));
        let locked = leave(base.path(), &format!("{PREFIX}{NOBODY}-locked"));
        let lock = File::open(locked.join(LOCK)).unwrap();
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let foreign = leave(base.path(), "sealpod-other");
        let elsewhere = leave(base.path(), "elsewhere");
        let link = base.path().join(format!("{PREFIX}{NOBODY}-link"));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();

        remove_abandoned(base.path());

        assert!(!left.exists());
        for kept in [living.folder.path(), &locked, &foreign, &elsewhere, &link] {
            assert!(kept.exists(), "{}", kept.display());
        }
    }
}
