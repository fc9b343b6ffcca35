//! The whole story on real parts: key broker, registry, measured VMs with TPMs, containers, and the attacks.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use sealpod_tests::sealpod;
use serde_json::Value;
use tempfile::TempDir;

/// What a demo may take that has the machine for itself, once everything is built.
const LIMIT: Duration = Duration::from_secs(180);

/// Each attack, and words of the reason for which it fails.
const ATTACKS: [(&str, &[&str]); 7] = [
    ("command line changed by one word", &["cmdline: expected", "came "]),
    ("initrd changed", &["initrd: expected", "came "]),
    ("image without a signature", &["sigstoreSigned", "signature"]),
    ("layer altered in the registry", &["digest", "sha256:"]),
    ("exec against the policy", &["policy", "ExecProcess"]),
    ("quote of an earlier session", &["ak: expected", "the challenge's credential", "came "]),
    ("nonce answered twice", &["409"]),
];

/// A demo with folders and a session of its own.
struct Demo {
    folder: TempDir,
    child: Child,
}

impl Demo {
    /// `sealpod demo`.
    fn start() -> Self {
        Self::of(&sealpod(), &["demo", "--report", "report.json"])
    }

    /// What `make demo-node` runs.
    fn start_node() -> Self {
        Self::of(&Command::new(env!("CARGO_BIN_EXE_demo-node")), &[])
    }

    fn of(tool: &Command, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["tmp", "run"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        // Its session has all that it ever starts, whatever becomes of the parents. Under nohup(1) it would ignore SIGHUP, and
        // in the background of a script SIGINT.
        let mut demo = Command::new("setsid");
        demo.args(["env", "--default-signal=HUP,INT"]).arg(tool.get_program()).args(words);
        demo.current_dir(folder.path());
        for (name, value) in tool.get_envs() {
            demo.env(name, value.unwrap());
        }
        demo.env("TMPDIR", folder.path().join("tmp")).env("XDG_RUNTIME_DIR", folder.path().join("run"));
        let child = demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { folder, child }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    /// What it says up to its end, which must be a good one.
    fn told(&mut self) -> String {
        let (stdout, stderr) = (self.child.stdout.take().unwrap(), self.child.stderr.take().unwrap());
        let complaints = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap());
        let said = std::io::read_to_string(stdout).unwrap();
        let complaints = complaints.join().unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}\n{complaints}");
        said
    }

    /// The command lines of what it started and what runs.
    fn session(&self) -> Vec<String> {
        let session = self.child.id().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| command_line_in(&entry.path(), &session)).collect()
    }

    fn assert_nothing_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.session().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.session(), Vec::<String>::new(), "still running");
        for part in ["tmp", "run"] {
            let left = std::fs::read_dir(self.folder.path().join(part)).unwrap();
            let left: Vec<PathBuf> = left.map(|entry| entry.unwrap().path()).collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "left behind");
        }
        // Those of its pods, in each hierarchy.
        let named = format!("*/sealpod-tests-{}*", self.child.id());
        let groups = Command::new("find").args(["/sys/fs/cgroup", "-path", &named]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&groups.stdout), "", "left behind");
    }
}

/// The command line of a process that runs in a session (proc_pid_stat(5)).
fn command_line_in(process: &Path, session: &str) -> Option<String> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let (state, own) = (fields.next()?, fields.nth(2)?);
    let line = std::fs::read(process.join("cmdline")).ok()?;
    // A process that has ended is one for its parent only.
    (own == session && state != "Z").then(|| String::from_utf8_lossy(&line).replace('\0', " "))
}

#[test]
fn two_demos_at_once_do_what_they_say_and_leave_nothing_behind() {
    let began = Instant::now();
    let demos = [Demo::start(), Demo::start()];
    std::thread::scope(|scope| {
        for demo in demos {
            scope.spawn(move || tells_the_whole_story(demo, began));
        }
    });
}

fn tells_the_whole_story(mut demo: Demo, began: Instant) {
    let said = demo.told();
    // Each of the two has half of the machine.
    assert!(began.elapsed() < 2 * LIMIT, "it took {:?}", began.elapsed());

    let report = std::fs::read(demo.folder.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["ok"], true);
    for stage in ["boot", "agent", "attest", "image", "start"] {
        assert!(report["stages_ms"][stage].as_u64().is_some(), "{stage} is missing");
    }
    let attacks = report["attacks"].as_array().unwrap();
    assert_eq!(attacks.len(), ATTACKS.len(), "{report:#}");
    for (name, words) in ATTACKS {
        let attack = attacks.iter().find(|attack| attack["name"] == name);
        let attack = attack.unwrap_or_else(|| panic!("{name} is missing in {report:#}"));
        assert_eq!(attack["ok"], true, "{attack}");
        let observed = attack["observed"].as_str().unwrap();
        for word in words {
            assert!(observed.contains(word), "{word:?} is no part of {attack}");
        }
        assert!(said.contains(observed), "{observed:?} was not shown");
    }
    // What the container printed and served came through, and so did its secret.
    assert!(said.contains("serving HTTP on port 8080"));
    assert!(said.contains("a secret of 43 bytes"));
    assert!(said.contains("Hello from a measured VM."));
    demo.assert_nothing_is_left();
}

#[test]
fn a_demo_of_a_node_shows_a_pod_by_cri_and_leaves_nothing_behind() {
    let mut demo = Demo::start_node();
    let said = demo.told();
    for words in [
        "   hello | hello from a confidential pod, green",
        // The policy's words, of which the node is told.
        "ExecProcess",
        "the node   GET /v2/guest/hello/blobs/",
        "the guest  GET /v2/guest/hello/blobs/",
        "s in all, as it must be",
    ] {
        assert!(said.contains(words), "{words:?} was not shown: {said}");
    }
    demo.assert_nothing_is_left();
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    /// To which demo which signal comes, whether to the whole group as from a terminal, after which words, while what runs.
    type Interruption = (fn() -> Demo, Signal, bool, &'static str, &'static str);
    const INTERRUPTIONS: [Interruption; 6] = [
        (Demo::start, Signal::HUP, false, "== 2. An image", "docker-registry"),
        (Demo::start, Signal::INT, true, "$ sealpod run", "qemu-system-x86_64"),
        (Demo::start, Signal::TERM, false, "   pod | serving HTTP", "qemu-system-x86_64"),
        (Demo::start_node, Signal::HUP, false, "== 2. A node", "containerd"),
        (Demo::start_node, Signal::INT, true, "RunPodSandbox", "qemu-system-x86_64"),
        (Demo::start_node, Signal::TERM, false, "== 4. The same calls", "qemu-system-x86_64"),
    ];
    for (start, signal, group, words, program) in INTERRUPTIONS {
        let mut demo = start();
        let mut lines = BufReader::new(demo.child.stdout.take().unwrap()).lines();
        let seen = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(words)));
        assert!(seen.is_some(), "the demo ended before it said {words:?}");
        let deadline = Instant::now() + LIMIT;
        while !demo.session().iter().any(|line| line.contains(program)) {
            assert!(Instant::now() < deadline, "{program} never ran: {:?}", demo.session());
            std::thread::sleep(Duration::from_millis(5));
        }
        if group {
            kill_process_group(demo.pid(), signal).unwrap();
        } else {
            kill_process(demo.pid(), signal).unwrap();
        }
        // It goes on speaking to somebody while it ends.
        let rest = std::thread::spawn(move || lines.count());
        let status = demo.child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(130), None), "{signal:?}");
        rest.join().unwrap();
        let complaints = std::io::read_to_string(demo.child.stderr.take().unwrap()).unwrap();
        assert!(complaints.contains("error: "), "{complaints}");
        demo.assert_nothing_is_left();
    }
}
