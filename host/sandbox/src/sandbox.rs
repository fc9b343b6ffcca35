//! A pod's VM with its agent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sealpod_agent_protocol::{CallError, Client, Dns, Interface, Request};

use crate::config::{Observer, SandboxConfig, Stage};
use crate::disks::Disks;
use crate::error::Error;
use crate::exit::ExitReason;
use crate::network::loopback::Loopback;
use crate::network::namespace::{Namespace, NamespaceError};
use crate::network::{self, PortForward};
use crate::transport::Channel;
use crate::vm::{Broken, DEATH_TIME, Vm};

/// How long a guest may take to its end that has disks to write what containers left.
const DISKS_LIMIT: Duration = Duration::from_secs(90);

/// A pod's VM whose agent answers. Dropping it kills everything that belongs to it.
#[derive(Debug)]
pub struct Sandbox {
    vm: Vm,
    agent: Client,
    timings: Timings,
    disk_folder: PathBuf,
    answer_limit: Duration,
    stop_limit: Duration,
}

/// How long a start took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// From the beginning to QEMU's start: TPM, copies, the probe of KVM.
    pub prepared: Duration,
    /// From QEMU's start to the first text on the console (firmware's control sequences aside).
    pub first_byte: Duration,
    /// From QEMU's start to the agent's answer.
    pub ready: Duration,
}

impl Sandbox {
    /// Boots a guest and returns when its agent answers.
    ///
    /// # Errors
    /// If this machine cannot run it, the VM ends, or the agent does not answer in time. Nothing is left behind then,
    /// nor when the future is dropped.
    pub async fn start(config: SandboxConfig) -> Result<Self, Error> {
        let deadline = tokio::time::Instant::now() + config.start_limit;
        let too_late = |stage: Stage, console: String| Error::NotReady {
            limit: config.start_limit,
            stage: stage.to_string(),
            console,
        };
        let booting = tokio::time::timeout_at(deadline, Vm::boot(&config)).await;
        let mut vm = booting.map_err(|_| too_late(Stage::Preparing, String::new()))??;
        let (began, spawned) = vm.times();
        let mut first_byte = None;
        let answer = answer(&mut vm, &config.observer, &mut first_byte);
        let agent = match tokio::time::timeout_at(deadline, answer).await {
            Ok(agent) => agent?,
            Err(_) => {
                let stage = if first_byte.is_some() { Stage::FirstByte } else { Stage::Spawned };
                return Err(too_late(stage, vm.console_tail()));
            }
        };
        let ready = spawned.elapsed();
        config.observer.reached(Stage::AgentReady, began.elapsed());
        // A guest may be silent on its console; it was heard at the latest when its agent answered.
        let first_byte = first_byte.map_or(ready, |at: Instant| at.saturating_duration_since(spawned));
        let timings = Timings { prepared: spawned.saturating_duration_since(began), first_byte, ready };
        let (answer_limit, stop_limit) = (config.answer_limit, config.stop_limit);
        let disk_folder = config.ephemeral_disk_folder;
        Ok(Self { vm, agent, timings, disk_folder, answer_limit, stop_limit })
    }

    /// The connection to the agent.
    pub fn agent(&self) -> &Client {
        &self.agent
    }

    /// How long the start took.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The ports of this machine that lead to the pod; none is 0.
    pub fn ports(&self) -> &[PortForward] {
        self.vm.ports()
    }

    /// What the agent needs to know about the network, for its `StartPod`. In a namespace this is what its interfaces
    /// have; their name servers are known to who made it.
    pub fn pod_network(&self) -> (Vec<Interface>, Dns) {
        match self.vm.namespace() {
            Some(namespace) => (namespace.interfaces().cloned().collect(), Dns::default()),
            None => network::user_network(),
        }
    }

    /// Hears the connections to the loopback of the pod's namespace on this machine; nothing without a namespace.
    ///
    /// # Errors
    /// If the kernel cannot lead them here. The pod has all else.
    pub fn loopback(&self) -> Result<Option<Loopback>, NamespaceError> {
        self.vm.namespace().map(Namespace::loopback).transpose()
    }

    /// Who plugs disks into it, if [`SandboxConfig::pluggable_disks`] says that it takes any.
    pub fn disks(&self) -> Disks {
        self.vm.disks()
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// The console's last lines, control characters removed.
    pub fn console_tail(&self) -> String {
        self.vm.console_tail()
    }

    /// Waits for the VM's end and says how it came.
    pub async fn exited(&mut self) -> ExitReason {
        self.vm.exited().await
    }

    /// Waits until the pod cannot go on, and says why: the VM ended, its agent does not answer any more,
    /// or this machine has no room for what it writes.
    pub async fn failed(&mut self) -> Error {
        let disk_error = self.vm.disk_error();
        let reason = tokio::select! {
            biased;
            reason = disk_error => {
                return Error::Disk { folder: self.disk_folder.clone(), reason: (*reason).into() };
            }
            broken = self.vm.broken() => return match broken {
                Broken::Machine(reason) => Error::Ended(reason),
                Broken::Tpm(status) => Error::TpmEnded { status },
            },
            reason = self.agent.silent(self.answer_limit) => reason,
        };
        // QEMU closes the connection a moment before it ends.
        if matches!(reason, CallError::Lost { .. })
            && let Ok(reason) = tokio::time::timeout(DEATH_TIME, self.vm.exited()).await
        {
            return Error::Ended(reason);
        }
        Error::Silent { reason, console: self.vm.console_tail() }
    }

    /// Ends the pod: asks the agent to, then QEMU, then kills what is left.
    pub async fn stop(mut self) {
        let disks = self.vm.disks();
        let ending = async {
            match self.agent.call(Request::StopPod).await {
                Ok(_) | Err(CallError::Lost { .. }) => drop(self.vm.exited().await),
                Err(error) => tracing::warn!(%error, "the agent does not stop the pod"),
            }
        };
        let limit = if disks.are_used().await { self.stop_limit.max(DISKS_LIMIT) } else { self.stop_limit };
        if tokio::time::timeout(limit, ending).await.is_err() {
            tracing::warn!(?limit, "the guest did not power off in time");
        }
        self.vm.quit().await;
    }
}

/// Waits for the agent's answer, or the VM's end; notes when the console began.
async fn answer(vm: &mut Vm, observer: &Observer, first_byte: &mut Option<Instant>) -> Result<Client, Error> {
    let (began, _) = vm.times();
    let console = vm.console();
    let connecting = connect(vm.take_channel());
    let mut connecting = std::pin::pin!(connecting);
    let mut lost = None;
    loop {
        tokio::select! {
            biased;
            // Firmware waits for a TPM that has ended.
            broken = vm.broken() => return Err(match broken {
                Broken::Machine(reason) => Error::Died(reason),
                Broken::Tpm(status) => Error::TpmEnded { status },
            }),
            at = console.begun(), if first_byte.is_none() => {
                *first_byte = Some(at);
                observer.reached(Stage::FirstByte, began.elapsed());
            }
            // The loss of the connection is QEMU's end, which is told by its own reason.
            connected = &mut connecting, if lost.is_none() => match connected {
                Ok(client) => return Ok(client),
                Err(error) => lost = Some(error),
            }
        }
    }
}

async fn connect(channel: Option<Channel>) -> Result<Client, CallError> {
    let lost = |reason: String| CallError::Lost { request: "hello", reason };
    let channel = channel.ok_or_else(|| lost("the channel is in use".into()))?;
    let transport = channel.connect().await.map_err(|error| lost(error.to_string()))?;
    Client::connect(transport).await
}
