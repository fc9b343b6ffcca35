//! What outlasts the process. A write is durable when it returns.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

const RESOURCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("resources");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
const REFERENCE_VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("reference-values");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const AUDIT_IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("audit-ids");

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

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreError(#[from] redb::Error);

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
    /// Appends to the audit log.
    fn append_audit(&self, id: &str, entry: &[u8]) -> Result<(), StoreError>;
    /// The audit log's entry of an id.
    fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// The audit log's latest entries, oldest first.
    fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// The embedded store.
pub(crate) struct RedbStore {
    database: Database,
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

impl RedbStore {
    /// Opens the store, making it where there is none: readable by its user alone.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(redb::Error::from)?;
        let database = Database::builder()
            .create_with_backend(FileBackend::new(file).map_err(redb::Error::from)?)
            .map_err(redb::Error::from)?;
        let store = Self { database };
        store.write(|transaction| {
            for kind in [Kind::Resource, Kind::Setting, Kind::ReferenceValue] {
                transaction.open_table(kind.table())?;
            }
            transaction.open_table(AUDIT)?;
            transaction.open_table(AUDIT_IDS)?;
            Ok(())
        })?;
        Ok(store)
    }

    fn write<V>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<V, redb::Error>,
    ) -> Result<V, StoreError> {
        let transaction = self.database.begin_write().map_err(redb::Error::from)?;
        let value = change(&transaction)?;
        transaction.commit().map_err(redb::Error::from)?;
        Ok(value)
    }

    fn read<V>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<V, redb::Error>,
    ) -> Result<V, StoreError> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        Ok(look(&transaction)?)
    }
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

    fn append_audit(&self, id: &str, entry: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut audit = transaction.open_table(AUDIT)?;
            let next = audit.last()?.map_or(0, |(number, _)| number.value() + 1);
            audit.insert(next, entry)?;
            transaction.open_table(AUDIT_IDS)?.insert(id, next)?;
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
    fn what_was_written_is_there_after_the_store_was_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let store = RedbStore::open(&path).unwrap();
        store.set(Kind::Resource, &[("a/b/c", b"1"), ("a/b/d", b"2")]).unwrap();
        store.append_audit("one", b"first").unwrap();
        store.append_audit("two", b"second").unwrap();
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
