//! `sealpod`: the one tool that people type.

mod demo;
mod doctor;
mod error;
mod exec;
mod file;
mod guest;
mod image;
mod init_data;
mod kbs;
mod node;
mod output;
mod pod;
mod policy;
mod ps;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use error::Result;

/// Confidential containers: encrypted, signed images in measured VMs on somebody else's machine
#[derive(Debug, Parser)]
#[command(name = "sealpod", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Start here:
  sealpod doctor      is this machine ready?
  sealpod demo        the whole story in about a minute

Exit status: 0 done; 1 failed; 2 wrong usage; 130 interrupted; run and exec: the container's own.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Say more on standard error (twice: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
    Ps(ps::PsArgs),
    Image(image::ImageArgs),
    Kbs(kbs::KbsArgs),
    InitData(init_data::InitDataArgs),
    Policy(policy::PolicyArgs),
    Guest(guest::GuestArgs),
    Node(Box<node::NodeArgs>),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  sealpod completions bash > ~/.local/share/bash-completion/completions/sealpod
  sealpod completions fish > ~/.config/fish/completions/sealpod.fish")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.verbose);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error::Error::from(error).report();
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(dispatch(arguments.command));
    // A read of standard input cannot be cancelled; the process ends without it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) if error.is_output_closed() => ExitCode::SUCCESS,
        Err(error) => {
            error.report();
            error.exit_code()
        }
    }
}

async fn dispatch(command: Command) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(args) => run::run(*args).await,
        Command::Exec(args) => exec::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Ps(args) => ps::run(args).await.map(done),
        Command::Image(args) => image::run(args).await.map(done),
        Command::Kbs(args) => kbs::run(args).await.map(done),
        Command::InitData(args) => init_data::run(args).map(done),
        Command::Policy(args) => policy::run(args),
        Command::Guest(args) => guest::run(args).await.map(done),
        Command::Node(args) => node::run(*args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "sealpod", &mut script);
            output::raw(&script).map(done)
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr)
        // It would say so on standard error, and panic where that is closed.
        .log_internal_errors(false)
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_well_formed_and_has_help() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{} has no help", subcommand.get_name());
        }
    }

    #[test]
    fn every_command_has_an_example_of_itself() {
        fn check(command: &clap::Command, name: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_example =
                |line: &str| line.starts_with("  ") && format!("{line} ").contains(&format!("{name} "));
            assert!(help.lines().any(is_example), "{name} has no example");
            let mut indented = help.lines().filter(|line| line.starts_with("  "));
            let broken = indented.find(|line| line.chars().count() > 80);
            assert_eq!(broken, None, "{name}: a terminal would break it where no shell does");
            for subcommand in command.get_subcommands() {
                check(subcommand, &format!("{name} {}", subcommand.get_name()));
            }
        }
        check(&Arguments::command(), "sealpod");
    }
}
