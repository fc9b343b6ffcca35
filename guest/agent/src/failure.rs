//! How this guest's errors look to the host: a kind, a sentence, a hint. Never a secret.

use sealpod_agent_protocol::{Failure, FailureKind};

/// A failure without a hint.
pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into(), hint: None, denial: None }
}

/// Adds what to do about it.
pub(crate) trait Hint {
    /// Sets the hint.
    fn hint(self, hint: impl Into<String>) -> Self;
}

impl Hint for Failure {
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A fault of the guest's own, with its causes.
pub(crate) fn internal(doing: &str, error: &dyn std::error::Error) -> Failure {
    failure(FailureKind::Internal, format!("{doing}: {}", chain(error)))
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Transparent errors repeat their cause.
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text
}
