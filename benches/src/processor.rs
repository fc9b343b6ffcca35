//! One processor for all that a bench compares: what slows one of two down slows the other, too.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Leaves this process, and all that it starts from now on, one processor of those that it has.
///
/// # Errors
/// If the kernel refuses.
pub fn keep_to_one() -> anyhow::Result<()> {
    let all = sched_getaffinity(None).context("cannot read which processors there are")?;
    let mut one = CpuSet::new();
    // The first has more of the machine's interrupts.
    if let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|number| all.is_set(*number)) {
        one.set(last);
    }
    sched_setaffinity(None, &one).context("cannot keep to one processor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_what_it_starts_keep_to_one() {
        let kept = std::thread::spawn(|| {
            keep_to_one().unwrap();
            std::thread::spawn(|| sched_getaffinity(None).unwrap().count()).join().unwrap()
        });
        assert_eq!(kept.join().unwrap(), 1);
    }
}
