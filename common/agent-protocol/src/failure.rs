//! Why the guest did not do what it was asked.

use serde::{Deserialize, Serialize};

/// Why the guest did not do what it was asked. Made for people: `message` says what, `hint` what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What sort of failure this is.
    pub kind: FailureKind,
    /// One sentence. Never a secret, nor which claim an attestation failed on.
    pub message: String,
    /// The next step, where there is one.
    pub hint: Option<String>,
    /// The key broker's id of the refusal, under which the owner's audit log has the reason.
    pub denial: Option<String>,
}

impl Failure {
    /// The most of each text that is taken from a guest, in characters.
    const LONGEST: usize = 8192;

    /// As it can go into logs and events, whoever wrote it: each text one line, of bounded length.
    pub(crate) fn printable(self) -> Self {
        let line = |text: String| {
            // Others' marks would reorder what is beside them.
            let marks = |mark: &char| matches!(mark, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let characters = text.chars().filter(|character| !marks(character)).take(Self::LONGEST);
            characters.map(|character| if character.is_control() { ' ' } else { character }).collect()
        };
        let Self { kind, message, hint, denial } = self;
        Self { kind, message: line(message), hint: hint.map(line), denial: denial.map(line) }
    }
}

/// Sorts of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The request is not well-formed or makes no sense.
    Invalid,
    /// The agent's policy does not allow it.
    DeniedByPolicy,
    /// The key broker refused to attest this guest or to release a key.
    DeniedByKeyBroker,
    /// The image's policy or signature does not allow the image.
    ImageRefused,
    /// What was received does not match its digest, or cannot be decrypted or unpacked.
    ImageCorrupt,
    /// A registry or key broker cannot be reached.
    Unreachable,
    /// The image has no such program.
    ProgramNotFound,
    /// The container's user may not run that file, or it is no program.
    ProgramNotExecutable,
    /// No such container, process or image.
    NotFound,
    /// The state does not allow it (started twice, already exists).
    Conflict,
    /// Memory, disk or another resource ran out.
    Exhausted,
    /// A fault of the guest itself.
    Internal,
}
