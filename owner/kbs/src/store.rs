//! What outlasts the process. A write is durable when it returns.
//!
//! `embedded` is a file that one broker uses, `postgres` a database that several share.

#[cfg(test)]
#[path = "../tests/broker/database.rs"]
mod database;
mod embedded;
mod postgres;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use sealpod_kbs_protocol::Secret;
use tokio::task::JoinError;

use crate::config;
use crate::session::Sessions;
use crate::session::memory::MemorySessions;
use embedded::RedbStore;
pub(crate) use postgres::PostgresError;
use postgres::PostgresStore;

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

/// Who can cause an entry of the audit log, or whose deed it tells. Those of one class never displace those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Whoever has an administrator's key.
    Administrator,
    /// A guest that attested.
    Guest,
    /// Whoever reaches the broker.
    Anybody,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The embedded store.
    #[error(transparent)]
    Embedded(#[from] redb::Error),
    /// The database.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The broker is ending.
    #[error("the store's work was cut short")]
    CutShort(#[from] JoinError),
}

impl StoreError {
    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Embedded(error) => embedded::is_full(error),
            Self::Postgres(error) => error.is_full(),
            Self::CutShort(_) => false,
        }
    }

    /// Whether it may work when it is tried again.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Postgres(error) => error.is_temporary(),
            Self::CutShort(error) => error.is_cancelled(),
        }
    }
}

/// Keeps named entries and the audit log. Every write is one durable transaction.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// An entry's bytes.
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Secret>, StoreError>;
    /// Writes entries, all or none.
    async fn set(&self, kind: Kind, entries: Vec<(String, Secret)>) -> Result<(), StoreError>;
    /// Writes an entry where there is none of its name, and gives the one that is there then. Of several that try, all
    /// get the same.
    async fn settle(&self, kind: Kind, name: &str, value: Secret) -> Result<Secret, StoreError>;
    /// Removes an entry; whether it was there.
    async fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError>;
    /// All names, in order.
    async fn names(&self, kind: Kind) -> Result<Vec<String>, StoreError>;
    /// All entries in the order of their names. For those that are no secrets.
    async fn list(&self, kind: Kind) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// A text that is another one after every change of settings and reference values, whoever made it.
    async fn revision(&self) -> Result<String, StoreError>;
    /// Appends to the audit log, and drops the oldest entries of the class beyond the `keep` newest ones.
    async fn append_audit(&self, class: Class, keep: u64, id: &str, entry: Vec<u8>)
    -> Result<(), StoreError>;
    /// The audit log's entry of an id.
    async fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// The audit log's latest entries, oldest first.
    async fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// Opens what the configuration names, with the sessions of all brokers that use it.
pub(crate) async fn open(store: &config::Store) -> Result<(Arc<dyn Store>, Arc<dyn Sessions>), StoreError> {
    match store {
        config::Store::Embedded(path) => {
            Ok((Arc::new(RedbStore::open(path).await?), Arc::new(MemorySessions::default())))
        }
        config::Store::Postgres(database) => {
            let store = Arc::new(PostgresStore::open(&database.url_file).await?);
            Ok((store.clone(), store))
        }
    }
}

/// Checks what the configuration says of a database, without asking the database.
pub(crate) fn check_database(database: &config::Database) -> Result<(), StoreError> {
    Ok(PostgresStore::check(&database.url_file)?)
}
