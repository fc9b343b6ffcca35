//! The byte stream to the agent: a virtio-serial port's socket or vsock, behind one type.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::arguments::AgentChannel;
use crate::config::{SandboxConfig, Transport};
use crate::error::Error;

/// Where the agent listens.
const VSOCK_PORT: u32 = 1024;
const VSOCK_DEVICE: &str = "/dev/vhost-vsock";
/// Words of the guest's command line that choose vsock.
const VSOCK_WORD: &str = "sealpod.transport=vsock";
const RETRY: Duration = Duration::from_millis(20);

/// Bytes to and from the agent.
pub(crate) trait ByteTransport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteTransport for T {}

/// This end of the channel, before the guest runs.
#[derive(Debug)]
pub(crate) enum Channel {
    VirtioSerial(UnixListener),
    Vsock { cid: u32 },
}

impl Channel {
    /// Prepares the channel that the configuration asks for, and what QEMU has to know of it.
    pub(crate) fn prepare(config: &SandboxConfig, socket: &Path) -> Result<(Self, AgentChannel), Error> {
        if choose(config.transport, &config.cmdline()) == Transport::Vsock {
            if let Err(source) = std::fs::File::options().read(true).write(true).open(VSOCK_DEVICE) {
                let what = format!(
                    "cannot use {VSOCK_DEVICE} (load the module vhost_vsock, or take {VSOCK_WORD} from the guest's command line)"
                );
                return Err(Error::Io { what, source });
            }
            let cid = new_cid();
            return Ok((Self::Vsock { cid }, AgentChannel::Vsock { cid }));
        }
        let listener = UnixListener::bind(socket).map_err(Error::io("cannot make the agent's socket"))?;
        Ok((Self::VirtioSerial(listener), AgentChannel::VirtioSerial(socket.to_owned())))
    }

    /// Waits for the other end: QEMU for virtio-serial, the agent itself for vsock.
    pub(crate) async fn connect(self) -> io::Result<Box<dyn ByteTransport>> {
        match self {
            Self::VirtioSerial(listener) => Ok(Box::new(listener.accept().await?.0)),
            Self::Vsock { cid } => loop {
                // Until the agent listens, the guest refuses, or nobody answers.
                match VsockStream::connect(VsockAddr::new(cid, VSOCK_PORT)).await {
                    Ok(stream) => return Ok(Box::new(stream)),
                    Err(error) => tracing::trace!(%error, "the agent does not listen yet"),
                }
                tokio::time::sleep(RETRY).await;
            },
        }
    }
}

/// The guest listens where its measured command line says, so that decides unless the caller insists.
fn choose(wanted: Transport, cmdline: &str) -> Transport {
    match wanted {
        Transport::Auto if cmdline.split_ascii_whitespace().any(|word| word == VSOCK_WORD) => {
            Transport::Vsock
        }
        Transport::Auto => Transport::VirtioSerial,
        insisted => insisted,
    }
}

/// A context id that is probably free; QEMU fails if it is not. 0 to 2 have meanings of their own.
fn new_cid() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let random = RandomState::new().build_hasher().finish();
    let [a, b, c, d, ..] = random.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]) >> 1).max(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_command_line_chooses_the_transport() {
        assert_eq!(choose(Transport::Auto, "quiet sealpod.transport=vsock"), Transport::Vsock);
        for other in ["quiet", "sealpod.transport=vsockets", "x.sealpod.transport=vsock"] {
            assert_eq!(choose(Transport::Auto, other), Transport::VirtioSerial, "{other}");
        }
        assert_eq!(choose(Transport::Vsock, "quiet"), Transport::Vsock);
    }

    #[test]
    fn a_context_id_is_never_a_reserved_one() {
        assert!((0..1000).all(|_| (3..u32::MAX).contains(&new_cid())));
    }
}
