//! What the snapshotter knows: a record for each snapshot, kept so that a kill at any moment loses none.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const NEXT: &str = "next";
/// Bytes of the database that stay in memory.
const CACHE: usize = 2 << 20;
/// Bytes of names and records after which a page ends. gRPC's usual limit of a message is 4 MiB, and a record may well be
/// longer than its share.
const PAGE: usize = 64 << 10;

/// What a snapshot is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Read-only, on its own.
    View,
    /// Being written.
    Active,
    /// Finished: others build on it.
    Committed,
}

/// Where a snapshot's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// Here.
    Host,
    /// In the guest.
    Guest,
    /// Nowhere: containerd unpacks a layer of which the guest has its own.
    Discarded,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Names its folder.
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    /// Empty for none.
    pub(crate) parent: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    pub(crate) place: Place,
    /// Bytes and inodes, measured when it was committed.
    pub(crate) usage: (u64, u64),
}

/// Why the records cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("another process uses this folder")]
    InUse,
    #[error("the records cannot be read or written: {0}")]
    Database(#[from] redb::Error),
    #[error("the records cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// All records.
pub(crate) struct Records {
    database: Database,
}

/// A change of the records: all of it, or nothing.
pub(crate) struct Change<'a> {
    snapshots: redb::Table<'a, &'static str, &'static [u8]>,
    numbers: redb::Table<'a, &'static str, u64>,
}

impl Records {
    /// Opens the records, which one process at a time has.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let opened = Database::builder().set_cache_size(CACHE).create(path);
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::InUse,
            other => Error::Database(other.into()),
        })?;
        let records = Self { database };
        records.change(|_| Ok::<_, Error>(()))?;
        Ok(records)
    }

    /// Changes the records; an error leaves them as they were.
    pub(crate) fn change<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.database.begin_write().map_err(database)?;
        let value = {
            let snapshots = transaction.open_table(SNAPSHOTS).map_err(database)?;
            let numbers = transaction.open_table(NUMBERS).map_err(database)?;
            change(&mut Change { snapshots, numbers })?
        };
        transaction.commit().map_err(database)?;
        Ok(value)
    }

    /// One record.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Record>, Error> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let table = transaction.open_table(SNAPSHOTS).map_err(redb::Error::from)?;
        let found = table.get(name).map_err(redb::Error::from)?;
        Ok(found.map(|json| serde_json::from_slice(json.value())).transpose()?)
    }

    /// The records behind a name, in the names' order, of which `take` says that they are wanted; as many as make a
    /// message.
    pub(crate) fn page(
        &self,
        after: &str,
        take: impl Fn(&str, &Record) -> bool,
    ) -> Result<Vec<(String, Record)>, Error> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let table = transaction.open_table(SNAPSHOTS).map_err(redb::Error::from)?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        for entry in table.range::<&str>(behind).map_err(redb::Error::from)? {
            let (name, json) = entry.map_err(redb::Error::from)?;
            let record = serde_json::from_slice(json.value())?;
            if take(name.value(), &record) {
                bytes += name.value().len() + json.value().len();
                page.push((name.value().to_owned(), record));
            }
            if bytes >= PAGE {
                break;
            }
        }
        Ok(page)
    }
}

impl Change<'_> {
    pub(crate) fn get(&self, name: &str) -> Result<Option<Record>, Error> {
        let found = self.snapshots.get(name).map_err(redb::Error::from)?;
        Ok(found.map(|json| serde_json::from_slice(json.value())).transpose()?)
    }

    pub(crate) fn set(&mut self, name: &str, record: &Record) -> Result<(), Error> {
        let json = serde_json::to_vec(record)?;
        self.snapshots.insert(name, json.as_slice()).map_err(redb::Error::from)?;
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.snapshots.remove(name).map_err(redb::Error::from)?;
        Ok(())
    }

    pub(crate) fn has_children(&self, name: &str) -> Result<bool, Error> {
        for record in self.all()? {
            if record?.parent == name {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The numbers of all snapshots.
    pub(crate) fn numbers(&self) -> Result<HashSet<u64>, Error> {
        self.all()?.map(|record| Ok(record?.number)).collect()
    }

    fn all(&self) -> Result<impl Iterator<Item = Result<Record, Error>>, Error> {
        let entries = self.snapshots.iter().map_err(redb::Error::from)?;
        Ok(entries.map(|entry| {
            let (_, json) = entry.map_err(redb::Error::from)?;
            Ok(serde_json::from_slice(json.value())?)
        }))
    }

    /// A number that no snapshot had before.
    pub(crate) fn next_number(&mut self) -> Result<u64, Error> {
        let next = self.numbers.get(NEXT).map_err(redb::Error::from)?.map_or(1, |number| number.value());
        self.numbers.insert(NEXT, next + 1).map_err(redb::Error::from)?;
        Ok(next)
    }
}

fn database(error: impl Into<redb::Error>) -> Error {
    Error::Database(error.into())
}

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
