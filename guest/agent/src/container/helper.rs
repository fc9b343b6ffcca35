//! The helper: this program executed again, single-threaded, for one operation on a container.
//!
//! The OCI runtime library clones the process it runs in and changes its working directory, so it must not run
//! inside PID 1. A helper reads one [`Operation`] from its channel, answers one [`Report`], and waits to be let
//! go: until then the new process is its child, so PID 1 can register for the process's end before that
//! can happen. A helper's standard streams are those of the container's process.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use sealpod_agent_protocol::{CreateContainer, ExecProcess, FailureKind};
use serde::{Deserialize, Serialize};

use super::destinations::{self, Destinations};
use super::disks::DeviceNode;
use super::join::{self, Namespaces};
use super::namespace;
use super::nested;
use super::rootfs::{ETC, Folders, RUNTIME, create_folder};
use super::spec::{self, Filter, ImageProcess, Places, Privileges, UserJson, VolumeMount};
use super::user::{self, User};
use super::workload::{NOT_EXECUTABLE, NOT_FOUND, Workload};
use crate::failure::chain;

/// The argument that makes this program a helper; the channel's descriptor follows.
pub(crate) const SUBCOMMAND: &str = "container-helper";

/// What a helper does.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Operation {
    /// Prepares a container up to the point where its process waits to be started.
    Create(Box<Create>),
    /// Lets a container's process go on.
    Start { id: String },
    /// Makes a process namespace with nothing but a first process.
    MakeProcessNamespace,
    /// Runs one more process in a container.
    Exec { request: Box<ExecProcess>, namespaces: Namespaces, console: Option<PathBuf> },
}

/// All that is needed to create a container.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Create {
    pub(super) request: CreateContainer,
    pub(super) image: ImageProcess,
    /// The image's unpacked layers, lowest first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) volumes: Vec<VolumeMount>,
    pub(super) devices: Vec<DeviceNode>,
    /// That of others which it shares.
    pub(super) process_namespace: Option<PathBuf>,
    pub(super) hostname: String,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The operation was carried out; the process's id as PID 1 sees it, where there is a new one.
    Done {
        pid: Option<i32>,
    },
    Failed {
        kind: FailureKind,
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{doing}")]
    Io { doing: &'static str, source: io::Error },
    #[error(transparent)]
    Specification(#[from] spec::Error),
    #[error(transparent)]
    User(#[from] user::Error),
    #[error(transparent)]
    Destination(#[from] destinations::Error),
    #[error(transparent)]
    Nested(#[from] nested::Error),
    #[error(transparent)]
    Runtime(#[from] LibcontainerError),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error("cannot read or write JSON")]
    Json(#[from] serde_json::Error),
}

/// Runs a helper.
pub(crate) fn run() -> ExitCode {
    let descriptor = std::env::args().nth(2).and_then(|number| number.parse().ok());
    match descriptor.map(serve) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn serve(descriptor: i32) -> io::Result<()> {
    // SAFETY: PID 1 passes a connected socket under this number for this process alone (`Reaper::spawn`), and
    // nothing else in this process, which has only just begun, uses or closes it.
    let channel = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    // Not for what this process will start.
    rustix::io::fcntl_setfd(&channel, rustix::io::FdFlags::CLOEXEC)?;
    let mut lines = BufReader::new(channel.try_clone()?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let operation = serde_json::from_str(&line)?;
    let report = match carry_out(operation, channel.as_fd()) {
        Ok(pid) => Report::Done { pid },
        Err(error) => error.report(),
    };
    let mut answer = serde_json::to_vec(&report)?;
    answer.push(b'\n');
    (&channel).write_all(&answer)?;
    line.clear();
    lines.read_line(&mut line).map(drop)
}

fn carry_out(operation: Operation, channel: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
    match operation {
        Operation::Create(create) => self::create(&create).map(Some),
        Operation::Start { id } => {
            Container::load(Path::new(RUNTIME).join(id))?.start()?;
            Ok(None)
        }
        Operation::MakeProcessNamespace => {
            let first = namespace::make().map_err(io_while("make a process namespace"))?;
            // A process's id is positive and an `i32`.
            Ok(i32::try_from(first.id()).ok())
        }
        Operation::Exec { request, namespaces, console } => {
            exec(&request, &namespaces, console.as_deref(), channel).map(Some)
        }
    }
}

fn create(create: &Create) -> Result<i32, Error> {
    let request = &create.request;
    let folders = Folders::of(&request.id);
    folders.mount_root(&create.layers).map_err(io_while("mount the root file system"))?;
    let process = spec::Process::main(&create.image, request, &create.hostname)?;
    let user = match &request.user {
        Some(user) => User::look_up(&folders.root, user)?,
        None => User::of_image(&folders.root, &process.user)?,
    };
    create_folder(&folders.root, Path::new(&process.working_directory))
        .map_err(io_while("create the working directory"))?;
    let namespace = create.process_namespace.as_deref();
    let Destinations { volumes, etc } =
        Destinations::find(&folders.root, create.volumes.clone(), &ETC, &create.devices)?;
    let volumes = nested::mount(&volumes, &folders.parts)?;
    let places = Places { volumes: &volumes, etc: &etc, devices: &create.devices, folders: &folders };
    let specification = spec::container(request, &process, &user, places, namespace)?;
    fs::write(folders.bundle.join("config.json"), serde_json::to_vec(&specification)?)
        .map_err(io_while("write the runtime's specification"))?;
    fs::create_dir_all(RUNTIME).map_err(io_while("create the runtime's folder"))?;
    let container = builder(&request.id, Privileges::of_request(request)?.filter)?
        .with_console_socket(request.terminal.then_some(&folders.console))
        .as_init(&folders.bundle)
        .with_systemd(false)
        .build()?;
    let pid =
        container.pid().ok_or_else(|| LibcontainerError::Other("a container without a process".into()))?;
    Ok(pid.as_raw())
}

fn exec(
    request: &ExecProcess,
    namespaces: &Namespaces,
    console: Option<&Path>,
    channel: BorrowedFd<'_>,
) -> Result<i32, Error> {
    let folders = Folders::of(&request.container);
    let specification = fs::read(folders.bundle.join("config.json"))
        .map_err(io_while("read the container's specification"))?;
    let specification = serde_json::from_slice(&specification)?;
    let process = spec::Process::exec(&specification, request)?;
    let user = match &request.user {
        Some(user) => UserJson::from(&User::look_up(&folders.root, user)?),
        None => UserJson::of_container(&specification),
    };
    let privileges = Privileges::of_exec(&specification);
    let process = serde_json::from_value(process.to_json(&user, &privileges))?;
    let workload = Workload::new(privileges.filter).map_err(io_while("make the filter of system calls"))?;
    let pid = join::start(namespaces, &folders, &process, &workload, console, channel)?;
    Ok(pid.as_raw_nonzero().get())
}

fn builder(id: &str, filter: Filter) -> Result<ContainerBuilder, Error> {
    let workload = Workload::new(filter).map_err(io_while("make the filter of system calls"))?;
    Ok(ContainerBuilder::new(id.into(), SyscallType::default())
        .with_root_path(RUNTIME)?
        .validate_id()?
        .with_executor(workload))
}

fn io_while(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, source }
}

impl Error {
    fn report(&self) -> Report {
        let message = chain(self);
        if let Self::Runtime(_) = self {
            let complaints = [
                (NOT_FOUND, FailureKind::ProgramNotFound),
                (NOT_EXECUTABLE, FailureKind::ProgramNotExecutable),
            ];
            for (begin, kind) in complaints {
                if let Some((_, complaint)) = message.rsplit_once(begin) {
                    return Report::Failed { kind, message: complaint.into() };
                }
            }
        }
        let kind = match self {
            Self::Specification(_) | Self::User(_) | Self::Destination(_) | Self::Nested(_) => {
                FailureKind::Invalid
            }
            Self::Join(join::Error::Refused(refusal)) => refusal.kind,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => FailureKind::Exhausted,
            _ => FailureKind::Internal,
        };
        Report::Failed { kind, message }
    }
}
