//! A process of a pod beside the user's own: streams, signals, terminal and exit status pass between them.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use sealpod_agent_protocol::{
    ByteStream, CallError, Client, ExitStatus, FailureKind, ProcessRef, Reply, Request, ResizeTerminal,
    SignalProcess,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::{agent_error, terminal};
use crate::error::{Context, Error, Result};

/// Which of the user's streams the process gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attachment {
    pub(crate) stdin: bool,
    pub(crate) terminal: bool,
}

/// How a process ended, and when its first output came.
pub(crate) struct Outcome {
    pub(crate) exit: ExitStatus,
    pub(crate) first_output: Option<Instant>,
}

/// Attaches the user's streams to a process, starts it, and waits for its end.
///
/// Streams are opened before `start` so that no output is lost, and read to their end before this returns.
pub(crate) async fn attend(
    agent: &Client,
    process: &ProcessRef,
    attachment: Attachment,
    start: impl Future<Output = Result<()>>,
) -> Result<Outcome> {
    let first_output = Arc::new(OnceLock::new());
    let mut outputs = Vec::new();
    // A process that `start` itself creates has no streams before it.
    let stdout = open(agent, Request::ReadStdout(process.clone())).await?;
    outputs.push(copy_output(stdout, tokio::io::stdout(), first_output.clone()));
    if !attachment.terminal {
        let stderr = open(agent, Request::ReadStderr(process.clone())).await?;
        outputs.push(copy_output(stderr, tokio::io::stderr(), first_output.clone()));
    }
    if attachment.stdin
        && let Some(stdin) = open(agent, Request::WriteStdin(process.clone())).await?
    {
        tokio::spawn(copy_input(stdin));
    }
    let raw = if attachment.terminal { terminal::RawTerminal::enter() } else { None };

    start.await?;
    let signals = tokio::spawn(forward_signals(agent.clone(), process.clone(), attachment.terminal));
    let exit = agent.call(Request::WaitProcess(process.clone())).await;
    signals.abort();
    for output in outputs.into_iter().flatten() {
        // A closed standard output of ours ends the copy, not the container.
        let _ = output.await;
    }
    drop(raw);
    match exit.map_err(agent_error)? {
        Reply::Exit(exit) => Ok(Outcome { exit, first_output: first_output.get().copied() }),
        other => Err(Error::new(format!("the agent answered a wait with {other:?}"))),
    }
}

/// Opens a stream; nothing where the pod's policy keeps it from the host, which is said once.
async fn open(agent: &Client, request: Request) -> Result<Option<ByteStream>> {
    let name = request.name();
    match agent.open(request).await {
        Ok(stream) => Ok(Some(stream)),
        Err(CallError::Refused(failure)) if failure.kind == FailureKind::DeniedByPolicy => {
            eprintln!("note: the pod's policy does not allow {name}; the container runs without it");
            Ok(None)
        }
        Err(error) => Err(agent_error(error)),
    }
}

fn copy_output(
    from: Option<ByteStream>,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    first_output: Arc<OnceLock<Instant>>,
) -> Option<JoinHandle<std::io::Result<()>>> {
    let mut from = from?;
    Some(tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer).await?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            first_output.get_or_init(Instant::now);
            to.write_all(bytes).await?;
            to.flush().await?;
        }
    }))
}

async fn copy_input(mut to: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    tokio::io::copy(&mut tokio::io::stdin(), &mut to).await?;
    to.shutdown().await
}

/// Passes on the signals that `podman run` passes on, and the terminal's size.
async fn forward_signals(agent: Client, process: ProcessRef, terminal: bool) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch SIGHUP")?;
    let mut quit = signal(SignalKind::quit()).context("cannot watch SIGQUIT")?;
    let mut user1 = signal(SignalKind::user_defined1()).context("cannot watch SIGUSR1")?;
    let mut user2 = signal(SignalKind::user_defined2()).context("cannot watch SIGUSR2")?;
    let mut resized = signal(SignalKind::window_change()).context("cannot watch SIGWINCH")?;
    if terminal {
        resize(&agent, &process).await;
    }
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = hangup.recv() => SignalKind::hangup(),
            _ = quit.recv() => SignalKind::quit(),
            _ = user1.recv() => SignalKind::user_defined1(),
            _ = user2.recv() => SignalKind::user_defined2(),
            _ = resized.recv() => {
                if terminal {
                    resize(&agent, &process).await;
                }
                continue;
            }
        };
        let signal = u8::try_from(number.as_raw_value()).unwrap_or_default();
        let request = SignalProcess { process: process.clone(), signal, all: false };
        if let Err(error) = agent.call(Request::SignalProcess(request)).await {
            eprintln!("warning: the signal was not delivered: {}", agent_error(error).message());
        }
    }
}

async fn resize(agent: &Client, process: &ProcessRef) {
    if let Some((rows, columns)) = terminal::size() {
        let request = ResizeTerminal { process: process.clone(), rows, columns };
        // A size that does not arrive is put right by the next one.
        let _ = agent.call(Request::ResizeTerminal(request)).await;
    }
}
