//! The owner's servers during the demo: a real registry and a real key broker, on loopback and for its length only.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::error::{Context, Error, Result};

const START_LIMIT: Duration = Duration::from_secs(20);
/// How long the kernel may take to end what it was told to kill.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A child that is gone once this is dropped: it cannot write any more to a folder that is removed then.
pub(super) struct Owned(pub(super) Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.0.start_kill();
        let deadline = std::time::Instant::now() + KILL_LIMIT;
        while matches!(self.0.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A program that ends with the demo, however the demo ends.
pub(crate) struct Service {
    name: &'static str,
    child: Owned,
    log: PathBuf,
}

/// Debian's `docker-registry`.
pub(crate) struct Registry {
    service: Service,
    pub(crate) address: SocketAddr,
    storage: PathBuf,
}

/// `sealpod-kbs serve`.
pub(crate) struct KeyBroker {
    service: Service,
    pub(crate) address: SocketAddr,
}

impl Service {
    fn spawn(name: &'static str, mut command: std::process::Command, log: PathBuf) -> Result<Self> {
        let output = std::fs::File::create(&log).context(format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        end_with_parent(&mut command);
        let child = Command::from(command)
            .spawn()
            .context(format!("cannot start {name}"))
            .hint("`make setup` installs what is missing")?;
        Ok(Self { name, child: Owned(child), log })
    }

    /// Waits until `ready` says so, or the program ends.
    async fn until<T>(&mut self, mut ready: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(value) = ready().await {
                return Ok(value);
            }
            if let Some(status) = self.child.0.try_wait()? {
                return Err(self.failed(&format!("ended ({status})")));
            }
            if Instant::now() > deadline {
                return Err(self.failed("did not get ready in time"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn failed(&self, how: &str) -> Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Error::new(format!("{} {how}\n{}", self.name, last.join("\n")))
    }

    async fn stop(mut self) {
        if let Some(pid) = self.child.0.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
        {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        // What does not end in order is killed when it is dropped.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.child.0.wait()).await;
    }
}

impl Registry {
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let storage = folder.join("registry");
        let configuration = folder.join("registry.yml");
        std::fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n",
                storage.display()
            ),
        )?;
        let mut command = std::process::Command::new("docker-registry");
        command.arg("serve").arg(&configuration);
        let mut service = Service::spawn("docker-registry", command, folder.join("registry.log"))?;
        service.until(async || TcpStream::connect(address).await.ok()).await?;
        Ok(Self { service, address, storage })
    }

    /// The file in which the registry keeps a blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let shard = hex.get(..2).unwrap_or_default();
        self.storage.join("docker/registry/v2/blobs/sha256").join(shard).join(hex).join("data")
    }

    pub(crate) async fn stop(self) {
        self.service.stop().await;
    }
}

impl KeyBroker {
    /// Starts the broker from a configuration that listens on a free port, and waits for its address.
    pub(crate) async fn start(program: &Path, configuration: &Path, folder: &Path) -> Result<Self> {
        let address_file = folder.join("kbs.address");
        let mut command = std::process::Command::new(program);
        command.arg("serve").arg("--config").arg(configuration).arg("--address-file").arg(&address_file);
        let mut service = Service::spawn("sealpod-kbs", command, folder.join("kbs.log"))?;
        let address = service
            .until(async || std::fs::read_to_string(&address_file).ok()?.trim().parse::<SocketAddr>().ok())
            .await?;
        Ok(Self { service, address })
    }

    pub(crate) async fn stop(self) {
        self.service.stop().await;
    }
}

/// Runs a program to its end; it ends early if nobody waits for it any more.
pub(super) async fn output_of(mut command: std::process::Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    end_with_parent(&mut command);
    let mut child = Owned(Command::from(command).spawn()?);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let (stdout, stderr, status) = tokio::try_join!(read(stdout), read(stderr), child.0.wait())?;
    Ok(Output { status, stdout, stderr })
}

async fn read(output: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        output.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Lets the kernel end a child when this process dies without a word.
pub(crate) fn end_with_parent(command: &mut std::process::Command) {
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)
        });
    }
}

/// A loopback address whose port was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on loopback")?;
    Ok(listener.local_addr()?)
}
