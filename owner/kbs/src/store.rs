//! What outlasts the process. A write is durable when it returns.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

const RESOURCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("resources");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
const REFERENCE_VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("reference-values");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const AUDIT_IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("audit-ids");
/// The ids of each class of entries, by number.
const AUDIT_OF_GUESTS: TableDefinition<'_, u64, &str> = TableDefinition::new("audit-of-guests");
const AUDIT_OF_ANYBODY: TableDefinition<'_, u64, &str> = TableDefinition::new("audit-of-anybody");

/// A kind of entry that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Secrets, by path.
    Resource,
    /// Policies and the token signing key.
    Setting,
    /// JSON, by id.
    ReferenceValue,
}

/// Who can cause an entry of the audit log. Those of one class never displace those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A guest that attested.
    Guest,
    /// Whoever reaches the broker.
    Anybody,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(#[from] redb::Error);

impl StoreError {
    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        matches!(&self.0, redb::Error::Io(error)
            if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge))
    }
}

/// Keeps named entries and the audit log. Every write is one durable transaction.
pub(crate) trait Store: Send + Sync {
    /// An entry's bytes.
    fn get(&self, kind: Kind, name: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Writes entries, all or none.
    fn set(&self, kind: Kind, entries: &[(&str, &[u8])]) -> Result<(), StoreError>;
    /// Removes an entry; whether it was there.
    fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError>;
    /// All names, in order.
    fn names(&self, kind: Kind) -> Result<Vec<String>, StoreError>;
    /// All entries in the order of their names.
    fn list(&self, kind: Kind) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// Appends to the audit log, and drops the oldest entries of the class beyond the `keep` newest ones.
    fn append_audit(&self, class: Class, keep: u64, id: &str, entry: &[u8]) -> Result<(), StoreError>;
    /// The audit log's entry of an id.
    fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// The audit log's latest entries, oldest first.
    fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// The embedded store.
pub(crate) struct RedbStore {
    path: PathBuf,
    /// Nothing while it cannot be opened.
    database: RwLock<Option<Database>>,
}

impl Kind {
    fn table(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Resource => RESOURCES,
            Self::Setting => SETTINGS,
            Self::ReferenceValue => REFERENCE_VALUES,
        }
    }
}

impl Class {
    fn table(self) -> TableDefinition<'static, u64, &'static str> {
        match self {
            Self::Guest => AUDIT_OF_GUESTS,
            Self::Anybody => AUDIT_OF_ANYBODY,
        }
    }
}

impl RedbStore {
    /// Opens the store, making it where there is none: readable by its user alone.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self { path: path.to_owned(), database: RwLock::new(Some(open(path)?)) };
        store.write(|transaction| {
            for kind in [Kind::Resource, Kind::Setting, Kind::ReferenceValue] {
                transaction.open_table(kind.table())?;
            }
            transaction.open_table(AUDIT)?;
            transaction.open_table(AUDIT_IDS)?;
            transaction.open_table(AUDIT_OF_GUESTS)?;
            transaction.open_table(AUDIT_OF_ANYBODY)?;
            Ok(())
        })?;
        Ok(store)
    }

    fn write<V>(
        &self,
        change: impl Fn(&redb::WriteTransaction) -> Result<V, redb::Error>,
    ) -> Result<V, StoreError> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    fn read<V>(
        &self,
        look: impl Fn(&redb::ReadTransaction) -> Result<V, redb::Error>,
    ) -> Result<V, StoreError> {
        self.with(|database| look(&database.begin_read()?))
    }

    /// After a failure of the disk, a database refuses everything until it is opened again.
    fn with<V>(&self, work: impl Fn(&Database) -> Result<V, redb::Error>) -> Result<V, StoreError> {
        let attempt = || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            database.as_ref().map_or(Err(redb::Error::PreviousIo), &work)
        };
        let mut result = attempt();
        if matches!(result, Err(redb::Error::PreviousIo)) {
            // Another's failure: nothing of this was tried yet.
            self.reopen();
            result = attempt();
        }
        if matches!(result, Err(redb::Error::Io(_))) {
            self.reopen();
        }
        Ok(result?)
    }

    /// Goes back to what was committed last.
    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The file is locked until this one is gone.
        drop(database.take());
        match open(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(%error, "the store cannot be opened again"),
        }
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(Database::builder().create_with_backend(FileBackend::new(file)?)?)
}

impl Store for RedbStore {
    fn get(&self, kind: Kind, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(kind.table())?;
            Ok(table.get(name)?.map(|value| value.value().to_vec()))
        })
    }

    fn set(&self, kind: Kind, entries: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(kind.table())?;
            for (name, value) in entries {
                table.insert(*name, *value)?;
            }
            Ok(())
        })
    }

    fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(kind.table())?;
            let removed = table.remove(name)?.is_some();
            Ok(removed)
        })
    }

    fn list(&self, kind: Kind) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(kind.table())?;
            table
                .iter()?
                .map(|entry| entry.map(|(name, value)| (name.value().to_owned(), value.value().to_vec())))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        })
    }

    fn names(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(kind.table())?;
            table
                .iter()?
                .map(|entry| entry.map(|(name, _)| name.value().to_owned()))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        })
    }

    fn append_audit(&self, class: Class, keep: u64, id: &str, entry: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut audit = transaction.open_table(AUDIT)?;
            let mut ids = transaction.open_table(AUDIT_IDS)?;
            let mut of_class = transaction.open_table(class.table())?;
            let next = audit.last()?.map_or(0, |(number, _)| number.value() + 1);
            audit.insert(next, entry)?;
            ids.insert(id, next)?;
            of_class.insert(next, id)?;
            while of_class.len()? > keep.max(1) {
                let Some((number, id)) = of_class.pop_first()? else { break };
                audit.remove(number.value())?;
                ids.remove(id.value())?;
            }
            Ok(())
        })
    }

    fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let Some(number) = transaction.open_table(AUDIT_IDS)?.get(id)?.map(|number| number.value())
            else {
                return Ok(None);
            };
            Ok(transaction.open_table(AUDIT)?.get(number)?.map(|entry| entry.value().to_vec()))
        })
    }

    fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let audit = transaction.open_table(AUDIT)?;
            let mut entries: Vec<Vec<u8>> = audit
                .iter()?
                .rev()
                .take(limit)
                .map(|entry| entry.map(|(_, value)| value.value().to_vec()))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)?;
            entries.reverse();
            Ok(entries)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_reads_the_store() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        RedbStore::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_oldest_of_a_class_go_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&folder.path().join("s.redb")).unwrap();
        store.append_audit(Class::Guest, 2, "grant", b"granted").unwrap();
        for number in 0..20 {
            let (id, entry) = (format!("r{number}"), format!("refusal {number}"));
            store.append_audit(Class::Anybody, 3, &id, entry.as_bytes()).unwrap();
        }
        let texts = || -> Vec<String> {
            let entries = store.latest_audit(100).unwrap();
            entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
        };
        assert_eq!(texts(), ["granted", "refusal 17", "refusal 18", "refusal 19"]);
        assert_eq!(store.audit_entry("r16").unwrap(), None);
        assert_eq!(store.audit_entry("r17").unwrap().unwrap(), b"refusal 17");
        store.append_audit(Class::Guest, 2, "b", b"second").unwrap();
        store.append_audit(Class::Guest, 2, "c", b"third").unwrap();
        assert_eq!(texts(), ["refusal 17", "refusal 18", "refusal 19", "second", "third"]);
    }

    #[test]
    fn what_was_written_is_there_after_the_store_was_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let store = RedbStore::open(&path).unwrap();
        store.set(Kind::Resource, &[("a/b/c", b"1"), ("a/b/d", b"2")]).unwrap();
        store.append_audit(Class::Guest, 9, "one", b"first").unwrap();
        store.append_audit(Class::Anybody, 9, "two", b"second").unwrap();
        drop(store);
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.get(Kind::Resource, "a/b/c").unwrap().unwrap(), b"1");
        assert!(store.remove(Kind::Resource, "a/b/c").unwrap());
        assert!(!store.remove(Kind::Resource, "a/b/c").unwrap());
        assert_eq!(store.list(Kind::Resource).unwrap(), [("a/b/d".to_owned(), b"2".to_vec())]);
        assert_eq!(store.names(Kind::Resource).unwrap(), ["a/b/d"]);
        assert_eq!(store.audit_entry("two").unwrap().unwrap(), b"second");
        assert_eq!(store.latest_audit(1).unwrap(), [b"second"]);
    }
}
