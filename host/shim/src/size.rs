//! How large a pod's VM is: what its containers may use, and of the RuntimeClass's overhead what is not QEMU's.

use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::error::Error;
use crate::specification::PodSpecification;

/// What QEMU and the TPM take beside the VM's memory, in MiB. Emulation keeps translated instructions in it, too.
const HOSTS_MIB: u32 = 128;
/// What the host's page tables take for each GiB of the VM's memory, in MiB: QEMU's own, and as much for the guest's.
const TABLES_MIB: u32 = 4;
/// What a guest takes before it has a container, in MiB.
const LEAST_GUESTS_MIB: u32 = 128;
/// Control groups count whole pages, so that a limit may be less than what was written, by less than this, in bytes.
const PAGE: u64 = 4096;

/// A VM's memory in MiB and its processors.
///
/// # Errors
/// If the pod has a limit that leaves no room for a guest.
pub(crate) fn of_vm(
    config: &Config,
    wanted: &PodSpecification,
    cgroup: &Cgroup,
) -> Result<(u32, u32), Error> {
    let memory_mib = memory_mib(config, wanted, cgroup.pods_memory_limit())?;
    Ok((memory_mib, cpus(config, wanted.cpus, cgroup.pods_cpu_is_limited())))
}

/// What kubelet allows the pod (`pods_limit`, in bytes) without QEMU's part: were the VM larger, the host would kill it as
/// soon as its guest used its memory. That is the containers' limits and the RuntimeClass's overhead, and kubelet allows
/// so much where all containers have a limit.
///
/// Elsewhere nothing is killed for its size. The same is put together here, but is no less than what the node's administrator
/// gives pods without limits.
fn memory_mib(config: &Config, wanted: &PodSpecification, pods_limit: Option<u64>) -> Result<u32, Error> {
    if let Some(limit) = pods_limit {
        let overhead = limit.saturating_sub(wanted.memory_bytes.unwrap_or_default());
        guests_mib(overhead)?;
        let guests_mib = guests_mib(limit)?;
        return Ok(guests_mib - guests_mib / 1024 * TABLES_MIB);
    }
    let Some(limits) = wanted.memory_bytes else { return Ok(config.memory_mib) };
    let of_overhead = wanted.overhead_bytes.and_then(|bytes| guests_mib(bytes).ok());
    let guests_mib = of_overhead.unwrap_or(config.memory_overhead_mib);
    Ok(mib(limits.div_ceil(1 << 20)).saturating_add(guests_mib).max(config.memory_mib))
}

/// What is the guest's of so many bytes.
fn guests_mib(bytes: u64) -> Result<u32, Error> {
    let given_mib = mib(bytes.saturating_add(PAGE) >> 20);
    let guests_mib = given_mib.checked_sub(HOSTS_MIB).filter(|mib| *mib >= LEAST_GUESTS_MIB);
    guests_mib.ok_or_else(|| {
        Error::Invalid(format!(
            "the RuntimeClass's overhead in the pod's limit: expected memory of {} MiB or more, got {given_mib} MiB; hint: the \
             guest, QEMU and the TPM take that beside the containers; set overhead.podFixed.memory in the RuntimeClass",
            HOSTS_MIB + LEAST_GUESTS_MIB
        ))
    })
}

fn mib(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The same of processors. The overhead's are QEMU's.
fn cpus(config: &Config, limits: Option<u32>, all_are_limited: bool) -> u32 {
    let least = if all_are_limited { 0 } else { config.cpus };
    limits.map_or(config.cpus, |cpus| cpus.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(limits: Option<u64>, overhead: Option<u64>, pods_limit: Option<u64>) -> Result<u32, Error> {
        let wanted =
            PodSpecification { memory_bytes: limits, overhead_bytes: overhead, ..Default::default() };
        memory_mib(&Config::default(), &wanted, pods_limit)
    }

    #[test]
    fn a_vm_has_room_for_its_containers_and_itself() {
        let config = Config::default();
        assert_eq!(memory(None, None, None).unwrap(), config.memory_mib);
        assert_eq!(memory(Some(1 << 30), None, None).unwrap(), 1024 + config.memory_overhead_mib);
        assert_eq!(memory(Some(u64::MAX), None, None).unwrap(), u32::MAX);
        // One small container beside others without limits says nothing of what those need.
        assert_eq!(memory(Some(16 * MIB), None, None).unwrap(), config.memory_mib);
    }

    #[test]
    fn a_vm_fits_into_what_kubelet_allows_its_pod() {
        // The chart's overhead is what the configuration says as well.
        let of_chart = memory(Some(512 * MIB), None, Some((512 + 384) * MIB)).unwrap();
        assert_eq!(of_chart, 512 + Config::default().memory_overhead_mib);
        for (limits, pods_limit, expected) in [
            (16 * MIB, (16 + 256) * MIB, 16 + 128),
            (64 * MIB, (64 + 1024) * MIB, 64 + 896),
            // Not a whole number of pages.
            (64 * MIB + 1, (64 + 256) * MIB, 64 + 128),
            // A large VM has large page tables, which are the host's.
            (16 << 30, (16 << 30) + 384 * MIB, (16 << 10) + 256 - 64),
        ] {
            assert_eq!(
                memory(Some(limits), None, Some(pods_limit)).unwrap(),
                expected,
                "{limits} of {pods_limit}"
            );
        }
        // Older kubelets do not say the sum.
        assert_eq!(memory(None, None, Some(512 * MIB)).unwrap(), 384);
        // What an engine says, where kubelet limits nothing.
        assert_eq!(memory(Some(1024 * MIB), Some(512 * MIB), None).unwrap(), 1024 + 384);
        let of_config = 1024 + Config::default().memory_overhead_mib;
        assert_eq!(memory(Some(1024 * MIB), Some(MIB), None).unwrap(), of_config, "too little to be meant");
    }

    #[test]
    fn a_pod_without_room_for_a_guest_is_refused() {
        for overhead in [0, 160, 255] {
            let refused = memory(Some(512 * MIB), None, Some((512 + overhead) * MIB)).unwrap_err();
            let said = refused.to_string();
            assert!(said.contains(&format!("256 MiB or more, got {overhead} MiB")), "{said}");
        }
        assert!(memory(Some(512 * MIB), None, Some(MIB)).is_err(), "less than its containers may use");
    }

    #[test]
    fn processors_are_those_of_the_limits() {
        let mut config = Config::default();
        config.cpus = 4;
        assert_eq!((cpus(&config, None, true), cpus(&config, Some(1), true)), (4, 1));
        assert_eq!((cpus(&config, Some(1), false), cpus(&config, Some(8), false)), (4, 8));
    }
}
