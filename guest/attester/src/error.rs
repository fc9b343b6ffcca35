//! Why evidence could not be collected, or why the key broker gave nothing for it.

use std::io;

/// A failed attestation or request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key broker does not answer.
    #[error("the key broker at {url} cannot be reached")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// What went wrong last.
        #[source]
        source: reqwest::Error,
    },
    /// The key broker refused. It tells the guest no more than an id.
    #[error("the key broker refused{}", denial.as_deref().map(|id| format!(" (denial {id})")).unwrap_or_default())]
    Denied {
        /// The entry in the owner's audit log.
        denial: Option<String>,
    },
    /// The key broker has no such resource.
    #[error("the key broker has no resource {path}")]
    NotFound {
        /// What was asked for.
        path: String,
    },
    /// The key broker's configuration cannot be used.
    #[error("the key broker's configuration cannot be used: {0}")]
    Configuration(String),
    /// The key broker does not keep to the protocol.
    #[error("the key broker's answer is not as expected: {0}")]
    Protocol(String),
    /// The device cannot be talked to.
    #[error("cannot {action} {device}")]
    Device {
        /// What was tried.
        action: &'static str,
        /// The file.
        device: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The TPM refused a command.
    #[error("the TPM refused {command} with {code:#05x} ({meaning})")]
    Tpm {
        /// The command's name.
        command: &'static str,
        /// The response code (TPM 2.0 Library part 2 §6.6).
        code: u32,
        /// The code in words, as far as it is a common one.
        meaning: &'static str,
    },
    /// The TPM's answer is not what the command gives.
    #[error("the TPM's answer to {command} is not as expected")]
    Answer {
        /// The command's name.
        command: &'static str,
    },
    /// The TPM has no endorsement key with a certificate.
    #[error("the TPM has no endorsement key certificate")]
    NoEndorsementKey,
    /// The evidence cannot be made for another reason.
    #[error("{0}")]
    Evidence(String),
}
