//! PID 1's duty to reap, and the one place where the agent starts processes.
//!
//! Whoever waits for a process registers before it can be reaped: spawning and reaping exclude each other.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

type Waiting = HashMap<Pid, oneshot::Sender<WaitStatus>>;

/// A process's status once it has ended.
pub(crate) type Ended = oneshot::Receiver<WaitStatus>;

/// Reaps all children, and tells those who wait for one.
#[derive(Clone)]
pub(crate) struct Reaper(Arc<Mutex<Waiting>>);

impl Reaper {
    /// Starts reaping on the current runtime.
    pub(crate) fn start() -> io::Result<Self> {
        let reaper = Self(Arc::default());
        let mut children = signal(SignalKind::child())?;
        let reaping = reaper.clone();
        tokio::spawn(async move {
            while children.recv().await.is_some() {
                reaping.reap();
            }
        });
        Ok(reaper)
    }

    /// Starts a program that inherits `channel` under its number here, beside its standard streams.
    ///
    /// The descriptor is inheritable only while nothing else can be started.
    pub(crate) fn spawn(&self, command: &mut Command, channel: OwnedFd) -> io::Result<(Pid, Ended)> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fcntl_setfd(channel.as_fd(), FdFlags::empty())?;
        let child = command.spawn();
        drop(channel);
        let pid = Pid::from_child(&child?);
        Ok((pid, register(&mut waiting, pid)))
    }

    /// Waits for a process that is, or will become, a child of ours, and is not reaped yet.
    pub(crate) fn watch(&self, pid: Pid) -> Ended {
        register(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), pid)
    }

    fn reap(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(sender) = waiting.remove(&pid) {
                // Whoever waited may have given up.
                let _ = sender.send(status);
            }
        }
    }
}

fn register(waiting: &mut Waiting, pid: Pid) -> Ended {
    let (sender, receiver) = oneshot::channel();
    waiting.insert(pid, sender);
    receiver
}
