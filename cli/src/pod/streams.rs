//! A process of a pod beside the user's own: streams, signals, terminal and exit status pass between them.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use sealpod_agent_protocol::{
    ByteStream, CallError, Client, ExitStatus, FailureKind, ProcessRef, Reply, Request, ResizeTerminal,
    SignalProcess,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::SignalKind;
use tokio::task::JoinHandle;

use super::signals::Signals;
use super::terminal::{self, RawTerminal};
use super::{PROMPT, agent_error};
use crate::error::{Error, Result};
use crate::output;

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

/// The user's streams, attached to a process.
pub(crate) struct Attached {
    agent: Client,
    process: ProcessRef,
    terminal: bool,
    outputs: Vec<JoinHandle<std::io::Result<()>>>,
    first_output: Arc<OnceLock<Instant>>,
    _raw: Option<RawTerminal>,
}

/// Attaches the user's streams to a process: before it starts, so that no output is lost.
pub(crate) async fn attach(agent: &Client, process: &ProcessRef, attachment: Attachment) -> Result<Attached> {
    let first_output = Arc::new(OnceLock::new());
    let mut outputs = Vec::new();
    let stdout = open(agent, Request::ReadStdout(process.clone())).await?;
    outputs.extend(copy_output(stdout, tokio::io::stdout(), first_output.clone()));
    if !attachment.terminal {
        let stderr = open(agent, Request::ReadStderr(process.clone())).await?;
        outputs.extend(copy_output(stderr, tokio::io::stderr(), first_output.clone()));
    }
    if attachment.stdin
        && let Some(stdin) = open(agent, Request::WriteStdin(process.clone())).await?
    {
        tokio::spawn(copy_input(stdin));
    }
    let raw = if attachment.terminal { RawTerminal::enter() } else { None };
    Ok(Attached {
        agent: agent.clone(),
        process: process.clone(),
        terminal: attachment.terminal,
        outputs,
        first_output,
        _raw: raw,
    })
}

impl Attached {
    /// Passes signals on to the process until it ends, and reads its outputs to their ends.
    pub(crate) async fn finish(self, signals: &mut Signals) -> Result<Outcome> {
        let exit = tokio::select! {
            exit = self.agent.call(Request::WaitProcess(self.process.clone())) => exit.map_err(agent_error)?,
            never = self.forward(signals) => match never {},
        };
        for output in self.outputs {
            // A closed standard output of ours ends the copy, not the container.
            let _ = output.await;
        }
        match exit {
            Reply::Exit(exit) => Ok(Outcome { exit, first_output: self.first_output.get().copied() }),
            other => Err(Error::new(format!("the agent answered a wait with {other:?}"))),
        }
    }

    /// Passes on the signals that `podman run` passes on, and the terminal's size.
    async fn forward(&self, signals: &mut Signals) -> Infallible {
        self.resize().await;
        loop {
            let kind = signals.next().await;
            if kind == SignalKind::window_change() {
                self.resize().await;
                continue;
            }
            let signal = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            let request = SignalProcess { process: self.process.clone(), signal, all: false };
            let request = Request::SignalProcess(request);
            if let Err(error) = self.agent.call_with_timeout(request, PROMPT).await {
                let why = agent_error(error).message();
                output::note(format!("warning: the signal was not delivered: {why}"));
            }
        }
    }

    async fn resize(&self) {
        if self.terminal
            && let Some((rows, columns)) = terminal::size()
        {
            let request = ResizeTerminal { process: self.process.clone(), rows, columns };
            // A size that does not arrive is put right by the next one.
            let _ = self.agent.call_with_timeout(Request::ResizeTerminal(request), PROMPT).await;
        }
    }
}

/// Opens a stream; nothing where the pod's policy keeps it from the host, which is said once.
async fn open(agent: &Client, request: Request) -> Result<Option<ByteStream>> {
    let name = request.name();
    let opening = tokio::time::timeout(PROMPT, agent.open(request)).await;
    match opening.unwrap_or(Err(CallError::TimedOut { request: name, limit: PROMPT })) {
        Ok(stream) => Ok(Some(stream)),
        Err(CallError::Refused(failure)) if failure.kind == FailureKind::DeniedByPolicy => {
            output::note(format!(
                "note: the pod's policy does not allow {name}; the container runs without it"
            ));
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
