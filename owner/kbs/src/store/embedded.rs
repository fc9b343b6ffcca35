//! A file of one broker's own.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use sealpod_kbs_protocol::Secret;
use tokio::task::spawn_blocking;

use super::{Class, Kind, Store, StoreError};

const RESOURCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("resources");
const SETTINGS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("settings");
const REFERENCE_VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("reference-values");
const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");
const AUDIT_IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("audit-ids");
/// The ids of each class of entries, by number.
const AUDIT_OF_ADMINISTRATORS: TableDefinition<'_, u64, &str> =
    TableDefinition::new("audit-of-administrators");
const AUDIT_OF_GUESTS: TableDefinition<'_, u64, &str> = TableDefinition::new("audit-of-guests");
const AUDIT_OF_ANYBODY: TableDefinition<'_, u64, &str> = TableDefinition::new("audit-of-anybody");

/// The embedded store.
pub(super) struct RedbStore {
    file: Arc<File>,
}

struct File {
    path: PathBuf,
    /// Nothing while it cannot be opened.
    database: RwLock<Option<Database>>,
    /// Of settings and reference values, since the file was opened: nobody else changes them meanwhile.
    changes: AtomicU64,
}

/// Whether there is no room left.
pub(super) fn is_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error)
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge))
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
            Self::Administrator => AUDIT_OF_ADMINISTRATORS,
            Self::Guest => AUDIT_OF_GUESTS,
            Self::Anybody => AUDIT_OF_ANYBODY,
        }
    }
}

impl RedbStore {
    /// Opens the store, making it where there is none: readable by its user alone.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let file = spawn_blocking(move || File::open(path)).await??;
        let store = Self { file: Arc::new(file) };
        store
            .write(|transaction| {
                for kind in [Kind::Resource, Kind::Setting, Kind::ReferenceValue] {
                    transaction.open_table(kind.table())?;
                }
                transaction.open_table(AUDIT)?;
                transaction.open_table(AUDIT_IDS)?;
                for class in [Class::Administrator, Class::Guest, Class::Anybody] {
                    transaction.open_table(class.table())?;
                }
                Ok(())
            })
            .await?;
        Ok(store)
    }

    async fn write<V: Send + 'static>(
        &self,
        change: impl Fn(&redb::WriteTransaction) -> Result<V, redb::Error> + Send + 'static,
    ) -> Result<V, StoreError> {
        let file = self.file.clone();
        Ok(spawn_blocking(move || file.write(change)).await??)
    }

    /// Like `write`; whatever became of it, what was read before counts as old.
    async fn change<V: Send + 'static>(
        &self,
        kind: Kind,
        change: impl Fn(&redb::WriteTransaction) -> Result<V, redb::Error> + Send + 'static,
    ) -> Result<V, StoreError> {
        let file = self.file.clone();
        let work = move || {
            let result = file.write(change);
            if kind != Kind::Resource {
                file.changes.fetch_add(1, Ordering::SeqCst);
            }
            result
        };
        Ok(spawn_blocking(work).await??)
    }

    async fn read<V: Send + 'static>(
        &self,
        look: impl Fn(&redb::ReadTransaction) -> Result<V, redb::Error> + Send + 'static,
    ) -> Result<V, StoreError> {
        let file = self.file.clone();
        Ok(spawn_blocking(move || file.with(|database| look(&database.begin_read()?))).await??)
    }
}

impl File {
    fn open(path: PathBuf) -> Result<Self, redb::Error> {
        let database = RwLock::new(Some(open(&path)?));
        Ok(Self { path, database, changes: AtomicU64::new(0) })
    }

    fn write<V>(
        &self,
        change: impl Fn(&redb::WriteTransaction) -> Result<V, redb::Error>,
    ) -> Result<V, redb::Error> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// After a failure of the disk, a database refuses everything until it is opened again.
    fn with<V>(&self, work: impl Fn(&Database) -> Result<V, redb::Error>) -> Result<V, redb::Error> {
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
        result
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

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Secret>, StoreError> {
        let name = name.to_owned();
        self.read(move |transaction| {
            let table = transaction.open_table(kind.table())?;
            Ok(table.get(name.as_str())?.map(|value| Secret::new(value.value().to_vec())))
        })
        .await
    }

    async fn set(&self, kind: Kind, entries: Vec<(String, Secret)>) -> Result<(), StoreError> {
        self.change(kind, move |transaction| {
            let mut table = transaction.open_table(kind.table())?;
            for (name, value) in &entries {
                table.insert(name.as_str(), value.as_bytes())?;
            }
            Ok(())
        })
        .await
    }

    async fn settle(&self, kind: Kind, name: &str, value: Secret) -> Result<Secret, StoreError> {
        let name = name.to_owned();
        self.change(kind, move |transaction| {
            let mut table = transaction.open_table(kind.table())?;
            if let Some(there) = table.get(name.as_str())? {
                return Ok(Secret::new(there.value().to_vec()));
            }
            table.insert(name.as_str(), value.as_bytes())?;
            Ok(value.clone())
        })
        .await
    }

    async fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.change(kind, move |transaction| {
            let mut table = transaction.open_table(kind.table())?;
            let removed = table.remove(name.as_str())?.is_some();
            Ok(removed)
        })
        .await
    }

    async fn names(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        self.read(move |transaction| {
            let table = transaction.open_table(kind.table())?;
            table
                .iter()?
                .map(|entry| entry.map(|(name, _)| name.value().to_owned()))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        })
        .await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.read(move |transaction| {
            let table = transaction.open_table(kind.table())?;
            table
                .iter()?
                .map(|entry| entry.map(|(name, value)| (name.value().to_owned(), value.value().to_vec())))
                .collect::<Result<_, _>>()
                .map_err(redb::Error::from)
        })
        .await
    }

    async fn revision(&self) -> Result<String, StoreError> {
        Ok(self.file.changes.load(Ordering::SeqCst).to_string())
    }

    async fn append_audit(
        &self,
        class: Class,
        keep: u64,
        id: &str,
        entry: Vec<u8>,
    ) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.write(move |transaction| {
            let mut audit = transaction.open_table(AUDIT)?;
            let mut ids = transaction.open_table(AUDIT_IDS)?;
            let mut of_class = transaction.open_table(class.table())?;
            let next = audit.last()?.map_or(0, |(number, _)| number.value() + 1);
            audit.insert(next, entry.as_slice())?;
            ids.insert(id.as_str(), next)?;
            of_class.insert(next, id.as_str())?;
            while of_class.len()? > keep.max(1) {
                let Some((number, id)) = of_class.pop_first()? else { break };
                audit.remove(number.value())?;
                ids.remove(id.value())?;
            }
            Ok(())
        })
        .await
    }

    async fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let id = id.to_owned();
        self.read(move |transaction| {
            let number = transaction.open_table(AUDIT_IDS)?.get(id.as_str())?.map(|number| number.value());
            let Some(number) = number else { return Ok(None) };
            Ok(transaction.open_table(AUDIT)?.get(number)?.map(|entry| entry.value().to_vec()))
        })
        .await
    }

    async fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        self.read(move |transaction| {
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
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn nobody_else_reads_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        RedbStore::open(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
