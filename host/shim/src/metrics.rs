//! The guest's statistics as containerd knows them: `io.containerd.cgroups.v2.Metrics`.

use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryEvents, MemoryStat, Metrics, PidsStat};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use sealpod_agent_protocol::Statistics;

use crate::error::Error;

/// By which name containerd, and kubelet's summary behind it, recognises them.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// In containerd's form.
pub(crate) fn of(statistics: &Statistics) -> Result<Any, Error> {
    let metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: statistics.pids,
            limit: statistics.pids_limit.unwrap_or_default(),
            ..PidsStat::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: statistics.cpu_usage_us,
            user_usec: statistics.cpu_user_us,
            system_usec: statistics.cpu_system_us,
            nr_throttled: statistics.cpu_throttled_periods,
            throttled_usec: statistics.cpu_throttled_us,
            ..CPUStat::default()
        }),
        memory: MessageField::some(MemoryStat {
            anon: statistics.memory_anonymous_bytes,
            file: statistics.memory_file_bytes,
            inactive_file: statistics.memory_inactive_file_bytes,
            pgfault: statistics.page_faults,
            pgmajfault: statistics.major_page_faults,
            usage: statistics.memory_bytes,
            usage_limit: statistics.memory_limit_bytes.unwrap_or(u64::MAX),
            swap_usage: statistics.swap_bytes,
            ..MemoryStat::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            oom_kill: statistics.out_of_memory_kills,
            ..MemoryEvents::default()
        }),
        ..Metrics::default()
    };
    let value = metrics.write_to_bytes().map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(Any { type_url: TYPE.into(), value, ..Any::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_what_containerd_reads() {
        let statistics = Statistics { cpu_usage_us: 7, memory_bytes: 4096, pids: 3, ..Statistics::default() };
        let any = of(&statistics).unwrap();
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, TYPE);
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage, metrics.pids.current), (7, 4096, 3));
    }
}
