//! Measures what the project promises of pods on a node: a pod's start by CRI beside `sealpod run` of the same image
//! and beside a runc pod, memory, execs, output, pods a minute. `make bench-node` runs it; it fails where a limit is
//! missed.
//!
//! The host's programs are those beside it: `make bench-node` builds them as they are shipped.

mod measure;
mod report;

use std::process::ExitCode;

use sealpod_benches::processor;
use sealpod_tests::node::namespaces::{self, End};

fn main() -> ExitCode {
    if let Some(code) = namespaces::enter(End::Killed) {
        return code;
    }
    match run() {
        Ok(passes) if passes => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<bool> {
    processor::keep_to_one()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure::all())?.report()?;
    let path = sealpod_tests::repository().join("target/bench/node.json");
    sealpod_benches::limits::write(&report, &path)?;
    print!("\n{}", report.tables());
    println!("wrote {}", path.display());
    Ok(report.pass)
}
