//! Why a call did not succeed.

use std::time::Duration;

use crate::failure::Failure;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The guest answered that it did not do it.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The connection ended, or the guest dropped the call, before the answer came.
    #[error("no answer to {request}: {reason}")]
    Lost {
        /// The request's name, or `hello` where the connection did not begin.
        request: &'static str,
        /// What is known about the end.
        reason: String,
    },
    /// The guest did not answer in the time that the caller gave it.
    #[error("no answer to {request} within {limit:?}")]
    TimedOut {
        /// The request's name.
        request: &'static str,
        /// The time that the caller gave.
        limit: Duration,
    },
    /// The request or the answer is longer than a frame may be.
    #[error("{what} has {actual} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Which of the two.
        what: &'static str,
        /// Its length in bytes.
        actual: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The answer is not one that the request can have.
    #[error("the guest answered {request} with something else than {expected}: {actual}")]
    BadReply {
        /// The request's name.
        request: &'static str,
        /// What an answer looks like.
        expected: &'static str,
        /// What came, or what is wrong with it.
        actual: String,
    },
    /// This end has too many calls and streams open.
    #[error("{limit} calls or streams of this kind are open already, no more are allowed")]
    TooManyStreams {
        /// The limit.
        limit: usize,
    },
}
