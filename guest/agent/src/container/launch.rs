//! PID 1's side of a helper: starts it, gives it the streams, reads its report.

use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net as std_net;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use sealpod_agent_protocol::{Failure, FailureKind};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::helper::{Operation, Report, SUBCOMMAND};
use super::namespace;
use super::process::{Process, Streams};
use super::rootfs::Folders;
use crate::failure::{failure, internal};
use crate::nonblocking::Nonblocking;
use crate::reaper::Reaper;

/// The longest that an operation may take. Generous: emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest report.
const LONGEST_REPORT: u64 = 64 * 1024;

/// The standard streams of a process to be: our ends and its ends.
pub(super) struct Io {
    ours: Streams,
    theirs: [Stdio; 3],
    console: Option<Console>,
}

/// Where a process's terminal is handed to us.
struct Console {
    path: PathBuf,
    listener: UnixListener,
    /// Whether the host will write to it.
    stdin: bool,
}

impl Io {
    /// A terminal if `console` names the socket for it, else pipes.
    pub(super) fn new(console: Option<PathBuf>, stdin: bool) -> Result<Self, Failure> {
        let io = match console {
            Some(path) => Self::terminal(path, stdin),
            None => Self::pipes(stdin),
        };
        io.map_err(|error| internal("make the standard streams", &error))
    }

    /// The console socket's path.
    pub(super) fn console(&self) -> Option<PathBuf> {
        self.console.as_ref().map(|console| console.path.clone())
    }

    fn terminal(path: PathBuf, stdin: bool) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        let theirs = [Stdio::null(), Stdio::null(), Stdio::null()];
        Ok(Self { ours: Streams::default(), theirs, console: Some(Console { path, listener, stdin }) })
    }

    fn pipes(stdin: bool) -> io::Result<Self> {
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdin, their_stdin) = match stdin {
            true => {
                let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
                (Some(Nonblocking::new(ours)?), Stdio::from(theirs))
            }
            false => (None, Stdio::null()),
        };
        let ours = Streams {
            stdin,
            stdout: Some(Nonblocking::new(stdout)?),
            stderr: Some(Nonblocking::new(stderr)?),
            terminal: None,
        };
        Ok(Self { ours, theirs: [their_stdin, their_stdout.into(), their_stderr.into()], console: None })
    }
}

/// Carries out an operation that makes a process, and follows that process.
pub(super) async fn process(
    reaper: &Reaper,
    operation: &Operation,
    io: Io,
    folders: &Folders,
) -> Result<Process, Failure> {
    let kills_before = memory_kills(&folders.cgroup);
    let (helper, pid) = Helper::run(reaper, operation, io.theirs).await?;
    let pid = pid.ok_or_else(|| failure(FailureKind::Internal, "the runtime reported no process"))?;
    let streams = match io.console {
        Some(console) => console.streams().await.map_err(|error| internal("take the terminal", &error))?,
        None => io.ours,
    };
    let cgroup = folders.cgroup.clone();
    let killed_for_memory = move || memory_kills(&cgroup) > kills_before;
    let process = Process::follow(pid, reaper.watch(pid), streams, killed_for_memory)
        .map_err(|error| internal("follow the process", &error))?;
    helper.let_go().await;
    Ok(process)
}

/// Carries out an operation that makes the first process of a namespace; gives the namespace.
pub(super) async fn namespace(reaper: &Reaper, operation: &Operation) -> Result<OwnedFd, Failure> {
    let theirs = [Stdio::null(), Stdio::null(), Stdio::null()];
    let (helper, pid) = Helper::run(reaper, operation, theirs).await?;
    let pid = pid.ok_or_else(|| failure(FailureKind::Internal, "the namespace has no process"))?;
    let namespace = namespace::of(pid, namespace::PROCESSES)
        .map_err(|error| internal("open the process namespace", &error))?;
    helper.let_go().await;
    Ok(namespace)
}

/// Carries out an operation that makes no process.
pub(super) async fn alone(reaper: &Reaper, operation: &Operation) -> Result<(), Failure> {
    let theirs = [Stdio::null(), Stdio::null(), Stdio::null()];
    let (helper, _) = Helper::run(reaper, operation, theirs).await?;
    helper.let_go().await;
    Ok(())
}

/// A helper that has reported success and waits to be let go.
struct Helper {
    channel: BufReader<UnixStream>,
}

impl Helper {
    async fn run(
        reaper: &Reaper,
        operation: &Operation,
        theirs: [Stdio; 3],
    ) -> Result<(Self, Option<Pid>), Failure> {
        let mut helper = Self::spawn(reaper, theirs).map_err(|error| internal("start the helper", &error))?;
        let report = tokio::time::timeout(PATIENCE, helper.ask(operation)).await;
        match report {
            Ok(Ok(Report::Done { pid })) => Ok((helper, pid.and_then(Pid::from_raw))),
            Ok(Ok(Report::Failed { kind, message })) => Err(failure(kind, message)),
            Ok(Err(error)) => Err(internal("the container helper broke", &error)),
            Err(_) => Err(failure(FailureKind::Internal, "the container helper did not answer in time")),
        }
    }

    fn spawn(reaper: &Reaper, [stdin, stdout, stderr]: [Stdio; 3]) -> io::Result<Self> {
        let (ours, theirs) = std_net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("/proc/self/exe");
        command.args([SUBCOMMAND, &theirs.as_raw_fd().to_string()]);
        command.env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
        reaper.spawn(&mut command, theirs)?;
        Ok(Self { channel: BufReader::new(UnixStream::from_std(ours)?) })
    }

    async fn ask(&mut self, operation: &Operation) -> io::Result<Report> {
        let mut line = serde_json::to_vec(operation)?;
        line.push(b'\n');
        self.channel.write_all(&line).await?;
        let mut answer = String::new();
        (&mut self.channel).take(LONGEST_REPORT).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Lets the helper end: whoever is interested in the new process follows it by now.
    async fn let_go(mut self) {
        // A helper that is gone needs no permission to go.
        let _ = self.channel.write_all(b"\n").await;
    }
}

impl Console {
    /// Takes the terminal that was sent by now.
    async fn streams(self) -> io::Result<Streams> {
        let (connection, _) = tokio::time::timeout(PATIENCE, self.listener.accept()).await??;
        let connection = connection.into_std()?;
        connection.set_nonblocking(false)?;
        fs::remove_file(&self.path)?;
        let terminal = receive_descriptor(&connection)?;
        Ok(Streams {
            stdin: self.stdin.then(|| Nonblocking::new(terminal.try_clone()?)).transpose()?,
            stdout: Some(Nonblocking::new(terminal.try_clone()?)?),
            stderr: None,
            terminal: Some(terminal),
        })
    }
}

fn receive_descriptor(connection: &std_net::UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("there came no terminal"))
}

/// How many processes of a cgroup the kernel has killed for want of memory.
fn memory_kills(cgroup: &Path) -> u64 {
    fs::read_to_string(cgroup.join("memory.events"))
        .ok()
        .and_then(|events| {
            events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
        .unwrap_or(0)
}
