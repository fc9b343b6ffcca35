//! A pod on this machine: `run` starts one, `exec` and `ps` find it by its name.

pub(crate) mod control;
pub(crate) mod signals;
pub(crate) mod streams;
pub(crate) mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use sealpod_agent_protocol::{CallError, Failure, FailureKind};

use crate::error::{Error, Exit};

/// How long a guest may leave a question without an answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long what a guest does at once may take: opening a stream, delivering a signal.
pub(crate) const PROMPT: Duration = Duration::from_secs(60);

/// The id of the one container of a pod that `run` starts.
pub(crate) const CONTAINER: &str = "main";

/// Where this user's state lives that must outlast a command: `$XDG_DATA_HOME/sealpod`.
pub(crate) fn data_folder() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    std::env::var_os("XDG_DATA_HOME")
        .map_or_else(|| home().join(".local/share"), PathBuf::from)
        .join("sealpod")
}

/// Where sockets of running pods live: `$XDG_RUNTIME_DIR/sealpod`, or a folder of this user's in /tmp.
pub(crate) fn runtime_folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => PathBuf::from(folder).join("sealpod"),
        None => PathBuf::from(format!("/tmp/sealpod-{}", rustix::process::getuid().as_raw())),
    }
}

/// What the agent or the connection to it failed with, in the words of this tool.
pub(crate) fn agent_error(error: CallError) -> Error {
    match error {
        CallError::Refused(failure) => refusal(&failure),
        lost @ CallError::Lost { .. } => {
            anyhow::Error::new(lost).context("the connection to the guest broke").into()
        }
        late @ CallError::TimedOut { .. } => {
            anyhow::Error::new(late).context("the guest does not answer").into()
        }
        other => anyhow::Error::new(other).context("the guest cannot be asked").into(),
    }
}

fn refusal(failure: &Failure) -> Error {
    let error = match &failure.denial {
        Some(id) => Error::new(format!("{} (denial {id})", failure.message)),
        None => Error::new(&failure.message),
    };
    let own_hint = match (failure.kind, &failure.denial) {
        (FailureKind::DeniedByKeyBroker, Some(id)) => {
            Some(format!("the owner finds the reason with `sealpod kbs why {id}`"))
        }
        (FailureKind::DeniedByPolicy, _) => Some(
            "the pod's init data has the agent policy that decides this; only its owner can change it".into(),
        ),
        _ => None,
    };
    let error = match failure.kind {
        FailureKind::ProgramNotFound => error.exit(Exit::NotFound),
        FailureKind::ProgramNotExecutable => error.exit(Exit::NotExecutable),
        _ => error,
    };
    match failure.hint.clone().or(own_hint) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
