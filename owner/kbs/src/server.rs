//! The listener: HTTP or HTTPS, bounded connections, a clean end.

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::broker::Broker;
use crate::config::{Config, Tls};
use crate::routes::{REQUEST_LIMIT, router};

/// At most so many connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// A client that does not get on with its handshake or header is dropped.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// A connection is used for so long; a client that goes on makes another.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// How long open connections get to end after the signal.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// Serves until `shutdown` ends. `ready` is told the address once it listens.
///
/// # Errors
///
/// When the address cannot be listened on, or the certificate cannot be used.
pub async fn serve(
    config: &Config,
    broker: Arc<Broker>,
    ready: impl FnOnce(SocketAddr) -> anyhow::Result<()>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let acceptor = config.tls.as_ref().map(acceptor).transpose()?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    ready(address)?;
    tracing::info!(%address, tls = acceptor.is_some(), "listening");

    let router = router(broker);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (end, ending) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await?;
            listener.accept().await.map(|(socket, _)| (socket, place)).map_err(anyhow::Error::from)
        };
        let (socket, place) = tokio::select! {
            accepted = accept => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, say: others end meanwhile.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        while connections.try_join_next().is_some() {}
        let (router, acceptor, ending) = (router.clone(), acceptor.clone(), ending.clone());
        connections.spawn(async move {
            if let Err(error) = connection(socket, acceptor, router, ending).await {
                tracing::debug!(%error, "a connection failed");
            }
            drop(place);
        });
    }
    drop(listener);
    end.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_LIMIT, all).await.is_err() {
        tracing::warn!("connections that did not end in time are cut");
    }
    Ok(())
}

/// Checks that the configured certificate can be used.
///
/// # Errors
/// If the certificate or its key cannot be read, or they do not belong together.
pub fn check(config: &Config) -> anyhow::Result<()> {
    config.tls.as_ref().map(acceptor).transpose().map(drop)
}

/// Writes the address where others wait for it, all at once.
///
/// # Errors
/// If the file cannot be written.
pub fn write_address(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let staged = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        std::fs::File::create(&staged)?.write_all(address.to_string().as_bytes())?;
        std::fs::rename(&staged, path)
    };
    write().with_context(|| format!("cannot write the address to {}", path.display()))
}

async fn connection(
    socket: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: axum::Router,
    ending: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    match acceptor {
        Some(acceptor) => {
            let stream = tokio::time::timeout(HEADER_LIMIT, acceptor.accept(socket)).await??;
            http(stream, router, ending).await
        }
        None => http(socket, router, ending).await,
    }
}

async fn http<S>(stream: S, router: axum::Router, mut ending: watch::Receiver<bool>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    tokio::select! {
        result = served.as_mut() => return Ok(result?),
        _ = ending.wait_for(|ending| *ending) => {}
        () = tokio::time::sleep(CONNECTION_LIMIT) => {}
    }
    served.as_mut().graceful_shutdown();
    // Whoever does not take the answer to the last request either is cut off.
    Ok(tokio::time::timeout(REQUEST_LIMIT, served).await??)
}

fn acceptor(tls: &Tls) -> anyhow::Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow::anyhow!("{} is no certificate (PEM): {error}", tls.certificate.display()))?;
    anyhow::ensure!(!chain.is_empty(), "{} is no certificate (PEM)", tls.certificate.display());
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| anyhow::anyhow!("{} is no private key (PEM): {error}", tls.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not fit")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
