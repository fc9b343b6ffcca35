//! A pod on this machine: `run` starts one, `exec` and `ps` find it by its name.

pub(crate) mod control;
pub(crate) mod signals;
pub(crate) mod streams;
pub(crate) mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use sealpod_agent_protocol::{CallError, Failure, FailureKind};

use crate::error::{Error, Exit, Result};

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
        // Most messages have the id.
        Some(id) if !failure.message.contains(id.as_str()) => {
            Error::new(format!("{} (denial {id})", failure.message))
        }
        _ => Error::new(&failure.message),
    };
    let said = failure.hint.clone();
    let hint = match (failure.kind, failure.denial.as_deref()) {
        // It says more than the guest's own, which does not know this command.
        (FailureKind::DeniedByKeyBroker, Some(id)) if is_plain(id) => {
            Some(format!("the key broker's owner finds the reason with `sealpod kbs why {id}`"))
        }
        (FailureKind::DeniedByPolicy, _) => said.or_else(|| {
            let whose =
                "the pod's init data has the agent policy that decides this; only its owner can change it";
            Some(whose.into())
        }),
        _ => said,
    };
    let error = match failure.kind {
        FailureKind::ProgramNotFound => error.exit(Exit::NotFound),
        FailureKind::ProgramNotExecutable => error.exit(Exit::NotExecutable),
        _ => error,
    };
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Whether an id is letters and digits only: the guest has it from the broker, and people paste commands into shells.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Unlike any other, in hexadecimal.
pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new("this machine gives no random numbers"))?;
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str, hint: Option<&str>, denial: Option<&str>) -> (String, Option<String>) {
        let (message, hint) = (message.into(), hint.map(str::to_owned));
        let (kind, denial) = (FailureKind::DeniedByKeyBroker, denial.map(str::to_owned));
        let error = agent_error(CallError::Refused(Failure { kind, message, hint, denial }));
        (error.message(), error.next_step().map(str::to_owned))
    }

    #[test]
    fn a_denials_id_comes_once_and_with_the_command_that_explains_it() {
        let hint = Some("the key broker's owner finds the reason with `sealpod kbs why 4711`".to_owned());
        for message in
            ["attestation: the key broker refused (denial 4711)", "attestation: the key broker refused"]
        {
            let expected = "attestation: the key broker refused (denial 4711)".to_owned();
            assert_eq!(said(message, Some("see its audit log"), Some("4711")), (expected, hint.clone()));
        }
    }

    #[test]
    fn an_id_that_is_none_gets_into_no_command() {
        for id in ["$(id)", "a b", ""] {
            assert_eq!(
                said("refused", Some("as the guest says"), Some(id)).1.as_deref(),
                Some("as the guest says")
            );
        }
        assert_eq!(said("refused", None, None), ("refused".to_owned(), None));
    }
}
