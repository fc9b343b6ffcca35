//! Process namespaces that containers share: the pod's (`shareProcessNamespace`), or another container's (the target of a
//! debug container).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{DumpableBehavior, Gid, Pid, Uid, pivot_root, set_dumpable_behavior};
use rustix::thread::{
    UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use sealpod_agent_protocol::{Failure, FailureKind, SharedProcesses};
use tokio::sync::OnceCell;

use super::helper::Operation;
use super::seccomp::Program;
use super::{Container, Containers, launch};
use crate::failure::{failure, internal};
use crate::reaper::Reaper;

/// The argument that makes this program the first process of a pod's process namespace.
pub(crate) const SUBCOMMAND: &str = "process-namespace";
/// The names of namespaces in `/proc/PID/ns` (namespaces(7)).
pub(super) const PROCESSES: &str = "pid";
/// See [`PROCESSES`].
pub(super) const MOUNTS: &str = "mnt";
/// See [`PROCESSES`].
pub(super) const CONTROL_GROUPS: &str = "cgroup";
/// The kernel never kills the first process for want of memory: the others would die with it.
const NEVER: &str = "-1000";
/// A folder to mount over, in a mount namespace that nobody else has.
const EMPTY: &str = "/run";
/// The user and the group that own nothing.
const NOBODY: u32 = 65_534;

/// The pod's namespace, once a container has asked for it.
#[derive(Default)]
pub(super) struct PodNamespace(OnceCell<OwnedFd>);

impl PodNamespace {
    async fn get(&self, reaper: &Reaper) -> Result<OwnedFd, Failure> {
        let made = self.0.get_or_try_init(|| launch::namespace(reaper, &Operation::MakeProcessNamespace));
        made.await?.try_clone().map_err(|error| internal("share the pod's processes", &error))
    }
}

impl Containers {
    /// The namespace that a container is to share.
    pub(super) async fn shared(&self, processes: &SharedProcesses) -> Result<OwnedFd, Failure> {
        match processes {
            SharedProcesses::Pod => self.pod_namespace.get(&self.reaper).await,
            SharedProcesses::Container { container } => {
                self.get(container)?.namespaces([PROCESSES]).map(|[namespace]| namespace)
            }
        }
    }

    /// The name of the container whose processes another wants to see.
    pub(crate) fn target_name(&self, processes: Option<&SharedProcesses>) -> Result<Option<String>, Failure> {
        match processes {
            Some(SharedProcesses::Container { container }) => Ok(self.get(container)?.name.clone()),
            _ => Ok(None),
        }
    }
}

impl Container {
    /// The namespaces that its first process is in, by their names in `/proc/PID/ns`.
    pub(super) fn namespaces<const N: usize>(&self, kinds: [&str; N]) -> Result<[OwnedFd; N], Failure> {
        let opened = kinds.map(|kind| of(self.process.pid(), kind));
        // It was there when they were opened: its number was not another's by then.
        let ended = || failure(FailureKind::Conflict, format!("container {:?} has ended", self.id));
        if self.process.has_ended() {
            return Err(ended());
        }
        let mut namespaces = Vec::with_capacity(N);
        for namespace in opened {
            namespaces.push(namespace.map_err(|error| internal("open the container's namespaces", &error))?);
        }
        namespaces.try_into().map_err(|_| ended())
    }
}

/// A namespace that a process is in.
pub(super) fn of(pid: Pid, kind: &str) -> io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from)
}

/// By which path other processes find a namespace that this one holds open.
pub(super) fn path(namespace: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()).into()
}

/// Makes a process namespace, in a helper: only what that starts next is in it.
pub(super) fn make() -> io::Result<Child> {
    // SAFETY: this process has one thread, and of the ways in which threads depend on one another only FILES would be
    // unsound to part.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
    let mut first = Command::new("/proc/self/exe");
    first.arg(SUBCOMMAND).env_clear();
    first.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// The first process of a namespace: it reaps orphans, and nothing else.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = give_all_up() {
        eprintln!("the first process of the pod's namespace keeps more than it should: {error}");
        return ExitCode::FAILURE;
    }
    // SAFETY: a signal is ignored; no handler is installed. The kernel reaps the children of who ignores it.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    loop {
        std::thread::park();
    }
}

/// Containers that may trace see this process, and could act as it: so it can do nothing and sees nothing.
fn give_all_up() -> io::Result<()> {
    let filter = Program::load()?;
    // Best effort: that memory runs out altogether is unlikely.
    let _ = std::fs::write("/proc/self/oom_score_adj", NEVER);
    // SAFETY: this process has one thread, and of the ways in which threads depend on one another only FILES would be
    // unsound to part.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("empty", EMPTY, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"size=4k")?;
    std::env::set_current_dir(EMPTY)?;
    // The old root lies on top of the new one, and goes.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    mount_remount("/", MountFlags::RDONLY, c"")?;
    std::env::set_current_dir("/")?;
    set_no_new_privs(true)?;
    set_thread_groups(&[])?;
    // From root to somebody else, all capabilities go.
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    filter.install()
}
