//! `sealpod run`: an image in a measured VM, as `podman run` would show it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use sealpod_agent_protocol::{
    CallError, Client, ContainerRef, CreateContainer, Failure, HostEntry, ProcessRef, PullImage, PulledImage,
    Reply, Request, StartPod,
};
use sealpod_evidence::init_data::InitData;
use sealpod_image::reference::Reference;
use sealpod_sandbox::{Accelerator, GuestImage, Network, PortForward, Sandbox, SandboxConfig, Tpm};
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::init_data;
use crate::output::{self, Progress};
use crate::pod::signals::Signals;
use crate::pod::streams::{Attached, Attachment, Outcome, attach};
use crate::pod::{ANSWER_LIMIT, CONTAINER, agent_error, control, data_folder, random_id};

/// Run an image in a new measured VM; streams, signals and exit status are the container's
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod run --kbs https://10.0.2.2:8443 --kbs-certificate tls.crt \\
      --image-policy kbs:///default/image-policy/web registry.example/web:1
  sealpod run --init-data web.toml --port 8080:80 registry.example/web:1
  sealpod run -it --init-data debug.toml registry.example/tools -- sh

The exit status is the container's; 125 if the pod did not start, 126 if the command cannot be \
executed, 127 if the image does not have it. In the guest, 10.0.2.2 is this machine's loopback.")]
pub(crate) struct RunArgs {
    /// The image, as registry.example/repository:tag
    image: String,
    /// Replaces the image's command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// The pod's name and host name [default: made up]
    #[arg(long)]
    name: Option<String>,
    /// Set a variable; without a value it is taken from this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    environment: Vec<String>,
    /// Forward a TCP port of this machine's to the pod (host port 0 takes a free one, which `sealpod ps` shows)
    #[arg(short, long = "port", value_name = "[ADDRESS:]HOST:POD")]
    ports: Vec<PortForward>,
    /// The VM's memory, as 512M or 2G
    #[arg(short, long, default_value = "512M", value_parser = parse_memory)]
    memory: u32,
    /// Give the pod a disk of this size for its files, encrypted under a key that only the guest has, as 2G; it is in
    /// $TMPDIR, or else in /var/tmp
    #[arg(long, value_name = "SIZE", value_parser = parse_disk)]
    disk: Option<u32>,
    /// The VM's processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Replaces the image's entrypoint (an empty text removes it)
    #[arg(long)]
    entrypoint: Option<String>,
    /// Replaces the image's user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Replaces the image's working directory
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// Mount the container's root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = parse_host)]
    add_host: Vec<HostEntry>,
    /// Pass on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// The pod's init data (TOML), instead of its parts
    #[arg(long, value_name = "FILE", conflicts_with = "kbs")]
    init_data: Option<PathBuf>,
    #[command(flatten)]
    parts: init_data::Source,
    /// The guest that `sealpod guest build` made
    #[arg(long, value_name = "FOLDER", env = "SEALPOD_GUEST")]
    guest: Option<PathBuf>,
    /// How the VM is executed
    #[arg(long, default_value = "auto")]
    accelerator: Accelerator,
    /// The authority that certifies emulated TPMs
    #[arg(long, value_name = "FOLDER", env = "SEALPOD_TPM_AUTHORITY")]
    tpm_authority: Option<PathBuf>,
    /// How long the running guest may leave a question without an answer [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    answer_limit: Option<u16>,
    /// Write what happened and how long it took as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// What `--report` writes.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The pod's name.
    name: String,
    /// Milliseconds of each stage that was reached.
    stages_ms: BTreeMap<&'static str, u64>,
    /// The image that ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<PulledImage>,
    /// Ports of this machine's that lead to the pod, by the pod's port.
    ports: BTreeMap<u16, u16>,
    /// The container's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The guest's own word on it, where it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
}

/// Runs the pod and gives the container's exit status.
pub(crate) async fn run(args: RunArgs) -> Result<ExitCode> {
    let file = args.report.as_deref().map(ReportFile::open).transpose().map_err(Error::of_pod)?;
    let mut report = Report::default();
    let outcome = run_pod(&args, &mut report).await.map_err(Error::of_pod);
    if let Some(file) = file {
        report.error = outcome.as_ref().err().map(Error::message);
        if let Err(error) = file.write(&report) {
            // The exit status stays the container's.
            output::note(format!("warning: {}", error.message()));
        }
    }
    outcome
}

/// Where the report goes: opened before anything starts, since afterwards it would be too late to name another.
struct ReportFile<'a> {
    path: &'a Path,
    file: std::fs::File,
}

impl<'a> ReportFile<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = std::fs::File::create(path)
            .context(format!("cannot write the report {}", path.display()))
            .hint("name a file in a folder that is there and yours to write to")?;
        Ok(Self { path, file })
    }

    fn write(mut self, report: &Report) -> Result<()> {
        let json = serde_json::to_vec_pretty(report)?;
        self.file.write_all(&json).context(format!("cannot write the report {}", self.path.display()))
    }
}

/// What a pod is made of, read and checked before anything boots.
struct Plan {
    name: String,
    guest: GuestImage,
    init_data: Option<String>,
    container: CreateContainer,
}

/// A container that runs, with the user's streams.
struct Started {
    attached: Attached,
    control: control::Control,
    /// When its start was asked for.
    asked: Instant,
}

async fn run_pod(args: &RunArgs, report: &mut Report) -> Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let plan = plan(args)?;
    report.name.clone_from(&plan.name);
    let mut sandbox = tokio::select! {
        sandbox = start_sandbox(args, plan.guest.clone(), report) => sandbox?,
        interrupted = signals.end() => return Err(interrupted).context("the container did not start"),
    };
    let agent = sandbox.agent().clone();
    let (interfaces, dns) = sandbox.pod_network();
    let start_pod = StartPod {
        hostname: plan.name.clone(),
        init_data: plan.init_data.clone(),
        interfaces,
        dns,
        hosts: args.add_host.clone(),
        ..StartPod::default()
    };
    // Whatever fails here drops the sandbox, which ends it at once.
    let life = live(args, plan, start_pod, &agent, &mut signals, report);
    let (outcome, control) = while_alive(&mut sandbox, life).await?;
    if outcome.exit.out_of_memory {
        output::note("note: the kernel ended the container for want of memory; --memory gives it more");
    }
    tokio::select! {
        () = sandbox.stop() => {}
        // Who asks again does not want to wait.
        _ = signals.end() => {}
    }
    drop(control);
    Ok(ExitCode::from(outcome.exit.code))
}

/// Does a part of a pod's life, for as long as the pod lives.
async fn while_alive<T>(sandbox: &mut Sandbox, part: impl Future<Output = Result<T>>) -> Result<T> {
    /// More than the sandbox takes to find out.
    const AUTOPSY: Duration = Duration::from_secs(5);
    tokio::select! {
        biased;
        outcome = part => match outcome {
            // That the connection broke says less than why.
            Err(error) if matches!(error.call(), Some(CallError::Lost { .. })) => {
                let failure = tokio::time::timeout(AUTOPSY, sandbox.failed()).await;
                Err(failure.map_or(error, Error::from))
            }
            outcome => outcome,
        },
        failure = sandbox.failed() => Err(failure.into()),
    }
}

/// A pod's life from its agent's first answer to its container's end.
async fn live(
    args: &RunArgs,
    plan: Plan,
    start_pod: StartPod,
    agent: &Client,
    signals: &mut Signals,
    report: &mut Report,
) -> Result<(Outcome, control::Control)> {
    let started = tokio::select! {
        started = start_container(args, plan, start_pod, agent, report) => started?,
        interrupted = signals.end() => return Err(interrupted).context("the container did not start"),
    };
    let outcome = started.attached.finish(signals).await?;
    if let Some(first) = outcome.first_output {
        report.stages_ms.insert("start", milliseconds(first - started.asked));
    }
    report.exit_code = Some(outcome.exit.code);
    Ok((outcome, started.control))
}

fn plan(args: &RunArgs) -> Result<Plan> {
    Reference::parse(&args.image).context(format!("{:?}", args.image))?;
    let init_data = match &args.init_data {
        Some(path) => Some(read_init_data(path)?),
        None => args.parts.create()?,
    };
    let container = create_request(args)?;
    let guest = GuestImage::open(crate::guest::folder(args.guest.as_deref())?)?;
    let name = args.name.clone().map_or_else(random_name, Ok)?;
    control::check_free(&name)?;
    Ok(Plan { name, guest, init_data, container })
}

async fn start_container(
    args: &RunArgs,
    plan: Plan,
    start_pod: StartPod,
    agent: &Client,
    report: &mut Report,
) -> Result<Started> {
    let progress = Progress::start("starting the pod");
    ask(agent, Request::StartPod(start_pod), report).await?;

    progress.say("attesting to the key broker");
    let began = Instant::now();
    ask(agent, Request::Attest, report).await?;
    report.stages_ms.insert("attest", milliseconds(began.elapsed()));

    progress.say("pulling the image in the guest");
    let began = Instant::now();
    let pull = PullImage { image: args.image.clone() };
    match ask(agent, Request::PullImage(pull), report).await? {
        Reply::Image(image) => report.image = Some(image),
        other => return Err(Error::new(format!("the agent answered a pull with {other:?}"))),
    }
    report.stages_ms.insert("image", milliseconds(began.elapsed()));

    progress.say("preparing the container");
    ask(agent, Request::CreateContainer(Box::new(plan.container)), report).await?;
    let control = control::Control::open(&plan.name, &args.image, report.ports.clone(), agent.clone())?;
    drop(progress);

    let asked = Instant::now();
    let process = ProcessRef { container: CONTAINER.into(), exec: None };
    let attachment = Attachment { stdin: args.interactive, terminal: args.tty };
    let attached = attach(agent, &process, attachment).await?;
    ask(agent, Request::StartContainer(ContainerRef { container: CONTAINER.into() }), report).await?;
    Ok(Started { attached, control, asked })
}

async fn start_sandbox(args: &RunArgs, guest: GuestImage, report: &mut Report) -> Result<Sandbox> {
    let progress = Progress::start("booting the VM");
    let authority = args.tpm_authority.clone().unwrap_or_else(|| data_folder().join("tpm-authority"));
    let defaults = SandboxConfig::new(guest);
    let disk_folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let config = SandboxConfig {
        memory_mib: args.memory,
        cpus: args.cpus,
        ephemeral_disk_mib: args.disk.unwrap_or_default(),
        ephemeral_disk_folder: disk_folder.map_or(defaults.ephemeral_disk_folder, PathBuf::from),
        accelerator: args.accelerator,
        tpm: Tpm::Emulated { authority },
        network: Network::User { ports: args.ports.clone() },
        answer_limit: args.answer_limit.map_or(ANSWER_LIMIT, |seconds| Duration::from_secs(seconds.into())),
        ..defaults
    };
    let sandbox = Sandbox::start(config).await?;
    drop(progress);
    let timings = sandbox.timings();
    report.stages_ms.insert("boot", milliseconds(timings.first_byte));
    report.stages_ms.insert("agent", milliseconds(timings.ready.saturating_sub(timings.first_byte)));
    report.ports = sandbox.ports().iter().map(|port| (port.guest, port.host)).collect();
    Ok(sandbox)
}

/// A call of the agent's whose refusal goes into the report.
async fn ask(agent: &Client, request: Request, report: &mut Report) -> Result<Reply> {
    agent.call(request).await.map_err(|error| {
        if let CallError::Refused(failure) = &error {
            report.failure = Some(failure.clone());
        }
        agent_error(error)
    })
}

/// Init data that no guest would take is refused before one boots.
fn read_init_data(path: &Path) -> Result<String> {
    let raw = std::fs::read_to_string(path).context(format!("cannot read {}", path.display()))?;
    InitData::parse(&raw).context(format!("{} is no init data", path.display()))?;
    Ok(raw)
}

fn create_request(args: &RunArgs) -> Result<CreateContainer> {
    Ok(CreateContainer {
        id: CONTAINER.into(),
        image: args.image.clone(),
        command: args
            .entrypoint
            .as_ref()
            .map(|program| if program.is_empty() { Vec::new() } else { vec![program.clone()] }),
        arguments: (!args.command.is_empty()).then(|| args.command.clone()),
        environment: environment(&args.environment)?,
        user: args.user.clone(),
        working_directory: args.workdir.clone(),
        terminal: args.tty,
        stdin: args.interactive,
        read_only_root: args.read_only,
        ..CreateContainer::default()
    })
}

/// `NAME=VALUE` words, and `NAME` words with this process's own value.
pub(crate) fn environment(words: &[String]) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for word in words {
        match word.split_once('=') {
            Some(("", _)) => return Err(Error::new(format!("{word:?} has no name before its `=`"))),
            Some((name, value)) => {
                variables.insert(name.to_owned(), value.to_owned());
            }
            None => {
                if let Ok(value) = std::env::var(word) {
                    variables.insert(word.clone(), value);
                }
            }
        }
    }
    Ok(variables)
}

fn random_name() -> Result<String> {
    Ok(format!("pod-{}", random_id()?))
}

fn parse_memory(text: &str) -> std::result::Result<u32, String> {
    parse_size(text).and_then(|size| if size >= 256 { Ok(size) } else { Err("at least 256M".to_owned()) })
}

fn parse_disk(text: &str) -> std::result::Result<u32, String> {
    parse_size(text).and_then(|size| if size >= 16 { Ok(size) } else { Err("at least 16M".to_owned()) })
}

/// Mebibytes from `512`, `512M`, `2G` (with or without `i` and `B`).
fn parse_size(text: &str) -> std::result::Result<u32, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let factor = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" | "m" => 1,
        "g" => 1024,
        _ => return Err("as 512M or 2G".into()),
    };
    let count: u32 = digits.parse().map_err(|_| "as 512M or 2G".to_owned())?;
    count.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

/// `NAME:ADDRESS`, where the address may be IPv6.
fn parse_host(text: &str) -> std::result::Result<HostEntry, String> {
    let (name, address) = text.split_once(':').ok_or("as NAME:ADDRESS")?;
    let address: std::net::IpAddr =
        address.trim_matches(['[', ']']).parse().map_err(|_| format!("{address:?} is no IP address"))?;
    Ok(HostEntry { address: address.to_string(), names: vec![name.to_owned()] })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use sealpod_agent_protocol::{ByteStream, Handler, serve};
    use tokio::sync::Notify;

    use super::*;
    use crate::{Arguments, Command};

    #[test]
    fn memory_is_given_in_the_units_that_people_use() {
        assert_eq!(parse_memory("512"), Ok(512));
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("2GiB"), Ok(2048));
        assert!(parse_memory("16M").is_err());
        assert!(parse_memory("5000000G").is_err());
        assert!(parse_memory("lots").is_err());
    }

    #[test]
    fn a_host_entry_takes_both_families() {
        assert_eq!(parse_host("db:10.0.2.2").unwrap().address, "10.0.2.2");
        assert_eq!(parse_host("db:[fd00::1]").unwrap().address, "fd00::1");
        assert!(parse_host("db").is_err());
        assert!(parse_host("db:nowhere").is_err());
    }

    #[test]
    fn a_variable_without_a_value_is_taken_from_this_environment() {
        let variables =
            environment(&["PATH".into(), "A=b=c".into(), "SEALPOD_NO_SUCH_VARIABLE".into()]).unwrap();
        assert_eq!(variables["A"], "b=c");
        assert!(variables.contains_key("PATH"));
        assert_eq!(variables.len(), 2);
        assert!(environment(&["=x".into()]).is_err());
    }

    fn args(words: &[&str]) -> RunArgs {
        let words = [&["sealpod", "run"], words].concat();
        let Command::Run(args) = Arguments::parse_from(words).command else { panic!("no run") };
        *args
    }

    #[tokio::test]
    async fn a_report_that_cannot_be_written_is_an_error_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("none/report.json");
        let error = run(args(&["--report", report.to_str().unwrap(), "no image"])).await.unwrap_err();
        assert!(error.message().starts_with("cannot write the report "), "{}", error.message());
        assert_eq!(error.exit_code(), ExitCode::from(125));
        assert!(error.next_step().is_some());
    }

    #[tokio::test]
    async fn what_became_of_the_pod_is_said_even_if_the_report_finds_no_room() {
        let error = run(args(&["--report", "/dev/full", "no image"])).await.unwrap_err();
        assert!(error.message().starts_with("\"no image\""), "{}", error.message());
    }

    /// A guest that does all that is asked of it, but never gets a container started.
    struct Stuck {
        asked: Notify,
    }

    impl Handler for Stuck {
        type Opened = ();

        async fn call(&self, request: Request) -> std::result::Result<Reply, Failure> {
            match request {
                Request::PullImage(_) => {
                    Ok(Reply::Image(PulledImage { digest: "sha256:0".into(), bytes: 0 }))
                }
                Request::StartContainer(_) => {
                    self.asked.notify_one();
                    std::future::pending().await
                }
                _ => Ok(Reply::Done),
            }
        }

        async fn open(&self, _: Request) -> std::result::Result<(), Failure> {
            Ok(())
        }

        async fn stream(&self, (): (), _: ByteStream) {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_signal_while_the_container_is_being_started_ends_the_run() {
        let (host, guest) = tokio::io::duplex(64 << 10);
        let stuck = Arc::new(Stuck { asked: Notify::new() });
        tokio::spawn(serve(guest, stuck.clone()));
        let agent = Client::connect(host).await.unwrap();
        let args = args(&["registry.example/web:1"]);
        let name = random_name().unwrap();
        let guest = GuestImage {
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            agent: PathBuf::new(),
            firmware: PathBuf::new(),
            firmware_variables: PathBuf::new(),
            cmdline: String::new(),
            low_memory_mib: 0,
            machine: String::new(),
        };
        let plan =
            Plan { name: name.clone(), guest, init_data: None, container: create_request(&args).unwrap() };
        let mut report = Report::default();
        let mut signals = Signals::watch().unwrap();
        let life = live(&args, plan, StartPod::default(), &agent, &mut signals, &mut report);
        let terminate = async {
            stuck.asked.notified().await;
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(life, terminate).0 });
        let error = ended.await.expect("the signal was lost").err().unwrap();
        assert_eq!(error.message(), "the container did not start: terminated");
        assert_eq!(error.exit_code(), ExitCode::from(130));
        control::check_free(&name).unwrap();
    }
}
