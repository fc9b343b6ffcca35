//! One more process in a container.
//!
//! The container is hostile, and may hold the capability to trace whatever it sees. So what acts with the guest's privileges
//! here is never in its process namespace: the helper clones an intermediate process into the container's control group,
//! which joins the other namespaces, makes the terminal, becomes the user, and gives up privileges and system calls. Only
//! then it clones the process that the container sees, which has nothing left to do but to begin a session and execute its
//! program.
//!
//! The OCI runtime library can do this too, and takes an emulated machine several times as long.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{PosixRlimitType, Process, User};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fchown, fcntl_setfl, fstat, major, minor, openat2,
};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions, WaitOptions, chdir,
    getcwd, ioctl_tiocsctty, kill_process, set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
    setsid, waitid, waitpid,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use sealpod_agent_protocol::FailureKind;
use serde::{Deserialize, Serialize};

use super::rootfs::Folders;
use super::workload::Workload;

/// The device that swallows everything: major and minor.
const NULL: (u32, u32) = (1, 3);
/// Of all that a process says before it runs, in bytes.
const LONGEST_WORDS: u64 = 64 * 1024;
/// Of clone3(2), which is wider than the library's constant.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The namespaces of a container that its processes do not share with the pod: paths to open them by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Namespaces {
    pub(super) processes: PathBuf,
    pub(super) mounts: PathBuf,
    pub(super) control_groups: PathBuf,
}

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot {doing}")]
    System { doing: &'static str, source: io::Error },
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("the process was killed before its program ran")]
    Killed,
    #[error("nobody waits for the process any more")]
    Forsaken,
}

/// What the new process says when it cannot become what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) kind: FailureKind,
    pub(super) message: String,
}

/// What the helper hears from those that it clones, a line each. Their end of the pipe closes when the program runs.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Cloned(i32),
    Refused(Refusal),
}

/// Starts a process in a container; returns when its program runs, or it was killed.
///
/// A `console` is a socket that the controlling side of the process's terminal is sent to. When `channel` hangs up, nobody
/// wants the process: it is given up, and ends with the helper.
pub(super) fn start(
    namespaces: &Namespaces,
    folders: &Folders,
    process: &Process,
    workload: &Workload,
    console: Option<&Path>,
    channel: BorrowedFd<'_>,
) -> Result<Pid, Error> {
    let open = |path: &Path| File::open(path).map_err(while_("open the container's namespaces"));
    let entrance = Entrance {
        processes: open(&namespaces.processes)?,
        mounts: open(&namespaces.mounts)?,
        control_groups: open(&namespaces.control_groups)?,
        console: console
            .map(UnixStream::connect)
            .transpose()
            .map_err(while_("reach the console's socket"))?,
    };
    let group = File::open(&folders.cgroup).map_err(while_("open the container's control group"))?;
    let (words, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(system("make a pipe"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(system("become opaque"))?;
    let arguments = libc::clone_args {
        flags: CLONE_INTO_CGROUP,
        cgroup: u64::try_from(group.as_raw_fd()).unwrap_or_default(),
        ..signalling()
    };
    let Some(intermediate) = clone(arguments).map_err(while_("make a process"))? else {
        let mut theirs = File::from(theirs);
        let Err(refusal) = entrance.enter(process, workload, &mut theirs);
        say(&mut theirs, &Word::Refused(refusal));
        exit()
    };
    drop((theirs, entrance));
    let heard = hear(words, channel);
    // It has ended, unless it was given up.
    let _ = kill_process(intermediate, Signal::KILL);
    let _ = waitpid(Some(intermediate), WaitOptions::empty());
    heard.and_then(own_child)
}

/// Whoever may trace the process may have said its number in its stead, and another one.
fn own_child(pid: Pid) -> Result<Pid, Error> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), look).map(|_| pid).map_err(|_| Error::Killed)
}

/// Hears what becomes of the process.
fn hear(words: OwnedFd, channel: BorrowedFd<'_>) -> Result<Pid, Error> {
    let mut words = BufReader::new(File::from(words).take(LONGEST_WORDS));
    let (mut cloned, mut line) = (None, String::new());
    loop {
        let mut ends = [
            PollFd::new(words.get_ref().get_ref(), PollFlags::IN),
            PollFd::from_borrowed_fd(channel, PollFlags::RDHUP),
        ];
        if words.buffer().is_empty() {
            match poll(&mut ends, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(system("wait for the program")(error)),
            }
        }
        if !ends[1].revents().is_empty() {
            return Err(Error::Forsaken);
        }
        if words.buffer().is_empty() && ends[0].revents().is_empty() {
            continue;
        }
        line.clear();
        if words.read_line(&mut line).map_err(while_("wait for the program"))? == 0 {
            return cloned.ok_or(Error::Killed);
        }
        match serde_json::from_str(&line).map_err(|error| while_("understand the process")(error.into()))? {
            Word::Cloned(pid) => cloned = Pid::from_raw(pid),
            Word::Refused(refusal) => return Err(Error::Refused(refusal)),
        }
    }
}

/// What a process needs to come into a container.
struct Entrance {
    processes: File,
    mounts: File,
    control_groups: File,
    console: Option<UnixStream>,
}

impl Entrance {
    /// Turns this process, which only the guest's own see, into the new process's parent in all but name; ends it when
    /// that is there.
    fn enter(self, process: &Process, workload: &Workload, words: &mut File) -> Result<Infallible, Refusal> {
        // A folder that is open leads out of the container, for whoever resolves a path below /proc/self/fd.
        self.close_all_but(words).map_err(refused("close what is open"))?;
        let Self { processes, mounts, control_groups, console } = self;
        let join = |space: File, kind| move_into_link_name_space(space.as_fd(), Some(kind));
        join(control_groups, LinkNameSpaceType::ControlGroup).map_err(refused("join the control group"))?;
        // For its children only.
        join(processes, LinkNameSpaceType::ProcessID).map_err(refused("join the processes"))?;
        join(mounts, LinkNameSpaceType::Mount).map_err(refused("join the mounts"))?;
        let terminal = console.is_some();
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
        if process.no_new_privileges() == Some(true) {
            set_no_new_privs(true).map_err(refused("give up new privileges"))?;
        }
        workload.filter_calls().map_err(refused("filter its system calls"))?;
        match clone_sibling().map_err(refused("make the process"))? {
            Some(pid) => {
                say(words, &Word::Cloned(pid.as_raw_nonzero().get()));
                exit()
            }
            None => Err(run(process, terminal)),
        }
    }

    fn close_all_but(&self, words: &File) -> io::Result<()> {
        let console = self.console.as_ref().map(UnixStream::as_raw_fd);
        let files = [&self.processes, &self.mounts, &self.control_groups, words];
        let mut kept: Vec<_> = files.iter().map(|file| file.as_raw_fd()).chain(console).collect();
        kept.sort_unstable();
        let mut begin = 3;
        for kept in kept {
            if begin < kept {
                close_range(begin, kept - 1)?;
            }
            begin = kept + 1;
        }
        close_range(begin, i32::MAX)
    }
}

/// The last steps, in the process that the container sees, and may stop.
fn run(process: &Process, terminal: bool) -> Refusal {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return refused("end with the helper")(error);
    }
    if let Err(error) = setsid() {
        return refused("begin a session")(error);
    }
    if terminal && let Err(error) = ioctl_tiocsctty(rustix::stdio::stdin()) {
        return refused("take its terminal")(error);
    }
    if let Err(error) = set_parent_process_death_signal(None) {
        return refused("outlive the helper")(error);
    }
    Refusal::internal(&Workload::run(process))
}

fn signalling() -> libc::clone_args {
    // SAFETY: zeros are what it does not use.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments
}

/// As fork(2): nothing in the child.
fn clone(mut arguments: libc::clone_args) -> io::Result<Option<Pid>> {
    // SAFETY: the child has its own copy of the memory, which is whole, as this process has one thread.
    child(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) })
}

/// As fork(2), but for a child of this process's parent; by the older call, which containers may make.
fn clone_sibling() -> io::Result<Option<Pid>> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as in `clone`; with no stack of its own the child goes on with its copy of this one.
    child(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

fn child(number: libc::c_long) -> io::Result<Option<Pid>> {
    match i32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number @ 1..) => Ok(Pid::from_raw(number)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where nobody hears it, the helper has ended.
fn say(words: &mut File, word: &Word) {
    let mut line = serde_json::to_vec(word).unwrap_or_default();
    line.push(b'\n');
    let _ = words.write_all(&line);
}

fn exit() -> ! {
    // SAFETY: it ends this process, and leaves alone what its memory has copied of its parent's.
    unsafe { libc::_exit(1) }
}

fn close_range(first: i32, last: i32) -> io::Result<()> {
    // SAFETY: nothing that is closed is used again in this process, which does not return.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a terminal of the container's, and sends its other side.
fn take_terminal(console: &UnixStream, user: &User) -> rustix::io::Result<()> {
    let controller = open_device("/dev/pts/ptmx")?;
    unlockpt(&controller)?;
    // Fails where it is none of a terminal's.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&controller, flags)?;
    fchown(&terminal, Some(Uid::from_raw(user.uid())), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [controller.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(console, &[IoSlice::new(b"terminal")], &mut control, SendFlags::empty())?;
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)
}

/// Where a standard stream is the guest's `/dev/null`, the container's takes its place.
fn take_null() -> rustix::io::Result<()> {
    type Replace = fn(OwnedFd) -> rustix::io::Result<()>;
    let streams: [(BorrowedFd<'_>, Replace); 3] = [
        (rustix::stdio::stdin(), dup2_stdin),
        (rustix::stdio::stdout(), dup2_stdout),
        (rustix::stdio::stderr(), dup2_stderr),
    ];
    for (stream, replace) in streams {
        if is_null(stream)? {
            let null = open_device("/dev/null")?;
            if !is_null(&null)? {
                return Err(Errno::NODEV);
            }
            replace(null)?;
        }
    }
    Ok(())
}

/// Opens a device of the container, which may have put anything in its place: by no link, and without waiting.
fn open_device(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    fcntl_setfl(&device, OFlags::RDWR)?;
    Ok(device)
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
    fn only_the_device_that_swallows_everything_is_null() {
        assert!(is_null(open_device("/dev/null").unwrap()).unwrap());
        assert!(!is_null(File::open("/dev/zero").unwrap()).unwrap());
        assert!(!is_null(File::open("/").unwrap()).unwrap());
    }

    #[test]
    fn a_device_is_opened_by_no_link_and_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let (link, pipe) = (folder.path().join("link"), folder.path().join("pipe"));
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert_eq!(open_device(link.to_str().unwrap()).unwrap_err(), Errno::LOOP);
        rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(!is_null(open_device(pipe.to_str().unwrap()).unwrap()).unwrap());
    }

    #[test]
    fn the_helper_hears_the_process_or_why_there_is_none() {
        let refusal = Refusal { kind: FailureKind::ProgramNotFound, message: "no".into() };
        let own = rustix::process::getpid();
        let cloned = Word::Cloned(own.as_raw_nonzero().get());
        let heard = |words: &[Word]| {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (channel, _other) = UnixStream::pair().unwrap();
            let mut theirs = File::from(theirs);
            words.iter().for_each(|word| say(&mut theirs, word));
            drop(theirs);
            hear(ours, channel.as_fd())
        };
        assert_eq!(heard(&[cloned]).unwrap(), own);
        assert!(matches!(heard(&[]), Err(Error::Killed)));
        let words = [Word::Refused(refusal.clone()), Word::Cloned(1)];
        assert!(matches!(heard(&words), Err(Error::Refused(said)) if said == refusal));
    }

    #[test]
    fn a_number_that_is_no_childs_is_not_believed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert_eq!(own_child(pid).unwrap(), pid);
        child.kill().unwrap();
        // Unless another test's reaper has waited for it before.
        let _ = child.wait();
        for other in [pid, Pid::INIT, rustix::process::getpid()] {
            assert!(matches!(own_child(other), Err(Error::Killed)), "{other:?}");
        }
    }

    #[test]
    fn a_process_that_says_too_much_is_heard_no_longer() {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (channel, _other) = UnixStream::pair().unwrap();
        let talking = std::thread::spawn(move || {
            let mut theirs = File::from(theirs);
            while theirs.write_all(&[b'x'; 4096]).is_ok() {}
        });
        assert!(matches!(hear(ours, channel.as_fd()), Err(Error::System { .. })));
        talking.join().unwrap();
    }

    #[test]
    fn a_process_that_nobody_waits_for_is_given_up() {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (channel, other) = UnixStream::pair().unwrap();
        drop(other);
        assert!(matches!(hear(ours, channel.as_fd()), Err(Error::Forsaken)));
        drop(theirs);
    }
}
