//! The last steps inside a container: is there such a program, then seccomp, then `execve`.
//!
//! The runtime library would filter only the first process of a container; here every process of it is.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, access};

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
}

impl Executor for Workload {
    /// Comes before the container counts as created, with its user and its root.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let program = arguments(spec).first().map(String::as_str).unwrap_or_default();
        let path = environment(spec).find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        let complaint = match find(program, path) {
            Found::Runnable => return Ok(()),
            Found::NotExecutable => {
                format!("{NOT_EXECUTABLE}{program:?} is no program that its user may run")
            }
            Found::Nothing => format!("{NOT_FOUND}the image has no program {program:?}"),
        };
        Err(ExecutorValidationError::ArgValidationError(complaint))
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let [program, arguments @ ..] = arguments(spec) else { return Err(ExecutorError::InvalidArg) };
        if let Some(filter) = &self.filter {
            filter
                .install()
                .map_err(|error| ExecutorError::Other(format!("cannot filter calls: {error}")))?;
        }
        // Also undoes what our own runtime did to SIGPIPE.
        let error = Command::new(program).args(arguments).exec();
        Err(ExecutorError::Other(format!("cannot execute {program:?}: {error}")))
    }
}

fn arguments(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default()
}

fn environment(spec: &Spec) -> impl Iterator<Item = &str> {
    spec.process().iter().flat_map(|process| process.env().iter().flatten()).map(String::as_str)
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
