//! `sealpod exec`: one more process in a running pod, if its owner's policy allows it.

use std::process::ExitCode;

use clap::Args;
use sealpod_agent_protocol::{ExecProcess, ProcessRef, Request};

use crate::error::{Error, Result};
use crate::pod::streams::{Attachment, attend};
use crate::pod::{CONTAINER, agent_error, control};
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
    let agent = control::connect(&args.pod).await?;
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
    agent.call(Request::ExecProcess(Box::new(request))).await.map_err(agent_error)?;
    let attachment = Attachment { stdin: args.interactive, terminal: args.tty };
    let outcome = attend(&agent, &process, attachment, async { Ok(()) }).await?;
    Ok(ExitCode::from(outcome.exit.code))
}
