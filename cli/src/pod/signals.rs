//! Signals to this process, from the first moment of a command to its last.

use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Context, Error, Exit, Result};

/// Watches the signals that `podman run` passes on. One that comes while nobody looks is kept until somebody does.
pub(crate) struct Signals {
    watched: Vec<(SignalKind, Signal)>,
}

/// What ends a command that has nobody to pass it on to. A terminal that went away (SIGHUP) is as good as SIGTERM.
const ENDING: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
const OTHERS: [SignalKind; 3] =
    [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::window_change()];

impl Signals {
    /// From here on signals do not end this process by themselves.
    pub(crate) fn watch() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mut watched = Vec::new();
        for kind in ENDING.into_iter().chain(OTHERS) {
            // Who started it by nohup(1) wants it to outlive the terminal.
            if kind == SignalKind::hangup() && is_ignored(kind, &status) {
                continue;
            }
            let number = kind.as_raw_value();
            watched.push((kind, signal(kind).context(format!("cannot watch signal {number}"))?));
        }
        Ok(Self { watched })
    }

    /// Watches for none: other tests send signals to this very process.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { watched: Vec::new() }
    }

    /// Waits for the next one of any kind. Loses nothing when cancelled.
    pub(crate) async fn next(&mut self) -> SignalKind {
        self.next_of(|_| true).await
    }

    /// Waits for one that ends a command; the others are kept. Loses nothing when cancelled.
    pub(crate) async fn end(&mut self) -> Error {
        let kind = self.next_of(|kind| ENDING.contains(&kind)).await;
        let how = match kind.as_raw_value() {
            1 => "the terminal went away",
            15 => "terminated",
            _ => "interrupted",
        };
        Error::new(how).exit(Exit::Interrupted)
    }

    async fn next_of(&mut self, wanted: impl Fn(SignalKind) -> bool) -> SignalKind {
        poll_fn(|context| {
            for (kind, signal) in &mut self.watched {
                if wanted(*kind) && signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*kind);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// From `/proc/PID/status` (proc_pid_status(5)): a mask in hexadecimal, signal 1 being the lowest bit.
fn is_ignored(kind: SignalKind, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let bit = u32::try_from(kind.as_raw_value() - 1).unwrap_or_default();
    mask.checked_shr(bit).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    // Each test has signals of its own: they reach the whole process.

    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_looks_is_kept() {
        let mut signals = Signals::watch().unwrap();
        kill_process(getpid(), Signal::USR1).unwrap();
        // What waits for an end only leaves it alone.
        let ended = tokio::time::timeout(Duration::from_millis(50), signals.end()).await;
        assert!(ended.is_err(), "USR1 ends nothing");
        assert_eq!(signals.next().await, SignalKind::user_defined1());
    }

    #[test]
    fn a_signal_that_who_started_us_ignores_is_known() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(SignalKind::hangup(), status));
        assert!(!is_ignored(SignalKind::interrupt(), status));
        assert!(!is_ignored(SignalKind::hangup(), "SigIgn:\t0000000000001000\n"));
        assert!(!is_ignored(SignalKind::hangup(), ""));
    }
}
