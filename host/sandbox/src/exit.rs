//! How a VM ended.

use std::fmt;

/// How a VM ended, with what it said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReason {
    /// How.
    pub ending: Ending,
    /// The console's last lines, control characters removed.
    pub console: String,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked to reboot, which is what a kernel does that panics with `panic=-1`.
    Reset,
    /// This host ended it.
    Stopped,
    /// QEMU failed or was killed.
    Failed {
        /// Its exit status.
        status: String,
        /// What it said.
        stderr: String,
    },
}

impl Ending {
    /// From the reason in QMP's SHUTDOWN event, QEMU's status, and what it wrote to its standard error.
    pub(crate) fn new(reason: Option<&str>, status: String, success: bool, stderr: String) -> Self {
        match reason {
            _ if !success => Self::Failed { status, stderr },
            Some("guest-shutdown") => Self::PoweredOff,
            Some("guest-reset" | "guest-panic") => Self::Reset,
            Some(_) => Self::Stopped,
            None => Self::Failed { status, stderr },
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => formatter.write_str("the guest powered off"),
            Self::Reset => formatter.write_str("the guest's kernel panicked or rebooted"),
            Self::Stopped => formatter.write_str("it was stopped from this machine"),
            Self::Failed { status, stderr } if stderr.is_empty() => {
                write!(formatter, "QEMU ended with {status}")
            }
            Self::Failed { status, stderr } => write!(formatter, "QEMU ended with {status}: {stderr}"),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ending.fmt(formatter)?;
        if self.console.is_empty() {
            return formatter.write_str("; its console is empty");
        }
        write!(formatter, "; its console's last lines:\n{}", self.console)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(reason: Option<&str>, success: bool) -> Ending {
        Ending::new(reason, "exit status: 1".into(), success, "qemu: no such device".into())
    }

    #[test]
    fn an_ending_is_told_from_the_others() {
        assert_eq!(ending(Some("guest-shutdown"), true), Ending::PoweredOff);
        assert_eq!(ending(Some("guest-reset"), true), Ending::Reset);
        assert_eq!(ending(Some("host-qmp-quit"), true), Ending::Stopped);
        assert!(matches!(ending(None, true), Ending::Failed { .. }));
        assert!(
            matches!(ending(Some("guest-shutdown"), false), Ending::Failed { .. }),
            "a status that is no success"
        );
    }

    #[test]
    fn a_failure_says_what_qemu_and_the_guest_said() {
        let reason = ExitReason { ending: ending(None, false), console: "Kernel panic".into() };
        let text = reason.to_string();
        assert_eq!(
            text,
            "QEMU ended with exit status: 1: qemu: no such device; its console's last lines:\nKernel panic"
        );
    }
}
