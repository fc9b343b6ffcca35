//! A process's standard streams: from the guest to the FIFOs that containerd made, and back.
//!
//! A full FIFO stops the copy, which stops the guest's stream by its flow control, which stops the process: nothing
//! is lost and nothing is kept here.

use std::io;
use std::path::Path;
use std::sync::Arc;

use sealpod_agent_protocol::{ByteStream, CallError, Client, FailureKind, ProcessRef, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use crate::error::Error;

const BUFFER: usize = 64 * 1024;

/// The FIFOs of a process; an empty path is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Opens a process's streams in the guest and copies them until they end.
///
/// What the pod's policy keeps from the host is left out: the FIFO is opened and closed, for containerd waits for
/// its end.
pub(crate) async fn attach(
    agent: &Client,
    process: &ProcessRef,
    paths: &Paths,
    input_ends: Arc<Notify>,
) -> Result<(), Error> {
    let mut outputs = vec![(Request::ReadStdout(process.clone()), &paths.stdout)];
    if !paths.terminal {
        outputs.push((Request::ReadStderr(process.clone()), &paths.stderr));
    }
    for (request, path) in outputs {
        let fifo = open_output(path)?;
        if let Some(stream) = open(agent, request).await? {
            tokio::spawn(copy_output(stream, fifo));
        }
    }
    if !paths.stdin.is_empty() {
        let fifo = open_input(&paths.stdin)?;
        if let Some(stream) = open(agent, Request::WriteStdin(process.clone())).await? {
            tokio::spawn(copy_input(fifo, stream, input_ends));
        }
    }
    Ok(())
}

/// Opens and closes the FIFOs of a process that never ran, so that nobody waits for it.
pub(crate) fn close(paths: &Paths) {
    for path in [&paths.stdout, &paths.stderr] {
        // Who does not listen does not wait either.
        let _ = open_output(path);
    }
}

async fn open(agent: &Client, request: Request) -> Result<Option<ByteStream>, Error> {
    let name = request.name();
    match agent.open(request).await {
        Ok(stream) => Ok(Some(stream)),
        Err(CallError::Refused(failure)) if failure.kind == FailureKind::DeniedByPolicy => {
            tracing::info!("{}", failure.message);
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%error, name, "cannot open a stream");
            Err(error.into())
        }
    }
}

/// For reading too: so it does not break when containerd, which reads it, starts anew.
fn open_output(path: &str) -> Result<Option<pipe::Sender>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let fifo = pipe::OpenOptions::new().read_write(true).open_sender(path);
    fifo.map(Some).map_err(Error::io(format!("cannot open {}", Path::new(path).display())))
}

/// For writing too: its end is not that of the input, which containerd tells by a call of its own.
fn open_input(path: &str) -> Result<pipe::Receiver, Error> {
    pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(path)
        .map_err(Error::io(format!("cannot open {}", Path::new(path).display())))
}

/// Without a FIFO the stream is read and thrown away.
async fn copy_output(mut stream: ByteStream, mut fifo: Option<pipe::Sender>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if let Some(open) = &mut fifo
            && let Err(error) = open.write_all(buffer.get(..count).unwrap_or_default()).await
        {
            tracing::warn!(%error, "output cannot be passed on any more");
            fifo = None;
        }
    }
}

async fn copy_input(mut fifo: pipe::Receiver, mut stream: ByteStream, ends: Arc<Notify>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = tokio::select! {
            biased;
            count = fifo.read(&mut buffer) => count,
            () = ends.notified() => break,
        };
        match count {
            Ok(count @ 1..) => {
                if stream.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
            _ => break,
        }
    }
    // What was written before the end was told is still in the FIFO.
    while let Ok(count @ 1..) = try_read(&fifo, &mut buffer) {
        if stream.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            return;
        }
    }
    // The process may have ended.
    let _ = stream.shutdown().await;
}

fn try_read(fifo: &pipe::Receiver, buffer: &mut [u8]) -> io::Result<usize> {
    fifo.try_read(buffer)
}
