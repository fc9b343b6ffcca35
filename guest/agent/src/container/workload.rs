//! The last steps inside a container: is there such a program, then seccomp, then `execve`.
//!
//! The runtime library would filter only the first process of a container; here every process of it is.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, access};
use sealpod_agent_protocol::FailureKind;

use super::seccomp::Program;
use super::spec::Filter;

/// What the complaints about a program that cannot run begin with. The runtime library passes them on as text only,
/// among words of its own.
pub(super) const NOT_FOUND: &str = "no such program: ";
/// See [`NOT_FOUND`].
pub(super) const NOT_EXECUTABLE: &str = "not executable: ";

/// Runs a container's program.
#[derive(Clone)]
pub(super) struct Workload {
    /// If it is ours to install.
    filter: Option<Program>,
}

impl Workload {
    pub(super) fn new(filter: Filter) -> io::Result<Self> {
        let filter = (filter == Filter::AtTheEnd).then(Program::load).transpose()?;
        Ok(Self { filter })
    }

    /// Whether there is such a program that this process may run, with its user and its root.
    pub(super) fn check(process: &Process) -> Result<(), (FailureKind, String)> {
        let program = arguments(process).first().map(String::as_str).unwrap_or_default();
        let path = environment(process).find_map(|(name, value)| (name == "PATH").then_some(value));
        match find(program, path.unwrap_or_default()) {
            Found::Runnable => Ok(()),
            Found::NotExecutable => {
                let message = format!("{program:?} is no program that its user may run");
                Err((FailureKind::ProgramNotExecutable, message))
            }
            Found::Nothing => {
                Err((FailureKind::ProgramNotFound, format!("the image has no program {program:?}")))
            }
        }
    }

    /// Forbids this process what its filter does not allow, for good.
    pub(super) fn filter_calls(&self) -> io::Result<()> {
        self.filter.as_ref().map_or(Ok(()), Program::install)
    }

    /// Runs the program in place of this one, and says why if it cannot.
    pub(super) fn run(process: &Process) -> String {
        let [program, arguments @ ..] = arguments(process) else { return "there is no program".into() };
        // Also undoes what our own runtime did to SIGPIPE.
        let error = Command::new(program).args(arguments).env_clear().envs(environment(process)).exec();
        format!("cannot execute {program:?}: {error}")
    }
}

impl Executor for Workload {
    /// Comes before the container counts as created.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref().ok_or_else(|| {
            ExecutorValidationError::ArgValidationError("there is no process in the specification".into())
        })?;
        Self::check(process).map_err(|(kind, message)| {
            let begin = if kind == FailureKind::ProgramNotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            ExecutorValidationError::ArgValidationError(format!("{begin}{message}"))
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        self.filter_calls().map_err(|error| ExecutorError::Other(format!("cannot filter calls: {error}")))?;
        Err(ExecutorError::Other(Self::run(process)))
    }
}

fn arguments(process: &Process) -> &[String] {
    process.args().as_deref().unwrap_or_default()
}

/// Names and values.
fn environment(process: &Process) -> impl Iterator<Item = (&str, &str)> {
    process.env().iter().flatten().filter_map(|variable| variable.split_once('='))
}

/// What there is under a program's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    NotExecutable,
    Runnable,
}

/// Looks for a program as execvp(3) does.
fn find(program: &str, path: &str) -> Found {
    let look = |file: &Path| match file.is_file() && access(file, Access::EXEC_OK).is_ok() {
        true => Found::Runnable,
        false if file.exists() => Found::NotExecutable,
        false => Found::Nothing,
    };
    match program {
        "" => Found::Nothing,
        _ if program.contains('/') => look(Path::new(program)),
        _ => {
            let places = std::env::split_paths(OsStr::new(path)).map(|folder| look(&folder.join(program)));
            places.max().unwrap_or(Found::Nothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_execvp_finds_it() {
        assert_eq!(find("sh", "/nowhere:/bin"), Found::Runnable);
        assert_eq!(find("/bin/sh", ""), Found::Runnable);
        for (program, path) in [("sh", "/nowhere"), ("", "/bin"), ("/nowhere/sh", "/bin")] {
            assert_eq!(find(program, path), Found::Nothing, "{program:?} in {path:?}");
        }
        for (program, path) in [("/bin", ""), ("/etc/passwd", ""), ("passwd", "/nowhere:/etc")] {
            assert_eq!(find(program, path), Found::NotExecutable, "{program:?} in {path:?}");
        }
    }
}
