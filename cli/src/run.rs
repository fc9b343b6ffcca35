//! `sealpod run`: an image in a measured VM, as `podman run` would show it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use sealpod_agent_protocol::{
    ContainerRef, CreateContainer, HostEntry, ProcessRef, PullImage, PulledImage, Reply, Request, Resources,
    StartPod,
};
use sealpod_sandbox::{Accelerator, GuestImage, PortForward, Sandbox, SandboxConfig, Tpm, Transport};
use serde::Serialize;

use crate::error::{Context, Error, Exit, Result};
use crate::init_data;
use crate::output::Progress;
use crate::pod::streams::{Attachment, attend};
use crate::pod::{agent_error, control, data_folder};

/// Run an image in a new measured VM; streams, signals and exit status are the container's
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod run --kbs https://10.0.2.2:8443 --kbs-certificate tls.crt \\
      --image-policy kbs:///default/image-policy/web registry.example/web:1
  sealpod run --init-data web.toml --port 8080:80 registry.example/web:1
  sealpod run -it --init-data debug.toml registry.example/tools -- sh

The exit status is the container's; 125 if the pod did not start, 126 if the command cannot be
invoked, 127 if there is none such. In the guest, 10.0.2.2 is this machine's loopback.")]
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
}

/// Runs the pod and gives the container's exit status.
pub(crate) async fn run(args: RunArgs) -> Result<ExitCode> {
    let mut report = Report::default();
    let outcome = tokio::select! {
        outcome = run_pod(&args, &mut report) => outcome,
        () = interrupted_before_start() => Err(Error::new("interrupted").exit(Exit::Interrupted)),
    };
    if let Some(path) = &args.report {
        report.error = outcome.as_ref().err().map(Error::message);
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).context(format!("cannot write the report {}", path.display()))?;
    }
    outcome
}
