//! Namespaces of a program's own: network, mounts and processes. Nothing of a node in them is seen outside, and nothing
//! outlives them.

use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Signal, set_parent_process_death_signal};
use tempfile::TempDir;

use super::control_groups;

/// An address of this machine in its own network, which pods reach through their gateway.
pub const ADDRESS: &str = "192.0.2.1";
/// Set in the process that runs inside: the number of the one outside.
const INSIDE: &str = "SEALPOD_IN_NAMESPACES";

/// The first process inside: it reaps orphans, as every init does. A shell leaves `&` no input unless it is told to.
const INIT: &str = r#"exec 3<&0
"$@" <&3 3<&- &
child=$!
wait $child
code=$?
while kill -0 $child 2> /dev/null; do wait $child; code=$?; done
exit $code"#;

/// How the program inside is told that the one outside is to end, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed, and all of its processes with it.
    Killed,
    /// [`asked`] is answered, so that it clears away what it has made, undisturbed: signals do not reach it.
    Asked,
}

/// The end of a pipe that the program outside closes when it is asked to end; the other one is the standard input of the
/// program inside.
static PIPE: AtomicI32 = AtomicI32::new(CLOSED);
const CLOSED: i32 = -1;
/// As after Ctrl-C, whichever signal it was.
const INTERRUPTED: i32 = 130;

/// Runs this program again, in namespaces, and gives its exit code; inside them, makes what they lack and gives none.
///
/// # Panics
///
/// Where this program may not make namespaces.
pub fn enter(end: End) -> Option<ExitCode> {
    if std::env::var_os(INSIDE).is_some() {
        prepare();
        return None;
    }
    // Inside there is no network to fetch it by.
    crate::busybox();
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private"]);
    unshare.args(["--kill-child", "/bin/sh", "-c", INIT, "sh"]);
    unshare.arg(std::env::current_exe().expect("a program has a path")).args(std::env::args_os().skip(1));
    // What is mounted in there is gone with the namespaces only, and can be removed then.
    let folder = TempDir::new().expect("a temporary folder");
    unshare.env(INSIDE, std::process::id().to_string()).env("TMPDIR", folder.path());
    match end {
        // It heeds no other signal while it waits for the first process inside.
        // SAFETY: this is one system call, and nothing is allocated.
        End::Killed => unsafe {
            unshare
                .stdin(Stdio::null())
                .pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        },
        End::Asked => {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            PIPE.store(writer.into_raw_fd(), Ordering::Relaxed);
            unshare.stdin(reader).process_group(0);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                // SAFETY: the handler does what is allowed in one: it swaps a number and closes a descriptor.
                unsafe {
                    let before =
                        libc::signal(signal, ask as extern "C" fn(libc::c_int) as libc::sighandler_t);
                    // As nohup(1) wants it.
                    if before == libc::SIG_IGN {
                        libc::signal(signal, before);
                    }
                }
            }
        }
    }
    let mut inside = unshare.spawn().expect("unshare is part of every Linux");
    drop(unshare);
    let status = inside.wait().expect("it is this program's child");
    // Whatever ran in them is gone.
    control_groups::remove_all();
    folder.close().expect("the folder is this program's");
    let interrupted = end == End::Asked && PIPE.load(Ordering::Relaxed) == CLOSED;
    let code = if interrupted { INTERRUPTED } else { status.code().unwrap_or(1) };
    Some(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Outside: lets the program inside know, once.
extern "C" fn ask(_signal: libc::c_int) {
    let pipe = PIPE.swap(CLOSED, Ordering::Relaxed);
    if pipe != CLOSED {
        // SAFETY: nobody else has this descriptor.
        unsafe { libc::close(pipe) };
    }
}

/// Inside, with [`End::Asked`]: waits until the program outside is asked to end, or has ended.
pub async fn asked() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // Not one of the runtime's, which would wait for it.
    std::thread::spawn(move || {
        // Nobody writes.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    let _ = receiver.await;
}

/// A number that no other such program has, for names that are seen outside all the same.
pub(crate) fn number() -> String {
    std::env::var(INSIDE).unwrap_or_else(|_| std::process::id().to_string())
}

/// Folders that belong to this program alone, a loopback, an address.
fn prepare() {
    for folder in ["/run/containerd", "/run/kata-containers", "/run/sealpod", "/run/netns", "/var/lib/cni"] {
        std::fs::create_dir_all(folder).expect("a folder");
        run("mount", &["-t", "tmpfs", "tests", folder]);
    }
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a namespace has this parameter");
}

fn run(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status().expect("a program of the system");
    assert!(status.success(), "{program} {words:?}: {status}");
}
