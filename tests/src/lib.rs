//! What the end-to-end tests share: the programs under test, an owner with a registry and a key broker, and pods.

pub mod node;
mod owner;
mod pod;
mod service;

use std::path::{Path, PathBuf};
use std::process::Command;

pub use node::Node;
pub use owner::{ImageOptions, InitData, LOOPBACK_IN_GUEST, Owner, busybox};
pub use pod::{Exited, Pod};
pub use service::Service;

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

/// The ephemeral disks of VMs of whose processes' command lines this is a part: QEMU alone has the files, which have no
/// names.
pub fn ephemeral_disks(part: &str) -> Vec<PathBuf> {
    let links =
        |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_vm = |process: &PathBuf| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("qemu-system-") && line.contains("id=ephemeral") && line.contains(part)
    };
    let is_disk = |file: &PathBuf| {
        let target = std::fs::read_link(file).unwrap_or_default().to_string_lossy().into_owned();
        target.ends_with(" (deleted)") && !target.starts_with("/memfd:") && file.is_file()
    };
    let disk = |process: PathBuf| links(&process.join("fd").to_string_lossy()).find(is_disk);
    links("/proc").filter(is_vm).filter_map(disk).collect()
}

/// Asserts that no process has a path of this folder on its command line.
///
/// # Panics
///
/// Where one has.
pub fn assert_no_process_mentions(folder: &Path) {
    let folder = folder.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        // A process may end between being listed and being read.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(&folder), "still running: {line}");
    }
}
