//! Measures what the project promises of a pod's start: the agent's readiness against the same machine with a guest
//! that does nothing, an attestation, sizes. `make bench` runs it; it fails where a limit is missed.

mod bare;
mod disturbance;
mod machine;
mod memory;
mod owner;
mod quote;
mod relay;
mod report;
mod runs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sealpod_benches::processor;
use sealpod_sandbox::tpm_authority;
use tokio::signal::unix::{SignalKind, signal};

use disturbance::Disturbance;
use machine::Machine;
use owner::Owner;
use report::{Measurements, Report};
use runs::{RUNS, Run, Runs};

/// Runs of each kind at most, until so many as count were hardly disturbed. The kinds take turns.
const MOST_RUNS: usize = 15;

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            print!("\n{}", report.tables());
            if report.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<Report> {
    processor::keep_to_one()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measurements = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
        // Whatever was started is dropped with the future, and ends.
        tokio::select! {
            measurements = measure() => measurements,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    let report = measurements.report()?;
    let path = repository().join("target/bench/boot.json");
    report.write(&path)?;
    println!("wrote {}", path.display());
    Ok(report)
}

async fn measure() -> anyhow::Result<Measurements> {
    let temporary = tempfile::Builder::new().prefix("sealpod-bench-").tempdir()?;
    let folder = temporary.path();
    let tpm_authority = folder.join("tpm-authority");
    let ek_roots = tpm_authority::create(&tpm_authority)?;
    let guest = guest_folder();
    let disturbance = Disturbance::watch()?;
    let machine = Machine::new(&guest, folder, tpm_authority.clone())?;
    let owner = Owner::start(&guest, &ek_roots, folder).await?;
    let quote = quote::measure(&tpm_authority, folder)?;
    tell("the TPM's quote", &quote);

    let mut all = Measurements { quote, initrd_bytes: machine.initrd_bytes()?, ..Measurements::default() };
    let (mut with_firmware, mut without_firmware) = (Runs::default(), Runs::default());
    for round in 1..=MOST_RUNS {
        for (firmware, runs) in [(true, &mut with_firmware), (false, &mut without_firmware)] {
            if runs.are_enough() {
                continue;
            }
            let kind = if firmware { "with firmware" } else { "without firmware" };
            let began = Instant::now();
            let pair = machine.pair(firmware).await?;
            runs.add(Run::of(&pair, began, &disturbance));
            tell(
                &format!("round {round}, {kind}: bare guest, agent ready, of which alone"),
                &[pair.bare, pair.ready(), pair.ready().saturating_sub(pair.bare)],
            );
            if all.resident_bytes.len() < 2 * RUNS {
                all.resident_bytes.push(machine::info(&pair.agent).await?.resident_bytes);
            }
            if firmware && all.attest.len() < RUNS {
                let attested = owner.attest(&pair.agent).await?;
                all.attest.push(attested.handshake);
                all.attest_request.push(attested.request);
                tell(&format!("round {round}: attest"), &[attested.handshake]);
            }
            pair.agent.stop().await;
        }
    }
    all.with_firmware = with_firmware.least_disturbed();
    all.without_firmware = without_firmware.least_disturbed();
    Ok(all)
}

/// A line of progress.
fn tell(what: &str, times: &[Duration]) {
    let times: Vec<String> =
        times.iter().map(|time| format!("{:.1} ms", time.as_secs_f64() * 1000.0)).collect();
    eprintln!("{what}: {}", times.join(", "));
}

fn repository() -> PathBuf {
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    this.parent().unwrap_or(this).to_owned()
}

/// The guest that `make guest` built.
fn guest_folder() -> PathBuf {
    let named = std::env::var_os("SEALPOD_GUEST").map(PathBuf::from);
    named.unwrap_or_else(|| repository().join("target/guest-image"))
}
