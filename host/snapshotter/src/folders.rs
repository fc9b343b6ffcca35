//! The snapshots' folders: `<root>/snapshots/<number>/{fs,work}`, and `root` for what stands for a guest's.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::image_user::USER_OF_IMAGE;

const SNAPSHOTS: &str = "snapshots";
/// Ends the name of a folder that is being removed.
const GONE: &str = "gone";
/// These mean something in overlayfs's options.
const MEANINGFUL: [char; 3] = [',', ':', '\\'];

/// All folders.
pub(crate) struct Folders {
    snapshots: PathBuf,
}

impl Folders {
    /// Makes the folder, if it is not there. Its path must be one that mount options can have.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let create = |folder: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        create(root)?;
        // containerd mounts from its own working directory, so the path must be absolute.
        let root = root.canonicalize()?;
        if root.to_str().is_none_or(|path| path.contains(MEANINGFUL)) {
            let expected = "the path must be UTF-8 without comma, colon and backslash, for overlayfs";
            return Err(io::Error::new(ErrorKind::InvalidInput, expected));
        }
        let snapshots = root.join(SNAPSHOTS);
        create(&snapshots)?;
        Ok(Self { snapshots })
    }

    fn of(&self, number: u64) -> PathBuf {
        self.snapshots.join(number.to_string())
    }

    /// A layer's files.
    pub(crate) fn files(&self, number: u64) -> PathBuf {
        self.of(number).join("fs")
    }

    /// What overlayfs works in.
    pub(crate) fn work(&self, number: u64) -> PathBuf {
        self.of(number).join("work")
    }

    /// What the host sees of a container whose files are in the guest.
    pub(crate) fn stand_in(&self, number: u64) -> PathBuf {
        self.of(number).join("root")
    }

    /// Makes the folders of a snapshot that is written; its root is as its parent's.
    pub(crate) fn make(&self, number: u64, parent: Option<u64>) -> io::Result<()> {
        self.make_anew(number)?;
        let files = self.files(number);
        fs::create_dir(&files)?;
        fs::create_dir(self.work(number))?;
        match parent {
            Some(parent) => {
                let metadata = fs::metadata(self.files(parent))?;
                std::os::unix::fs::chown(&files, Some(metadata.uid()), Some(metadata.gid()))?;
                fs::set_permissions(&files, metadata.permissions())
            }
            None => fs::set_permissions(&files, Permissions::from_mode(0o755)),
        }
    }

    /// Makes a stand-in, in which container engines find the users whom images name.
    pub(crate) fn make_stand_in(&self, number: u64, users: &[String]) -> io::Result<()> {
        self.make_anew(number)?;
        let etc = self.stand_in(number).join("etc");
        fs::create_dir_all(&etc)?;
        let mut passwd = fs::File::create(etc.join("passwd"))?;
        let mut group = fs::File::create(etc.join("group"))?;
        writeln!(passwd, "root:x:0:0::/:")?;
        writeln!(group, "root:x:0:")?;
        for name in users.iter().filter(|name| *name != "root") {
            writeln!(passwd, "{name}:x:{USER_OF_IMAGE}:{USER_OF_IMAGE}::/:")?;
            writeln!(group, "{name}:x:{USER_OF_IMAGE}:")?;
        }
        Ok(())
    }

    /// Numbers are given again where a snapshot could not be made: what that left goes first.
    fn make_anew(&self, number: u64) -> io::Result<()> {
        let folder = self.of(number);
        remove_all(&folder)?;
        fs::create_dir(&folder)
    }

    /// Removes a snapshot's folders.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        match self.set_aside(number) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(aside) => remove_all(&aside),
        }
    }

    /// Gives a folder a name that is nobody's, so that a half removed one is not taken for a snapshot.
    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        let aside = self.of(number).with_extension(GONE);
        fs::rename(self.of(number), &aside).map(|()| aside)
    }

    /// Sets the folders aside whose numbers are not known. No snapshot may be made meanwhile.
    pub(crate) fn set_others_aside(&self, known: &HashSet<u64>) -> io::Result<()> {
        for entry in fs::read_dir(&self.snapshots)? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            match number.filter(|number| !known.contains(number)).map(|number| self.set_aside(number)) {
                Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what was set aside, and whatever else is no snapshot's.
    pub(crate) fn remove_set_aside(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.snapshots)? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| name.parse::<u64>().is_err()) {
                remove_all(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Bytes on disk, and inodes.
    pub(crate) fn usage(&self, number: u64) -> io::Result<(u64, u64)> {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        let mut waiting = vec![self.files(number)];
        while let Some(path) = waiting.pop() {
            // Files come and go while a container runs.
            let Some(metadata) = if_there(fs::symlink_metadata(&path))? else { continue };
            if seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                for entry in if_there(fs::read_dir(&path))?.into_iter().flatten() {
                    waiting.push(entry?.path());
                }
            }
        }
        Ok((bytes, seen.len() as u64))
    }
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Another call may remove it too.
fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match if_there(fs::symlink_metadata(path))? {
        None => return Ok(()),
        Some(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Some(_) => fs::remove_file(path),
    };
    if_there(removed).map(|_| ())
}
