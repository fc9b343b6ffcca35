//! The front of the owner's key broker in the demo: it ends TLS and keeps what guests sent.
//!
//! An attacker on the network sees ciphertext. The demo's attacker is given more: whole requests
//! from within TLS, to replay them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::error::{Context, Error, Result};

/// At most this much is kept of what one connection sent.
const KEPT_BYTES: usize = 4 << 20;

/// What the client of each connection sent, in the order in which they connected.
type Conversations = Arc<Mutex<Vec<Arc<Mutex<Vec<u8>>>>>>;

/// A TLS end point before the broker that records what passes.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    conversations: Conversations,
    server: JoinHandle<()>,
}

/// A request as it came out of TLS.
#[derive(Clone, Debug)]
pub(crate) struct RecordedRequest {
    pub(crate) path: String,
    pub(crate) cookie: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Recorder {
    pub(crate) async fn start(certificate: &[u8], key: &[u8], broker: SocketAddr) -> Result<Self> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| Error::new(format!("the broker's certificate is no PEM: {error:?}")))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| Error::new(format!("the broker's TLS key is no PEM: {error:?}")))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the broker's certificate and key do not fit")?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no free port on loopback")?;
        let address = listener.local_addr()?;
        let conversations = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn(accept(listener, acceptor, broker, conversations.clone()));
        Ok(Self { address, conversations, server })
    }

    /// Every complete request so far, in each connection's order.
    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        let conversations = self.conversations.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        conversations
            .iter()
            .flat_map(|bytes| parse_requests(&bytes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
            .collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    broker: SocketAddr,
    conversations: Conversations,
) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let kept = Arc::new(Mutex::new(Vec::new()));
        conversations.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(kept.clone());
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            let guest = acceptor.accept(socket).await?;
            let broker = TcpStream::connect(broker).await?;
            let (from_guest, to_guest) = tokio::io::split(guest);
            let (from_broker, to_broker) = broker.into_split();
            tokio::try_join!(relay(from_guest, to_broker, Some(kept)), relay(from_broker, to_guest, None))?;
            std::io::Result::Ok(())
        });
    }
}

async fn relay(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    kept: Option<Arc<Mutex<Vec<u8>>>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        if let Some(kept) = &kept {
            let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if kept.len() + bytes.len() <= KEPT_BYTES {
                kept.extend_from_slice(bytes);
            }
        }
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

/// Cuts what one connection sent into HTTP/1.1 requests with a Content-Length (RFC 9112 §6).
fn parse_requests(mut bytes: &[u8]) -> Vec<RecordedRequest> {
    let mut requests = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let (head, rest) = bytes.split_at(end + 4);
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let Some(path) = lines.next().and_then(|line| line.split(' ').nth(1)) else { break };
        let headers: Vec<(String, &str)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
            .collect();
        let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value);
        let length = header("content-length").and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
        let Some((body, next)) = rest.split_at_checked(length) else { break };
        requests.push(RecordedRequest {
            path: path.to_owned(),
            cookie: header("cookie").map(str::to_owned),
            body: body.to_vec(),
        });
        bytes = next;
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_one_connection_are_told_apart() {
        let bytes = b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}\
            POST /kbs/v0/attest HTTP/1.1\r\nCookie: kbs-session-id=x\r\ncontent-length: 3\r\n\r\nabc\
            GET /kbs/v0/resource/a/b/c HTTP/1.1\r\n\r\n";
        let requests = parse_requests(bytes);
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[1].path, "/kbs/v0/attest");
        assert_eq!(requests[1].cookie.as_deref(), Some("kbs-session-id=x"));
        assert_eq!(requests[1].body, b"abc");
    }

    #[test]
    fn a_request_whose_body_is_not_complete_is_left_out() {
        assert!(parse_requests(b"POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nab").is_empty());
    }
}
