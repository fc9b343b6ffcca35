//! A control group (cgroup v2): limits, the freezer, and what was used.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use sealpod_agent_protocol::{Resources, Statistics};

/// The length of a period in which CPU time is counted, in microseconds, as everywhere.
pub(super) const CPU_PERIOD_US: u64 = 100_000;

/// CPU time in a period.
pub(super) fn cpu_quota_us(millis: u64) -> u64 {
    millis.saturating_mul(CPU_PERIOD_US / 1000).max(1000)
}

/// Stops all processes of a group where they are, or lets them go on. The kernel does it in its own time.
pub(super) fn freeze(group: &Path, frozen: bool) -> io::Result<()> {
    fs::write(group.join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

/// Changes limits; what is absent stays as it is.
pub(super) fn update(group: &Path, resources: &Resources) -> io::Result<()> {
    let Resources { memory_bytes, cpu_millis, cpu_weight, cpus, pids, kill_together, oom_score_adj: _ } =
        resources;
    let set = |file: &str, value: String| fs::write(group.join(file), value);
    if let Some(bytes) = memory_bytes {
        set("memory.max", bytes.to_string())?;
    }
    if let Some(millis) = cpu_millis {
        set("cpu.max", format!("{} {CPU_PERIOD_US}", cpu_quota_us(*millis)))?;
    }
    if let Some(weight) = cpu_weight {
        set("cpu.weight", weight.clamp(&1, &10_000).to_string())?;
    }
    if let Some(cpus) = cpus {
        set("cpuset.cpus", own_cpus(cpus)?)?;
    }
    if let Some(pids) = pids {
        set("pids.max", pids.to_string())?;
    }
    if let Some(together) = kill_together {
        set("memory.oom.group", u8::from(*together).to_string())?;
    }
    Ok(())
}

/// Which of this machine's processors are meant by numbers of the host's: as many, counted around.
pub(super) fn own_cpus(hosts: &str) -> io::Result<String> {
    let count = std::thread::available_parallelism()?.get();
    wrap_cpus(hosts, count).ok_or_else(|| {
        let message = format!("{hosts:?} are no numbers of processors, as 0-2,4");
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

fn wrap_cpus(numbers: &str, count: usize) -> Option<String> {
    let mut own = BTreeSet::new();
    for range in numbers.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first {
            return None;
        }
        for number in (first..=last).take(count) {
            // One that is taken stands for the next that is not: as many are as many.
            own.extend(
                (0..count).map(|more| number.wrapping_add(more) % count).find(|free| !own.contains(free)),
            );
        }
    }
    Some(own.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// What a group has used and uses.
pub(super) fn statistics(group: &Path) -> io::Result<Statistics> {
    let read = |file: &str| fs::read_to_string(group.join(file));
    let (cpu, memory) = (read("cpu.stat")?, read("memory.stat")?);
    let events = read("memory.events")?;
    Ok(Statistics {
        cpu_usage_us: field(&cpu, "usage_usec"),
        cpu_user_us: field(&cpu, "user_usec"),
        cpu_system_us: field(&cpu, "system_usec"),
        cpu_throttled_periods: field(&cpu, "nr_throttled"),
        cpu_throttled_us: field(&cpu, "throttled_usec"),
        memory_bytes: number(&read("memory.current")?).unwrap_or_default(),
        memory_limit_bytes: number(&read("memory.max")?),
        memory_anonymous_bytes: field(&memory, "anon"),
        memory_file_bytes: field(&memory, "file"),
        memory_inactive_file_bytes: field(&memory, "inactive_file"),
        page_faults: field(&memory, "pgfault"),
        major_page_faults: field(&memory, "pgmajfault"),
        // Not there where the kernel has no swap accounting.
        swap_bytes: read("memory.swap.current").ok().and_then(|text| number(&text)).unwrap_or_default(),
        pids: number(&read("pids.current")?).unwrap_or_default(),
        pids_limit: number(&read("pids.max")?),
        out_of_memory_kills: field(&events, "oom_kill"),
    })
}

/// Of a file with one number; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Of a file with a name and a number on each line.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or_default()
}

/// Whether there is a process in a group or below it.
pub(super) fn has_processes(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_of_the_host_are_as_many_of_this_machine() {
        let wrap = |numbers, count| wrap_cpus(numbers, count);
        assert_eq!(wrap("0-1", 4).as_deref(), Some("0,1"));
        assert_eq!(wrap("2-3,6", 4).as_deref(), Some("0,2,3"));
        // Two threads of one core.
        assert_eq!(wrap("1,33", 2).as_deref(), Some("0,1"));
        // Two containers that have processors for themselves on the host have them here.
        assert_eq!((wrap("10-11", 4).as_deref(), wrap("12-13", 4).as_deref()), (Some("2,3"), Some("0,1")));
        assert_eq!(wrap("0-4294967295", 2).as_deref(), Some("0,1"));
        assert_eq!(wrap("7", 1).as_deref(), Some("0"));
        for wrong in ["", "a", "1-", "3-1", "-1", "0-1:2", "1,,2"] {
            assert_eq!(wrap(wrong, 2), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_group_is_read_and_written() {
        let group = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 70\nuser_usec 50\nsystem_usec 20\nnr_throttled 3\nthrottled_usec 9\n"),
            ("memory.stat", "anon 4096\nanon_thp 1\nfile 8192\ninactive_file 100\npgfault 7\npgmajfault 1\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("memory.current", "12288\n"),
            ("memory.max", "max\n"),
            ("pids.current", "5\n"),
            ("pids.max", "10\n"),
        ] {
            fs::write(group.path().join(file), text).unwrap();
        }
        let statistics = statistics(group.path()).unwrap();
        assert_eq!((statistics.cpu_usage_us, statistics.cpu_throttled_us), (70, 9));
        assert_eq!((statistics.memory_anonymous_bytes, statistics.memory_bytes), (4096, 12288));
        assert_eq!((statistics.memory_limit_bytes, statistics.pids_limit), (None, Some(10)));
        assert_eq!(statistics.out_of_memory_kills, 2);

        let limits = Resources { memory_bytes: Some(1 << 20), cpu_millis: Some(500), ..Resources::default() };
        update(group.path(), &limits).unwrap();
        let read = |file: &str| fs::read_to_string(group.path().join(file)).unwrap();
        assert_eq!((read("memory.max").as_str(), read("cpu.max").as_str()), ("1048576", "50000 100000"));
        assert_eq!(read("pids.max"), "10\n", "what is absent stays");
    }
}
