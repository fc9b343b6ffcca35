//! What a VM is to be.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::guest_image::{GuestImage, check_cmdline};
use crate::network::Network;

/// What a VM is to be. [`SandboxConfig::new`] has defaults for all but the guest.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// What it boots.
    pub guest: GuestImage,
    /// Words added to the guest's command line. They are measured: the key broker sees them.
    pub extra_cmdline: String,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// A file of that size which is the memory, such as one that is held in this machine's: for benchmarks. The VM
    /// leaves in it what it wrote.
    pub memory_file: Option<PathBuf>,
    /// Virtual processors.
    pub cpus: u32,
    /// Size of a disk that lives as long as the VM, in MiB; none if 0.
    pub ephemeral_disk_mib: u32,
    /// Where that disk's file is. It has no name there, and is gone with the VM.
    pub ephemeral_disk_folder: PathBuf,
    /// Whether disks can be plugged while it runs.
    pub pluggable_disks: bool,
    /// Who executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Its TPM.
    pub tpm: Tpm,
    /// Whether UEFI firmware boots and measures the kernel. Otherwise SeaBIOS does, which measures nothing: for
    /// benchmarks.
    pub firmware: bool,
    /// How the pod reaches others, and is reached.
    pub network: Network,
    /// Files `cgroup.procs` of the control groups in which the VM's processes live.
    pub cgroup_procs: Vec<PathBuf>,
    /// How host and agent talk.
    pub transport: Transport,
    /// How long the agent may take to answer.
    pub start_limit: Duration,
    /// How long a running pod's agent may leave a question without an answer.
    pub answer_limit: Duration,
    /// How long the guest may take to end when it is asked to.
    pub stop_limit: Duration,
    /// Is told of each stage of the start.
    pub observer: Observer,
}

impl SandboxConfig {
    /// 512 MiB, one processor, no TPM, UEFI firmware, no ports, two minutes to start, half a minute to answer.
    pub fn new(guest: GuestImage) -> Self {
        Self {
            guest,
            extra_cmdline: String::new(),
            memory_mib: 512,
            memory_file: None,
            cpus: 1,
            ephemeral_disk_mib: 0,
            // What is there may be large, as opposed to /tmp (file-hierarchy(7)).
            ephemeral_disk_folder: "/var/tmp".into(),
            pluggable_disks: false,
            accelerator: Accelerator::Auto,
            tpm: Tpm::None,
            firmware: true,
            network: Network::default(),
            cgroup_procs: Vec::new(),
            transport: Transport::Auto,
            start_limit: Duration::from_secs(120),
            answer_limit: Duration::from_secs(30),
            stop_limit: Duration::from_secs(10),
            observer: Observer::default(),
        }
    }

    /// The whole command line.
    pub(crate) fn cmdline(&self) -> String {
        match self.extra_cmdline.as_str() {
            "" => self.guest.cmdline.clone(),
            extra => format!("{} {extra}", self.guest.cmdline),
        }
    }

    /// Refuses what QEMU would refuse less clearly, or not at all.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |what, expected: &str, actual: String| {
            Err(Error::Configuration { what, expected: expected.to_owned(), actual })
        };
        if !(128..=1 << 20).contains(&self.memory_mib) {
            return refuse("the VM's memory", "128 MiB to 1 TiB", format!("{} MiB", self.memory_mib));
        }
        if !(1..=255).contains(&self.cpus) {
            return refuse("the VM's processors", "1 to 255", self.cpus.to_string());
        }
        if let Err(problem) = check_cmdline(&self.cmdline()) {
            return refuse("the kernel's command line", "what the kernel takes", problem);
        }
        if matches!(self.tpm, Tpm::Emulated { .. }) && !self.firmware {
            return refuse(
                "the VM's TPM",
                "UEFI firmware, which measures the boot",
                "a TPM without it".into(),
            );
        }
        Ok(())
    }
}

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM where it has proven to boot the guest's kernel, otherwise TCG.
    #[default]
    Auto,
    /// The processor, by KVM.
    Kvm,
    /// QEMU's translator: works everywhere, slowly.
    Tcg,
}

impl FromStr for Accelerator {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(Error::Configuration {
                what: "the accelerator",
                expected: "auto, kvm or tcg".into(),
                actual: name.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A VM's TPM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tpm {
    /// None.
    #[default]
    None,
    /// A new one for each VM, emulated by swtpm on this machine: the production code path, without protection
    /// from this machine.
    Emulated {
        /// The folder of the authority that certifies it; made if it is missing (see [`crate::tpm_authority`]).
        authority: PathBuf,
    },
}

/// How host and agent talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// What the guest's command line says: vsock with `sealpod.transport=vsock`, virtio-serial otherwise.
    ///
    /// The guest decides because its command line is measured.
    #[default]
    Auto,
    /// A virtio-serial port.
    VirtioSerial,
    /// vhost-vsock.
    Vsock,
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Files and ports are being prepared.
    Preparing,
    /// The TPM is made and waits (or there is none).
    TpmReady,
    /// QEMU runs.
    Spawned,
    /// The guest said something on its console.
    FirstByte,
    /// The agent answers.
    AgentReady,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Preparing => "preparing",
            Self::TpmReady => "the TPM is ready",
            Self::Spawned => "QEMU runs",
            Self::FirstByte => "the guest writes to its console",
            Self::AgentReady => "the agent answers",
        })
    }
}

/// Is told of each stage of a start, with the time since its beginning.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<dyn Fn(Stage, Duration) + Send + Sync>>);

impl Observer {
    /// Calls the function, which must not block, at each stage.
    pub fn new(observe: impl Fn(Stage, Duration) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    pub(crate) fn reached(&self, stage: Stage, after: Duration) {
        tracing::debug!(%stage, ?after, "starting a VM");
        if let Some(observe) = &self.0 {
            observe(stage, after);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Observer(..)" } else { "Observer(none)" })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn config() -> SandboxConfig {
        SandboxConfig::new(GuestImage {
            kernel: "/guest/vmlinuz".into(),
            initrd: "/guest/initrd.cpio".into(),
            agent: "/guest/agent".into(),
            firmware: "/guest/CODE.fd".into(),
            firmware_variables: "/guest/VARS.fd".into(),
            cmdline: "console=ttyS0 panic=-1".into(),
            low_memory_mib: 256,
            machine: "q35".into(),
        })
    }

    fn refusal(change: impl FnOnce(&mut SandboxConfig)) -> String {
        let mut config = config();
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_boot_is_refused_with_what_is_expected() {
        config().check().unwrap();
        assert_eq!(
            refusal(|config| config.memory_mib = 64),
            "the VM's memory: expected 128 MiB to 1 TiB, got 64 MiB"
        );
        assert_eq!(refusal(|config| config.cpus = 0), "the VM's processors: expected 1 to 255, got 0");
        assert!(refusal(|config| config.extra_cmdline = "x\0".into()).contains("printable ASCII"));
    }

    #[test]
    fn a_tpm_without_firmware_that_measures_is_refused() {
        let message = refusal(|config| {
            config.tpm = Tpm::Emulated { authority: "/ca".into() };
            config.firmware = false;
        });
        assert!(message.contains("UEFI firmware"), "{message}");
    }

    #[test]
    fn accelerators_are_read_as_they_are_written() {
        for accelerator in [Accelerator::Auto, Accelerator::Kvm, Accelerator::Tcg] {
            assert_eq!(accelerator.to_string().parse::<Accelerator>().unwrap(), accelerator);
        }
        let message = "hvf".parse::<Accelerator>().unwrap_err().to_string();
        assert_eq!(message, "the accelerator: expected auto, kvm or tcg, got hvf");
    }
}
