//! Namespaces of a program's own: network, mounts and processes. Nothing of a node in them is seen outside, and nothing
//! outlives them.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Signal, set_parent_process_death_signal};

/// An address of this machine in its own network, which pods reach through their gateway.
pub const ADDRESS: &str = "192.0.2.1";
/// Set in the process that runs inside: the number of the one outside.
const INSIDE: &str = "SEALPOD_IN_NAMESPACES";

/// The first process inside: it reaps orphans, as every init does, and passes on SIGTERM.
const INIT: &str = r#"trap 'kill -TERM $child' TERM
"$@" &
child=$!
wait $child
code=$?
while kill -0 $child 2> /dev/null; do wait $child; code=$?; done
exit $code"#;

/// How the program inside is told that the one outside has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed, and all of its processes with it.
    Killed,
    /// It gets SIGTERM, and SIGINT too from a terminal: it has handlers for both, and clears away what it has made.
    Asked,
}

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
    unshare.arg(if end == End::Asked { "--kill-child=TERM" } else { "--kill-child" });
    unshare.args(["/bin/sh", "-c", INIT, "sh"]);
    unshare.arg(std::env::current_exe().expect("a program has a path")).args(std::env::args_os().skip(1));
    // SAFETY: this is one system call, and nothing is allocated.
    unsafe { unshare.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?)) };
    if end == End::Asked {
        // This process and `unshare`, which inherits it, just wait for the one inside.
        // SAFETY: a signal is ignored; no handler is installed.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    }
    let status =
        unshare.env(INSIDE, std::process::id().to_string()).status().expect("unshare is part of every Linux");
    Some(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
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
