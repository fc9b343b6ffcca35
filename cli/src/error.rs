//! What a person is told when a command fails: what happened, why, and what to do next.

use std::process::ExitCode;

use sealpod_agent_protocol::CallError;

use crate::output;

/// The exit code of a command that failed, beside those of clap (2, a usage error) and those of
/// `run` and `exec` (the container's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nobody reads our output any more, which is no failure (as with `sealpod … | head`).
    OutputClosed = 0,
    /// The command could not do what it was asked.
    Failed = 1,
    /// `run` and `exec`: the pod could not be started or reached, as with `podman run`.
    Pod = 125,
    /// `run` and `exec`: the command is no program that can be run.
    NotExecutable = 126,
    /// `run` and `exec`: the image has no such command.
    NotFound = 127,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// A failure with its next step.
#[derive(Debug)]
pub(crate) struct Error {
    cause: anyhow::Error,
    hint: Option<String>,
    exit: Exit,
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(message: impl std::fmt::Display) -> Self {
        Self { cause: anyhow::anyhow!("{message}"), hint: None, exit: Exit::Failed }
    }

    /// What writing to our own standard output failed with. Other pipes' ends are failures like any other.
    pub(crate) fn of_output(error: std::io::Error) -> Self {
        let closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        let exit = if closed { Exit::OutputClosed } else { Exit::Failed };
        let cause = anyhow::Error::new(error).context("cannot write to standard output");
        Self { cause, hint: None, exit }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The exit code of a command whose container's own exit codes must not be mistaken for its failures.
    pub(crate) fn of_pod(self) -> Self {
        if self.exit == Exit::Failed { self.exit(Exit::Pod) } else { self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    /// One sentence with its causes, without the hint.
    pub(crate) fn message(&self) -> String {
        let mut message = self.cause.to_string();
        for cause in self.cause.chain().skip(1) {
            let cause = cause.to_string();
            // A cause that its parent already quotes says nothing new.
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        message
    }

    /// The hint.
    pub(crate) fn next_step(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Prints the failure to standard error.
    pub(crate) fn report(&self) {
        output::note(format!("error: {}", self.message()));
        if let Some(hint) = self.next_step() {
            output::note(format!("hint: {hint}"));
        }
    }

    /// Whether the reader of our output went away.
    pub(crate) fn is_output_closed(&self) -> bool {
        self.exit == Exit::OutputClosed
    }

    /// The failure of a call of a guest's agent that this one comes from, if any.
    pub(crate) fn call(&self) -> Option<&CallError> {
        self.cause.downcast_ref()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Error {
    fn from(cause: E) -> Self {
        let cause = cause.into();
        let hint = cause.downcast_ref::<sealpod_sandbox::Error>().and_then(sealpod_sandbox::Error::hint);
        Self { cause, hint, exit: Exit::Failed }
    }
}

/// Adds what was being done, and what to do, to any failure.
pub(crate) trait Context<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T>;
    fn hint(self, hint: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            Error { cause: error.cause.context(what.to_string()), ..error }
        })
    }

    fn hint(self, hint: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn only_our_own_output_may_be_closed_without_a_failure() {
        let broken = || std::io::Error::from(ErrorKind::BrokenPipe);
        assert!(Error::of_output(broken()).is_output_closed());
        assert!(!Error::from(broken()).is_output_closed(), "of a connection, say");
        let call: Result<(), _> = Err(broken());
        let error = call.context("cannot reach the key broker").unwrap_err().of_pod();
        assert!(!error.is_output_closed());
        assert_eq!(error.exit, Exit::Pod);
        let full = Error::of_output(ErrorKind::StorageFull.into());
        assert_eq!(full.exit, Exit::Failed);
        assert!(full.message().starts_with("cannot write to standard output: "), "{}", full.message());
    }
}
