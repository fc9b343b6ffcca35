//! A process of a container as PID 1 sees it: its streams, its terminal, its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitStatus, pidfd_open, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};
use sealpod_agent_protocol::{ByteStream, ExitStatus, Failure, FailureKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::failure::{failure, internal};
use crate::nonblocking::Nonblocking;
use crate::reaper::Ended;

/// How much is copied at once.
const BUFFER: usize = 32 * 1024;
/// What a terminal takes for the end of its input (Ctrl-D).
const END_OF_TRANSMISSION: u8 = 4;

/// Our ends of a process's standard streams.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) stdin: Option<Nonblocking>,
    pub(super) stdout: Option<Nonblocking>,
    pub(super) stderr: Option<Nonblocking>,
    /// One more descriptor of the terminal, if the process has one.
    pub(super) terminal: Option<OwnedFd>,
}

/// A process that was created.
pub(crate) struct Process {
    pid: Pid,
    handle: OwnedFd,
    streams: Mutex<Streams>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Follows the process `pid`, which is not reaped yet. `killed_for_memory` says, once it has ended, whether the
    /// kernel killed a process of the container's meanwhile for want of memory: itself, or a child that it then missed.
    pub(super) fn follow(
        pid: Pid,
        ended: Ended,
        streams: Streams,
        killed_for_memory: impl FnOnce() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let (sender, exit) = watch::channel(None);
        tokio::spawn(async move {
            // The sender is dropped only with the reaper, when everything ends.
            let Ok(status) = ended.await else { return };
            let code = exit_code(status);
            let out_of_memory = killed_for_memory();
            sender.send_replace(Some(ExitStatus { code, exited_at_ms: now_ms(), out_of_memory }));
        });
        Ok(Self { pid, handle, streams: Mutex::new(streams), exit })
    }

    /// Its number, which is another's some time after its end.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, reaped or not.
    pub(super) fn has_ended(&self) -> bool {
        let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut handle, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
    }

    /// How it ended, if it has.
    pub(super) fn exit_status(&self) -> Option<ExitStatus> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Result<ExitStatus, Failure> {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(status)) => Ok(status.clone()),
            _ => Err(failure(FailureKind::Internal, "the process's end was lost")),
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::SRCH) => Err(failure(FailureKind::Conflict, "the process has ended")),
            Err(error) => Err(internal("send the signal", &io::Error::from(error))),
        }
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<(), Failure> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(terminal) = &streams.terminal else {
            return Err(failure(FailureKind::Conflict, "the process has no terminal"));
        };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal.as_fd(), size).map_err(|error| internal("resize", &io::Error::from(error)))
    }

    /// Whether a stream can still be taken; each goes to one call only.
    pub(crate) fn has(&self, stream: Stream) -> Result<(), Failure> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        match stream.of(&mut streams) {
            Some(_) => Ok(()),
            None => {
                let message = format!("the process has no {}, or it is taken already", stream.name());
                Err(failure(FailureKind::Conflict, message))
            }
        }
    }

    /// Reads an output and throws it away, so that the process is not held up by it.
    pub(crate) fn discard(&self, stream: Stream) {
        let ours = stream.of(&mut self.streams.lock().unwrap_or_else(PoisonError::into_inner)).take();
        if let (Some(mut ours), Stream::Stdout | Stream::Stderr) = (ours, stream) {
            tokio::spawn(async move {
                let mut buffer = vec![0; BUFFER];
                while let Ok(1..) = ours.read(&mut buffer).await {}
            });
        }
    }

    /// Carries a stream until it ends.
    pub(crate) async fn carry(&self, stream: Stream, host: ByteStream) {
        let ours = stream.of(&mut self.streams.lock().unwrap_or_else(PoisonError::into_inner)).take();
        let Some(ours) = ours else { return };
        match stream {
            Stream::Stdin => self.carry_input(host, ours).await,
            Stream::Stdout | Stream::Stderr => carry_output(ours, host).await,
        }
    }

    async fn carry_input(&self, mut host: ByteStream, mut ours: Nonblocking) {
        let mut exit = self.exit.clone();
        let is_terminal = self.streams.lock().unwrap_or_else(PoisonError::into_inner).terminal.is_some();
        let copying = async {
            let (host, ours) = (&mut host, &mut ours);
            let mut buffer = vec![0; BUFFER];
            loop {
                match host.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => ours.write_all(buffer.get(..read).unwrap_or_default()).await?,
                }
            }
            // A pipe ends by being closed, a terminal only by being told.
            if is_terminal { ours.write_all(&[END_OF_TRANSMISSION]).await } else { Ok(()) }
        };
        // An error here is the process having closed its end: its right.
        tokio::select! {
            _ = copying => (),
            _ = exit.wait_for(Option::is_some) => (),
        }
        drop(ours);
        // The host may be gone.
        let _ = host.shutdown().await;
    }
}

/// Copies a process's output to the host, to its last byte. When the host has hung up, the output is still
/// read, and thrown away: a process must not stop because nobody listens any more.
async fn carry_output(mut ours: Nonblocking, host: ByteStream) {
    let mut buffer = vec![0; BUFFER];
    let (mut from_host, mut to_host) = tokio::io::split(host);
    let copying = async {
        // A terminal whose last process is gone answers EIO.
        while let Ok(read @ 1..) = ours.read(&mut buffer).await {
            if to_host.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
                return;
            }
        }
        // The host may be gone.
        let _ = to_host.shutdown().await;
    };
    tokio::select! {
        () = copying => {}
        // It has nothing to say, and may hang up while there is nothing to read.
        _ = from_host.read_u8() => {}
    }
    drop((from_host, to_host));
    while let Ok(1..) = ours.read(&mut buffer).await {}
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

impl Stream {
    fn of(self, streams: &mut Streams) -> &mut Option<Nonblocking> {
        match self {
            Self::Stdin => &mut streams.stdin,
            Self::Stdout => &mut streams.stdout,
            Self::Stderr => &mut streams.stderr,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "standard input",
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
        }
    }
}

/// The exit code, or 128 + the signal's number.
fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use sealpod_agent_protocol::{Client, Handler, ProcessRef, Reply, Request, serve};
    use tokio::sync::MutexGuard;

    use super::*;
    use crate::reaper::Reaper;

    /// A shell whose streams a host uses over a real connection.
    struct Shell(Process);

    impl Handler for Shell {
        type Opened = Stream;

        async fn call(&self, _: Request) -> Result<Reply, Failure> {
            self.0.wait().await.map(Reply::Exit)
        }

        async fn open(&self, request: Request) -> Result<Stream, Failure> {
            let stream = stream(&request);
            self.0.has(stream).map(|()| stream)
        }

        async fn stream(&self, stream: Stream, host: ByteStream) {
            self.0.carry(stream, host).await;
        }
    }

    fn stream(request: &Request) -> Stream {
        match request {
            Request::WriteStdin(_) => Stream::Stdin,
            Request::ReadStdout(_) => Stream::Stdout,
            _ => Stream::Stderr,
        }
    }

    fn process() -> ProcessRef {
        ProcessRef { container: "c".into(), exec: None }
    }

    /// The client, and what keeps other tests waiting: whoever reaps takes the children of all.
    async fn shell(script: &str) -> (Client, MutexGuard<'static, ()>) {
        static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let turn = ONE_AT_A_TIME.lock().await;
        let (stdin, their_stdin) = {
            let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            (Nonblocking::new(ours).unwrap(), theirs)
        };
        let (stdout, their_stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (_, unused) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(their_stdin).stdout(their_stdout).stderr(Stdio::null());
        let (pid, ended) = Reaper::start().unwrap().spawn(&mut command, unused).unwrap();
        drop(command);
        let streams = Streams {
            stdin: Some(stdin),
            stdout: Some(Nonblocking::new(stdout).unwrap()),
            ..Default::default()
        };
        let shell = Arc::new(Shell(Process::follow(pid, ended, streams, || false).unwrap()));
        let (host, guest) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(guest, shell));
        (Client::connect(host).await.unwrap(), turn)
    }

    async fn exit_code_of(client: &Client) -> u8 {
        match client.call(Request::WaitProcess(process())).await.unwrap() {
            Reply::Exit(status) => status.code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn output_arrives_to_its_last_byte_though_the_process_has_ended() {
        let (client, _turn) = shell("head -c 60000 /dev/zero; exit 3").await;
        assert_eq!(exit_code_of(&client).await, 3);
        let mut output = Vec::new();
        let mut stream = client.open(Request::ReadStdout(process())).await.unwrap();
        stream.read_to_end(&mut output).await.unwrap();
        assert_eq!(output.len(), 60_000);
    }

    #[tokio::test]
    async fn a_host_that_hangs_up_does_not_stop_the_process() {
        let (client, _turn) = shell("head -c 3000000 /dev/zero && exit 4").await;
        let mut stream = client.open(Request::ReadStdout(process())).await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        drop(stream);
        assert_eq!(exit_code_of(&client).await, 4);
    }

    #[tokio::test]
    async fn the_end_of_input_reaches_the_process_and_its_output_comes_back() {
        let (client, _turn) = shell("cat; exit 5").await;
        let mut input = client.open(Request::WriteStdin(process())).await.unwrap();
        let mut stream = client.open(Request::ReadStdout(process())).await.unwrap();
        input.write_all(b"through").await.unwrap();
        input.shutdown().await.unwrap();
        let mut output = String::new();
        stream.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "through");
        assert_eq!(exit_code_of(&client).await, 5);
    }

    #[tokio::test]
    async fn input_ends_with_the_process() {
        let (client, _turn) = shell("exit 0").await;
        let mut input = client.open(Request::WriteStdin(process())).await.unwrap();
        assert_eq!(input.read(&mut [0; 10]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_stream_is_given_once() {
        let (client, _turn) = shell("read line").await;
        let _stream = client.open(Request::ReadStdout(process())).await.unwrap();
        // The first is taken by a task that has begun when its first byte or end comes; input is what ends it.
        let mut input = client.open(Request::WriteStdin(process())).await.unwrap();
        input.write_all(b"\n").await.unwrap();
        exit_code_of(&client).await;
        assert!(client.open(Request::ReadStdout(process())).await.is_err());
        assert!(client.open(Request::ReadStderr(process())).await.is_err());
    }

    #[tokio::test]
    async fn output_that_nobody_may_read_does_not_stop_the_process() {
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut theirs = std::fs::File::from(theirs);
        let writer =
            tokio::task::spawn_blocking(move || std::io::Write::write_all(&mut theirs, &vec![0; 3_000_000]));
        let (sender, ended) = tokio::sync::oneshot::channel();
        let streams = Streams { stdout: Some(Nonblocking::new(ours).unwrap()), ..Default::default() };
        let process = Process::follow(rustix::process::getpid(), ended, streams, || false).unwrap();
        process.discard(Stream::Stdout);
        assert!(process.has(Stream::Stdout).is_err(), "nobody else gets it");
        writer.await.unwrap().unwrap();
        drop(sender);
    }

    #[tokio::test]
    async fn a_signal_counts_from_128() {
        let (client, _turn) = shell("kill -TERM $$").await;
        assert_eq!(exit_code_of(&client).await, 128 + 15);
    }
}
