//! The two guests on the same machine, at the same time.
//!
//! A boot's time depends on what else the machine does, by more than the agent's part of it, and where the machine is a
//! virtual one, on its neighbours. So the two boot at once and share one processor, of which Linux gives both as much:
//! whatever slows one slows the other. Each then takes about twice as long as alone. When the bare guest is there it
//! rests, so what the agent still needs takes as long as alone; and it does not matter which of them started first.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sealpod_agent_protocol::{Info, Reply, Request};
use sealpod_sandbox::{Accelerator, GuestImage, Sandbox, SandboxConfig, Tpm, Vm};

use crate::bare;
use crate::memory::Memory;

/// How long the bare guest may take to its line.
const BARE_LIMIT: Duration = Duration::from_secs(120);

/// Starts the guests, in machines that differ in nothing but the initrd.
#[derive(Debug)]
pub(crate) struct Machine {
    agent: Guest,
    bare: Guest,
    tpm_authority: PathBuf,
}

/// A guest and its memory.
#[derive(Debug)]
struct Guest {
    image: GuestImage,
    memory: Memory,
}

/// Two guests that were started at once.
#[derive(Debug)]
pub(crate) struct Pair {
    /// From QEMU's start to the bare guest's line on the console.
    pub(crate) bare: Duration,
    /// When that line came.
    pub(crate) bare_at: Instant,
    /// The guest whose agent answers.
    pub(crate) agent: Sandbox,
    /// When it answered.
    pub(crate) ready_at: Instant,
}

impl Pair {
    /// From QEMU's start to the agent's answer.
    pub(crate) fn ready(&self) -> Duration {
        self.agent.timings().ready
    }
}

impl Machine {
    /// Machines for the guest in a folder; `scratch` is for the bare one's files.
    pub(crate) fn new(guest: &Path, scratch: &Path, tpm_authority: PathBuf) -> anyhow::Result<Self> {
        let agent = GuestImage::open(guest).context("a guest is needed: run `make guest`")?;
        let bare = bare::guest_of(&agent, scratch)?;
        Ok(Self { agent: Guest::new(agent)?, bare: Guest::new(bare)?, tpm_authority })
    }

    /// The size of the guest's initrd.
    pub(crate) fn initrd_bytes(&self) -> anyhow::Result<u64> {
        let path = &self.agent.image.initrd;
        Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())
    }

    /// Boots both.
    pub(crate) async fn pair(&self, firmware: bool) -> anyhow::Result<Pair> {
        let (bare, agent) = (self.config(&self.bare, firmware)?, self.config(&self.agent, firmware)?);
        let bare = async { anyhow::Ok((start_bare(bare).await?, Instant::now())) };
        let agent = async { anyhow::Ok((Sandbox::start(agent).await?, Instant::now())) };
        let (((vm, bare), bare_at), (agent, ready_at)) = tokio::try_join!(bare, agent)?;
        vm.quit().await;
        Ok(Pair { bare, bare_at, agent, ready_at })
    }

    /// With firmware, which measures the boot, there is a TPM as for every pod. Always translated by QEMU, so that
    /// machines with and without KVM give comparable numbers.
    fn config(&self, guest: &Guest, firmware: bool) -> anyhow::Result<SandboxConfig> {
        guest.memory.clear()?;
        let authority = self.tpm_authority.clone();
        Ok(SandboxConfig {
            accelerator: Accelerator::Tcg,
            firmware,
            tpm: if firmware { Tpm::Emulated { authority } } else { Tpm::None },
            memory_file: Some(guest.memory.path()),
            ..SandboxConfig::new(guest.image.clone())
        })
    }
}

impl Guest {
    fn new(image: GuestImage) -> anyhow::Result<Self> {
        let memory = Memory::hold(SandboxConfig::new(image.clone()).memory_mib)?;
        Ok(Self { image, memory })
    }
}

/// The bare guest, and the time from QEMU's start to its line.
async fn start_bare(config: SandboxConfig) -> anyhow::Result<(Vm, Duration)> {
    let vm = Vm::boot(&config).await?;
    match tokio::time::timeout(BARE_LIMIT, vm.console_says(bare::LINE)).await {
        Ok(running) => Ok((vm, running)),
        Err(_) => {
            bail!("the bare guest did not say its line within {BARE_LIMIT:?}:\n{}", vm.console_tail())
        }
    }
}

/// What an agent says of itself.
pub(crate) async fn info(sandbox: &Sandbox) -> anyhow::Result<Info> {
    match sandbox.agent().call(Request::Info).await? {
        Reply::Info(info) => Ok(info),
        other => bail!("the agent answered Info with {other:?}"),
    }
}
