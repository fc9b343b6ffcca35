//! What the tests of `deploy/` share: they ask the programs that would use its files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The repository's folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// A file of the repository.
///
/// # Panics
///
/// Where it cannot be read.
pub fn text(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a command to its end.
///
/// # Panics
///
/// Where it cannot be started, with what to do.
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `make setup` installs it"))
}

/// All that a command wrote.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the chart gives for values (YAML), with the hooks; or the refusal.
///
/// # Errors
///
/// What Helm says about the values or the templates.
///
/// # Panics
///
/// Where Helm's library cannot be run.
pub fn render(values: &str) -> Result<Vec<Value>, String> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values).expect("the values can be written");
    let script = repository().join("deploy/helm/render.sh");
    let output = run(Command::new(script).args(["--json", "--hooks"]).arg(&file));
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("manifests are JSON")),
        false => Err(said(&output)),
    }
}
