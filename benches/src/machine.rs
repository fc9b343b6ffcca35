//! The two guests on the same machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use sealpod_agent_protocol::{Info, Reply, Request};
use sealpod_sandbox::{Accelerator, GuestImage, Sandbox, SandboxConfig, Tpm, Vm};

use crate::bare;

/// How long the bare guest may take to its line.
const BARE_LIMIT: Duration = Duration::from_secs(120);

/// Starts one guest or the other, in machines that differ in nothing but the initrd.
#[derive(Debug)]
pub(crate) struct Machine {
    agent: GuestImage,
    bare: GuestImage,
    tpm_authority: PathBuf,
}

impl Machine {
    /// Machines for the guest in a folder; `scratch` is for the bare one's files.
    pub(crate) fn new(guest: &Path, scratch: &Path, tpm_authority: PathBuf) -> anyhow::Result<Self> {
        let agent = GuestImage::open(guest).context("a guest is needed: run `make guest`")?;
        let bare = bare::guest_of(&agent, scratch)?;
        Ok(Self { agent, bare, tpm_authority })
    }

    /// The size of the guest's initrd.
    pub(crate) fn initrd_bytes(&self) -> anyhow::Result<u64> {
        let path = &self.agent.initrd;
        Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())
    }

    /// From QEMU's start to the bare guest's line on the console.
    pub(crate) async fn bare(&self, firmware: bool) -> anyhow::Result<Duration> {
        let vm = Vm::boot(&self.config(&self.bare, firmware)).await?;
        let said = tokio::time::timeout(BARE_LIMIT, vm.console_says(bare::LINE)).await;
        let Ok(running) = said else {
            bail!("the bare guest did not say its line within {BARE_LIMIT:?}:\n{}", vm.console_tail());
        };
        vm.quit().await;
        Ok(running)
    }

    /// A guest whose agent answers; its timings tell when.
    pub(crate) async fn agent(&self, firmware: bool) -> anyhow::Result<Sandbox> {
        Ok(Sandbox::start(self.config(&self.agent, firmware)).await?)
    }

    /// With firmware, which measures the boot, there is a TPM as for every pod. Always translated by QEMU, so that
    /// machines with and without KVM give comparable numbers.
    fn config(&self, guest: &GuestImage, firmware: bool) -> SandboxConfig {
        let authority = self.tpm_authority.clone();
        SandboxConfig {
            accelerator: Accelerator::Tcg,
            firmware,
            tpm: if firmware { Tpm::Emulated { authority } } else { Tpm::None },
            ..SandboxConfig::new(guest.clone())
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
