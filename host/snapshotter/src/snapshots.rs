//! What each call means: records and folders, and which mounts containerd gets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::snapshots::Mount;
use crate::config::Config;
use crate::filter::Filters;
use crate::folders::Folders;
use crate::records::{self, Change, Kind, Record, Records, now_ms};

/// By this label containerd says which snapshot a layer is to become.
const TARGET: &str = "containerd.io/snapshot.ref";
/// The image's reference, where containerd passes it on.
const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("snapshot {0:?} is not there")]
    NotFound(String),
    #[error("snapshot {0:?} exists already")]
    Exists(String),
    #[error("{0}")]
    Precondition(String),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
}

fn io_while(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, source }
}

type Labels = BTreeMap<String, String>;

/// The snapshotter.
pub(crate) struct Snapshots {
    records: Records,
    folders: Folders,
    config: Config,
}

/// What a layer is to become, if it is an image's that is left to the guest.
pub(crate) fn target<'a>(config: &Config, labels: &'a Labels) -> Option<&'a str> {
    let image = labels.get(IMAGE).map(String::as_str).unwrap_or_default();
    labels.get(TARGET).map(String::as_str).filter(|_| config.is_for_guests(image))
}

impl Snapshots {
    /// Opens the folder, removes what an earlier process left half done.
    pub(crate) fn open(root: &Path, config: Config) -> Result<Self, Error> {
        let folders = Folders::open(root).map_err(io_while("cannot make the snapshots' folder"))?;
        let records = Records::open(&root.join("records.redb"))?;
        let snapshots = Self { records, folders, config };
        snapshots.clean_up()?;
        Ok(snapshots)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Notes a layer that the guest will have, whose image runs under these users' names.
    ///
    /// Its parent must be one too, or nothing: a layer on top of one that lies here is unpacked here like it.
    pub(crate) fn leave_to_guest(
        &self,
        name: &str,
        parent: &str,
        labels: Labels,
        users: &[String],
    ) -> Result<bool, Error> {
        self.records.change(|change| {
            if !parent.is_empty() && !committed(change, parent)?.guest {
                return Ok(false);
            }
            let mut record = match change.get(name)? {
                Some(known) => known,
                None => new_record(change, Kind::Committed, parent, labels, true)?,
            };
            record.users.extend(
                users.iter().filter(|user| !record.users.contains(user)).cloned().collect::<Vec<_>>(),
            );
            change.set(name, &record)?;
            Ok(true)
        })
    }

    /// Makes a snapshot to write to, or to look at.
    pub(crate) fn prepare(
        &self,
        key: &str,
        parent: &str,
        kind: Kind,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        if key.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        let record = self.records.change(|change| {
            if change.get(key)?.is_some() {
                return Err(Error::Exists(key.into()));
            }
            let below = if parent.is_empty() { None } else { Some(committed(change, parent)?) };
            let guest = below.as_ref().is_some_and(|below| below.guest);
            if guest && labels.contains_key(TARGET) {
                return Err(Error::Precondition(format!(
                    "layer {parent} was left to guests, for an image of theirs has it too; give the images apart layers, \
                     or this image to the guests in the snapshotter's configuration"
                )));
            }
            let users = below.as_ref().map(|below| below.users.clone()).unwrap_or_default();
            let mut record = new_record(change, kind, parent, labels, guest)?;
            record.users = users;
            // Before the record is kept: a folder without one is removed at the next start.
            match (guest, kind) {
                (true, _) => self.folders.make_stand_in(record.number, &record.users),
                (false, Kind::View) if below.is_some() => Ok(()),
                (false, _) => self.folders.make(record.number, below.map(|below| below.number)),
            }
            .map_err(io_while("cannot make the snapshot's folder"))?;
            change.set(key, &record)?;
            Ok(record)
        })?;
        self.mounts_of(&record)
    }

    /// The mounts of a snapshot that was prepared.
    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let record = self.stat(key)?;
        match record.kind {
            Kind::Committed => {
                Err(Error::Precondition(format!("snapshot {key:?} is committed, and has no mounts")))
            }
            _ => self.mounts_of(&record),
        }
    }

    fn mounts_of(&self, record: &Record) -> Result<Vec<Mount>, Error> {
        if record.guest {
            return Ok(vec![bind(&self.folders.stand_in(record.number), "ro")]);
        }
        let mut below = Vec::new();
        let mut parent = record.parent.clone();
        while !parent.is_empty() {
            let record = self.stat(&parent)?;
            below.push(self.folders.files(record.number));
            parent = record.parent;
        }
        Ok(vec![match (record.kind, below.as_slice()) {
            (Kind::View, []) => bind(&self.folders.files(record.number), "ro"),
            (Kind::View, [only]) => bind(only, "ro"),
            (Kind::View, _) => overlay(&below, Vec::new()),
            (_, []) => bind(&self.folders.files(record.number), "rw"),
            (_, _) => overlay(
                &below,
                vec![
                    format!("upperdir={}", self.folders.files(record.number).display()),
                    format!("workdir={}", self.folders.work(record.number).display()),
                ],
            ),
        }])
    }

    /// Finishes a snapshot under a name.
    pub(crate) fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        let number = self.stat(key)?.number;
        let usage = self.folders.usage(number).map_err(io_while("cannot measure the snapshot"))?;
        self.records.change(|change| {
            let mut record = change.get(key)?.ok_or_else(|| Error::NotFound(key.into()))?;
            if record.kind != Kind::Active {
                return Err(Error::Precondition(format!("snapshot {key:?} is not being written")));
            }
            if change.get(name)?.is_some() {
                return Err(Error::Exists(name.into()));
            }
            record.kind = Kind::Committed;
            record.labels = labels;
            record.updated_ms = now_ms();
            record.usage = usage;
            change.remove(key)?;
            change.set(name, &record)?;
            Ok(())
        })
    }

    /// Removes a snapshot on which no other builds.
    pub(crate) fn remove(&self, key: &str) -> Result<(), Error> {
        let number = self.records.change(|change| {
            let record = change.get(key)?.ok_or_else(|| Error::NotFound(key.into()))?;
            if change.has_children(key)? {
                return Err(Error::Precondition(format!("snapshot {key:?} has others built on it")));
            }
            change.remove(key)?;
            Ok(record.number)
        })?;
        self.folders.remove(number).map_err(io_while("cannot remove the snapshot's folder"))
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Record, Error> {
        self.records.get(key)?.ok_or_else(|| Error::NotFound(key.into()))
    }

    /// Replaces labels: all, or those whose paths (`labels.name`) are given; an empty one goes away.
    pub(crate) fn update(&self, key: &str, labels: &Labels, paths: &[String]) -> Result<Record, Error> {
        self.records.change(|change| {
            let mut record = change.get(key)?.ok_or_else(|| Error::NotFound(key.into()))?;
            if paths.is_empty() || paths.iter().any(|path| path == "labels") {
                record.labels = labels.clone();
            } else {
                for path in paths {
                    let label = path
                        .strip_prefix("labels.")
                        .ok_or_else(|| Error::Invalid(format!("{path:?} of a snapshot cannot be changed")))?;
                    match labels.get(label).filter(|value| !value.is_empty()) {
                        Some(value) => record.labels.insert(label.into(), value.clone()),
                        None => record.labels.remove(label),
                    };
                }
            }
            record.updated_ms = now_ms();
            change.set(key, &record)?;
            Ok(record)
        })
    }

    pub(crate) fn list(&self, filters: &Filters) -> Result<Vec<(String, Record)>, Error> {
        let all = self.records.all()?;
        Ok(all.into_iter().filter(|(name, record)| filters.take(name, record)).collect())
    }

    /// Bytes and inodes.
    pub(crate) fn usage(&self, key: &str) -> Result<(u64, u64), Error> {
        let record = self.stat(key)?;
        match (record.kind, record.guest) {
            (_, true) => Ok((0, 0)),
            (Kind::Committed, _) => Ok(record.usage),
            _ => self.folders.usage(record.number).map_err(io_while("cannot measure the snapshot")),
        }
    }

    /// Removes the folders that no record knows.
    pub(crate) fn clean_up(&self) -> Result<(), Error> {
        let known: std::collections::HashSet<u64> =
            self.records.all()?.into_iter().map(|(_, record)| record.number).collect();
        self.folders.keep_only(|number| known.contains(&number)).map_err(io_while("cannot clean up"))
    }
}

fn new_record(
    change: &mut Change<'_>,
    kind: Kind,
    parent: &str,
    labels: Labels,
    guest: bool,
) -> Result<Record, Error> {
    let now = now_ms();
    Ok(Record {
        number: change.next_number()?,
        kind,
        parent: parent.into(),
        labels,
        created_ms: now,
        updated_ms: now,
        guest,
        users: Vec::new(),
        usage: (0, 0),
    })
}

fn committed(change: &Change<'_>, name: &str) -> Result<Record, Error> {
    let record = change.get(name)?.ok_or_else(|| Error::NotFound(name.into()))?;
    match record.kind {
        Kind::Committed => Ok(record),
        _ => Err(Error::Precondition(format!("snapshot {name:?} is not committed, and cannot be built on"))),
    }
}

fn bind(source: &Path, access: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into(), access.into()],
    }
}

fn overlay(below: &[PathBuf], mut options: Vec<String>) -> Mount {
    let below: Vec<_> = below.iter().map(|folder| folder.display().to_string()).collect();
    options.push(format!("lowerdir={}", below.join(":")));
    Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
}

#[cfg(test)]
mod tests;
