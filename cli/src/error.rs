//! What a person is told when a command fails: what happened, why, and what to do next.

use std::process::ExitCode;

/// The exit code of a command that failed, beside those of clap (2, a usage error) and those of
/// `run` and `exec` (the container's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
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

    /// Prints the failure to standard error.
    pub(crate) fn report(&self) {
        eprintln!("error: {}", self.message());
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }

    /// Whether the reader of our output went away, which is no failure (as with `sealpod … | head`).
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.cause.chain().any(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
        })
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
