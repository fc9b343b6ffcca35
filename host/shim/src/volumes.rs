//! Volumes of files: read where kubelet keeps them, given to the guest by RPC, and again when kubelet changes them.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_agent_protocol::{Client, Request, VolumeFile, WriteVolume};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::specification::HostFolder;

/// kubelet's link to the current content: it moves when the content changes, all at once.
const DATA: &str = "..data";
/// All files of a volume together: with base64 and JSON they must fit into one request.
const MOST_BYTES: u64 = 2_900_000;
const MOST_FILES: usize = 4096;
/// How often a volume is read again that changed meanwhile.
const ATTEMPTS: usize = 5;
const DEEPEST: usize = 16;
/// How often a change is looked for. kubelet itself takes up to a minute.
const INTERVAL: Duration = Duration::from_secs(2);

/// Which content of a volume the guest has: where kubelet's link led.
pub(crate) type Version = Option<PathBuf>;

/// Gives a volume to the guest; says which content that was.
pub(crate) async fn give(agent: &Client, folder: &HostFolder) -> Result<Version, Error> {
    let (version, request) = read_one(folder, |version| read(folder, version))?;
    agent.call(Request::WriteVolume(Box::new(request))).await?;
    Ok(version)
}

/// Follows a volume's changes until the task is ended.
pub(crate) fn follow(agent: Client, folder: HostFolder, mut known: Version) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let current = version(&folder);
            if current.is_none() || current == known {
                continue;
            }
            match give(&agent, &folder).await {
                Ok(given) => known = given,
                Err(error) => {
                    tracing::warn!(volume = folder.volume, %error, "a change does not reach the guest");
                    // What cannot be read may be there in a moment. What is refused will be refused again.
                    if !matches!(error, Error::Io { .. }) {
                        known = current;
                    }
                }
            }
        }
    })
}

fn version(folder: &HostFolder) -> Version {
    std::fs::read_link(folder.path.join(DATA)).ok()
}

/// Reads one version whole: kubelet removes the old one when it has moved the link.
fn read_one(
    folder: &HostFolder,
    read: impl Fn(Option<&Path>) -> Result<WriteVolume, Error>,
) -> Result<(Version, WriteVolume), Error> {
    for _ in 1..ATTEMPTS {
        let before = version(folder);
        let volume = read(before.as_deref());
        if version(folder) == before {
            return volume.map(|volume| (before, volume));
        }
    }
    let last = version(folder);
    read(last.as_deref()).map(|volume| (last, volume))
}

fn read(folder: &HostFolder, version: Option<&Path>) -> Result<WriteVolume, Error> {
    let mut reading = Reading { files: Vec::new(), bytes_left: MOST_BYTES, volume: &folder.volume };
    if folder.path.is_file() {
        reading.file(&folder.path, "file".into())?;
    } else {
        // The folder that the link leads to, not the link, which moves.
        let data = version.map_or_else(|| folder.path.clone(), |version| folder.path.join(version));
        reading.folder(&data, &PathBuf::new(), 0)?;
    }
    let group = std::fs::metadata(&folder.path).map(|metadata| metadata.gid()).ok();
    Ok(WriteVolume {
        volume: folder.volume.clone(),
        group: group.filter(|group| *group != 0),
        files: reading.files,
    })
}

struct Reading<'a> {
    files: Vec<VolumeFile>,
    bytes_left: u64,
    volume: &'a str,
}

impl Reading<'_> {
    fn folder(&mut self, folder: &Path, inside: &Path, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(self.too_much());
        }
        let io = || Error::io(format!("cannot read {}", folder.display()));
        for entry in std::fs::read_dir(folder).map_err(io())? {
            let entry = entry.map_err(io())?;
            let (path, inside) = (entry.path(), inside.join(entry.file_name()));
            // Links of the volume's own lead to its data, which is read itself.
            if entry.file_name().as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            match path.is_dir() {
                true => self.folder(&path, &inside, depth + 1)?,
                false => self.file(&path, inside.to_string_lossy().into_owned())?,
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, inside: String) -> Result<(), Error> {
        let io = || Error::io(format!("cannot read {}", path.display()));
        let file = std::fs::File::open(path).map_err(io())?;
        let metadata = file.metadata().map_err(io())?;
        let (mode, user) = (metadata.mode() & 0o777, Some(metadata.uid()).filter(|user| *user != 0));
        let mut content = Vec::new();
        file.take(self.bytes_left + 1).read_to_end(&mut content).map_err(io())?;
        self.bytes_left = self.bytes_left.checked_sub(content.len() as u64).ok_or_else(|| self.too_much())?;
        if self.files.len() == MOST_FILES {
            return Err(self.too_much());
        }
        self.files.push(VolumeFile { path: inside, mode, user, content: STANDARD.encode(content) });
        Ok(())
    }

    fn too_much(&self) -> Error {
        Error::Invalid(format!(
            "volume {:?} has more than {MOST_BYTES} bytes, {MOST_FILES} files or {DEEPEST} levels of folders",
            self.volume
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn kubelets(content: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026_11_24");
        for (name, text) in content {
            let path = data.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o440)).unwrap();
        }
        symlink("..2026_11_24", folder.path().join(DATA)).unwrap();
        symlink("..data/a", folder.path().join("a")).unwrap();
        folder
    }

    fn read_volume(path: &Path) -> Result<WriteVolume, Error> {
        let folder = HostFolder { volume: "settings".into(), path: path.into() };
        read_one(&folder, |version| read(&folder, version)).map(|(_, volume)| volume)
    }

    #[test]
    fn the_current_content_is_read_once() {
        let folder = kubelets(&[("a", "1"), ("b/c", "2")]);
        let mut volume = read_volume(folder.path()).unwrap();
        volume.files.sort_by(|left, right| left.path.cmp(&right.path));
        let paths: Vec<_> = volume.files.iter().map(|file| (file.path.as_str(), file.mode)).collect();
        assert_eq!(paths, [("a", 0o440), ("b/c", 0o440)]);
        assert_eq!(volume.files[0].content, STANDARD.encode("1"));
    }

    #[test]
    fn what_is_read_is_the_version_that_is_told() {
        let folder = kubelets(&[("a", "1")]);
        let of = HostFolder { volume: "settings".into(), path: folder.path().into() };
        let (version, _) = read_one(&of, |version| read(&of, version)).unwrap();
        assert_eq!(version.as_deref(), Some(Path::new("..2026_11_24")));
        // One that kubelet makes meanwhile is another, also before its link has moved.
        let next = folder.path().join("..2026_11_25");
        std::fs::create_dir(&next).unwrap();
        std::fs::write(next.join("a"), "2").unwrap();
        let old = read(&of, version.as_deref()).unwrap();
        let go_on = || {
            std::fs::remove_file(folder.path().join(DATA)).unwrap();
            symlink("..2026_11_25", folder.path().join(DATA)).unwrap();
        };
        // It goes on while the old one is read, whose folder may be gone by then.
        let reading = |version: Option<&Path>| match version {
            Some(version) if version == Path::new("..2026_11_24") => {
                let old = read(&of, Some(version));
                go_on();
                old
            }
            version => read(&of, version),
        };
        let (version, new) = read_one(&of, reading).unwrap();
        assert_ne!(new.files[0].content, old.files[0].content);
        assert_eq!(version.as_deref(), Some(Path::new("..2026_11_25")));
        assert_eq!(new.files[0].content, STANDARD.encode("2"));
    }

    #[test]
    fn a_file_keeps_its_owner() {
        let folder = kubelets(&[("a", "1")]);
        let path = folder.path().join("..data/a");
        let own = std::fs::metadata(&path).unwrap().uid();
        let user = |path: &Path| read_volume(path).unwrap().files[0].user;
        assert_eq!(user(folder.path()), Some(own).filter(|own| *own != 0));
        // Only root gives files away.
        if own == 0 {
            std::os::unix::fs::chown(&path, Some(4000), None).unwrap();
            assert_eq!(user(folder.path()), Some(4000));
        }
    }

    #[test]
    fn a_single_file_is_a_volume_too() {
        let folder = kubelets(&[("a", "1")]);
        let volume = read_volume(&folder.path().join("a")).unwrap();
        assert_eq!(volume.files.len(), 1);
        assert_eq!(volume.files[0].path, "file");
    }

    #[test]
    fn a_volume_that_is_too_large_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("large"), vec![0; 2_900_001]).unwrap();
        assert!(read_volume(folder.path()).unwrap_err().to_string().contains("settings"));
        assert!(read_volume(Path::new("/nowhere")).is_err());
    }
}
