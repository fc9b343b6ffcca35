//! Limits of control groups: the engine writes those of version 1, the guest has version 2.

use oci_spec::runtime::LinuxResources;
use sealpod_agent_protocol::Resources;

use super::{Error, refused};

/// A file of control groups (version 2) that kubelet sets: of a container's processes all are killed, or none.
pub(super) const KILL_TOGETHER: &str = "memory.oom.group";

/// What a quota of processor time is of where nothing else is said, in microseconds: the kernel's own (`cpu.cfs_period_us`).
const USUAL_PERIOD: u64 = 100_000;

/// The limits of a container.
pub(super) fn typed(resources: &LinuxResources) -> Result<Resources, Error> {
    if resources.hugepage_limits().iter().flatten().any(|limit| limit.limit() > 0) {
        return Err(refused(
            "huge pages",
            "the guest has none to give; leave them out of the container's limits",
        ));
    }
    let (cpu, memory) = (resources.cpu().as_ref(), resources.memory().as_ref());
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number > 0);
    let quota = cpu.and_then(|cpu| cpu.quota()).and_then(positive);
    let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(USUAL_PERIOD);
    Ok(Resources {
        memory_bytes: memory.and_then(|memory| memory.limit()).and_then(positive),
        cpu_millis: quota.map(|quota| quota.saturating_mul(1000) / period),
        cpu_weight: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares > 0).map(weight),
        cpus: cpu.and_then(|cpu| cpu.cpus().clone()).filter(|cpus| !cpus.is_empty()),
        pids: resources.pids().as_ref().and_then(|pids| positive(pids.limit())),
        kill_together: resources.unified().as_ref().and_then(|files| Some(files.get(KILL_TOGETHER)? == "1")),
        // The specification has that of the process.
        oom_score_adj: None,
    })
}

/// `cpu.shares` (2 to 262144) as `cpu.weight` (1 to 10000), as runtimes convert them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Resources, Error> {
        typed(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn limits_are_those_of_the_engine() {
        let limits = read(
            r#"{"memory": {"limit": 67108864}, "cpu": {"quota": 50000, "period": 100000, "shares": 1024, "cpus": "0-1"},
                "pids": {"limit": 100}, "unified": {"memory.oom.group": "1", "memory.swap.max": "0"}}"#,
        );
        let expected = Resources {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(500),
            cpu_weight: Some(39),
            cpus: Some("0-1".into()),
            pids: Some(100),
            kill_together: Some(true),
            oom_score_adj: None,
        };
        assert_eq!(limits.unwrap(), expected);
    }

    #[test]
    fn a_quota_without_a_period_is_of_the_usual_one() {
        for period in ["", r#", "period": 0"#, r#", "period": 100000"#] {
            let limits = read(&format!(r#"{{"cpu": {{"quota": 25000{period}}}}}"#)).unwrap();
            assert_eq!(limits.cpu_millis, Some(250), "{period}");
        }
    }

    #[test]
    fn no_limit_is_no_limit() {
        let limits = read(
            r#"{"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 100000, "cpus": ""}, "pids": {"limit": 0}}"#,
        );
        assert_eq!(limits.unwrap(), Resources::default());
        assert_eq!((weight(2), weight(262_144), weight(0)), (1, 10_000, 1));
    }

    #[test]
    fn huge_pages_are_refused() {
        let limit = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 1048576}]}"#;
        assert!(read(limit).unwrap_err().to_string().contains("huge pages"));
        assert!(read(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}"#).is_ok());
    }
}
