//! `sealpod run`, `exec` and `ps` as a person types them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sealpod_tests::{InitData, Owner, assert_no_process_mentions, ephemeral_disks, guest};
use serde_json::Value;

use crate::world::World;

const LIMIT: Duration = Duration::from_secs(90);

/// Folders of one test's own, in which nothing may be left.
struct Place<'a> {
    owner: &'a Owner,
    folder: PathBuf,
}

impl<'a> Place<'a> {
    fn new(owner: &'a Owner, name: &str) -> Self {
        let folder = owner.path("places").join(name);
        for part in ["tmp", "run"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        Self { owner, folder }
    }

    fn command<Word: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Command {
        let mut command = self.owner.command();
        command.env("TMPDIR", self.folder.join("tmp")).env("XDG_RUNTIME_DIR", self.folder.join("run"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same, run by another program.
    fn command_by<Word: AsRef<std::ffi::OsStr>>(
        &self,
        wrapper: &[&str],
        words: impl IntoIterator<Item = Word>,
    ) -> Command {
        let wrapped = self.command(words);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(wrapped.get_program()).args(wrapped.get_args());
        for (name, value) in wrapped.get_envs() {
            command.env(name, value.unwrap());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Whether a process works with a file of this place's.
    fn is_in_use(&self, program: &str) -> bool {
        self.process_of(program).is_some()
    }

    /// The process of a program that works with a file of this place's.
    fn process_of(&self, program: &str) -> Option<Pid> {
        let folder = self.folder.display().to_string();
        let entry = std::fs::read_dir("/proc").unwrap().flatten().find(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').next().is_some_and(|it| it.ends_with(program)) && line.contains(&folder)
        })?;
        Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)
    }

    fn assert_nothing_is_left(&self) {
        until("all processes ended", || {
            (!self.is_in_use("qemu-system-x86_64") && !self.is_in_use("swtpm")).then_some(())
        });
        assert_no_process_mentions(&self.folder);
        let mut left = entries(&self.folder.join("tmp"));
        left.extend(entries(&self.folder.join("run/sealpod/pods")));
        left.extend(entries(&self.folder.join("run")).into_iter().filter(|it| !it.ends_with("sealpod")));
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn failed(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in {said}");
    }
}

pub(crate) fn run_gives_streams_status_ports_and_a_report(world: &World) {
    let place = Place::new(world.owner(), "whole");
    let init_data = place.file("init-data.toml", &world.init_data());
    let report = place.folder.join("report.json");
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let script = "echo out; echo err >&2; echo page > /tmp/index.html; httpd -p 8123 -h /tmp
        trap 'echo ending; exit 7' TERM; echo $COLOUR; while :; do sleep 0.1; done";
    let mut run = place.command(["run", "--name", "whole", "--init-data", &init_data]);
    run.args(["--port", &format!("{port}:8123"), "--env", "COLOUR=green", "--report"]).arg(&report);
    let mut run = run.arg(world.image()).args(["--", "/bin/sh", "-c", script]).spawn().unwrap();
    let mut stdout = run.stdout.take().unwrap();
    let mut said = [0; 10];
    stdout.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"out\ngreen\n");

    let page = until("the pod's server answers", || {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        answer.ends_with("page\n").then_some(answer)
    });
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let pods = place.command(["ps", "--json"]).output().unwrap();
    let pods: Value = serde_json::from_slice(&pods.stdout).unwrap();
    assert_eq!(pods[0]["name"], "whole", "{pods}");
    let exec = place.command(["exec", "whole", "--", "/bin/sh", "-c", "cat /tmp/index.html; exit 6"]);
    let exec = { exec }.output().unwrap();
    assert_eq!((text(&exec.stdout).as_str(), exec.status.code()), ("page\n", Some(6)));
    let denied = place.command(["exec", "whole", "--", "/bin/forbidden"]).output().unwrap();
    failed(&denied, 125, &["ExecProcess", "hint:"]);
    for (program, code) in [("/bin/none", 127), ("/etc/passwd", 126)] {
        failed(&place.command(["exec", "whole", "--", program]).output().unwrap(), code, &[program]);
    }
    let again = place.command(["run", "--name", "whole", "--init-data", &init_data, &world.image()]);
    failed(&{ again }.output().unwrap(), 125, &["whole", "runs already"]);

    signal(&run, Signal::TERM);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!((rest.as_str(), output.status.code()), ("ending\n", Some(7)));
    assert!(text(&output.stderr).contains("err\n"), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["exit_code"], 7);
    for stage in ["boot", "agent", "attest", "image", "start"] {
        assert!(report["stages_ms"][stage].as_u64().is_some(), "{stage} is missing in {report}");
    }
    place.assert_nothing_is_left();
}

pub(crate) fn run_passes_on_input_and_a_terminal(world: &World) {
    let place = Place::new(world.owner(), "terminal");
    let init_data = place.file("init-data.toml", &world.init_data());
    let tool = sealpod_tests::program("sealpod");
    // script(1) gives it a terminal; what is typed is echoed by the container's.
    let line = format!(
        "{} run --interactive --tty --init-data {init_data} {} -- /bin/sh -c 'tty; read word; echo got $word; exit 4'",
        tool.display(),
        world.image()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    for (name, value) in place.command([""; 0]).get_envs() {
        script.env(name, value.unwrap());
    }
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = script.stdout.take().unwrap();
    let mut said = Vec::new();
    // To the line's end: what is typed before it would be echoed there.
    while !text(&said).contains("/dev/pts/0\r\n") {
        let mut buffer = [0; 256];
        let count = stdout.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "{}", text(&said));
        said.extend(&buffer[..count]);
    }
    script.stdin.as_mut().unwrap().write_all(b"hello\r").unwrap();
    stdout.read_to_end(&mut said).unwrap();
    let status = script.wait().unwrap();
    assert!(text(&said).contains("hello\r\ngot hello\r\n"), "{}", text(&said));
    assert_eq!(status.code(), Some(4), "{}", text(&said));
    place.assert_nothing_is_left();
}

pub(crate) fn run_reports_what_cannot_work_and_leaves_nothing(world: &World) {
    let place = Place::new(world.owner(), "impossible");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    let broken = place.file("broken.toml", "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data\n");
    let rego = place.file("broken.rego", "package agent_policy\nExecProcess if {\n");
    let other = place.file("other.rego", "package policy\nExecProcess := true\n");
    let policy = place.file("policy.json", "{\"default\": []}");
    let image = "registry.example/web:1";
    let kbs = "https://10.0.2.2:1";
    for (words, code, expected) in [
        (&["run", "--no-such-flag", image][..], 2, &["--no-such-flag"][..]),
        (&["run"], 2, &["IMAGE"]),
        (&["run", "--memory", "16M", image], 2, &["at least 256M"]),
        (&["run", "--port", "http", image], 2, &["--port"]),
        (&["run", "--guest", "/nowhere", image], 125, &["/nowhere", "hint:"]),
        (&["run", "--init-data", "/nowhere.toml", image], 125, &["/nowhere.toml"]),
        (&["run", "--init-data", &broken, image], 125, &["init data"]),
        (&["run", "--kbs", kbs, "--agent-policy", &rego, image], 125, &["broken.rego"]),
        (&["run", "--kbs", kbs, "--agent-policy", &other, image], 125, &["other.rego", "agent_policy"]),
        (&["run", "--kbs", kbs, "--image-policy", &policy, image], 125, &["policy.json"]),
        (&["run", "--kbs", "broker.example", image], 125, &["https://"]),
        (&["run", "--port", &port, image], 125, &["cannot be forwarded"]),
        (&["run", "registry.example/UPPER:1"], 125, &["UPPER"]),
        (&["exec", "nobody", "--", "true"], 125, &["nobody", "hint:"]),
        (&["exec", "nobody"], 2, &["COMMAND"]),
    ] {
        failed(&place.command(words).output().unwrap(), code, expected);
    }
    place.assert_nothing_is_left();
}

pub(crate) fn an_interrupted_run_leaves_nothing(world: &World) {
    let place = Place::new(world.owner(), "interrupted");
    let init_data = place.file("init-data.toml", &world.init_data());
    for (kind, code) in
        [(Signal::INT, Some(130)), (Signal::TERM, Some(130)), (Signal::HUP, Some(130)), (Signal::KILL, None)]
    {
        // These tests may run under nohup(1), which a run would respect.
        let words = ["run", "--init-data", &init_data, &world.image()];
        let mut run = place.command_by(&["env", "--default-signal=HUP"], words);
        let run = run.spawn().unwrap();
        until("QEMU runs", || place.is_in_use("qemu-system-x86_64").then_some(()));
        signal(&run, kind);
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{}", text(&output.stderr));
        if code.is_none() {
            // Nobody could tidy up; the next start does.
            until("QEMU ended", || (!place.is_in_use("qemu-system-x86_64")).then_some(()));
            let next = place.command(["run", "--init-data", &init_data, &world.image(), "--", "/bin/true"]);
            let next = { next }.output().unwrap();
            assert_eq!(next.status.code(), Some(0), "{}", text(&next.stderr));
        }
        place.assert_nothing_is_left();
    }
}

pub(crate) fn a_machine_that_hangs_or_dies_under_a_container_is_reported(world: &World) {
    let place = Place::new(world.owner(), "lost");
    let init_data = place.file("init-data.toml", &world.init_data());
    for (kind, words) in [
        (Signal::STOP, ["the guest's agent does not answer any more", "no answer to Info within 5s"]),
        (Signal::KILL, ["the VM ended: QEMU ended with signal: 9", "its console's last lines:"]),
    ] {
        let mut run =
            place.command(["run", "--name", "lost", "--answer-limit", "5", "--init-data", &init_data]);
        let script = "echo started; exec sleep 1000";
        let mut run = run.arg(world.image()).args(["--", "/bin/sh", "-c", script]).spawn().unwrap();
        let mut said = [0; 8];
        run.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(text(&said), "started\n");
        // Who works in the pod is told as well.
        let exec = place.command(["exec", "lost", "--", "/bin/sleep", "1000"]).spawn().unwrap();
        let qemu = place.process_of("qemu-system-x86_64").unwrap();
        kill_process(qemu, kind).unwrap();
        failed(&run.wait_with_output().unwrap(), 125, &words);
        failed(&exec.wait_with_output().unwrap(), 125, &["error: "]);
        place.assert_nothing_is_left();
    }
}

pub(crate) fn an_image_larger_than_the_memory_runs_from_a_disk_that_shows_nothing(world: &World) {
    let owner = world.owner();
    let root = owner.root("larger-than-memory");
    std::fs::write(root.join("large"), b"plain to see ".repeat(30 << 20)).unwrap();
    let image = owner.publish("larger-than-memory", &root, &sealpod_tests::ImageOptions::default());
    let place = Place::new(owner, "disk");
    let init_data = place.file("init-data.toml", &world.init_data());
    let mut run = place.command(["run", "--memory", "384M", "--disk", "1G", "--init-data", &init_data]);
    run.arg(&image).args([
        "--",
        "/bin/sh",
        "-c",
        "trap 'exit 0' TERM; wc -c < /large; while :; do sleep 0.1; done",
    ]);
    let mut run = run.spawn().unwrap();
    let mut said = [0; 10];
    run.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(text(&said), "408944640\n");

    let disks = ephemeral_disks(&place.folder.display().to_string());
    let [disk] = disks.as_slice() else { panic!("expected one: {disks:?}") };
    let file = std::fs::read_link(disk).unwrap();
    assert!(file.starts_with(place.folder.join("tmp")), "{file:?}");
    let content = std::fs::read(disk).unwrap();
    assert!(content.iter().filter(|byte| **byte != 0).count() > 64 << 20, "the disk is hardly used");
    let plain = b"plain to see plain to see";
    assert!(!content.chunks(4096).any(|page| page.windows(plain.len()).any(|part| part == plain)));
    signal(&run, Signal::TERM);
    assert_eq!(run.wait_with_output().unwrap().status.code(), Some(0));
    place.assert_nothing_is_left();

    // Where this machine has no room for what the guest writes, that is an error, and nothing stands still.
    let small = "mount -t tmpfs -o size=32M none \"$TMPDIR\" && exec \"$0\" \"$@\"";
    let words = ["run", "--memory", "384M", "--disk", "1G", "--init-data", &init_data];
    let mut run = place.command_by(&["unshare", "--mount", "sh", "-c", small], words);
    let output = run.arg(&image).args(["--", "/bin/true"]).output().unwrap();
    failed(&output, 125, &["No space left on device", "hint: make room"]);
    place.assert_nothing_is_left();
}

pub(crate) fn a_broker_that_is_not_there_is_named(world: &World) {
    let place = Place::new(world.owner(), "no-broker");
    let nowhere =
        InitData { key_broker: Some("https://10.0.2.2:1"), registered: false, ..InitData::default() };
    let init_data = place.file("init-data.toml", &world.owner().init_data(&nowhere));
    let output = place.command(["run", "--init-data", &init_data, &world.image()]).output().unwrap();
    failed(&output, 125, &["https://10.0.2.2:1", "hint: check that the key broker runs"]);
    place.assert_nothing_is_left();
}

fn copy_of_guest(place: &Place) -> PathBuf {
    let copy = place.folder.join("guest");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(guest()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

/// The host may bring another agent, or another module: the measured initrd has their digests.
pub(crate) fn a_rom_that_was_altered_gives_no_agent_and_no_module(world: &World) {
    let place = Place::new(world.owner(), "altered");
    let copy = copy_of_guest(&place);
    let init_data = place.file("init-data.toml", &world.init_data());
    let rom = std::fs::read(copy.join("agent.rom")).unwrap();
    let overlay = rom.windows(8).rposition(|bytes| bytes == b"upperdir").unwrap();
    let altered = [
        // The agent is the first.
        (4 << 20, ["the VM ended before its agent answered", "it is not the agent that was measured"]),
        (overlay, ["load the kernel modules: ", "overlay.ko is not the module that was measured"]),
    ];
    for (at, words) in altered {
        let mut rom = rom.clone();
        rom[at] ^= 1;
        std::fs::write(copy.join("agent.rom"), rom).unwrap();
        let mut command = place.command(["run", "--init-data", &init_data, "--guest"]);
        failed(&command.arg(&copy).arg(world.image()).output().unwrap(), 125, &words);
        place.assert_nothing_is_left();
    }
}

pub(crate) fn a_guest_that_dies_is_reported_with_its_last_words(world: &World) {
    let place = Place::new(world.owner(), "dying");
    let copy = copy_of_guest(&place);
    // An archive of nothing: no init, no root file system.
    std::fs::write(copy.join("initrd.cpio.lz4"), [0; 512]).unwrap();
    let init_data = place.file("init-data.toml", &world.init_data());
    let output =
        place.command(["run", "--init-data", &init_data, "--guest"]).arg(&copy).arg(world.image()).output();
    failed(&output.unwrap(), 125, &["the VM ended before its agent answered", "Kernel panic - not syncing"]);
    place.assert_nothing_is_left();
}
