//! The channel to the host: a virtio-serial port or vsock, and one protocol connection after another on it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::cmdline;
use crate::api::Agent;
use crate::nonblocking::Nonblocking;

/// The name of the virtio-serial port.
const PORT_NAME: &str = "sealpod.agent";
/// The vsock port that the agent listens on.
const VSOCK_PORT: u32 = 1024;
/// How long the port may take to appear after its driver was loaded.
const PORT_PATIENCE: Duration = Duration::from_secs(30);

/// An open channel to the host.
pub(super) enum Transport {
    VirtioSerial(OwnedFd),
    Vsock(tokio_vsock::VsockListener),
}

impl Transport {
    pub(super) async fn open(kind: cmdline::Transport) -> anyhow::Result<Self> {
        match kind {
            cmdline::Transport::VirtioSerial => {
                let path = find_port().await?;
                let file = File::options().read(true).write(true).open(&path);
                let file = file.with_context(|| format!("open {}", path.display()))?;
                rustix::io::ioctl_fionbio(&file, true)?;
                Ok(Self::VirtioSerial(file.into()))
            }
            cmdline::Transport::Vsock => {
                let address = tokio_vsock::VsockAddr::new(tokio_vsock::VMADDR_CID_ANY, VSOCK_PORT);
                Ok(Self::Vsock(tokio_vsock::VsockListener::bind(address).context("listen on vsock")?))
            }
        }
    }

    /// Serves the agent's protocol until the guest ends. A host that hangs up may come back.
    pub(super) async fn serve(self, agent: Arc<Agent>) -> anyhow::Result<()> {
        loop {
            let ended = match &self {
                Self::VirtioSerial(port) => {
                    wait_for_host(port).await?;
                    // A new registration each time: a hang-up marks one for ever.
                    let connection = Nonblocking::new(port.try_clone()?)?;
                    sealpod_agent_protocol::serve(connection, agent.clone()).await
                }
                Self::Vsock(listener) => {
                    let (connection, _) = listener.accept().await?;
                    sealpod_agent_protocol::serve(connection, agent.clone()).await
                }
            };
            if let Err(error) = ended {
                tracing::warn!("the connection to the host broke: {error}");
            }
        }
    }
}

/// Finds the port's device node. The host names its ports some moments after the driver is there.
async fn find_port() -> anyhow::Result<PathBuf> {
    let deadline = tokio::time::Instant::now() + PORT_PATIENCE;
    loop {
        if let Some(name) = port_named(PORT_NAME)? {
            return Ok(PathBuf::from("/dev").join(name));
        }
        if tokio::time::Instant::now() > deadline {
            bail!("no virtio-serial port is named {PORT_NAME}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn port_named(wanted: &str) -> io::Result<Option<std::ffi::OsString>> {
    let folder = match fs::read_dir("/sys/class/virtio-ports") {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in folder {
        let entry = entry?;
        // The attribute appears when the name arrives.
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == wanted {
            return Ok(Some(entry.file_name()));
        }
    }
    Ok(None)
}

/// Waits until somebody is at the host's end of the port.
async fn wait_for_host(port: &OwnedFd) -> io::Result<()> {
    loop {
        let mut polled = [PollFd::new(port, PollFlags::IN | PollFlags::OUT)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if !polled[0].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
