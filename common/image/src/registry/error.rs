//! What can go wrong with a registry.

use std::error::Error;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::digest::Digest;
use crate::reference::Reference;

/// What went wrong with a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached, does not answer in time, or is not able to serve just now.
    #[error("the registry {registry} cannot be reached: {detail}")]
    Unreachable {
        /// Its host.
        registry: String,
        /// Why.
        detail: String,
    },
    /// It does not have what was asked for.
    #[error("the registry {registry} has no {what}")]
    NotFound {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// It does not let us.
    #[error("the registry {registry} does not allow access to {what}: {detail}")]
    Unauthorized {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it says.
        detail: String,
    },
    /// It answered something that the protocol does not have.
    #[error("the registry {registry} answered {detail}")]
    Protocol {
        /// Its host.
        registry: String,
        /// What it answered, and what was expected.
        detail: String,
    },
    /// What it sent is something else than was asked for.
    #[error("the {what} received has the digest {actual}, expected {expected}")]
    Digest {
        /// A manifest or a blob.
        what: &'static str,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// What it sent has not the length that it must have.
    #[error("the blob {digest} received has {actual} bytes, expected {expected}")]
    Length {
        /// Of the blob.
        digest: Digest,
        /// What the manifest says.
        expected: u64,
        /// What came until the connection ended, or was ended for it was too much.
        actual: u64,
    },
    /// It is more than is read of such a thing.
    #[error("the registry's answer is longer than the {limit} bytes that are read at most")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The client's options make no sense.
    #[error("the registry client's configuration: {0}")]
    Configuration(String),
}

impl RegistryError {
    pub(super) fn unreachable(reference: &Reference, error: &reqwest::Error) -> Self {
        Self::Unreachable { registry: reference.registry().into(), detail: chain(error) }
    }

    pub(super) fn protocol(reference: &Reference, detail: impl Into<String>) -> Self {
        Self::Protocol { registry: reference.registry().into(), detail: detail.into() }
    }

    pub(super) fn header(error: reqwest::header::InvalidHeaderValue) -> Self {
        Self::Configuration(error.to_string())
    }

    /// From an answer that is no success.
    pub(super) fn answered(reference: &Reference, what: String, status: StatusCode, body: &[u8]) -> Self {
        let registry = reference.registry().to_owned();
        let detail = describe(status, body);
        match status {
            StatusCode::NOT_FOUND => Self::NotFound { registry, what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Unauthorized { registry, what, detail },
            StatusCode::TOO_MANY_REQUESTS => Self::Unreachable { registry, detail },
            status if status.is_server_error() => Self::Unreachable { registry, detail },
            _ => Self::Protocol { registry, detail: format!("{detail} when asked for {what}") },
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn Error> = Some(error);
    while let Some(error) = next {
        let line = error.to_string();
        if !text.ends_with(&line) {
            text += if text.is_empty() { "" } else { ": " };
            text += &line;
        }
        next = error.source();
    }
    text
}

/// The status, and the registry's own words where it has some, cut and without control characters.
fn describe(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Message>,
    }
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        message: String,
    }
    let message = serde_json::from_slice::<Body>(body)
        .ok()
        .and_then(|body| body.errors.into_iter().next())
        .map(|error| error.message.chars().filter(|c| !c.is_control()).take(200).collect::<String>());
    match message {
        Some(message) if !message.is_empty() => format!("{status} ({message})"),
        _ => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_come_cut_and_without_control_characters() {
        let body = format!(r#"{{"errors":[{{"code":"X","message":"no\u001b[2J{}"}}]}}"#, "!".repeat(1000));
        let text = describe(StatusCode::NOT_FOUND, body.as_bytes());
        assert!(text.starts_with("404 Not Found (no[2J!") && text.len() < 250, "{text}");
        assert_eq!(describe(StatusCode::NOT_FOUND, b"<html>"), "404 Not Found");
    }
}
