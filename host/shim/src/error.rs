//! What goes wrong, and how containerd is told.

use std::fmt::Write as _;
use std::io;

use containerd_shim_protos::ttrpc;
use sealpod_agent_protocol::{CallError, Failure, FailureKind};

use crate::{config, specification};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, socket or process of the host's.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The pod or the container asks for what it cannot have.
    #[error(transparent)]
    Specification(#[from] SpecificationError),
    /// The VM.
    #[error("{}", with_hint(.0))]
    Sandbox(#[from] sealpod_sandbox::Error),
    /// The guest refused, or does not answer.
    #[error("{}", of_call(.0))]
    Agent(#[from] CallError),
    /// containerd speaks of what is not there.
    #[error("there is no {0}")]
    NotFound(String),
    /// Not in this state.
    #[error("{0}")]
    Conflict(String),
    /// containerd said something that cannot be understood.
    #[error("{0}")]
    Invalid(String),
    /// containerd's protocol.
    #[error("{0}")]
    Protocol(#[from] ttrpc::Error),
}

/// Hides what a module's own error is from those outside.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConfigError(config::Error);

/// Hides what a module's own error is from those outside.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct SpecificationError(specification::Error);

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Self::Config(ConfigError(error))
    }
}

impl From<specification::Error> for Error {
    fn from(error: specification::Error) -> Self {
        Self::Specification(SpecificationError(error))
    }
}

impl Error {
    /// For `map_err`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |source| Self::Io { doing, source }
    }

    /// How containerd, and kubelet behind it, see it.
    pub(crate) fn status(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code(), self))
    }

    fn code(&self) -> ttrpc::Code {
        use ttrpc::Code;
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Conflict(_) => Code::FAILED_PRECONDITION,
            Self::Invalid(_) | Self::Specification(_) | Self::Config(_) => Code::INVALID_ARGUMENT,
            Self::Agent(CallError::Refused(failure)) => match failure.kind {
                FailureKind::Invalid => Code::INVALID_ARGUMENT,
                FailureKind::DeniedByPolicy | FailureKind::DeniedByKeyBroker | FailureKind::ImageRefused => {
                    Code::PERMISSION_DENIED
                }
                FailureKind::NotFound => Code::NOT_FOUND,
                FailureKind::Conflict => Code::FAILED_PRECONDITION,
                FailureKind::Unreachable => Code::UNAVAILABLE,
                FailureKind::Exhausted => Code::RESOURCE_EXHAUSTED,
                _ => Code::INTERNAL,
            },
            Self::Agent(_) => Code::UNAVAILABLE,
            _ => Code::INTERNAL,
        }
    }

    /// Whether the guest says that it has no such process or container, or that it has ended.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::NotFound(_) => true,
            Self::Agent(CallError::Refused(failure)) => {
                matches!(failure.kind, FailureKind::NotFound | FailureKind::Conflict)
            }
            _ => false,
        }
    }

    /// Whether the guest was not asked, since too much is asked of it already.
    pub(crate) fn is_own_limit(&self) -> bool {
        matches!(self, Self::Agent(CallError::TooManyStreams { .. }))
    }

    /// Whether the guest did not answer at all.
    pub(crate) fn is_of_lost_guest(&self) -> bool {
        matches!(
            self,
            Self::Agent(CallError::Lost { .. } | CallError::TimedOut { .. } | CallError::BadReply { .. })
        )
    }
}

fn of_call(error: &CallError) -> String {
    match error {
        CallError::Refused(failure) => of_failure(failure),
        CallError::TooLarge { .. } | CallError::TooManyStreams { .. } => error.to_string(),
        lost => format!("the connection to the guest broke: {lost}"),
    }
}

/// In one line: kubelet puts it into an event of the pod.
fn of_failure(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    if let Some(denial) = &failure.denial {
        // The guest's message often has it already.
        let id = format!("(denial {denial})");
        if !text.contains(&id) {
            let _ = write!(text, " {id}");
        }
        // The guest's hint says the same without the command.
        text += "; hint: the key broker's owner finds the reason with `sealpod kbs why ID`";
    } else if let Some(hint) = &failure.hint {
        let _ = write!(text, "; hint: {hint}");
    }
    text
}

fn with_hint(error: &sealpod_sandbox::Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; hint: {hint}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_says_its_id_once_and_who_can_say_why() {
        for message in ["the key broker refused", "the key broker refused (denial 4711)"] {
            let failure = Failure {
                kind: FailureKind::DeniedByKeyBroker,
                message: message.into(),
                hint: Some("ask its owner".into()),
                denial: Some("4711".into()),
            };
            let error = Error::Agent(CallError::Refused(failure));
            assert_eq!(
                error.to_string(),
                "the key broker refused (denial 4711); hint: the key broker's owner finds the reason with `sealpod kbs why ID`"
            );
            assert_eq!(error.code(), ttrpc::Code::PERMISSION_DENIED);
        }
    }

    #[test]
    fn what_is_no_denial_has_the_guests_own_hint() {
        let failure = Failure {
            kind: FailureKind::NotFound,
            message: "there is no such image".into(),
            hint: Some("push it".into()),
            denial: None,
        };
        let error = Error::Agent(CallError::Refused(failure));
        assert_eq!(error.to_string(), "there is no such image; hint: push it");
    }
}
