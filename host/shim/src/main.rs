//! The program that containerd runs: `containerd-shim-sealpod-v2`.

use std::io::Write;
use std::process::ExitCode;

use sealpod_shim::command_line::{Action, CommandLine, HELP};
use sealpod_shim::{Error, info, launch, serve};

fn main() -> ExitCode {
    let line = match CommandLine::parse(std::env::args_os().skip(1)) {
        Ok(line) => line,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it to whoever asked for the pod.
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &CommandLine) -> Result<(), Error> {
    let answer = match line.action {
        Action::Start => launch::start(line)?.into_bytes(),
        Action::Delete => launch::delete(line)?,
        Action::Serve => return serve(line),
        Action::Info => info()?,
        Action::Version => format!("containerd-shim-sealpod-v2 {}\n", env!("CARGO_PKG_VERSION")).into_bytes(),
        Action::Help => HELP.as_bytes().to_vec(),
    };
    std::io::stdout().write_all(&answer).map_err(Error::io("cannot answer containerd"))
}
