//! From measurements to numbers: medians, limits, a table and JSON.

use std::path::Path;
use std::time::Duration;

use sealpod_benches::limits::{self, Limit, limit, median_and_minimum, megabytes, milliseconds, rounded};
use serde::Serialize;

/// The agent answers at most this long after the guest that does nothing is there, which was started with it.
const READY_LIMIT_MS: f64 = 500.0;
const INITRD_LIMIT_MB: f64 = 24.0;
const RESIDENT_LIMIT_MB: f64 = 24.0;
/// What an attestation may take beside the TPM's quote.
const ATTEST_LIMIT_MS: f64 = 300.0;

/// Everything that was measured, each in the order of the runs.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    pub(crate) with_firmware: Boots,
    pub(crate) without_firmware: Boots,
    /// The agent's resident memory before it was asked for anything, in bytes.
    pub(crate) resident_bytes: Vec<u64>,
    /// From the challenge to the token.
    pub(crate) attest: Vec<Duration>,
    /// Requests to attest as the host sees them.
    pub(crate) attest_request: Vec<Duration>,
    /// The TPM's quotes.
    pub(crate) quote: Vec<Duration>,
    pub(crate) initrd_bytes: u64,
}

/// Times from QEMU's start, of guests of both kinds that were started at once and share a processor.
#[derive(Debug, Default)]
pub(crate) struct Boots {
    /// To the line of a first process that does nothing.
    pub(crate) bare: Vec<Duration>,
    /// To the agent's answer.
    pub(crate) agent_ready: Vec<Duration>,
    /// How many times as long as undisturbed work took in the most disturbed of these, between bare guest and agent.
    pub(crate) disturbance: f64,
    /// How far apart the two were in all runs, of which those above are the least disturbed: in ms.
    pub(crate) all_apart_ms: Vec<f64>,
}

/// `boot.json`. All `_ms` and `_mb` are medians unless their names say otherwise; a MB is 10⁶ bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Runs of each kind.
    runs: usize,
    accelerator: &'static str,
    /// With firmware, as is `agent_ready_ms`.
    bare_ms: f64,
    agent_ready_ms: f64,
    initrd_mb: f64,
    agent_rss_mb: f64,
    attest_ms: f64,
    attest_min_ms: f64,
    attest_request_ms: f64,
    attest_request_min_ms: f64,
    quote_ms: f64,
    quote_min_ms: f64,
    with_firmware: BootReport,
    without_firmware: BootReport,
    limits: Vec<Limit>,
    /// Whether all limits are kept.
    pass: bool,
}

/// Both guests boot at once on one processor: each takes about twice as long as alone, and the difference as long.
#[derive(Clone, Copy, Debug, Serialize)]
struct BootReport {
    bare_ms: f64,
    bare_min_ms: f64,
    agent_ready_ms: f64,
    agent_ready_min_ms: f64,
    /// Of the medians.
    difference_ms: f64,
    /// Of the guests that were started at once.
    pair_difference_ms: f64,
    /// The same in all runs that were made, of which the others are the least disturbed.
    all_pair_difference_ms: f64,
    runs_made: usize,
    /// How many times as long as undisturbed work took in the most disturbed of them.
    disturbance: f64,
}

impl Measurements {
    pub(crate) fn report(&self) -> anyhow::Result<Report> {
        let (with, without) = (self.with_firmware.report()?, self.without_firmware.report()?);
        let resident = self.resident_bytes.iter().map(|bytes| megabytes(*bytes)).collect();
        let (attest, attest_min) = milliseconds(&self.attest)?;
        let (attest_request, attest_request_min) = milliseconds(&self.attest_request)?;
        let (quote, quote_min) = milliseconds(&self.quote)?;
        let (initrd, (resident, _)) = (megabytes(self.initrd_bytes), median_and_minimum(resident)?);
        let limits = vec![
            limit("agent_ready - bare, with firmware", "ms", READY_LIMIT_MS, with.pair_difference_ms),
            limit("agent_ready - bare, without firmware", "ms", READY_LIMIT_MS, without.pair_difference_ms),
            limit("initrd", "MB", INITRD_LIMIT_MB, initrd),
            limit("agent_rss, idle", "MB", RESIDENT_LIMIT_MB, resident),
            limit("attest - quote", "ms", ATTEST_LIMIT_MS, rounded(attest - quote)),
        ];
        Ok(Report {
            runs: self.attest.len(),
            accelerator: "tcg",
            bare_ms: with.bare_ms,
            agent_ready_ms: with.agent_ready_ms,
            initrd_mb: initrd,
            agent_rss_mb: resident,
            attest_ms: attest,
            attest_min_ms: attest_min,
            attest_request_ms: attest_request,
            attest_request_min_ms: attest_request_min,
            quote_ms: quote,
            quote_min_ms: quote_min,
            with_firmware: with,
            without_firmware: without,
            pass: limits.iter().all(|limit| limit.pass),
            limits,
        })
    }
}

impl Boots {
    fn report(&self) -> anyhow::Result<BootReport> {
        let (bare, bare_min) = milliseconds(&self.bare)?;
        let (ready, ready_min) = milliseconds(&self.agent_ready)?;
        let pairs = self.agent_ready.iter().zip(&self.bare);
        let pairs = pairs.map(|(ready, bare)| (ready.as_secs_f64() - bare.as_secs_f64()) * 1000.0);
        let (pair_difference, _) = median_and_minimum(pairs.collect())?;
        let (all_apart, _) = median_and_minimum(self.all_apart_ms.clone())?;
        Ok(BootReport {
            bare_ms: bare,
            bare_min_ms: bare_min,
            agent_ready_ms: ready,
            agent_ready_min_ms: ready_min,
            difference_ms: rounded(ready - bare),
            pair_difference_ms: pair_difference,
            all_pair_difference_ms: all_apart,
            runs_made: self.all_apart_ms.len(),
            disturbance: (self.disturbance * 100.0).round() / 100.0,
        })
    }
}

impl Report {
    /// Whether all limits are kept.
    pub(crate) fn passes(&self) -> bool {
        self.pass
    }

    /// Writes it as JSON, for which the folder is made.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        limits::write(self, path)
    }

    /// The tables that a person reads.
    pub(crate) fn tables(&self) -> String {
        let times = [
            ("bare guest, with firmware", self.with_firmware.bare_ms, self.with_firmware.bare_min_ms),
            (
                "agent ready, with firmware",
                self.with_firmware.agent_ready_ms,
                self.with_firmware.agent_ready_min_ms,
            ),
            (
                "bare guest, without firmware",
                self.without_firmware.bare_ms,
                self.without_firmware.bare_min_ms,
            ),
            (
                "agent ready, without firmware",
                self.without_firmware.agent_ready_ms,
                self.without_firmware.agent_ready_min_ms,
            ),
            ("attest: challenge to token", self.attest_ms, self.attest_min_ms),
            ("attest: the whole request", self.attest_request_ms, self.attest_request_min_ms),
            ("the TPM's quote", self.quote_ms, self.quote_min_ms),
        ];
        let heading = format!("of {} runs, two on a processor, ms", self.runs);
        let mut text = format!("{heading:38}{:>10}{:>10}\n", "median", "min");
        for (name, median, minimum) in times {
            text.push_str(&format!("{name:38}{median:>10.1}{minimum:>10.1}\n"));
        }
        for (name, boots) in
            [("with firmware", self.with_firmware), ("without firmware", self.without_firmware)]
        {
            text.push_str(&format!(
                "{name}, pair by pair: {:.1} ms apart, {:.1} in all {} runs; disturbed by {:.2} at most\n",
                boots.pair_difference_ms, boots.all_pair_difference_ms, boots.runs_made, boots.disturbance
            ));
        }
        text.push_str(&limits::table(&self.limits));
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn times(milliseconds: &[u64]) -> Vec<Duration> {
        milliseconds.iter().copied().map(Duration::from_millis).collect()
    }

    fn measurements() -> Measurements {
        Measurements {
            with_firmware: Boots {
                bare: times(&[5000, 4000, 9000]),
                agent_ready: times(&[5400, 5500, 9100]),
                disturbance: 1.234,
                all_apart_ms: vec![400.0, 712.3, 800.0],
            },
            without_firmware: Boots {
                bare: times(&[1000]),
                agent_ready: times(&[1200]),
                all_apart_ms: vec![200.0],
                disturbance: 1.0,
            },
            resident_bytes: vec![11_000_000, 12_000_000, 99_000_000],
            attest: times(&[310, 250, 400]),
            attest_request: times(&[500]),
            quote: times(&[10]),
            initrd_bytes: 24_000_000,
        }
    }

    fn json(measurements: &Measurements) -> Value {
        serde_json::to_value(measurements.report().unwrap()).unwrap()
    }

    #[test]
    fn the_report_has_both_pairs_and_the_one_with_firmware_on_top() {
        let report = json(&measurements());
        assert_eq!((&report["bare_ms"], &report["agent_ready_ms"]), (&5000.0.into(), &5500.0.into()));
        assert_eq!(report["with_firmware"]["bare_min_ms"], 4000.0);
        assert_eq!(report["with_firmware"]["difference_ms"], 500.0);
        assert_eq!(report["with_firmware"]["pair_difference_ms"], 400.0);
        assert_eq!(report["with_firmware"]["runs_made"], 3);
        assert_eq!(report["with_firmware"]["all_pair_difference_ms"], 712.3);
        assert_eq!(report["with_firmware"]["disturbance"], 1.23);
        assert_eq!(report["without_firmware"]["difference_ms"], 200.0);
        assert_eq!((&report["attest_ms"], &report["quote_ms"]), (&310.0.into(), &10.0.into()));
        assert_eq!((&report["initrd_mb"], &report["agent_rss_mb"]), (&24.0.into(), &12.0.into()));
    }

    #[test]
    fn a_value_at_its_limit_passes() {
        let report = measurements().report().unwrap();
        assert!(report.passes(), "{:?}", report.limits);
    }

    #[test]
    fn each_limit_that_is_missed_fails_the_report() {
        type Change = (&'static str, fn(&mut Measurements));
        let changes: [Change; 5] = [
            ("agent_ready - bare, with firmware", |all| all.with_firmware.agent_ready = times(&[5501])),
            ("agent_ready - bare, without firmware", |all| all.without_firmware.bare = times(&[699])),
            ("initrd", |all| all.initrd_bytes = 24_100_000),
            ("agent_rss, idle", |all| all.resident_bytes = vec![24_100_000]),
            ("attest - quote", |all| all.quote = times(&[9])),
        ];
        for (name, change) in changes {
            let mut measurements = measurements();
            change(&mut measurements);
            let report = measurements.report().unwrap();
            let missed: Vec<&str> =
                report.limits.iter().filter(|limit| !limit.pass).map(|limit| limit.name).collect();
            assert_eq!(missed, [name]);
            assert!(!report.passes());
            assert_eq!(report.tables().matches("FAIL").count(), 1);
        }
    }

    #[test]
    fn the_report_is_written_where_there_was_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench/boot.json");
        measurements().report().unwrap().write(&path).unwrap();
        let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(report["pass"], true);
    }
}
