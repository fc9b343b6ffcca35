//! A running machine: QEMU, its TPM, its console, and the folder that goes with them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, unix::pipe};

use crate::accelerator::{self, Hypervisor};
use crate::arguments::{Cards, Machine};
use crate::config::{SandboxConfig, Stage, Tpm};
use crate::console::Console;
use crate::disks::Disks;
use crate::error::Error;
use crate::exit::{Ending, ExitReason};
use crate::guest_image::rom_bytes;
use crate::network::namespace::Namespace;
use crate::network::{self, Network, PortForward};
use crate::process::{self, Process};
use crate::programs::QEMU;
use crate::qmp::Qmp;
use crate::runtime_folder::RuntimeFolder;
use crate::tpm::{self, EmulatedTpm};
use crate::transport::Channel;

/// A machine that boots a guest, whether or not there is an agent in it. Dropping it kills it.
///
/// [`crate::Sandbox`] is what runs pods; this is for benchmarks and for guests without an agent.
// The order of the fields is that of their end: processes before the folder they use.
#[derive(Debug)]
pub struct Vm {
    qemu: Process,
    tpm: Option<EmulatedTpm>,
    qmp: Qmp,
    disks: Disks,
    console: Console,
    stderr: Console,
    channel: Option<Channel>,
    ports: Vec<PortForward>,
    namespace: Option<Namespace>,
    began: Instant,
    spawned: Instant,
    _folder: RuntimeFolder,
}

/// What a pod's machine ended with.
#[derive(Debug)]
pub(crate) enum Broken {
    /// QEMU's end.
    Machine(ExitReason),
    /// That of the TPM, and its status.
    Tpm(String),
}

/// How long after the end of something that ends with QEMU, QEMU's own may come that explains it.
pub(crate) const DEATH_TIME: Duration = Duration::from_secs(3);
/// How long QEMU's last words may take to be read after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Vm {
    /// Makes the TPM, copies and sockets that the machine needs, and starts it.
    ///
    /// # Errors
    /// If something is missing on this machine, or QEMU refuses to start.
    pub async fn boot(config: &SandboxConfig) -> Result<Self, Error> {
        let began = Instant::now();
        config.check()?;
        let program = QEMU.find()?;
        let folder = RuntimeFolder::create()?;
        config.observer.reached(Stage::Preparing, began.elapsed());
        let (tpm, hypervisor) = tokio::try_join!(
            start_tpm(config, &folder),
            accelerator::decide(config.accelerator, &config.guest)
        )?;
        config.observer.reached(Stage::TpmReady, began.elapsed());
        let mut prepared =
            Prepared::new(config, hypervisor, tpm.as_ref().map(|tpm| tpm.socket.clone()), &folder)?;

        let mut qemu = process::command(program);
        qemu.args(&prepared.arguments).stderr(Stdio::piped());
        let mut steps = process::join_cgroups(&config.cgroup_procs)?;
        if let Some(namespace) = &prepared.namespace {
            steps.extend(namespace.steps_of_child()?);
        }
        let disk = prepared.disk.iter().map(AsFd::as_fd);
        steps.extend(process::keep(disk, "QEMU cannot keep the ephemeral disk"));
        let spawned = Instant::now();
        let mut qemu = Process::start("QEMU", qemu, steps)?;
        if let Some(namespace) = &mut prepared.namespace {
            namespace.release_taps();
        }
        config.observer.reached(Stage::Spawned, began.elapsed());
        let stderr = follow_stderr(&mut qemu)?;
        let connected = tokio::select! {
            connected = accept_both(&prepared.console, &prepared.qmp) => connected.map_err(Error::io("cannot talk to QEMU"))?,
            status = qemu.exited() => {
                return Err(refusal(status, &stderr, &prepared.ports).await);
            }
        };
        let (console, qmp) = connected;
        Ok(Self {
            qemu,
            tpm,
            disks: Disks::new(qmp.clone()),
            qmp,
            console,
            stderr,
            channel: Some(prepared.channel),
            ports: prepared.ports,
            namespace: prepared.namespace,
            began,
            spawned,
            _folder: folder,
        })
    }

    /// Waits for its end and says how it came.
    pub async fn exited(&mut self) -> ExitReason {
        let status = self.qemu.exited().await;
        self.reason(status).await
    }

    /// Waits for its end, or for that of its TPM, without which a pod cannot go on; and says how it came.
    pub(crate) async fn broken(&mut self) -> Broken {
        let tpm = async {
            match &mut self.tpm {
                Some(tpm) => tpm.process.exited().await,
                None => std::future::pending().await,
            }
        };
        let status = tokio::select! {
            biased;
            status = self.qemu.exited() => status,
            // It ends with the machine too.
            of_tpm = tpm => match tokio::time::timeout(DEATH_TIME, self.qemu.exited()).await {
                Ok(status) => status,
                Err(_) => return Broken::Tpm(describe(of_tpm).1),
            },
        };
        Broken::Machine(self.reason(status).await)
    }

    async fn reason(&mut self, status: std::io::Result<ExitStatus>) -> ExitReason {
        let last_words = async {
            self.console.ended().await;
            self.stderr.ended().await;
            self.qmp.shutdown_reason().await
        };
        let reason = tokio::time::timeout(LAST_WORDS, last_words).await.ok().flatten();
        let (success, status) = describe(status);
        let ending = Ending::new(reason.as_deref(), status, success, self.stderr.tail());
        ExitReason { ending, console: self.console.tail() }
    }

    /// Waits until this machine fails to keep what the guest writes to its disk, and says how; for ever if it does not.
    pub(crate) fn disk_error(&self) -> impl Future<Output = Arc<str>> + use<> {
        self.qmp.disk_error()
    }

    /// The console's last lines, control characters removed.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Waits until the console has said the words, for ever if it does not; gives the time since QEMU's start.
    pub async fn console_says(&self, words: &str) -> Duration {
        self.console.says(words).await.saturating_duration_since(self.spawned)
    }

    /// Waits for the first text on the console (firmware's control sequences aside); gives the time since QEMU's start.
    pub async fn first_byte(&self) -> Duration {
        self.console.begun().await.saturating_duration_since(self.spawned)
    }

    /// The ports of this machine that lead to the guest; none is 0.
    pub fn ports(&self) -> &[PortForward] {
        &self.ports
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Who plugs disks into it.
    pub(crate) fn disks(&self) -> Disks {
        self.disks.clone()
    }

    /// Where its network is, if not QEMU's own.
    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Ends it at once, in the way that leaves QEMU the time to do so itself.
    pub async fn quit(mut self) {
        let ended = async {
            self.qmp.quit().await?;
            self.qemu.exited().await
        };
        if tokio::time::timeout(Duration::from_secs(2), ended).await.is_err() {
            tracing::warn!("QEMU did not end when asked to, and is killed");
        }
    }

    /// When the start began, and when QEMU's did.
    pub(crate) fn times(&self) -> (Instant, Instant) {
        (self.began, self.spawned)
    }

    /// The channel to the agent, once.
    pub(crate) fn take_channel(&mut self) -> Option<Channel> {
        self.channel.take()
    }

    /// What is kept of the console.
    pub(crate) fn console(&self) -> Console {
        self.console.clone()
    }
}

/// What a machine needs before it starts.
struct Prepared {
    arguments: Vec<OsString>,
    disk: Option<File>,
    console: UnixListener,
    qmp: UnixListener,
    channel: Channel,
    ports: Vec<PortForward>,
    namespace: Option<Namespace>,
}

impl Prepared {
    fn new(
        config: &SandboxConfig,
        hypervisor: Hypervisor,
        tpm: Option<PathBuf>,
        folder: &RuntimeFolder,
    ) -> Result<Self, Error> {
        let variables = config.firmware.then(|| copy_variables(config, folder)).transpose()?;
        let disk = (config.ephemeral_disk_mib > 0).then(|| make_disk(config)).transpose()?;
        // This process listens and QEMU connects, so that nothing is written before somebody reads.
        let (console, qmp) = (folder.join("console.sock"), folder.join("qmp.sock"));
        let (channel, agent) = Channel::prepare(config, &folder.join("agent.sock"))?;
        let listeners = (listen(&console)?, listen(&qmp)?);
        let ports = network::settle(config.network.ports())?;
        let namespace = match &config.network {
            Network::User { .. } => None,
            Network::Namespace { path } => Some(Namespace::join(path)?),
        };
        let network = namespace.as_ref().map_or(Cards::User { ports: &ports }, |it| Cards::Taps(it.cards()));
        let rom_bytes = rom_bytes(&config.guest.agent)?;
        let machine = Machine {
            config,
            hypervisor,
            network,
            variables,
            disk: disk.as_ref().map(AsRawFd::as_raw_fd),
            rom_bytes,
            console,
            qmp,
            tpm,
            channel: agent,
        };
        let arguments = machine.arguments();
        tracing::debug!(?arguments, "QEMU's command line");
        Ok(Self { arguments, disk, console: listeners.0, qmp: listeners.1, channel, ports, namespace })
    }
}

async fn start_tpm(config: &SandboxConfig, folder: &RuntimeFolder) -> Result<Option<EmulatedTpm>, Error> {
    match &config.tpm {
        Tpm::None => Ok(None),
        Tpm::Emulated { authority } => tpm::start(authority, folder, &config.cgroup_procs).await.map(Some),
    }
}

fn copy_variables(config: &SandboxConfig, folder: &RuntimeFolder) -> Result<PathBuf, Error> {
    let copy = folder.join("vars.fd");
    let copied = std::fs::read(&config.guest.firmware_variables)
        .and_then(|variables| std::fs::write(&copy, variables));
    copied.map_err(Error::io("cannot copy the firmware's variables"))?;
    Ok(copy)
}

/// A file with a size, no content and no name, so that nothing is left of it, however this process ends.
fn make_disk(config: &SandboxConfig) -> Result<File, Error> {
    let bytes = u64::from(config.ephemeral_disk_mib) << 20;
    let made = tempfile::tempfile_in(&config.ephemeral_disk_folder).and_then(|file| {
        file.set_len(bytes)?;
        Ok(file)
    });
    let folder = config.ephemeral_disk_folder.display();
    made.map_err(Error::io(format!("cannot make the ephemeral disk in {folder}")))
}

fn listen(path: &Path) -> Result<UnixListener, Error> {
    UnixListener::bind(path).map_err(Error::io(format!("cannot make the socket {}", path.display())))
}

async fn accept_both(console: &UnixListener, qmp: &UnixListener) -> std::io::Result<(Console, Qmp)> {
    let ((console, _), (qmp, _)) = tokio::try_join!(console.accept(), qmp.accept())?;
    Ok((Console::follow(console), Qmp::begin(qmp).await?))
}

fn follow_stderr(qemu: &mut Process) -> Result<Console, Error> {
    let Some(stderr) = qemu.take_stderr() else { return Ok(Console::silent()) };
    let receiver = pipe::Receiver::from_owned_fd(stderr.into());
    receiver.map(Console::follow).map_err(Error::io("cannot read QEMU's standard error"))
}

/// Why QEMU ended before it was running.
async fn refusal(status: std::io::Result<ExitStatus>, stderr: &Console, ports: &[PortForward]) -> Error {
    // Bounded like all last words; what was not read in time is missing from the message.
    let _ = tokio::time::timeout(LAST_WORDS, stderr.ended()).await;
    let stderr = stderr.tail();
    if stderr.contains("host forwarding rule")
        && let Some(port) = ports.iter().find(|port| stderr.contains(&format!(":{}-", port.host)))
    {
        let address = std::net::SocketAddr::new(port.address, port.host);
        return Error::Port { address, source: std::io::ErrorKind::AddrInUse.into() };
    }
    let (_, status) = describe(status);
    Error::Died(ExitReason { ending: Ending::Failed { status, stderr }, console: String::new() })
}

fn describe(status: std::io::Result<ExitStatus>) -> (bool, String) {
    match status {
        Ok(status) => (status.success(), status.to_string()),
        Err(error) => (false, error.to_string()),
    }
}
