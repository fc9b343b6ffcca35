//! `sealpod exec`: one more process in a running pod, if its owner's policy allows it.

use std::process::ExitCode;

use clap::Args;
use sealpod_agent_protocol::{Client, ExecProcess, ProcessRef, Request};

use crate::error::{Context, Error, Result};
use crate::pod::signals::Signals;
use crate::pod::streams::{Attachment, Outcome, attach};
use crate::pod::{ANSWER_LIMIT, CONTAINER, PROMPT, agent_error, control, random_id};
use crate::run::environment;

/// Execute a command in a running pod, if the owner's policy allows it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sealpod exec web -- ls -l /www
  sealpod exec -it web -- sh

The exit status is the command's; 125 if the pod cannot be reached or refuses, 126 if the command \
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
    let exec = format!("exec-{}", random_id()?);
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
    let attachment = Attachment { stdin: args.interactive, terminal: args.tty };
    tokio::select! {
        created = agent.call(Request::ExecProcess(Box::new(request))) => drop(created.map_err(agent_error)?),
        interrupted = signals.end() => {
            forget(agent, process, signals).await;
            return Err(interrupted).context("the command did not start");
        }
    }
    // It runs already: signals that come while streams open are passed on to it afterwards.
    let outcome = match attach(agent, &process, attachment).await {
        Ok(attached) => attached.finish(signals).await,
        Err(error) => Err(error),
    };
    forget(agent, process, signals).await;
    outcome
}

/// Ends what is left of the command, of which the guest would keep the exit status for as long as the pod lives.
async fn forget(agent: &Client, process: ProcessRef, signals: &mut Signals) {
    tokio::select! {
        // Where the policy forbids it, or the pod has ended, nothing is to be done.
        _ = agent.call_with_timeout(Request::RemoveExec(process), PROMPT) => {}
        // Who asks again does not want to wait.
        _ = signals.end() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use clap::Parser;
    use sealpod_agent_protocol::{ByteStream, ExitStatus, Failure, FailureKind, Handler, Reply, serve};

    use super::*;
    use crate::{Arguments, Command};

    /// A guest whose commands end at once, or cannot be waited for.
    struct Guest {
        waits: bool,
        asked: Mutex<Vec<(&'static str, String)>>,
    }

    impl Handler for Guest {
        type Opened = ();

        async fn call(&self, request: Request) -> Result<Reply, Failure> {
            let exec = match &request {
                Request::ExecProcess(exec) => Some(exec.exec.clone()),
                Request::WaitProcess(process) | Request::RemoveExec(process) => process.exec.clone(),
                _ => None,
            };
            self.asked.lock().unwrap().push((request.name(), exec.unwrap_or_default()));
            match request {
                Request::WaitProcess(_) if self.waits => {
                    Ok(Reply::Exit(ExitStatus { code: 0, exited_at_ms: 0, out_of_memory: false }))
                }
                Request::WaitProcess(_) => {
                    let message = "it cannot be waited for".into();
                    Err(Failure { kind: FailureKind::Internal, message, hint: None, denial: None })
                }
                _ => Ok(Reply::Done),
            }
        }

        async fn open(&self, _: Request) -> Result<(), Failure> {
            Ok(())
        }

        async fn stream(&self, (): (), _: ByteStream) {}
    }

    /// The requests of one command with the exec that they name.
    async fn asked_of(waits: bool) -> Vec<(&'static str, String)> {
        let (host, guest) = tokio::io::duplex(64 << 10);
        let handler = Arc::new(Guest { waits, asked: Mutex::default() });
        tokio::spawn(serve(guest, handler.clone()));
        let agent = Client::connect(host).await.unwrap();
        let words = ["sealpod", "exec", "web", "--", "true"];
        let Command::Exec(args) = Arguments::parse_from(words).command else { panic!("no exec") };
        let outcome = run_process(args, &agent, &mut Signals::none()).await;
        assert_eq!(outcome.is_ok(), waits);
        std::mem::take(&mut *handler.asked.lock().unwrap())
    }

    #[tokio::test]
    async fn the_guest_is_told_to_forget_each_command_whatever_became_of_it() {
        let mut execs = Vec::new();
        for waits in [true, false] {
            let asked = asked_of(waits).await;
            let names: Vec<_> = asked.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, ["ExecProcess", "WaitProcess", "RemoveExec"]);
            assert!(asked.iter().all(|(_, exec)| *exec == asked[0].1), "{asked:?}");
            execs.push(asked[0].1.clone());
        }
        assert_ne!(execs[0], execs[1], "no two commands of one pod share an id");
    }
}
