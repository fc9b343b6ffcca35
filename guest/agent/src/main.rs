//! The guest's only program: PID 1 of the measured VM, and the helper it re-executes itself as to
//! run containers.

mod api;
mod attestation;
mod boot;
mod config;
mod container;
mod disk;
mod failure;
mod images;
mod network;
mod nonblocking;
mod pod;
mod reaper;
mod sysctls;
mod workload_api;

use std::process::ExitCode;

fn main() -> ExitCode {
    if rustix::process::getpid().as_raw_nonzero().get() == 1 {
        boot::run();
    }
    if std::env::args().nth(1).as_deref() == Some(container::helper::SUBCOMMAND) {
        return container::helper::run();
    }
    eprintln!("sealpod-agent is the first process of a Sealpod guest; start one with `sealpod run`");
    ExitCode::from(2)
}
