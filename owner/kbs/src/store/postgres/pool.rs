//! Connections: few, kept, and made again when the database was away.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::address::Address;
use super::error::PostgresError;

/// At most so many at a time; who needs another waits.
const MAX_CONNECTIONS: usize = 16;
/// No connection takes longer to be made, to whichever of the hosts.
const CONNECT_LIMIT: Duration = Duration::from_secs(6);
/// Nothing takes longer, the wait for a connection included.
const LIMIT: Duration = Duration::from_secs(8);
/// What must hold whatever the database's administrator set for others: nothing outlives its connection by long, each
/// statement sees what was committed before it, and what was committed is on the disk.
const SETTINGS: &str = "\
    SET statement_timeout = '6s';\
    SET idle_in_transaction_session_timeout = '60s';\
    SET default_transaction_isolation = 'read committed';\
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// A value of a statement, with its type.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// All connections.
pub(super) struct Pool {
    /// The file with the URL. It is read for each connection, so that a new password needs no new start.
    url_file: PathBuf,
    places: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

/// A connection, closed when it is dropped.
pub(super) struct Connection {
    client: Client,
    task: JoinHandle<Result<(), Error>>,
}

impl Pool {
    pub(super) fn new(url_file: &Path) -> Self {
        Self {
            url_file: url_file.to_owned(),
            places: Semaphore::new(MAX_CONNECTIONS),
            idle: Mutex::default(),
        }
    }

    /// Runs one statement, which is a transaction of its own, and gives its rows once they are committed.
    pub(super) async fn query(
        &self,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresError> {
        let work = async {
            // The places are never closed.
            let _place = self.places.acquire().await.ok();
            let connection = self.connection().await?;
            // One that failed, or was given up, is not used again.
            let rows = connection.query_typed(statement, parameters).await?;
            self.idle().push(connection);
            Ok(rows)
        };
        timeout(LIMIT, work).await.unwrap_or(Err(PostgresError::TimedOut))
    }

    /// Makes a connection beside the others.
    pub(super) async fn connect(&self) -> Result<Connection, PostgresError> {
        let address = Address::read(&self.url_file)?;
        let connect = async {
            let (client, connection) = address.config.connect(address.tls.clone()).await?;
            let connection = Connection { client, task: tokio::spawn(connection) };
            connection.batch_execute(SETTINGS).await?;
            Ok(connection)
        };
        let server = address.server();
        match timeout(CONNECT_LIMIT, connect).await {
            Ok(connected) => connected.map_err(|error| PostgresError::Unconnected { server, error }),
            Err(_) => Err(PostgresError::Silent { server }),
        }
    }

    async fn connection(&self) -> Result<Connection, PostgresError> {
        while let Some(connection) = self.idle_one() {
            if !connection.is_closed() {
                return Ok(connection);
            }
        }
        self.connect().await
    }

    fn idle_one(&self) -> Option<Connection> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
