//! Builds the guest that does nothing, with which the agent's start is compared.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    for source in ["bare_init.rs", "../guest/loader/src/call.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("bare-init");
    let status = Command::new(variable("RUSTC"))
        .args(["bare_init.rs", "--crate-type=bin", "--edition=2024", "-O", "-C", "panic=abort"])
        // No C library, no start-up code, and an address of its own: the kernel needs nothing to run it.
        .args(["-C", "relocation-model=static", "-C", "link-args=-nostdlib -nostartfiles -static"])
        .args(["-C", "strip=symbols", "--target"])
        .arg(variable("TARGET"))
        .arg("-o")
        .arg(program)
        .status()
        .unwrap_or_else(|error| panic!("cannot run rustc: {error}"));
    assert!(status.success(), "rustc cannot build bare_init.rs: {status}");
}
