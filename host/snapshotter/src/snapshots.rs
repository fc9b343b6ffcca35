//! What each call means: records and folders, and which mounts containerd gets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::snapshots::Mount;
use crate::config::Config;
use crate::filter::Filters;
use crate::folders::Folders;
use crate::records::{self, Change, Kind, Place, Record, Records, now_ms};

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

pub(crate) type Labels = BTreeMap<String, String>;

/// The snapshotter.
pub(crate) struct Snapshots {
    records: Records,
    folders: Folders,
    config: Config,
    /// Options that every overlay has.
    overlay_options: Vec<String>,
}

impl Snapshots {
    /// Opens the folder, removes what an earlier process left half done.
    pub(crate) fn open(root: &Path, config: Config) -> Result<Self, Error> {
        let folders = Folders::open(root).map_err(io_while("the snapshots' folder cannot be used"))?;
        let records = Records::open(&root.join("records.redb"))?;
        // Where the kernel indexes upper folders by default, it refuses one that moved to another overlay.
        let indexes = Path::new("/sys/module/overlay/parameters/index").exists();
        let overlay_options = indexes.then(|| "index=off".to_owned()).into_iter().collect();
        let snapshots = Self { records, folders, config, overlay_options };
        if let Err(error) = snapshots.clean_up() {
            tracing::warn!(%error, "what an earlier process left is still there");
        }
        Ok(snapshots)
    }

    /// What a layer is to become, if its labels say so and it is an image's that is left to the guest.
    pub(crate) fn target<'a>(&self, labels: &'a Labels) -> Option<&'a str> {
        labels.get(TARGET).map(String::as_str).filter(|_| self.is_for_guests(labels))
    }

    /// Whether an image is left to the guest; where containerd does not name it, whether all are.
    fn is_for_guests(&self, labels: &Labels) -> bool {
        self.config.is_for_guests(labels.get(IMAGE).map(String::as_str).unwrap_or_default())
    }

    /// Notes a layer that the guest will have.
    ///
    /// One that lies here, for an image that is not the guests', is as good: nobody looks into it.
    pub(crate) fn leave_to_guest(&self, name: &str, parent: &str, labels: &Labels) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        self.records.change(|change| {
            if !parent.is_empty() {
                committed(change, parent)?;
            }
            let mut record = match change.get(name)? {
                None => new_record(change, Kind::Committed, parent, labels.clone(), Place::Guest)?,
                Some(known) if known.kind == Kind::Committed && known.parent == parent => known,
                Some(_) => {
                    return Err(Error::Precondition(format!(
                        "snapshot {name:?} is another one than the layer of this name on {parent:?}"
                    )));
                }
            };
            // By this label containerd looks for the snapshot when it hears that it exists.
            record.labels.insert(TARGET.into(), name.into());
            change.set(name, &record)?;
            Ok(())
        })
    }

    /// The chain id of layers that were left to the guest; nothing for others.
    pub(crate) fn guests_chain(&self, name: &str) -> Result<Option<String>, Error> {
        let record = if name.is_empty() { None } else { self.records.get(name)? };
        Ok(record.filter(|record| record.is_guests_layer()).map(|_| last_part(name).to_owned()))
    }

    /// Makes a snapshot to write to, or to look at. `users` are those whom images of a guest's layers name.
    pub(crate) fn prepare(
        &self,
        key: &str,
        parent: &str,
        kind: Kind,
        labels: Labels,
        users: &[String],
    ) -> Result<Vec<Mount>, Error> {
        if key.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        let record = self.records.change(|change| {
            if change.get(key)?.is_some() {
                return Err(Error::Exists(key.into()));
            }
            let below = if parent.is_empty() { None } else { Some(committed(change, parent)?) };
            let place = match &below {
                Some(below) if below.place == Place::Guest => match kind {
                    Kind::Active => self.place_on_guests(key, parent, &labels)?,
                    Kind::View | Kind::Committed => Place::Guest,
                },
                _ => Place::Host,
            };
            let record = new_record(change, kind, parent, labels, place)?;
            // Before the record is kept: a folder without one is removed at the next start.
            match (place, kind) {
                (Place::Guest, _) => self.folders.make_stand_in(record.number, users),
                (Place::Discarded, _) => self.folders.make(record.number, None),
                (Place::Host, Kind::View) if below.is_some() => Ok(()),
                (Place::Host, _) => self.folders.make(record.number, below.map(|below| below.number)),
            }
            .map_err(io_while("cannot make the snapshot's folder"))?;
            change.set(key, &record)?;
            Ok(record)
        })?;
        self.mounts_of(&record)
    }

    /// Where the files are of a snapshot that is written and whose parent is the guest's.
    fn place_on_guests(&self, key: &str, parent: &str, labels: &Labels) -> Result<Place, Error> {
        let unpacks = labels.contains_key(TARGET) || is_unpacking(key);
        match (unpacks, self.is_for_guests(labels)) {
            (false, _) => Ok(Place::Guest),
            // An image that another snapshotter had pulled: containerd unpacks what it has, and says of which image
            // no more than this. The guest pulls its own.
            (true, true) => Ok(Place::Discarded),
            (true, false) => Err(Error::Precondition(format!(
                "layer {parent} was left to guests, for an image of theirs has it too, so the host has no files to \
                 unpack the next layer on; build this image on layers of its own, or leave it to the guests in the \
                 snapshotter's configuration"
            ))),
        }
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
        let own = self.folders.files(record.number);
        match record.place {
            Place::Guest => return Ok(vec![bind(&self.folders.stand_in(record.number), "ro")]),
            Place::Discarded => return Ok(vec![bind(&own, "rw")]),
            Place::Host => {}
        }
        let mut below = Vec::new();
        let mut parent = record.parent.clone();
        while !parent.is_empty() {
            let record = self.stat(&parent)?;
            below.push(self.folders.files(record.number));
            parent = record.parent;
        }
        Ok(vec![match (record.kind, below.as_slice()) {
            (Kind::View, []) => bind(&own, "ro"),
            (Kind::View, [only]) => bind(only, "ro"),
            (Kind::View, _) => self.overlay(&below, &[]),
            (_, []) => bind(&own, "rw"),
            (_, _) => {
                self.overlay(&below, &[("upperdir", own), ("workdir", self.folders.work(record.number))])
            }
        }])
    }

    fn overlay(&self, below: &[PathBuf], folders: &[(&str, PathBuf)]) -> Mount {
        let below: Vec<_> = below.iter().map(|folder| folder.display().to_string()).collect();
        let mut options = self.overlay_options.clone();
        options.extend(folders.iter().map(|(name, folder)| format!("{name}={}", folder.display())));
        options.push(format!("lowerdir={}", below.join(":")));
        Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    /// Finishes a snapshot under a name.
    pub(crate) fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("a snapshot needs a name".into()));
        }
        let before = self.stat(key)?;
        let usage = match before.place {
            Place::Host => {
                self.folders.usage(before.number).map_err(io_while("cannot measure the snapshot"))?
            }
            Place::Guest | Place::Discarded => (0, 0),
        };
        self.records.change(|change| {
            let mut record = change.get(key)?.ok_or_else(|| Error::NotFound(key.into()))?;
            if record.kind != Kind::Active {
                return Err(Error::Precondition(format!("snapshot {key:?} is not being written")));
            }
            if change.get(name)?.is_some() {
                return Err(Error::Exists(name.into()));
            }
            record.place = match record.place {
                Place::Host => Place::Host,
                Place::Discarded => Place::Guest,
                Place::Guest => {
                    return Err(Error::Precondition(format!(
                        "what snapshot {key:?} holds is in the guest, and cannot be committed on the host"
                    )));
                }
            };
            record.kind = Kind::Committed;
            record.labels = labels;
            record.created_ms = now_ms();
            record.updated_ms = record.created_ms;
            record.usage = usage;
            change.remove(key)?;
            change.set(name, &record)?;
            Ok(())
        })?;
        if before.place == Place::Discarded
            && let Err(error) = self.folders.remove(before.number)
        {
            // The snapshot itself is as it should be; its folder goes with it.
            tracing::warn!(name, %error, "the files of a layer that the guest has are still there");
        }
        Ok(())
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

    /// A part of the snapshots behind a name that the filters take, in the names' order; nothing at the end.
    pub(crate) fn list(&self, filters: &Filters, after: &str) -> Result<Vec<(String, Record)>, Error> {
        Ok(self.records.page(after, |name, record| filters.take(name, record))?)
    }

    /// Bytes and inodes.
    pub(crate) fn usage(&self, key: &str) -> Result<(u64, u64), Error> {
        let record = self.stat(key)?;
        match (record.kind, record.place) {
            (_, Place::Guest) => Ok((0, 0)),
            (Kind::Committed, _) => Ok(record.usage),
            _ => self.folders.usage(record.number).map_err(io_while("cannot measure the snapshot")),
        }
    }

    /// Removes the folders that no record knows.
    pub(crate) fn clean_up(&self) -> Result<(), Error> {
        let failed = "cannot clean up";
        // In a change, for while there is one no snapshot is made: its folder comes before its record.
        self.records
            .change(|change| self.folders.set_others_aside(&change.numbers()?).map_err(io_while(failed)))?;
        self.folders.remove_set_aside().map_err(io_while(failed))
    }
}

impl Record {
    fn is_guests_layer(&self) -> bool {
        self.kind == Kind::Committed && self.place == Place::Guest
    }
}

fn new_record(
    change: &mut Change<'_>,
    kind: Kind,
    parent: &str,
    labels: Labels,
    place: Place,
) -> Result<Record, Error> {
    let now = now_ms();
    Ok(Record {
        number: change.next_number()?,
        kind,
        parent: parent.into(),
        labels,
        created_ms: now,
        updated_ms: now,
        place,
        usage: (0, 0),
    })
}

fn committed(change: &Change<'_>, name: &str) -> Result<Record, Error> {
    let record = change.get(name)?.ok_or_else(|| Error::NotFound(name.into()))?;
    match record.kind {
        Kind::Committed => Ok(record),
        _ => Err(Error::Invalid(format!("snapshot {name:?} is not committed, and cannot be built on"))),
    }
}

/// containerd names snapshots `<namespace>/<number>/<name>`, except those that a snapshotter named itself.
fn last_part(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

/// Whether a key is one under which containerd unpacks a layer (`extract-<unique> <chain id>`).
fn is_unpacking(key: &str) -> bool {
    last_part(key).strip_prefix("extract-").and_then(|rest| rest.split_once(' ')).is_some()
}

fn bind(source: &Path, access: &str) -> Mount {
    Mount {
        r#type: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec!["rbind".into(), access.into()],
    }
}

#[cfg(test)]
mod tests;
