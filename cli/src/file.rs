//! Files that commands write where they are told to.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Context, Result};

/// Writes a file as a whole or not at all, with the permissions that it had. Links stay, and so does what is no file, such
/// as `/dev/stdout`: that is written to.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let there = fs::metadata(&path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        let opened = OpenOptions::new().write(true).open(&path);
        return opened.and_then(|mut file| file.write_all(bytes)).context(what());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).context(what())?;
    file.write_all(bytes).context(what())?;
    let permissions = there.map_or_else(|| Permissions::from_mode(0o644), |there| there.permissions());
    file.as_file().set_permissions(permissions).context(what())?;
    file.persist(&path).context(what())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_and_a_link_and_a_device_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, pipe, folder_there] =
            ["file", "link", "pipe", "there"].map(|name| folder.path().join(name));
        replace(&file, b"first").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        symlink("file", &link).unwrap();
        replace(&link, b"second").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let reader = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        replace(&pipe, b"third").unwrap();
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        let mut said = [0; 5];
        std::io::Read::read_exact(&mut &reader, &mut said).unwrap();
        assert_eq!(&said, b"third");

        fs::create_dir(&folder_there).unwrap();
        assert!(replace(&folder_there, b"").is_err());
        assert!(replace(&folder.path().join("no/where"), b"").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left beside");
    }
}
