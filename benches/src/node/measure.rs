//! The measurements, on a private node with a stock containerd.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{Containerd, NodePod, RUNTIME, control_groups, cri, log_lines};
use sealpod_tests::{ImageOptions, InitData, Node, Owner};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::report::Measurements;

/// Runs of each kind. The machine may be busy with other things, so the kinds take turns, what is compared starts at
/// once, and medians count.
const RUNS: usize = 5;
const EXECS: usize = 20;
/// What one measurement of output prints: lines of 1000 bytes.
const OUTPUT_LINES: u64 = 30_000;
const PATIENCE: Duration = Duration::from_secs(120);

const POLICY: &str = "package agent_policy
CreateContainer := true
ReadStdout := true
ReadStderr := true
ExecProcess := true
";

/// What the pods need.
struct Bench {
    owner: Owner,
    node: Node,
    init_data: String,
    /// For the guest, encrypted and signed; prints a word and waits.
    image: String,
    /// The same for runc.
    plain: String,
}

pub(crate) async fn all() -> anyhow::Result<Measurements> {
    let bench = Bench::start().await;
    let mut all = Measurements::default();
    for round in 1..=RUNS {
        let began = Instant::now();
        let name = format!("pair-{round}");
        let ((pod, _, by_cri), (running, run)) =
            tokio::try_join!(bench.pod(&name, RUNTIME, &bench.image), bench.run())?;
        // Neither ends before both have printed: that takes the processor, too.
        end(running).await?;
        bench.node.remove(&pod).await;
        all.together.push((by_cri, run));
        tell(&format!("round {round} of {RUNS}: at once, pod by CRI"), by_cri, began);
        tell(&format!("round {round} of {RUNS}: at once, sealpod run"), run, began);

        let began = Instant::now();
        let (pod, id, first) = bench.pod(&format!("vm-{round}"), RUNTIME, &bench.image).await?;
        all.pod.push(first);
        all.shim_bytes.push(resident_bytes("containerd-shim-sealpod-v2")?);
        if round == 1 {
            bench.execs(&id, &mut all).await?;
            bench.output(&pod, &mut all).await?;
            all.shim_bytes.push(resident_bytes("containerd-shim-sealpod-v2")?);
            all.snapshotter_bytes = resident_bytes("sealpod-snapshotter")?;
        }
        let before_end = Instant::now();
        bench.node.remove(&pod).await;
        all.life.push(first + before_end.elapsed());
        tell(&format!("round {round} of {RUNS}: pod by CRI"), first, began);

        let began = Instant::now();
        let (pod, _, first) = bench.pod(&format!("runc-{round}"), "", &bench.plain).await?;
        all.runc.push(first);
        bench.node.remove(&pod).await;
        tell(&format!("round {round} of {RUNS}: runc pod"), first, began);
    }
    Ok(all)
}

/// What the image runs. The first process of a container heeds no signal without a handler for it.
const BEHAVES: &str = "trap 'exit 0' TERM; echo ready; sleep 100000 & wait";

impl Bench {
    async fn start() -> Self {
        let owner = Owner::start_at(ADDRESS.parse().expect("an address"), ADDRESS);
        let plain = |build| ImageOptions { encrypted: false, signed: false, build };
        let pause = owner.publish(
            "pause",
            &owner.root("pause"),
            &plain(&["--cmd", "/bin/sleep", "--cmd", "infinity"]),
        );
        let words = ["--cmd", "/bin/sh", "--cmd", "-c", "--cmd", BEHAVES];
        let build = ImageOptions { build: &words, ..ImageOptions::default() };
        let image = owner.publish("guest/bench", &owner.root("bench"), &build);
        // Of layers of its own: those of the guest's image are not unpacked here.
        let unencrypted = owner.publish("host/bench", &owner.root("plain"), &plain(&words));
        let init_data = owner.init_data(&InitData { agent_policy: Some(POLICY), ..InitData::default() });
        let authority = owner.path("tpm-authority");
        let registry = owner.registry_in_guest();
        let node = Node::start(Containerd::V1_6, &owner.path("node"), &registry, &pause, &authority);
        node.ready().await;
        node.pull(&image).await;
        node.pull(&unencrypted).await;
        Self { owner, node, init_data, image, plain: unencrypted }
    }

    /// Starts a pod with the image's own command; gives its container and the time to its first output.
    async fn pod(
        &self,
        name: &str,
        runtime: &str,
        image: &str,
    ) -> anyhow::Result<(NodePod, String, Duration)> {
        let init_data = (!runtime.is_empty()).then_some(self.init_data.as_str());
        let config = self.node.pod_config(name, init_data);
        let began = Instant::now();
        let pod = self.node.try_run_pod(config, runtime).await?;
        let container =
            cri::ContainerConfig { command: Vec::new(), ..self.node.container_config("main", image, "") };
        let log = Path::new(&pod.config.log_directory).join(&container.log_path);
        let id = self.node.try_create(&pod, container).await?;
        self.node.try_start(&id).await?;
        while std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) == 0 {
            ensure!(began.elapsed() < PATIENCE, "the container of {name} prints nothing");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok((pod, id, began.elapsed()))
    }

    /// The same image without Kubernetes; gives what runs and the time to its first output. It shares the processor with
    /// pods as one of them.
    async fn run(&self) -> anyhow::Result<(Child, Duration)> {
        let init_data = self.owner.path("bench-init-data.toml");
        std::fs::write(&init_data, &self.init_data).context("cannot write the init data")?;
        let mut command = Command::from(self.owner.command());
        command.args(["run", "--accelerator", "tcg", "--init-data"]).arg(&init_data).arg(&self.image);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let began = Instant::now();
        let mut child = command.spawn().context("cannot start sealpod run")?;
        control_groups::put_among_pods("run", process(&child)?);
        let stdout = child.stdout.as_mut().context("it has an output")?;
        let read = tokio::time::timeout(PATIENCE, stdout.read_exact(&mut [0])).await;
        let elapsed = began.elapsed();
        match read {
            Ok(Ok(_)) => Ok((child, elapsed)),
            wrong => {
                end(child).await?;
                bail!("sealpod run prints nothing: {wrong:?}")
            }
        }
    }

    async fn execs(&self, id: &str, all: &mut Measurements) -> anyhow::Result<()> {
        for _ in 0..EXECS {
            let began = Instant::now();
            let answer = self.node.exec(id, "true").await?;
            ensure!(answer.exit_code == 0, "an exec failed: {answer:?}");
            all.exec.push(began.elapsed());
        }
        Ok(())
    }

    /// Prints a file that lies in the guest's memory.
    async fn output(&self, pod: &NodePod, all: &mut Measurements) -> anyhow::Result<()> {
        let script = format!(
            "head -c 999 /dev/zero | tr '\\0' x > /dev/shm/line; echo >> /dev/shm/line
            i=0; while [ $i -lt 100 ]; do cat /dev/shm/line; i=$((i+1)); done > /dev/shm/block
            i=0; while [ $i -lt {} ]; do cat /dev/shm/block; i=$((i+1)); done > /dev/shm/all
            echo begin; sleep 1; cat /dev/shm/all; rm /dev/shm/all",
            OUTPUT_LINES / 100
        );
        let id = self.node.spawn(pod, self.node.container_config("output", &self.image, &script)).await;
        let log = self.node.status(&id).await.log_path;
        let length = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let waiting = Instant::now();
        let begun = loop {
            match length() {
                0 => {}
                begin if begin < 1000 => {}
                _ => break Instant::now(),
            }
            ensure!(waiting.elapsed() < PATIENCE, "no output comes");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        // Each line has a time and a stream before it.
        while length() < OUTPUT_LINES * 1000 {
            ensure!(waiting.elapsed() < PATIENCE, "the output does not come to its end");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let elapsed = begun.elapsed();
        self.node.ended(&id).await;
        let bytes: usize = log_lines(log.as_ref()).iter().skip(1).map(|line| line.text.len() + 1).sum();
        ensure!(bytes as u64 == OUTPUT_LINES * 1000, "{bytes} bytes came, not {}", OUTPUT_LINES * 1000);
        all.output.push((bytes as u64, elapsed));
        Ok(())
    }
}

fn process(child: &Child) -> anyhow::Result<Pid> {
    child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("it has ended")
}

/// Ends a `sealpod run`.
async fn end(mut running: Child) -> anyhow::Result<()> {
    kill_process(process(&running)?, Signal::TERM)?;
    tokio::time::timeout(PATIENCE, running.wait()).await.context("sealpod run heeds no SIGTERM")??;
    Ok(())
}

/// The resident memory (`VmRSS`) of the one process of a program in these namespaces.
fn resident_bytes(program: &str) -> anyhow::Result<u64> {
    let of = |folder: &Path| {
        let line = std::fs::read(folder.join("cmdline")).ok()?;
        let first = line.split(|byte| *byte == 0).next()?;
        String::from_utf8_lossy(first).ends_with(program).then_some(())?;
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
        kib.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    let processes = std::fs::read_dir("/proc").context("cannot list processes")?.flatten();
    processes.filter_map(|entry| of(&entry.path())).max().with_context(|| format!("no {program} runs"))
}

/// A line of progress.
fn tell(what: &str, first: Duration, began: Instant) {
    let ms = first.as_secs_f64() * 1000.0;
    eprintln!("{what}: first output after {ms:.0} ms ({:.1} s in all)", began.elapsed().as_secs_f64());
}
