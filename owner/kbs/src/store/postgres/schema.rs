//! The database's tables, made and changed by one broker at a time.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;

use super::error::PostgresError;

/// From each version to the next, the first from an empty database. Brokers of one version before must be able to go on
/// while they are replaced.
const STEPS: [&str; 2] = [include_str!("1.sql"), include_str!("2.sql")];
/// Of PostgreSQL's advisory locks, ours: "sealpod" in ASCII.
const LOCK: i64 = 0x0073_6561_6c70_6f64;
/// Another broker may be at it.
const LIMIT: Duration = Duration::from_secs(60);

/// Brings the tables up to date, all or nothing.
pub(super) async fn migrate(client: &mut Client) -> Result<(), PostgresError> {
    timeout(LIMIT, migrate_in_turn(client)).await.unwrap_or(Err(PostgresError::TimedOut))
}

async fn migrate_in_turn(client: &mut Client) -> Result<(), PostgresError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let made = transaction.query_one("SELECT to_regclass('sealpod.version') IS NOT NULL", &[]).await?;
    let found: i32 = match made.try_get(0)? {
        true => transaction.query_one("SELECT number FROM sealpod.version", &[]).await?.try_get(0)?,
        false => 0,
    };
    let missing = usize::try_from(found).ok().and_then(|found| STEPS.get(found..));
    let missing = missing.ok_or(PostgresError::Newer { found, known: STEPS.len() })?;
    for (step, number) in missing.iter().zip(found + 1..) {
        transaction.batch_execute(step).await?;
        transaction.execute("UPDATE sealpod.version SET number = $1", &[&number]).await?;
    }
    Ok(transaction.commit().await?)
}
