//! What the end-to-end tests share: the programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository is there")
}

/// A program that `make build` built, beside this test's own.
///
/// # Panics
///
/// Where it is missing, with what to do.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let found = test.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} was not built: run `make build`"))
}

/// The guest that `make guest` built.
///
/// # Panics
///
/// Where it is missing, with what to do.
pub fn guest() -> PathBuf {
    let named = std::env::var_os("SEALPOD_GUEST").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| repository().join("target/guest-image"));
    assert!(
        folder.join("guest.json").is_file(),
        "there is no guest in {}: run `make guest`",
        folder.display()
    );
    folder
}

/// The command line tool with the guest under test.
pub fn sealpod() -> Command {
    let mut command = Command::new(program("sealpod"));
    command.env("SEALPOD_GUEST", guest());
    command
}
