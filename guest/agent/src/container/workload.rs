//! The last steps inside a container: is there such a program, then seccomp, then `execve`.
//!
//! The runtime library would filter only the first process of a container; here every process of it is.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::fs::{Access, access};

use super::seccomp;

/// What the complaint about a program that cannot run begins with. The runtime library passes it on as text only,
/// among words of its own.
pub(super) const COMPLAINT: &str = "cannot be run: ";

/// Runs a container's program.
#[derive(Clone)]
pub(super) struct Workload {
    seccomp: LinuxSeccomp,
}

impl Workload {
    pub(super) fn new() -> Result<Self, OciSpecError> {
        Ok(Self { seccomp: seccomp::profile()? })
    }
}

impl Executor for Workload {
    /// Comes before the container counts as created, with its user and its root.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let program = arguments(spec).first().map(String::as_str).unwrap_or_default();
        let path = environment(spec).find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        match is_runnable(program, path) {
            true => Ok(()),
            false => {
                let complaint =
                    format!("{COMPLAINT}{program:?} is not a program of the image that its user may run");
                Err(ExecutorValidationError::ArgValidationError(complaint))
            }
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let [program, arguments @ ..] = arguments(spec) else { return Err(ExecutorError::InvalidArg) };
        initialize_seccomp(&self.seccomp).map_err(|error| ExecutorError::Other(error.to_string()))?;
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

fn is_runnable(program: &str, path: &str) -> bool {
    let runnable = |file: &Path| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    match program {
        "" => false,
        _ if program.contains('/') => runnable(Path::new(program)),
        _ => std::env::split_paths(OsStr::new(path)).any(|folder| runnable(&folder.join(program))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_execvp_finds_it() {
        assert!(is_runnable("sh", "/nowhere:/bin"));
        assert!(is_runnable("/bin/sh", ""));
        for (program, path) in
            [("sh", "/nowhere"), ("", "/bin"), ("/bin", ""), ("/etc/passwd", ""), ("passwd", "/etc")]
        {
            assert!(!is_runnable(program, path), "{program:?} in {path:?}");
        }
    }
}
