//! `sealpod run`: an image in a measured VM, as `podman run` would show it.

use std::collections::BTreeMap;
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
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context, Error, Exit, Result};
use crate::init_data;
use crate::output::Progress;
use crate::pod::streams::{Attachment, attend};
use crate::pod::{CONTAINER, agent_error, control, data_folder};

/// Run an image in a new measured VM; streams, signals and exit status are the container's
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod run --kbs https://10.0.2.2:8443 --kbs-certificate tls.crt \\
      --image-policy kbs:///default/image-policy/web registry.example/web:1
  sealpod run --init-data web.toml --port 8080:80 registry.example/web:1
  sealpod run -it --init-data debug.toml registry.example/tools -- sh

The exit status is the container's; 125 if the pod did not start, 126 if the command cannot be
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
    /// Forward a TCP port of this machine's to the pod (host port 0 takes a free one)
    #[arg(short, long = "port", value_name = "[ADDRESS:]HOST:POD")]
    ports: Vec<PortForward>,
    /// The VM's memory, as 512M or 2G
    #[arg(short, long, default_value = "512M", value_parser = parse_memory)]
    memory: u32,
    /// Give the pod a disk of this size for its files, encrypted under a key that only the guest has, as 2G
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
    let mut report = Report::default();
    let outcome = run_pod(&args, &mut report).await.map_err(Error::of_pod);
    if let Some(path) = &args.report {
        report.error = outcome.as_ref().err().map(Error::message);
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).context(format!("cannot write the report {}", path.display()))?;
    }
    outcome
}

/// A pod whose container is about to start.
struct Prepared {
    sandbox: Sandbox,
    _control: control::Control,
}

async fn run_pod(args: &RunArgs, report: &mut Report) -> Result<ExitCode> {
    let prepared = tokio::select! {
        prepared = prepare(args, report) => prepared,
        interrupted = interruption() => Err(interrupted?),
    };
    let Prepared { mut sandbox, _control } = prepared?;
    let agent = sandbox.agent().clone();
    let process = ProcessRef { container: CONTAINER.into(), exec: None };
    let attachment = Attachment { stdin: args.interactive, terminal: args.tty };
    let created = Instant::now();
    let start = async {
        ask(&agent, Request::StartContainer(ContainerRef { container: CONTAINER.into() }), report)
            .await
            .map(drop)
    };
    let outcome = tokio::select! {
        outcome = attend(&agent, &process, attachment, start) => outcome,
        reason = sandbox.exited() => Err(Error::new(format!("the VM ended: {reason}"))),
    };
    sandbox.stop().await;
    let outcome = outcome?;
    if let Some(first) = outcome.first_output {
        report.stages_ms.insert("start", milliseconds(first - created));
    }
    report.exit_code = Some(outcome.exit.code);
    if outcome.exit.out_of_memory {
        eprintln!("note: the kernel ended the container for want of memory; --memory gives it more");
    }
    Ok(ExitCode::from(outcome.exit.code))
}

/// From nothing to a container that only needs to be started.
async fn prepare(args: &RunArgs, report: &mut Report) -> Result<Prepared> {
    Reference::parse(&args.image).context(format!("{:?}", args.image))?;
    let init_data = match &args.init_data {
        Some(path) => Some(read_init_data(path)?),
        None => args.parts.create()?,
    };
    let container = create_request(args)?;
    let guest = crate::guest::folder(args.guest.as_deref())?;
    let guest = GuestImage::open(&guest)?;
    let name = args.name.clone().map_or_else(random_name, Ok)?;
    control::check_free(&name)?;
    report.name.clone_from(&name);

    let progress = Progress::start("booting the VM");
    let sandbox = start_sandbox(args, guest, &progress).await?;
    let timings = sandbox.timings();
    report.stages_ms.insert("boot", milliseconds(timings.first_byte));
    report.stages_ms.insert("agent", milliseconds(timings.ready.saturating_sub(timings.first_byte)));
    report.ports = sandbox.ports().iter().map(|port| (port.guest, port.host)).collect();

    let agent = sandbox.agent().clone();
    let (interfaces, dns) = sandbox.pod_network();
    let start_pod = StartPod {
        hostname: name.clone(),
        init_data,
        interfaces,
        dns,
        hosts: args.add_host.clone(),
        ..StartPod::default()
    };
    ask(&agent, Request::StartPod(start_pod), report).await?;

    progress.say("attesting to the key broker");
    let began = Instant::now();
    ask(&agent, Request::Attest, report).await?;
    report.stages_ms.insert("attest", milliseconds(began.elapsed()));

    progress.say("pulling the image in the guest");
    let began = Instant::now();
    let pull = PullImage { image: args.image.clone() };
    match ask(&agent, Request::PullImage(pull), report).await? {
        Reply::Image(image) => report.image = Some(image),
        other => return Err(Error::new(format!("the agent answered a pull with {other:?}"))),
    }
    report.stages_ms.insert("image", milliseconds(began.elapsed()));

    progress.say("preparing the container");
    ask(&agent, Request::CreateContainer(Box::new(container)), report).await?;
    let control = control::Control::open(&name, &args.image, agent)?;
    Ok(Prepared { sandbox, _control: control })
}

async fn start_sandbox(args: &RunArgs, guest: GuestImage, progress: &Progress) -> Result<Sandbox> {
    let authority = args.tpm_authority.clone().unwrap_or_else(|| data_folder().join("tpm-authority"));
    let config = SandboxConfig {
        memory_mib: args.memory,
        cpus: args.cpus,
        ephemeral_disk_mib: args.disk.unwrap_or_default(),
        accelerator: args.accelerator,
        tpm: Tpm::Emulated { authority },
        network: Network::User { ports: args.ports.clone() },
        ..SandboxConfig::new(guest)
    };
    progress.say("booting the VM");
    Ok(Sandbox::start(config).await?)
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

/// Waits for a signal that ends a pod which has not started yet.
async fn interruption() -> Result<Error> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(Error::new("interrupted before the container started").exit(Exit::Interrupted))
}

fn random_name() -> Result<String> {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new("this machine gives no random numbers"))?;
    Ok(format!("pod-{}", hex::encode(bytes)))
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
    use super::*;

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
}
