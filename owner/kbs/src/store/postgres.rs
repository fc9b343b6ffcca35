//! A PostgreSQL database that several brokers share.
//!
//! Every call is one statement, hence one transaction: the database alone decides who was first.

mod address;
mod error;
mod pool;
mod schema;
mod sessions;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use sealpod_kbs_protocol::Secret;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSqlOwned, Type};

use self::address::Address;
pub(crate) use self::error::PostgresError;
use self::pool::{Parameter, Pool};
use super::{Class, Kind, Store, StoreError};

/// The row of changes comes last: of two that change the same entries, none has it while it waits for an entry.
const SET: &str = "\
    WITH changed AS (UPDATE sealpod.revision SET mark = gen_random_uuid() WHERE $1 <> 'resource') \
    INSERT INTO sealpod.entry (kind, name, value) \
        SELECT $1, name, value FROM unnest($2, $3) AS entries (name, value) \
        ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value";
const SETTLE: &str = "\
    WITH changed AS (UPDATE sealpod.revision SET mark = gen_random_uuid() WHERE $1 <> 'resource') \
    INSERT INTO sealpod.entry AS there (kind, name, value) VALUES ($1, $2, $3) \
        ON CONFLICT (kind, name) DO UPDATE SET value = there.value RETURNING value";
const REMOVE: &str = "\
    WITH changed AS (UPDATE sealpod.revision SET mark = gen_random_uuid() WHERE $1 <> 'resource') \
    DELETE FROM sealpod.entry WHERE kind = $1 AND name = $2 RETURNING true";
const GET: &str = "SELECT value FROM sealpod.entry WHERE kind = $1 AND name = $2";
const NAMES: &str = "SELECT name FROM sealpod.entry WHERE kind = $1 ORDER BY name";
const LIST: &str = "SELECT name, value FROM sealpod.entry WHERE kind = $1 ORDER BY name";
const REVISION: &str = "SELECT mark::text FROM sealpod.revision";
/// Those that append to a class do so one after the other. What another appended since this statement began is not seen
/// by its deletion, and goes with the next one.
/// The oldest go in pieces: after the bound was lowered there may be very many.
const APPEND_AUDIT: &str = "\
    WITH class AS (UPDATE sealpod.audit_class SET latest = latest + 1 WHERE class = $1 RETURNING class, latest), \
    oldest AS (DELETE FROM sealpod.audit WHERE number IN (SELECT audit.number FROM sealpod.audit, class \
        WHERE audit.class = class.class AND audit.position <= class.latest - $2 \
        ORDER BY audit.position LIMIT 1000)) \
    INSERT INTO sealpod.audit (class, position, id, entry) SELECT class, latest, $3, $4 FROM class RETURNING number";
const AUDIT_ENTRY: &str = "SELECT entry FROM sealpod.audit WHERE id = $1 ORDER BY number DESC LIMIT 1";
const LATEST_AUDIT: &str = "\
    SELECT entry FROM (SELECT number, entry FROM sealpod.audit ORDER BY number DESC LIMIT $1) AS latest \
        ORDER BY number";

/// The shared store.
pub(super) struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Connects, and makes or changes the tables.
    pub(super) async fn open(url_file: &Path) -> Result<Self, PostgresError> {
        let address = Address::read(url_file)?;
        if address.exposed {
            let server = address.server();
            tracing::warn!(server, "nothing proves that this is the database; sslmode=verify-full would");
        }
        let pool = Pool::new(url_file);
        let mut connection = pool.connect().await?;
        schema::migrate(&mut connection).await?;
        Ok(Self { pool })
    }

    /// Checks that the file says where the database is.
    pub(super) fn check(url_file: &Path) -> Result<(), PostgresError> {
        Address::read(url_file)?;
        Ok(())
    }
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Setting => "setting",
            Self::ReferenceValue => "reference-value",
        }
    }
}

impl Class {
    fn text(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Guest => "guest",
            Self::Anybody => "anybody",
        }
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn get(&self, kind: Kind, name: &str) -> Result<Option<Secret>, StoreError> {
        let (kind, name) = (kind.text(), name.as_bytes());
        let rows = self.pool.query(GET, &[(&kind, Type::TEXT), (&name, Type::BYTEA)]).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?.map(Secret::new))
    }

    async fn set(&self, kind: Kind, entries: Vec<(String, Secret)>) -> Result<(), StoreError> {
        // In the same order for all, so that none waits for another that waits for it.
        let entries: BTreeMap<String, Secret> = entries.into_iter().collect();
        let (names, values): (Vec<&[u8]>, Vec<&[u8]>) =
            entries.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).unzip();
        let kind = kind.text();
        let parameters: [Parameter<'_>; 3] =
            [(&kind, Type::TEXT), (&names, Type::BYTEA_ARRAY), (&values, Type::BYTEA_ARRAY)];
        self.pool.query(SET, &parameters).await?;
        Ok(())
    }

    async fn settle(&self, kind: Kind, name: &str, value: Secret) -> Result<Secret, StoreError> {
        let (kind, name) = (kind.text(), name.as_bytes());
        let parameters: [Parameter<'_>; 3] =
            [(&kind, Type::TEXT), (&name, Type::BYTEA), (&value.as_bytes(), Type::BYTEA)];
        let rows = self.pool.query(SETTLE, &parameters).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?.map_or(value, Secret::new))
    }

    async fn remove(&self, kind: Kind, name: &str) -> Result<bool, StoreError> {
        let (kind, name) = (kind.text(), name.as_bytes());
        let rows = self.pool.query(REMOVE, &[(&kind, Type::TEXT), (&name, Type::BYTEA)]).await?;
        Ok(!rows.is_empty())
    }

    async fn names(&self, kind: Kind) -> Result<Vec<String>, StoreError> {
        let rows = self.pool.query(NAMES, &[(&kind.text(), Type::TEXT)]).await?;
        Ok(rows.iter().map(name).collect::<Result<_, _>>()?)
    }

    async fn list(&self, kind: Kind) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = self.pool.query(LIST, &[(&kind.text(), Type::TEXT)]).await?;
        Ok(rows.iter().map(|row| Ok((name(row)?, column(row, 1)?))).collect::<Result<_, PostgresError>>()?)
    }

    async fn revision(&self) -> Result<String, StoreError> {
        let rows = self.pool.query(REVISION, &[]).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default())
    }

    async fn append_audit(
        &self,
        class: Class,
        keep: u64,
        id: &str,
        entry: Vec<u8>,
    ) -> Result<(), StoreError> {
        let keep = i64::try_from(keep.max(1)).unwrap_or(i64::MAX);
        let (class, id) = (class.text(), id.as_bytes());
        let parameters: [Parameter<'_>; 4] =
            [(&class, Type::TEXT), (&keep, Type::INT8), (&id, Type::BYTEA), (&entry, Type::BYTEA)];
        match self.pool.query(APPEND_AUDIT, &parameters).await?.as_slice() {
            [] => Err(PostgresError::Incomplete.into()),
            _ => Ok(()),
        }
    }

    async fn audit_entry(&self, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.pool.query(AUDIT_ENTRY, &[(&id.as_bytes(), Type::BYTEA)]).await?;
        Ok(rows.first().map(|row| column(row, 0)).transpose()?)
    }

    async fn latest_audit(&self, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.pool.query(LATEST_AUDIT, &[(&limit, Type::INT8)]).await?;
        Ok(rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?)
    }
}

fn column<V: FromSqlOwned>(row: &Row, index: usize) -> Result<V, PostgresError> {
    Ok(row.try_get(index)?)
}

/// A row's first column, which was a text when it was written.
fn name(row: &Row) -> Result<String, PostgresError> {
    Ok(String::from_utf8_lossy(&column::<Vec<u8>>(row, 0)?).into_owned())
}
