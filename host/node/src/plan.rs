//! What is to be done to files that are wholly ours.

use std::path::{Path, PathBuf};

use crate::diff;
use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::record::Record;

/// What a file is to be.
#[derive(Clone, Debug)]
pub(crate) enum Contents {
    /// A copy of a file.
    Copy(PathBuf),
    /// A copy of a folder of files.
    Folder(PathBuf),
    /// A text.
    Text(String),
    /// A link to somewhere.
    Link(PathBuf),
}

/// One file, folder or link.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) path: PathBuf,
    contents: Contents,
    mode: u32,
    /// Of what it is to be.
    pub(crate) digest: String,
    /// What it is now.
    present: Option<String>,
    mode_differs: bool,
}

impl Step {
    /// Compares what is to be with what is.
    pub(crate) fn new(places: &Places, path: PathBuf, contents: Contents, mode: u32) -> Result<Self, Error> {
        let on_disk = places.on_disk(&path);
        let read = |path: &Path| files::digest(path).map_err(Error::file("cannot read", path));
        let digest = match &contents {
            Contents::Copy(from) | Contents::Folder(from) => read(from)?.ok_or_else(|| missing(from))?,
            Contents::Text(text) => files::digest_of(text.as_bytes()),
            Contents::Link(target) => files::digest_of(target.as_os_str().as_encoded_bytes()),
        };
        let present = read(&on_disk)?;
        let has_mode = matches!(contents, Contents::Copy(_) | Contents::Text(_));
        let present_mode = files::mode(&on_disk).map_err(Error::file("cannot read", &on_disk))?;
        let mode_differs = has_mode && present_mode != Some(mode);
        Ok(Self { path, contents, mode, digest, present, mode_differs })
    }

    /// The same of a text that everybody may read.
    pub(crate) fn text(places: &Places, path: PathBuf, text: String) -> Result<Self, Error> {
        Self::new(places, path, Contents::Text(text), 0o644)
    }

    /// Whether there is anything to do.
    pub(crate) fn is_change(&self) -> bool {
        self.present.as_ref() != Some(&self.digest) || self.mode_differs
    }

    /// Whether something is there that is neither what we wrote nor what is to be.
    pub(crate) fn is_of_others(&self, record: &Record) -> bool {
        self.present
            .as_ref()
            .is_some_and(|present| *present != self.digest && record.files.get(&self.path) != Some(present))
    }

    /// For people: what is done, with the changes if it is a text.
    pub(crate) fn lines(&self, places: &Places) -> Vec<String> {
        let verb = if self.present.is_some() { "replace  " } else { "write    " };
        let path = self.path.display();
        let mut lines = vec![match &self.contents {
            Contents::Copy(from) => format!("{verb}{path}  from {}", from.display()),
            Contents::Folder(from) => format!("{verb}{path}/  from {}/", from.display()),
            Contents::Text(_) => format!("{verb}{path}"),
            Contents::Link(target) => format!("{verb}{path}  ->  {}", target.display()),
        }];
        if let Contents::Text(text) = &self.contents {
            let old = std::fs::read_to_string(places.on_disk(&self.path)).ok();
            lines.extend(diff_lines(&self.path, old.as_deref(), Some(text)));
        }
        lines
    }

    /// Does it, and puts it on record.
    pub(crate) fn carry_out(&self, places: &Places, record: &mut Record) -> Result<(), Error> {
        if self.is_change() {
            make_folder_of(places, &self.path, record)?;
            let on_disk = places.on_disk(&self.path);
            let done = match &self.contents {
                Contents::Copy(from) => files::copy(from, &on_disk, self.mode),
                Contents::Folder(from) => files::copy_folder(from, &on_disk),
                Contents::Text(text) => files::write(&on_disk, text.as_bytes(), self.mode),
                Contents::Link(target) => files::link(target, &on_disk),
            };
            done.map_err(Error::file("cannot write", on_disk))?;
        }
        if record.files.insert(self.path.clone(), self.digest.clone()).as_ref() != Some(&self.digest) {
            record.write(places)?;
        }
        Ok(())
    }
}

/// The changes of a text, indented.
pub(crate) fn diff_lines(path: &Path, old: Option<&str>, new: Option<&str>) -> Vec<String> {
    let diff = diff::unified(&path.display().to_string(), old, new);
    diff.lines().map(|line| format!("    {line}")).collect()
}

/// Makes the folder that a file goes into, and puts on record which ones were made.
pub(crate) fn make_folder_of(places: &Places, path: &Path, record: &mut Record) -> Result<(), Error> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let missing = folder.ancestors().take_while(|folder| !places.on_disk(folder).exists()).count();
    let mut made: Vec<PathBuf> = folder.ancestors().take(missing).map(Path::to_owned).collect();
    let on_disk = places.on_disk(folder);
    files::make_folders(&on_disk).map_err(Error::file("cannot make", on_disk))?;
    made.reverse();
    record.folders.extend(made);
    Ok(())
}

fn missing(path: &Path) -> Error {
    Error::Source { path: path.to_owned(), problem: "there is nothing".into() }
}
