//! What was done to the node, so that it can be undone exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::containerd::edit::Undo;
use crate::error::Error;
use crate::files;
use crate::places::Places;

/// The record, which is kept in the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Record {
    /// Which release of Sealpod did it.
    pub(crate) version: String,
    /// For which containerd.
    pub(crate) containerd: Option<String>,
    /// Files, folders and links that are ours, with the digests of what was written.
    pub(crate) files: BTreeMap<PathBuf, String>,
    /// Files of others that were edited.
    pub(crate) edits: BTreeMap<PathBuf, Edited>,
    /// Folders that were made, the outermost first.
    pub(crate) folders: Vec<PathBuf>,
    /// Services that have not been restarted yet since something of theirs was changed.
    pub(crate) pending: BTreeSet<Service>,
    /// The digest of the SELinux module that was loaded.
    pub(crate) selinux: Option<String>,
}

/// A file of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edited {
    /// The digest of what was written.
    pub(crate) digest: String,
    /// Where the file is kept as it was before; none if there was none.
    pub(crate) backup: Option<PathBuf>,
    /// What takes the edit back if somebody else has edited the file since.
    pub(crate) undo: Vec<Undo>,
}

/// A service of the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Service {
    /// Ours.
    Snapshotter,
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
}

impl Service {
    /// The name of its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Snapshotter => crate::unit::NAME,
            Self::Containerd => "containerd.service",
            Self::Crio => "crio.service",
        }
    }
}

impl Record {
    /// Reads it, if there is one.
    pub(crate) fn read(places: &Places) -> Result<Option<Self>, Error> {
        let path = places.on_disk(&places.record());
        let Some(text) = files::read(&path).map_err(Error::file("cannot read", &path))? else {
            return Ok(None);
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| Error::Record { path, source })
    }

    pub(crate) fn write(&self, places: &Places) -> Result<(), Error> {
        let path = places.on_disk(&places.record());
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|source| Error::Record { path: path.clone(), source })?;
        text.push(b'\n');
        files::write(&path, &text, 0o644).map_err(Error::file("cannot write", path))
    }

    /// Whether a file is as it was written.
    pub(crate) fn is_ours(&self, places: &Places, path: &Path) -> Result<bool, Error> {
        let Some(written) = self.files.get(path) else { return Ok(false) };
        let path = places.on_disk(path);
        match files::digest(&path) {
            Ok(digest) => Ok(digest.as_ref() == Some(written)),
            // Folders that we write have nothing but files in them.
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(false),
            Err(error) => Err(Error::file("cannot read", path)(error)),
        }
    }
}
