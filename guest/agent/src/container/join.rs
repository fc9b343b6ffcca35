//! One more process in a container: it joins the container's namespaces and control group, becomes who it is to be, and
//! executes its program.
//!
//! The OCI runtime library can do this too, and takes an emulated machine several times as long.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::oci_spec::runtime::{PosixRlimitType, Process, User};
use rustix::fs::{FileType, Mode, OFlags, fchown, fstat, major, minor, open};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Gid, Pid, PidfdFlags, Resource, Rlimit, Uid, WaitOptions, chdir, getcwd,
    ioctl_tiocsctty, pidfd_open, set_dumpable_behavior, setrlimit, setsid, waitpid,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use sealpod_agent_protocol::FailureKind;
use serde::{Deserialize, Serialize};

use super::rootfs::{CGROUPS, Folders};
use super::workload::Workload;

/// The device that swallows everything: major and minor.
const NULL: (u32, u32) = (1, 3);

/// Of clone3(2), which is wider than the library's constant.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the container has ended")]
    Ended,
    #[error("cannot {doing}")]
    System { doing: &'static str, source: io::Error },
    #[error("{}", .0.message)]
    Refused(Refusal),
}

/// What the new process says when it cannot become what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

/// Starts a process in the container whose first process is `first`; returns when its program runs.
///
/// A `console` is a socket that the controlling side of the process's terminal is sent to.
pub(super) fn start(
    first: Pid,
    folders: &Folders,
    process: &Process,
    workload: &Workload,
    console: Option<&Path>,
) -> Result<Pid, Error> {
    let container = open_process(first, folders)?;
    let console =
        console.map(UnixStream::connect).transpose().map_err(while_("reach the console's socket"))?;
    let group = File::open(&folders.cgroup).map_err(while_("open the container's control group"))?;
    let (complaints, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
    // From here to the new program no process of the container may look into this one, or its child.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("become opaque"))?;
    move_into_thread_name_spaces(container.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .map_err(system("join the container's processes"))?;
    let Some(pid) = clone_into(group.as_fd()).map_err(while_("make a process"))? else {
        drop(complaints);
        let Err(refusal) = become_of(&container, process, workload, console);
        complain(theirs, &refusal)
    };
    drop(theirs);
    let mut complaint = Vec::new();
    File::from(complaints).read_to_end(&mut complaint).map_err(while_("wait for the program"))?;
    if complaint.is_empty() {
        return Ok(pid);
    }
    let _ = waitpid(Some(pid), WaitOptions::empty());
    let refusal = serde_json::from_slice(&complaint).map_err(io::Error::from);
    Err(Error::Refused(refusal.map_err(while_("understand why the program does not run"))?))
}

/// The container's first process. Its number may be another's by now, if it has ended: it counts if it is in the
/// container's control group, or one below.
fn open_process(first: Pid, folders: &Folders) -> Result<OwnedFd, Error> {
    let process = pidfd_open(first, PidfdFlags::empty()).map_err(|_| Error::Ended)?;
    let groups = fs::read_to_string(format!("/proc/{first}/cgroup")).map_err(|_| Error::Ended)?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(Error::Ended)?;
    match Path::new(CGROUPS).join(group).starts_with(&folders.cgroup) {
        true => Ok(process),
        false => Err(Error::Ended),
    }
}

/// fork(2) into a control group; nothing in the child.
fn clone_into(group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // SAFETY: zeros are what it does not use.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = u64::try_from(group.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: as fork(2), with its own copy of the memory; this process has one thread, so the copy is whole.
    let number = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) };
    match i32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number @ 1..) => Ok(Pid::from_raw(number)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The end of a child that cannot run its program.
fn complain(to: OwnedFd, refusal: &Refusal) -> ! {
    let json = serde_json::to_vec(refusal).unwrap_or_default();
    // Where nobody hears it, the helper has ended.
    let _ = File::from(to).write_all(&json);
    // SAFETY: it ends this process, without what belongs to its parent.
    unsafe { libc::_exit(1) }
}

/// Turns this process, a child in the container's control group and process namespace, into the one that is wanted.
fn become_of(
    container: &OwnedFd,
    process: &Process,
    workload: &Workload,
    console: Option<UnixStream>,
) -> Result<Infallible, Refusal> {
    let spaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(container.as_fd(), spaces).map_err(refused("join the container"))?;
    setsid().map_err(refused("begin a session"))?;
    match console {
        Some(console) => take_terminal(&console, process.user()).map_err(refused("make a terminal"))?,
        None => take_null().map_err(refused("open the container's /dev/null"))?,
    }
    limit(process).map_err(refused("limit its resources"))?;
    // The folder may be open to root alone, or, on a network's file system, to its user alone.
    let entered = chdir(process.cwd());
    become_user(process).map_err(refused("become its user"))?;
    entered.or_else(|_| chdir(process.cwd())).map_err(refused("enter its working directory"))?;
    let folder = getcwd(Vec::new()).map_err(refused("find its working directory"))?;
    if !folder.to_bytes().starts_with(b"/") {
        return Err(Refusal::internal("its working directory is outside the container"));
    }
    Workload::check(process).map_err(|(kind, message)| Refusal { kind, message })?;
    leave_descriptors().map_err(refused("leave what is open"))?;
    if process.no_new_privileges() == Some(true) {
        set_no_new_privs(true).map_err(refused("give up new privileges"))?;
    }
    Err(Refusal::internal(&workload.run(process)))
}

/// Makes a terminal of the container's, and sends its other side.
fn take_terminal(console: &UnixStream, user: &User) -> rustix::io::Result<()> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags)?;
    unlockpt(&controller)?;
    // By the descriptor, which fails where the container has put something else in the place of its terminals.
    let terminal = ioctl_tiocgptpeer(&controller, flags)?;
    fchown(&terminal, Some(Uid::from_raw(user.uid())), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [controller.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(console, &[IoSlice::new(b"terminal")], &mut control, SendFlags::empty())?;
    ioctl_tiocsctty(&terminal)?;
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)
}

/// Where a standard stream is the guest's `/dev/null`, the container's takes its place.
fn take_null() -> rustix::io::Result<()> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    if !is_null(&null)? {
        return Err(Errno::NODEV);
    }
    if is_null(rustix::stdio::stdin())? {
        dup2_stdin(&null)?;
    }
    if is_null(rustix::stdio::stdout())? {
        dup2_stdout(&null)?;
    }
    if is_null(rustix::stdio::stderr())? {
        dup2_stderr(&null)?;
    }
    Ok(())
}

fn is_null(file: impl AsFd) -> rustix::io::Result<bool> {
    let status = fstat(file)?;
    let device = (major(status.st_rdev), minor(status.st_rdev));
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && device == NULL)
}

fn limit(process: &Process) -> rustix::io::Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitNofile => Resource::Nofile,
            PosixRlimitType::RlimitCore => Resource::Core,
            _ => return Err(Errno::NOTSUP),
        };
        setrlimit(resource, Rlimit { current: Some(limit.soft()), maximum: Some(limit.hard()) })?;
    }
    Ok(())
}

/// Its user, its groups, and of root's capabilities those that it may have.
fn become_user(process: &Process) -> rustix::io::Result<()> {
    let capabilities = capabilities(process)?;
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !capabilities.contains(one) {
            match remove_capability_from_bounding_set(one) {
                // The kernel knows none with this number.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let user = process.user();
    let groups: Vec<_> = user.additional_gids().iter().flatten().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_keep_capabilities(true)?;
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_keep_capabilities(false)?;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: capabilities, permitted: capabilities, inheritable })
}

/// Those that the specification gives; one set for all that it may have.
fn capabilities(process: &Process) -> rustix::io::Result<CapabilitySet> {
    let given = process.capabilities().as_ref().and_then(|given| given.bounding().as_ref());
    given.into_iter().flatten().try_fold(CapabilitySet::empty(), |all, name| {
        let name = name.to_string();
        let one = CapabilitySet::from_name(name.trim_start_matches("CAP_")).ok_or(Errno::INVAL)?;
        Ok(all | one)
    })
}

/// What is open beyond the standard streams is closed when the program begins.
fn leave_descriptors() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: no descriptor is closed before this process's memory is replaced.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn while_(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { doing, source }
}

fn system(doing: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::System { doing, source: errno.into() }
}

fn refused<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::internal(&format!("cannot {doing}: {}", error.into()))
}

impl Refusal {
    fn internal(message: &str) -> Self {
        Self { kind: FailureKind::Internal, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use libcontainer::oci_spec::runtime::{LinuxCapabilities, ProcessBuilder};
    use serde_json::{from_value, json};

    use super::*;
    use crate::container::spec::ALL_CAPABILITIES;

    fn with(given: &[&str]) -> Process {
        let json = json!({"bounding": given, "effective": given, "permitted": given});
        ProcessBuilder::default()
            .capabilities(from_value::<LinuxCapabilities>(json).unwrap())
            .build()
            .unwrap()
    }

    #[test]
    fn each_capability_has_its_number() {
        let all = capabilities(&with(ALL_CAPABILITIES)).unwrap();
        // CAP_LAST_CAP of Linux 5.9 and later is 40.
        assert_eq!(all.bits(), (1 << 41) - 1);
        assert_eq!(capabilities(&with(&["CAP_CHOWN"])).unwrap().bits(), 1);
        assert_eq!(capabilities(&with(&["CAP_SYS_ADMIN"])).unwrap().bits(), 1 << 21);
        assert_eq!(capabilities(&with(&[])).unwrap(), CapabilitySet::empty());
    }

    #[test]
    fn the_number_of_a_process_of_another_control_group_is_not_taken_for_the_containers() {
        let own = rustix::process::getpid();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let folders = |cgroup| Folders { cgroup, ..Folders::of("some") };
        let elsewhere = Path::new(CGROUPS).join(group).join("elsewhere");
        assert!(matches!(open_process(own, &folders(elsewhere)), Err(Error::Ended)));
        open_process(own, &folders(Path::new(CGROUPS).join(group))).unwrap();
        open_process(own, &folders(CGROUPS.into())).unwrap();
    }

    #[test]
    fn only_the_device_that_swallows_everything_is_null() {
        assert!(is_null(File::open("/dev/null").unwrap()).unwrap());
        assert!(!is_null(File::open("/dev/zero").unwrap()).unwrap());
        assert!(!is_null(File::open("/").unwrap()).unwrap());
    }
}
