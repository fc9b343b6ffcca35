//! Writing containerd's files, and putting back what was there.

use std::path::Path;

use rustix::fs::FlockOperation;

use crate::containerd::{Changes, DropIn, Edit};
use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::plan::{Step, make_folder_of};
use crate::record::{Edited, Record};

/// Keeps others away until it is dropped, if they have changed nothing since what is on record was `planned` for.
pub(crate) fn lock(places: &Places, planned: &Record) -> Result<std::fs::File, Error> {
    let folder = places.on_disk(&places.prefix);
    let file = std::fs::File::open(&folder).map_err(Error::file("cannot open", &folder))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Busy(folder))?;
    match Record::read(places)?.unwrap_or_default().files == planned.files {
        true => Ok(file),
        false => Err(Error::Outdated(places.prefix.clone())),
    }
}

/// Writes containerd's files, the backups first, and puts them on record.
pub(crate) fn write_changes(
    places: &Places,
    changes: &Changes,
    record: &mut Record,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    for edit in &changes.edits {
        write_edit(places, edit, record)?;
        if edit.current != edit.after {
            say(&format!("writing {}", edit.path.display()));
        }
    }
    let Some(DropIn { path, current, after }) = &changes.drop_in else { return Ok(()) };
    match after {
        Some(after) => {
            if current.as_ref() != Some(after) {
                say(&format!("writing {}", path.display()));
            }
            Step::text(places, path.clone(), after.clone())?.carry_out(places, record)
        }
        None => {
            let on_disk = places.on_disk(path);
            files::remove(&on_disk).map_err(Error::file("cannot remove", on_disk))?;
            record.files.remove(path);
            record.write(places)
        }
    }
}

fn write_edit(places: &Places, edit: &Edit, record: &mut Record) -> Result<(), Error> {
    let backup = edit.backup();
    let mode = files::mode(&places.on_disk(&edit.path)).ok().flatten().unwrap_or(0o644);
    let put = |path: &Path, text: Option<&str>| put(places, path, text, mode);
    if edit.after == edit.original {
        // Nothing of ours is in it any more.
        if edit.current != edit.after {
            put(&edit.path, edit.after.as_deref())?;
        }
        record.edits.remove(&edit.path);
        return record.write(places);
    }
    make_folder_of(places, &edit.path, record)?;
    put(&backup, edit.original.as_deref())?;
    let edited = Edited {
        digest: files::digest_of(edit.after.as_deref().unwrap_or_default().as_bytes()),
        backup: edit.original.as_ref().map(|_| backup),
        undo: edit.undo.clone(),
    };
    record.edits.insert(edit.path.clone(), edited);
    record.write(places)?;
    if edit.current != edit.after {
        put(&edit.path, edit.after.as_deref())?;
    }
    Ok(())
}

/// Removes the backups of files that have nothing of ours any more.
pub(crate) fn remove_backups(places: &Places, changes: &Changes, record: &Record) -> Result<(), Error> {
    for edit in changes.edits.iter().filter(|edit| !record.edits.contains_key(&edit.path)) {
        let backup = places.on_disk(&edit.backup());
        files::remove(&backup).map_err(Error::file("cannot remove", backup))?;
    }
    Ok(())
}

/// Puts back what containerd's files were before.
pub(crate) fn restore_changes(places: &Places, changes: &Changes) -> Result<(), Error> {
    for (path, current, _) in changes.files() {
        let mode = files::mode(&places.on_disk(path)).ok().flatten().unwrap_or(0o644);
        put(places, path, current, mode)?;
    }
    Ok(())
}

/// Writes a file, or removes it.
fn put(places: &Places, path: &Path, text: Option<&str>, mode: u32) -> Result<(), Error> {
    let on_disk = places.on_disk(path);
    // Where the name is a link, the file that it leads to is meant. In an image it may lead out of it.
    let on_disk = if places.root.is_none() { on_disk.canonicalize().unwrap_or(on_disk) } else { on_disk };
    match text {
        Some(text) => files::write(&on_disk, text.as_bytes(), mode),
        None => files::remove(&on_disk),
    }
    .map_err(Error::file("cannot write", on_disk))
}
