//! Child processes that never outlive this one.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

use rustix::event::EventfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;

/// A child process. Dropping it kills it with the children of its own, and waits for its end.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    ended: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts a program that the kernel kills when this process ends, however it ends.
    ///
    /// It is in a process group of its own, so that a terminal's Ctrl-C reaches this process alone. Its
    /// standard input is empty unless the command says otherwise.
    pub(crate) fn spawn(command: Command) -> io::Result<Self> {
        let mut child = spawner::spawn(command)?;
        match watch(&child) {
            Ok(ended) => Ok(Self { child, ended }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// The same for a program that begins with steps of ours; `program` names it in the error.
    ///
    /// # Errors
    /// If a step fails, with its own words; if the program does not start.
    pub(crate) fn start(program: &str, mut command: Command, mut steps: Vec<Step>) -> Result<Self, Error> {
        let cannot = || format!("cannot start {program}");
        let failures: Vec<_> = steps.iter().map(|step| step.failure.clone()).collect();
        // A child that does not begin can give the error's number, but not say where; that it writes here.
        let failed = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::io(cannot())(error.into()))?;
        let tell = failed.try_clone().map_err(Error::io(cannot()))?;
        let take_steps = move || {
            for (number, step) in (1u64..).zip(&mut steps) {
                (step.run)().inspect_err(|_| {
                    // Without it the error has no place, but is told all the same.
                    let _ = rustix::io::write(&tell, &number.to_ne_bytes());
                })?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run; this is one system call, and what
        // steps promise when they are made.
        unsafe { command.pre_exec(take_steps) };
        Self::spawn(command).map_err(|error| {
            let mut number = [0; 8];
            let written = rustix::io::read(&failed, &mut number).is_ok();
            let number = usize::try_from(u64::from_ne_bytes(number)).unwrap_or(0);
            let failure = failures.into_iter().nth(number.wrapping_sub(1)).filter(|_| written);
            Error::io(failure.unwrap_or_else(cannot))(error)
        })
    }

    /// Waits for its end. Loses nothing when cancelled.
    pub(crate) async fn exited(&mut self) -> io::Result<ExitStatus> {
        drop(self.ended.readable().await?);
        self.child.wait()
    }

    /// Its standard error, once, if the command made that a pipe.
    pub(crate) fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) {
        end(&mut self.child);
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end and gives its status and what it wrote to both outputs.
pub(crate) async fn run(mut command: Command) -> io::Result<(ExitStatus, String)> {
    let output = capture(&mut command)?;
    let status = Process::spawn(command)?.exited().await?;
    Ok((status, text_of(output)?))
}

/// The same for callers without a runtime.
pub(crate) fn run_blocking(mut command: Command) -> io::Result<(ExitStatus, String)> {
    let output = capture(&mut command)?;
    let status = spawner::spawn(command)?.wait()?;
    Ok((status, text_of(output)?))
}

/// A file rather than a pipe: nobody waits for descendants that keep it open.
fn capture(command: &mut Command) -> io::Result<File> {
    let output = tempfile::tempfile()?;
    command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    Ok(output)
}

fn text_of(mut output: File) -> io::Result<String> {
    let mut text = Vec::new();
    output.rewind()?;
    output.take(64 << 10).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn watch(child: &Child) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    // SAFETY: the pidfd is open, is owned by the AsyncFd from here on, and nothing replaces it.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(registered?)
}

fn end(child: &mut Child) {
    // Its own children are in its group. Once it was waited for, the number may be somebody else's.
    if let Ok(None) = child.try_wait() {
        let _ = rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL);
    }
    // These fail only if it was waited for already.
    let _ = child.kill();
    let _ = child.wait();
}

/// The thread that starts children.
///
/// The kernel sends the death signal when the *thread* that started the child ends. Worker threads come and
/// go; this one lives as long as the process.
mod spawner {
    use super::*;

    type Job = (Command, mpsc::Sender<io::Result<Child>>);

    pub(super) fn spawn(command: Command) -> io::Result<Child> {
        static JOBS: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
        let jobs = JOBS.get_or_init(|| {
            let (sender, receiver) = mpsc::channel();
            std::thread::spawn(move || work(&receiver));
            Mutex::new(sender)
        });
        let gone = || io::Error::other("the thread that starts processes is gone");
        let (sender, receiver) = mpsc::channel();
        let job = (command, sender);
        jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| gone())?;
        receiver.recv().map_err(|_| gone())?
    }

    fn work(jobs: &mpsc::Receiver<Job>) {
        for (mut command, answer) in jobs {
            let parent = rustix::process::getpid();
            let bind_to_parent = move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have ended before the signal was asked for.
                if rustix::process::getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error()))
                }
            };
            // SAFETY: between fork and exec only async-signal-safe functions may run; the closure makes two
            // system calls and allocates nothing.
            unsafe { command.pre_exec(bind_to_parent) };
            // A caller that went away leaves a child without owner, which ends here.
            if let Err(mpsc::SendError(Ok(mut orphan))) = answer.send(command.process_group(0).spawn()) {
                end(&mut orphan);
            }
        }
    }
}

/// Something that a child does before it becomes its program.
pub(crate) struct Step {
    /// What it means that it fails, as "cannot do this or that".
    failure: String,
    run: Box<dyn FnMut() -> io::Result<()> + Send + Sync>,
}

impl Step {
    /// # Safety
    /// It runs between fork and exec in a program of several threads: it may only call what is async-signal-safe
    /// (signal-safety(7)), and must not allocate.
    pub(crate) unsafe fn new(
        failure: impl Into<String>,
        run: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { failure: failure.into(), run: Box::new(run) }
    }
}

/// Steps by which a child enters control groups.
pub(crate) fn join_cgroups(procs: &[PathBuf]) -> Result<Vec<Step>, Error> {
    let step = |path: &PathBuf| {
        let failure = format!("cannot enter the control group of {}", path.display());
        let file = File::options().write(true).open(path).map_err(Error::io(failure.clone()))?;
        // A process is its own 0.
        let enter = move || (&file).write_all(b"0");
        // SAFETY: this is one system call, and nothing is allocated.
        Ok(unsafe { Step::new(failure, enter) })
    };
    procs.iter().map(step).collect()
}

/// Steps by which a child keeps descriptors, under the same numbers. They must stay open until the child has begun.
pub(crate) fn keep<'a>(descriptors: impl IntoIterator<Item = BorrowedFd<'a>>, failure: &str) -> Vec<Step> {
    let step = |descriptor: BorrowedFd<'_>| {
        // By number: the child has copies of all descriptors, under the same numbers.
        let number = descriptor.as_raw_fd();
        let keep = move || {
            // SAFETY: changes a flag of a descriptor that the caller keeps open.
            match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
                0.. => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: this is one system call, and nothing is allocated.
        unsafe { Step::new(failure, keep) }
    };
    descriptors.into_iter().map(step).collect()
}

/// A command without standard input, whose outputs go nowhere unless redirected.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::path::Path;

    use super::*;

    fn sleeper() -> Command {
        let mut sleep = command("sleep");
        sleep.arg("600");
        sleep
    }

    fn pidfd(pid: u32) -> OwnedFd {
        rustix::process::pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap()
    }

    fn ends(process: &OwnedFd) -> bool {
        let mut descriptors = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        rustix::event::poll(&mut descriptors, Some(&limit)).unwrap() == 1
    }

    fn is_alive(pid: u32) -> bool {
        // A zombie counts as gone: it runs no more.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    /// A control group that is removed when dropped.
    struct Cgroup(PathBuf);

    impl Cgroup {
        /// Of cgroup v2 where that is mounted, else of one controller.
        fn new() -> Self {
            let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/pids"].map(Path::new);
            let mount = mounts.into_iter().find(|mount| mount.join("cgroup.procs").exists());
            let folder =
                mount.expect("control groups are mounted").join(format!("sealpod-{}", std::process::id()));
            std::fs::create_dir(&folder).expect("control groups are made by root: run these tests as root");
            Self(folder)
        }

        fn procs(&self) -> PathBuf {
            self.0.join("cgroup.procs")
        }
    }

    impl Drop for Cgroup {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn a_process_is_in_its_control_groups_before_it_runs() {
        let group = Cgroup::new();
        let steps = join_cgroups(&[group.procs()]).unwrap();
        let process = Process::start("sleep", sleeper(), steps).unwrap();
        assert_eq!(std::fs::read_to_string(group.procs()).unwrap(), format!("{}\n", process.id()));
        drop(process);
        // Its children are born in them too: nothing of it is outside at any time.
        let mut shell = command("sh");
        let output = capture(&mut shell).unwrap();
        shell.args(["-c", "cat /proc/self/cgroup"]);
        let steps = join_cgroups(&[group.procs()]).unwrap();
        Process::start("sh", shell, steps).unwrap().exited().await.unwrap();
        let name = group.0.file_name().unwrap().to_str().unwrap();
        assert!(text_of(output).unwrap().contains(&format!("/{name}\n")));
    }

    #[tokio::test]
    async fn a_process_that_cannot_enter_its_control_group_does_not_run_and_says_which() {
        let error = join_cgroups(&["/nowhere/cgroup.procs".into()]).err().unwrap().to_string();
        assert!(error.starts_with("cannot enter the control group of /nowhere/cgroup.procs: "), "{error}");
        // Opens, and takes no bytes.
        let folder = tempfile::tempdir().unwrap();
        let (good, ran) = (folder.path().join("cgroup.procs"), folder.path().join("ran"));
        File::create(&good).unwrap();
        let steps = join_cgroups(&[good.clone(), "/dev/full".into()]).unwrap();
        let mut touch = command("touch");
        touch.arg(&ran);
        let error = Process::start("touch", touch, steps).unwrap_err().to_string();
        assert!(error.starts_with("cannot enter the control group of /dev/full: No space left"), "{error}");
        assert_eq!(std::fs::read(&good).unwrap(), b"0");
        assert!(!ran.exists());
        let error = Process::start("the program", command("/nowhere/program"), Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("cannot start the program: No such file"), "{error}");
    }

    #[tokio::test]
    async fn dropping_a_process_kills_it_before_it_returns() {
        let process = Process::spawn(sleeper()).unwrap();
        let pid = process.id();
        assert!(is_alive(pid));
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn the_children_of_a_process_that_is_dropped_end_with_it() {
        let mut shell = command("sh");
        shell.args(["-c", "sleep 600 & echo $! >&2; wait"]).stderr(Stdio::piped());
        let mut process = Process::spawn(shell).unwrap();
        let mut line = String::new();
        BufReader::new(process.take_stderr().unwrap()).read_line(&mut line).unwrap();
        let grandchild = pidfd(line.trim().parse().unwrap());
        drop(process);
        assert!(ends(&grandchild), "the grandchild survived");
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed_with_its_status() {
        let mut shell = command("sh");
        shell.args(["-c", "exit 7"]);
        let mut process = Process::spawn(shell).unwrap();
        assert_eq!(process.exited().await.unwrap().code(), Some(7));
        assert_eq!(process.exited().await.unwrap().code(), Some(7), "also when asked again");
    }

    #[tokio::test]
    async fn output_of_a_program_that_ran_is_returned() {
        let mut shell = command("sh");
        shell.args(["-c", "echo out; echo err >&2; exit 1"]);
        let (status, output) = run(shell).await.unwrap();
        assert_eq!((status.code(), output.as_str()), (Some(1), "out\nerr\n"));
    }

    /// Not a test of its own: the process that the next test kills.
    #[test]
    fn helper_that_owns_a_child() {
        if std::env::var_os("SEALPOD_TEST_OWNER").is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        // Started from a thread that ends at once: the child must not end with that thread.
        let handle = runtime.handle().clone();
        let start = move || {
            let _guard = handle.enter();
            Process::spawn(sleeper()).unwrap()
        };
        let process = std::thread::spawn(start).join().unwrap();
        assert!(is_alive(process.id()));
        println!("child={}", process.id());
        std::thread::park();
    }

    #[test]
    fn a_child_ends_when_its_owner_is_killed() {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::helper_that_owns_a_child", "--nocapture"])
            .env("SEALPOD_TEST_OWNER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
        let child: u32 =
            lines.find_map(|line| line.split_once("child=").map(|(_, pid)| pid.parse().unwrap())).unwrap();
        let pidfd = pidfd(child);
        assert!(is_alive(child), "the child outlives the thread that asked for it");
        owner.kill().unwrap();
        owner.wait().unwrap();
        assert!(ends(&pidfd), "the child survived its owner");
    }
}
