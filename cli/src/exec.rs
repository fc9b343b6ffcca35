//! `sealpod exec`: one more process in a running pod, if its owner's policy allows it.

use std::process::ExitCode;

use clap::Args;
use sealpod_agent_protocol::{Client, ExecProcess, ProcessRef, Request};

use crate::error::{Context, Error, Result};
use crate::pod::signals::Signals;
use crate::pod::streams::{Attachment, Outcome, attach};
use crate::pod::{ANSWER_LIMIT, CONTAINER, agent_error, control};
use crate::run::environment;

/// Execute a command in a running pod, if the owner's policy allows it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod exec web -- ls -l /www
  sealpod exec -it web -- sh

The exit status is the command's; 125 if the pod cannot be reached or refuses, 126 if the command
cannot be executed, 127 if the image does not have it.")]
pub(crate) struct ExecArgs {
    /// The pod's name, as `sealpod ps` shows it
    pod: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Set a variable; without a value it is taken from this environment
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    environment: Vec<String>,
    /// Run as another user than the container's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run in another folder than the container's
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// Pass on standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
}

pub(crate) async fn run(args: ExecArgs) -> Result<ExitCode> {
    execute(args).await.map_err(Error::of_pod)
}

async fn execute(args: ExecArgs) -> Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let agent = tokio::select! {
        agent = control::connect(&args.pod) => agent?,
        interrupted = signals.end() => return Err(interrupted).context("the command did not start"),
    };
    let outcome = tokio::select! {
        biased;
        outcome = run_process(args, &agent, &mut signals) => outcome?,
        silent = agent.silent(ANSWER_LIMIT) => return Err(agent_error(silent)),
    };
    Ok(ExitCode::from(outcome.exit.code))
}

async fn run_process(args: ExecArgs, agent: &Client, signals: &mut Signals) -> Result<Outcome> {
    let exec = format!("exec-{:08x}", std::process::id());
    let process = ProcessRef { container: CONTAINER.into(), exec: Some(exec.clone()) };
    let request = ExecProcess {
        container: CONTAINER.into(),
        exec,
        command: args.command,
        environment: environment(&args.environment)?,
        user: args.user,
        working_directory: args.workdir,
        terminal: args.tty,
        stdin: args.interactive,
    };
    tokio::select! {
        created = agent.call(Request::ExecProcess(Box::new(request))) => drop(created.map_err(agent_error)?),
        interrupted = signals.end() => return Err(interrupted).context("the command did not start"),
    }
    // It runs already: signals that come while streams open are passed on to it afterwards.
    let attachment = Attachment { stdin: args.interactive, terminal: args.tty };
    attach(agent, &process, attachment).await?.finish(signals).await
}
