//! From measurements to `node.json`.

use std::time::Duration;

use sealpod_benches::limits::{
    self, Limit, at_least, limit, median_and_minimum, megabytes, milliseconds, rounded,
};
use serde::Serialize;

/// What a pod's start by CRI may take longer than `sealpod run` of the same image.
const START_LIMIT_MS: f64 = 400.0;
const SHIM_LIMIT_MB: f64 = 12.0;
const SNAPSHOTTER_LIMIT_MB: f64 = 20.0;
const EXEC_LIMIT_MS: f64 = 250.0;
const OUTPUT_LIMIT_MB_PER_S: f64 = 15.0;

/// Everything that was measured, each in the order of the runs.
#[derive(Debug, Default)]
pub(crate) struct Measurements {
    /// From RunPodSandbox to the container's first output.
    pub(crate) pod: Vec<Duration>,
    /// The same as `pod`, and from `sealpod run` to its container's first output, of the two at once.
    pub(crate) together: Vec<(Duration, Duration)>,
    /// The same as `pod`, of runc.
    pub(crate) runc: Vec<Duration>,
    /// From RunPodSandbox to the end of RemovePodSandbox.
    pub(crate) life: Vec<Duration>,
    /// Resident memory of shims with a running container, in bytes.
    pub(crate) shim_bytes: Vec<u64>,
    pub(crate) snapshotter_bytes: u64,
    /// ExecSync of a program that does nothing.
    pub(crate) exec: Vec<Duration>,
    /// Bytes of output and the time from the first to the last in the container's log.
    pub(crate) output: Vec<(u64, Duration)>,
}

/// `node.json`: medians; a MB is 10⁶ bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pod_first_output_ms: f64,
    runc_first_output_ms: f64,
    /// The median of what the pod takes longer of the two at once.
    pod_beside_run_ms: f64,
    /// `pod` through `runc`.
    pod_to_runc_ratio: f64,
    shim_rss_mb: f64,
    snapshotter_rss_mb: f64,
    exec_sync_p50_ms: f64,
    stdout_mb_per_s: f64,
    /// One after the other.
    pods_per_minute: f64,
    limits: Vec<Limit>,
    /// Whether all limits are kept.
    pub(crate) pass: bool,
}

impl Measurements {
    pub(crate) fn report(&self) -> anyhow::Result<Report> {
        let (pod, _) = milliseconds(&self.pod)?;
        let longer = |(pod, run): &(Duration, Duration)| (pod.as_secs_f64() - run.as_secs_f64()) * 1000.0;
        let (beside, _) = median_and_minimum(self.together.iter().map(longer).collect())?;
        let (runc, _) = milliseconds(&self.runc)?;
        let (life, _) = milliseconds(&self.life)?;
        let (exec, _) = milliseconds(&self.exec)?;
        let (shim, _) = median_and_minimum(self.shim_bytes.iter().map(|bytes| megabytes(*bytes)).collect())?;
        let rates = self.output.iter().map(|(bytes, time)| *bytes as f64 / 1e6 / time.as_secs_f64());
        let (output, _) = median_and_minimum(rates.collect())?;
        let snapshotter = megabytes(self.snapshotter_bytes);
        let limits = vec![
            limit("pod by CRI - sealpod run", "ms", START_LIMIT_MS, beside),
            limit("shim's resident memory", "MB", SHIM_LIMIT_MB, shim),
            limit("snapshotter's resident memory", "MB", SNAPSHOTTER_LIMIT_MB, snapshotter),
            limit("exec-sync, p50", "ms", EXEC_LIMIT_MS, exec),
            at_least("output", "MB/s", OUTPUT_LIMIT_MB_PER_S, output),
        ];
        Ok(Report {
            pod_first_output_ms: pod,
            runc_first_output_ms: runc,
            pod_beside_run_ms: beside,
            pod_to_runc_ratio: rounded(pod / runc),
            shim_rss_mb: shim,
            snapshotter_rss_mb: snapshotter,
            exec_sync_p50_ms: exec,
            stdout_mb_per_s: output,
            pods_per_minute: rounded(60_000.0 / life),
            pass: limits.iter().all(|limit| limit.pass),
            limits,
        })
    }
}

impl Report {
    /// The tables that a person reads.
    pub(crate) fn tables(&self) -> String {
        let mut text = String::new();
        for (name, value, unit) in [
            ("pod by CRI, to first output", self.pod_first_output_ms, "ms"),
            ("runc pod, to first output", self.runc_first_output_ms, "ms"),
            ("pods created and deleted", self.pods_per_minute, "a minute"),
        ] {
            text.push_str(&format!("{name:38}{value:>10.1} {unit}\n"));
        }
        text + &limits::table(&self.limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurements() -> Measurements {
        let ms = Duration::from_millis;
        Measurements {
            pod: vec![ms(9400), ms(9000), ms(20_000)],
            together: vec![(ms(19_000), ms(18_000)), (ms(18_300), ms(17_900)), (ms(17_000), ms(18_000))],
            runc: vec![ms(940)],
            life: vec![ms(10_000)],
            shim_bytes: vec![12_000_000],
            snapshotter_bytes: 20_000_000,
            exec: vec![ms(250)],
            output: vec![(15_000_000, ms(1000))],
        }
    }

    #[test]
    fn a_value_at_its_limit_passes() {
        let report = measurements().report().unwrap();
        assert!(report.pass, "{:?}", report.limits);
        assert_eq!((report.pod_beside_run_ms, report.pod_to_runc_ratio), (400.0, 10.0));
        assert_eq!(report.pods_per_minute, 6.0);
    }

    #[test]
    fn each_limit_that_is_missed_fails_the_report() {
        type Change = (&'static str, fn(&mut Measurements));
        let changes: [Change; 5] = [
            ("pod by CRI - sealpod run", |all| all.together[1].0 += Duration::from_millis(1)),
            ("shim's resident memory", |all| all.shim_bytes = vec![12_100_000]),
            ("snapshotter's resident memory", |all| all.snapshotter_bytes = 20_100_000),
            ("exec-sync, p50", |all| all.exec = vec![Duration::from_millis(251)]),
            ("output", |all| all.output = vec![(14_000_000, Duration::from_secs(1))]),
        ];
        for (name, change) in changes {
            let mut measurements = measurements();
            change(&mut measurements);
            let report = measurements.report().unwrap();
            let missed: Vec<&str> =
                report.limits.iter().filter(|limit| !limit.pass).map(|limit| limit.name).collect();
            assert_eq!(missed, [name]);
            assert!(!report.pass);
        }
    }
}
