//! The guest's main program: PID 1 of the measured VM, and the helper it re-executes itself as to
//! run containers.

mod api;
mod attestation;
mod boot;
mod config;
mod container;
mod disks;
mod ephemeral_disk;
mod failure;
mod forward;
mod images;
mod modules;
mod network;
mod nonblocking;
mod pod;
mod reaper;
mod roots;
mod sysctls;
mod workload_api;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(container::helper::SUBCOMMAND) => return container::helper::run(),
        // This one is the first process too, but of a namespace.
        Some(container::namespace::SUBCOMMAND) => return container::namespace::run(),
        _ if rustix::process::getpid().as_raw_nonzero().get() == 1 => boot::run(),
        _ => {}
    }
    eprintln!("sealpod-agent is the first process of a Sealpod guest; start one with `sealpod run`");
    ExitCode::from(2)
}
