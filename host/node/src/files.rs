//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Ends the names of what is not whole yet. Whoever comes after an interrupted run writes over it.
const UNFINISHED: &str = "sealpod-new";

/// Writes a file beside the one of that name and then puts it in its place.
pub(crate) fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    place(path, mode, |file| file.write_all(contents))
}

/// Copies a file in the same way.
pub(crate) fn copy(from: &Path, path: &Path, mode: u32) -> io::Result<()> {
    let mut source = File::open(from)?;
    place(path, mode, |file| io::copy(&mut source, file).map(drop))
}

fn place(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let beside = unfinished(path);
    remove(&beside)?;
    let filled = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        fill(&mut file)?;
        // The mask of this process may have taken something away.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if filled.is_err() {
        // The error that is reported says more than one about this.
        let _ = fs::remove_file(&beside);
    }
    filled.and_then(|()| sync_folder_of(path))
}

/// Copies the files of a folder, and exchanges it for the one of that name at once.
pub(crate) fn copy_folder(from: &Path, path: &Path) -> io::Result<()> {
    let beside = unfinished(path);
    remove(&beside)?;
    fs::create_dir(&beside)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
    for (name, source) in files_of(from)? {
        copy(&source, &beside.join(name), 0o644)?;
    }
    match renameat_with(CWD, &beside, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => remove(&beside)?,
        Err(rustix::io::Errno::NOENT) => fs::rename(&beside, path)?,
        Err(error) => return Err(error.into()),
    }
    sync_folder_of(path)
}

/// Makes a symbolic link, or replaces one.
pub(crate) fn link(target: &Path, path: &Path) -> io::Result<()> {
    let beside = unfinished(path);
    remove(&beside)?;
    std::os::unix::fs::symlink(target, &beside)?;
    fs::rename(&beside, path)?;
    sync_folder_of(path)
}

/// Removes a file, link or folder, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if_there(removed).map(|_| ())
}

/// What a file has in it, if it is there.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if_there(fs::read(path))
}

/// The permissions of a file, if it is there.
pub(crate) fn mode(path: &Path) -> io::Result<Option<u32>> {
    Ok(if_there(fs::metadata(path))?.map(|metadata| metadata.mode() & 0o7777))
}

/// SHA-256 of a file, of the names and contents of a folder's files, or of a link's target; none where nothing is.
pub(crate) fn digest(path: &Path) -> io::Result<Option<String>> {
    let Some(metadata) = if_there(path.symlink_metadata())? else { return Ok(None) };
    let mut context = Context::new(&SHA256);
    if metadata.is_symlink() {
        context.update(fs::read_link(path)?.as_os_str().as_encoded_bytes());
    } else if metadata.is_dir() {
        for (name, file) in files_of(path)? {
            let digest = digest(&file)?.unwrap_or_default();
            context.update(format!("{digest} {name}\n").as_bytes());
        }
    } else {
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => context.update(&buffer[..read]),
            }
        }
    }
    Ok(Some(hex::encode(context.finish())))
}

/// SHA-256 of a text.
pub(crate) fn digest_of(contents: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&SHA256, contents))
}

/// A folder's files in the order of their names. Anything else in it is refused.
fn files_of(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().into_string();
        match name {
            Ok(name) if entry.file_type()?.is_file() => files.push((name, entry.path())),
            _ => {
                let problem = format!("expected files only, got {}", entry.path().display());
                return Err(io::Error::new(ErrorKind::InvalidData, problem));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Makes a folder and those above it; gives those that were made, the outermost first.
pub(crate) fn make_folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.iter().rev() {
        fs::create_dir(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(missing.into_iter().rev().map(Path::to_owned).collect())
}

/// Whether a file can be executed.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0)
}

fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{UNFINISHED}"))
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_completed_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"old", 0o644).unwrap();
        assert!(copy(folder.path(), &path, 0o755).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_an_interrupted_run_left_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(unfinished(&path), "half").unwrap();
        write(&path, b"whole", 0o755).unwrap();
        assert_eq!(mode(&path).unwrap(), Some(0o755));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_is_exchanged_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("one"), "1").unwrap();
        copy_folder(&from, &to).unwrap();
        assert_eq!(digest(&from).unwrap(), digest(&to).unwrap());
        fs::remove_file(from.join("one")).unwrap();
        fs::write(from.join("two"), "2").unwrap();
        assert_ne!(digest(&from).unwrap(), digest(&to).unwrap());
        copy_folder(&from, &to).unwrap();
        assert!(!to.join("one").exists() && to.join("two").exists());
        fs::create_dir(from.join("folder")).unwrap();
        assert!(copy_folder(&from, &to).unwrap_err().to_string().contains("expected files only"));
        assert!(to.join("two").exists());
    }

    #[test]
    fn only_folders_that_were_made_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (outer, inner) = (folder.path().join("a"), folder.path().join("a/b"));
        assert_eq!(make_folders(&inner).unwrap(), [outer, inner.clone()]);
        assert!(make_folders(&inner).unwrap().is_empty());
    }
}
