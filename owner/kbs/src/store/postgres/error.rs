//! Why the database failed, in words that have nothing of what is in it or of its URL.

use std::error::Error;

use tokio_postgres::error::SqlState;

use super::address::AddressError;

/// Why the database failed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// It cannot be told where it is.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It is not reached, or does not let the broker in.
    #[error("cannot connect to the database {server}: {}", words(.error))]
    Unconnected {
        /// Its hosts and ports.
        server: String,
        /// Why.
        error: tokio_postgres::Error,
    },
    /// Something listens there and says nothing.
    #[error("cannot connect to the database {server}: it does not answer")]
    Silent {
        /// Its hosts and ports.
        server: String,
    },
    /// Rows that the broker made are gone.
    #[error("the database is incomplete: the audit log has no counter")]
    Incomplete,
    /// It takes too long.
    #[error("the database did not answer in time")]
    TimedOut,
    /// It did not do what it was asked.
    #[error("the database failed: {}", words(.0))]
    Failed(tokio_postgres::Error),
    /// A broker of a later version made its tables.
    #[error(
        "the database's tables have version {found}, this broker knows {known}; a newer broker is needed"
    )]
    Newer {
        /// Theirs.
        found: i32,
        /// The latest that is known.
        known: usize,
    },
    /// What is kept of a session is not what this broker writes.
    #[error("a session in the database cannot be read: {0}")]
    Session(serde_json::Error),
}

impl From<tokio_postgres::Error> for PostgresError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error)
    }
}

impl PostgresError {
    /// Whether there is no room left.
    pub(in crate::store) fn is_full(&self) -> bool {
        matches!(self, Self::Failed(error) if error.code() == Some(&SqlState::DISK_FULL))
    }

    /// Whether it may work when it is tried again.
    pub(in crate::store) fn is_temporary(&self) -> bool {
        match self {
            Self::Unconnected { .. } | Self::Silent { .. } | Self::TimedOut => true,
            Self::Failed(error) => error.code().is_none_or(is_temporary),
            Self::Address(_) | Self::Newer { .. } | Self::Incomplete | Self::Session(_) => false,
        }
    }
}

/// By classes of PostgreSQL's Appendix A: connections, conflicts, resources, states and interventions.
fn is_temporary(code: &SqlState) -> bool {
    let temporary = ["08", "40", "53", "55", "57"];
    code == &SqlState::READ_ONLY_SQL_TRANSACTION
        || temporary.iter().any(|class| code.code().starts_with(class))
}

/// The database's message without its details, which may quote what is stored.
fn words(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return format!("{} ({})", answer.message(), answer.code().code());
    }
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}
