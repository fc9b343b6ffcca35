//! A process's standard streams: from the guest to the FIFOs that containerd made, and back.
//!
//! A full FIFO stops the copy, which stops the guest's stream by its flow control, which stops the process: nothing
//! is lost and nothing is kept here.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealpod_agent_protocol::{ByteStream, CallError, Client, FailureKind, ProcessRef, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::Error;
use crate::process::Process;

const BUFFER: usize = 64 * 1024;
/// How long nothing may come from a process that has ended before its output is taken to be held by another, to which
/// it left its streams.
const SILENCE: Duration = Duration::from_secs(2);
/// How long its end is kept back at most: another may write for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The FIFOs of a process; an empty path is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// The copies of a process's output that are under way.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    copies: JoinSet<()>,
    progress: Arc<Progress>,
}

/// Bytes so far.
#[derive(Debug, Default)]
struct Progress {
    /// From the guest.
    taken: AtomicU64,
    /// To containerd, which may be slow to read.
    passed: AtomicU64,
}

impl Progress {
    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn is_held_up(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.passed()
    }
}

impl Outputs {
    /// Waits until the output of a process that has ended was passed on. What another process holds open is copied on.
    pub(crate) async fn drain(mut self) {
        let began = Instant::now();
        let mut before = self.progress.passed();
        while timeout(SILENCE, async { while self.copies.join_next().await.is_some() {} }).await.is_err() {
            let now = self.progress.passed();
            let is_silent = now == before && !self.progress.is_held_up();
            if is_silent || began.elapsed() > PATIENCE {
                self.copies.detach_all();
                break;
            }
            before = now;
        }
    }
}

/// Opens a process's streams in the guest and copies them until they end.
///
/// What the pod's policy keeps from the host is left out: the FIFO is opened and closed, for containerd waits for
/// its end.
pub(crate) async fn attach(
    agent: &Client,
    reference: &ProcessRef,
    process: &Arc<Process>,
) -> Result<Outputs, Error> {
    let paths = &process.paths;
    let mut streams = vec![(Request::ReadStdout(reference.clone()), &paths.stdout)];
    if !paths.terminal {
        streams.push((Request::ReadStderr(reference.clone()), &paths.stderr));
    }
    let mut outputs = Outputs::default();
    for (request, path) in streams {
        let fifo = open_output(path)?;
        if let Some(stream) = open(agent, request).await? {
            let (process, progress) = (process.clone(), outputs.progress.clone());
            outputs.copies.spawn(async move {
                tokio::select! {
                    () = copy_output(stream, fifo, progress) => {}
                    // Processes that it left behind may have its output, and hold it open for ever.
                    () = process.forgotten() => {}
                }
            });
        }
    }
    if !paths.stdin.is_empty() {
        let fifo = open_input(&paths.stdin)?;
        if let Some(stream) = open(agent, Request::WriteStdin(reference.clone())).await? {
            let process = process.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = copy_input(fifo, stream, &process.input_ends) => {}
                    // The end of a terminal's input is told by nobody.
                    _ = process.wait() => {}
                }
            });
        }
    }
    Ok(outputs)
}

/// Opens and closes the FIFOs of a process that never ran, so that nobody waits for it.
pub(crate) fn close(paths: &Paths) {
    for path in [&paths.stdout, &paths.stderr] {
        // Who does not listen does not wait either.
        let _ = open_output(path);
    }
    if !paths.stdin.is_empty() {
        let _ = open_input(&paths.stdin);
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
async fn copy_output(mut stream: ByteStream, mut fifo: Option<pipe::Sender>, progress: Arc<Progress>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        progress.taken.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(open) = &mut fifo
            && let Err(error) = open.write_all(buffer.get(..count).unwrap_or_default()).await
        {
            tracing::warn!(%error, "output cannot be passed on any more");
            fifo = None;
        }
        progress.passed.fetch_add(count as u64, Ordering::Relaxed);
    }
}

async fn copy_input(mut fifo: pipe::Receiver, mut stream: ByteStream, ends: &Notify) {
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
