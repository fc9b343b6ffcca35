//! The snapshots' folders: `<root>/snapshots/<number>/{fs,work}`, and `root` for what stands for a guest's.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::image_user::USER_OF_IMAGE;

const SNAPSHOTS: &str = "snapshots";

/// All folders.
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let root = root.join(SNAPSHOTS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Self { root })
    }

    fn of(&self, number: u64) -> PathBuf {
        self.root.join(number.to_string())
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
        let files = self.files(number);
        fs::create_dir_all(&files)?;
        fs::create_dir_all(self.work(number))?;
        if let Some(parent) = parent {
            let metadata = fs::metadata(self.files(parent))?;
            std::os::unix::fs::chown(&files, Some(metadata.uid()), Some(metadata.gid()))?;
            fs::set_permissions(&files, metadata.permissions())?;
        }
        Ok(())
    }

    /// Makes a stand-in, in which container engines find the users whom images name.
    pub(crate) fn make_stand_in(&self, number: u64, users: &[String]) -> io::Result<()> {
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

    /// Removes a snapshot's folders. First under another name: what is half removed is nobody's.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        let gone = self.root.join(format!("{number}.gone"));
        match fs::rename(self.of(number), &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => fs::remove_dir_all(gone),
        }
    }

    /// Removes the folders that no record knows.
    pub(crate) fn keep_only(&self, known: impl Fn(u64) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if !number.is_some_and(&known) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Bytes on disk, and inodes.
    pub(crate) fn usage(&self, number: u64) -> io::Result<(u64, u64)> {
        let mut seen = std::collections::HashSet::new();
        let mut bytes = 0;
        let mut waiting = vec![self.files(number)];
        while let Some(path) = waiting.pop() {
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                for entry in fs::read_dir(&path)? {
                    waiting.push(entry?.path());
                }
            }
        }
        Ok((bytes, seen.len() as u64))
    }
}
