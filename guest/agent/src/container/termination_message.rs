//! A container's termination message: an empty file of its own, into which it writes why it ends.
//!
//! What is in the file, and how much, is up to the container. So it is read from its end and within bounds, and only where
//! it still is a plain file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use sealpod_agent_protocol::TerminationMessage;

/// The file's name in the container's bundle.
const NAME: &str = "termination-message";

/// Makes the file of the container with this bundle, which has none yet.
pub(super) fn make(bundle: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(bundle)?;
    let path = bundle.join(NAME);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    // Whoever runs the container; and not bent by the umask.
    file.set_permissions(fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

/// What is in it; nothing where the container has none.
pub(super) fn read(bundle: &Path) -> io::Result<TerminationMessage> {
    let mut content = Vec::new();
    if let Some(mut file) = open(&bundle.join(NAME))? {
        let length = file.metadata()?.len();
        let longest = TerminationMessage::LONGEST as u64;
        file.seek(SeekFrom::Start(length.saturating_sub(longest)))?;
        file.take(longest).read_to_end(&mut content)?;
    }
    Ok(TerminationMessage { content: STANDARD.encode(content) })
}

fn open(path: &Path) -> io::Result<Option<File>> {
    // It waits for nobody, as it would at the end of a pipe.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    match file.metadata()?.is_file() {
        true => Ok(Some(file)),
        false => Err(io::Error::other("it is no plain file")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn content(bundle: &Path) -> Vec<u8> {
        STANDARD.decode(read(bundle).unwrap().content).unwrap()
    }

    #[test]
    fn what_everybody_may_write_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("web");
        assert_eq!(content(&bundle), b"", "a container without a file has no message");
        let path = make(&bundle).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o666);
        assert_eq!(content(&bundle), b"");
        fs::write(&path, b"last \xff words").unwrap();
        assert_eq!(content(&bundle), b"last \xff words");
        assert!(make(&bundle).is_err(), "a container has one");
    }

    #[test]
    fn the_end_of_a_long_message_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = make(folder.path()).unwrap();
        fs::write(&path, [vec![b'x'; 5000], vec![b'y'; TerminationMessage::LONGEST]].concat()).unwrap();
        assert_eq!(content(folder.path()), vec![b'y'; TerminationMessage::LONGEST]);
        // One with more holes than there is memory.
        let mut file = File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(1 << 40)).unwrap();
        file.write_all(b"end").unwrap();
        assert!(content(folder.path()).ends_with(b"\0end"));
        assert_eq!(content(folder.path()).len(), TerminationMessage::LONGEST);
    }

    #[test]
    fn only_a_plain_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = make(folder.path()).unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "the guest's").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(read(folder.path()).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(read(folder.path()).is_err(), "a pipe, at which nobody waits");
        fs::remove_file(&path).unwrap();
        // Only root makes one.
        let zero = rustix::fs::makedev(1, 5);
        if mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, zero).is_ok() {
            assert!(read(folder.path()).is_err(), "a device");
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        assert!(read(folder.path()).is_err(), "a folder");
    }
}
