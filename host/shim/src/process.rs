//! One process as containerd sees it: a task of a container, or an exec in it.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::types::task::Status;
use sealpod_agent_protocol::ExitStatus;
use tokio::sync::{Notify, watch};

use crate::error::Error;
use crate::streams::Paths;

/// 128 + SIGKILL: what is said of a process whose end nobody saw.
pub(crate) const KILLED: u32 = 137;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: u32,
    pub(crate) at_ms: u64,
    pub(crate) out_of_memory: bool,
}

impl Exit {
    /// With this code, now.
    pub(crate) fn now(code: u32) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { code, at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), out_of_memory: false }
    }

    /// In containerd's form.
    pub(crate) fn timestamp(&self) -> MessageField<Timestamp> {
        MessageField::some(Timestamp {
            seconds: i64::try_from(self.at_ms / 1000).unwrap_or(i64::MAX),
            nanos: i32::try_from(self.at_ms % 1000 * 1_000_000).unwrap_or_default(),
            ..Timestamp::default()
        })
    }
}

impl From<ExitStatus> for Exit {
    /// As the guest tells it, at the time when it does: the guest's clock is not this machine's.
    fn from(status: ExitStatus) -> Self {
        Self { out_of_memory: status.out_of_memory, ..Self::now(status.code.into()) }
    }
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) paths: Paths,
    /// Told when containerd closes the process's input.
    pub(crate) input_ends: Notify,
    phase: Mutex<Phase>,
    exit: watch::Sender<Option<Exit>>,
    forgotten: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Starting,
    Running,
    Paused,
}

impl Process {
    /// One that waits to be started.
    pub(crate) fn new(paths: Paths) -> Self {
        Self {
            paths,
            input_ends: Notify::new(),
            phase: Mutex::new(Phase::Created),
            exit: watch::Sender::new(None),
            forgotten: watch::Sender::new(false),
        }
    }

    pub(crate) fn started(&self) {
        self.set(Phase::Running);
    }

    /// Begins to start it, if it has not ended before.
    pub(crate) fn starts(&self) -> Result<Starting<'_>, Error> {
        if self.exit().is_some() {
            return Err(Error::NotFound("process to start: it was killed before".into()));
        }
        self.set(Phase::Starting);
        Ok(Starting(self))
    }

    /// Whether it is being started, so that the guest may not know it yet and will in a moment.
    pub(crate) fn is_starting(&self) -> bool {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) == Phase::Starting
    }

    pub(crate) fn paused(&self, paused: bool) {
        self.set(if paused { Phase::Paused } else { Phase::Running });
    }

    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Notes its end; the first word counts. Whether this was it.
    pub(crate) fn ended(&self, exit: Exit) -> bool {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(exit);
            first
        })
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let known = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        known.unwrap_or_else(|| Exit::now(KILLED))
    }

    /// Notes that the engine asks for it no more.
    pub(crate) fn forget(&self) {
        self.forgotten.send_replace(true);
    }

    /// Waits until nobody reads its output any more.
    pub(crate) async fn forgotten(&self) {
        // It fails where all of this is gone.
        let _ = self.forgotten.subscribe().wait_for(|forgotten| *forgotten).await;
    }

    pub(crate) fn status(&self) -> Status {
        match (self.exit.borrow().is_some(), *self.phase.lock().unwrap_or_else(PoisonError::into_inner)) {
            (true, _) => Status::STOPPED,
            (false, Phase::Created | Phase::Starting) => Status::CREATED,
            (false, Phase::Running) => Status::RUNNING,
            (false, Phase::Paused) => Status::PAUSED,
        }
    }
}

/// A process that is being started. Where this is dropped before it is done, it was not.
#[derive(Debug)]
pub(crate) struct Starting<'a>(&'a Process);

impl Starting<'_> {
    pub(crate) fn done(self) {
        self.0.started();
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if self.0.is_starting() {
            self.0.set(Phase::Created);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_end_counts() {
        let process = Process::new(Paths::default());
        assert_eq!(process.status(), Status::CREATED);
        process.started();
        assert_eq!(process.status(), Status::RUNNING);
        let exit = Exit { code: 3, at_ms: 1_500, out_of_memory: false };
        assert!(process.ended(exit.clone()));
        assert!(!process.ended(Exit::now(KILLED)));
        assert_eq!(process.wait().await, exit);
        assert_eq!(process.status(), Status::STOPPED);
        let time = exit.timestamp();
        assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    }

    #[test]
    fn a_start_that_fails_leaves_it_created_and_one_that_has_ended_does_not_start() {
        let process = Process::new(Paths::default());
        let starting = process.starts().unwrap();
        assert!(process.is_starting());
        assert_eq!(process.status(), Status::CREATED);
        drop(starting);
        assert!(!process.is_starting());
        process.starts().unwrap().done();
        assert_eq!(process.status(), Status::RUNNING);
        process.ended(Exit::now(KILLED));
        assert!(process.starts().is_err());
    }
}
