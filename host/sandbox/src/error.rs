//! Why a VM could not be started.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sealpod_agent_protocol::CallError;

use crate::exit::ExitReason;
use crate::network::namespace::NamespaceError;

/// Why a VM could not be started, or a pod cannot go on. [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed is not installed.
    #[error("the program {program} is not installed; {advice}")]
    MissingProgram {
        /// The program's name.
        program: &'static str,
        /// Which package has it.
        advice: String,
    },
    /// The guest's folder is not what `sealpod guest build` makes.
    #[error("{} is not usable as a guest: {problem}", path.display())]
    Guest {
        /// The folder or file.
        path: PathBuf,
        /// What was expected, and what is there.
        problem: String,
    },
    /// The configuration makes no sense.
    #[error("{what}: expected {expected}, got {actual}")]
    Configuration {
        /// Which part.
        what: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        actual: String,
    },
    /// Somebody else listens on a port that is to lead to the pod.
    #[error("{address} cannot be forwarded to the pod: {source}")]
    Port {
        /// Address and port on this machine.
        address: std::net::SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The pod's network namespace cannot be used.
    #[error("the network namespace {} {source}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: NamespaceError,
    },
    /// A file, folder or socket cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The emulated TPM cannot be made or started.
    #[error("the emulated TPM: {what}\n{output}")]
    Tpm {
        /// What was being done.
        what: &'static str,
        /// What the program said.
        output: String,
    },
    /// A disk cannot be plugged into the VM.
    #[error("{} cannot be plugged into the pod's VM: {reason}", path.display())]
    Plug {
        /// The device or file of this machine's.
        path: PathBuf,
        /// What QEMU or the system says.
        reason: String,
    },
    /// The VM ended before its agent answered.
    #[error("the VM ended before its agent answered: {0}")]
    Died(ExitReason),
    /// The agent did not answer in time.
    #[error(
        "the guest's agent did not answer within {limit:?} (it came as far as: {stage}); the console's last lines:\n{console}"
    )]
    NotReady {
        /// The time it had.
        limit: Duration,
        /// The last stage that was reached.
        stage: String,
        /// The console's last lines.
        console: String,
    },
    /// The VM ended under a running pod.
    #[error("the VM ended: {0}")]
    Ended(ExitReason),
    /// The VM's TPM ended under a running pod.
    #[error("the VM's TPM ended: swtpm {status}")]
    TpmEnded {
        /// How.
        status: String,
    },
    /// A file of this machine's fails under the guest's disk.
    #[error("this machine cannot keep what the guest writes to its disk, a file in {}: {reason}", folder.display())]
    Disk {
        /// Where the disk's file is.
        folder: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The VM runs, but its agent cannot be talked to any more.
    #[error("the guest's agent does not answer any more: {reason}; the console's last lines:\n{console}")]
    Silent {
        /// What was tried.
        reason: CallError,
        /// The console's last lines.
        console: String,
    },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::MissingProgram { advice, .. } => advice.clone(),
            Self::Guest { .. } => "build a guest with `sealpod guest build`".into(),
            Self::Port { .. } => {
                "choose another port, port 0 for any free one, or find who has it with `ss -ltnp`".into()
            }
            Self::Namespace { source, .. } => source.hint().into(),
            Self::Configuration { .. } => return None,
            Self::Plug { .. } => {
                "is the volume attached to this node, and unused by others? Where SELinux enforces, its boolean \
                 sealpod_block_volumes must be on"
                    .into()
            }
            Self::Disk { .. } => {
                "make room there, or choose another folder: the disk's file grows as it is used".into()
            }
            Self::Io { .. } | Self::Tpm { .. } | Self::TpmEnded { .. } => {
                "`sealpod doctor` checks this machine".into()
            }
            Self::Died(_) | Self::NotReady { .. } | Self::Ended(_) | Self::Silent { .. } => {
                "the console's lines above say how far the guest came; more memory or time may help".into()
            }
        };
        Some(hint)
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
