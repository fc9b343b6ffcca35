//! How much others disturb this process's processor: a neighbour on the same core makes everything up to twice as slow,
//! which the kernel of a virtual machine does not see.

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Of a look: some tenths of a millisecond.
const NUMBERS: u32 = 1000;
/// The share of looks that are taken to be undisturbed.
const UNDISTURBED: f64 = 0.05;

/// Looks, from a thread of its own for as long as this process runs, how long the same work takes.
#[derive(Clone, Debug)]
pub(crate) struct Disturbance(Arc<Mutex<Vec<Look>>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// Processor time, so that it does not matter what else this machine runs there.
    took: Duration,
}

impl Disturbance {
    /// Begins to look at the processor that the calling thread keeps to.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let this = Self(Arc::default());
        let looks = Arc::downgrade(&this.0);
        let look = move || {
            while let Some(looks) = looks.upgrade() {
                looks.lock().unwrap_or_else(PoisonError::into_inner).push(look());
                drop(looks);
                thread::sleep(PAUSE);
            }
        };
        thread::Builder::new().name("disturbance".into()).spawn(look).context("cannot start a thread")?;
        Ok(this)
    }

    /// How many times as long as undisturbed work took between two moments: 1 if nothing disturbed it.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> f64 {
        factor(&self.0.lock().unwrap_or_else(PoisonError::into_inner), begin, end)
    }
}

fn look() -> Look {
    let (at, begin) = (Instant::now(), processor_time());
    let mut text = String::with_capacity(64);
    for number in 1..=NUMBERS {
        text.clear();
        // The standard library's own code, which is optimised whatever this program is: many branches, as a guest's.
        let _ = write!(text, "{}", black_box(f64::from(number) / 7.0));
        black_box(&text);
    }
    Look { at, took: processor_time().saturating_sub(begin) }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or_default())
}

fn factor(looks: &[Look], begin: Instant, end: Instant) -> f64 {
    let mut all: Vec<f64> = looks.iter().map(|look| look.took.as_secs_f64()).collect();
    all.sort_by(f64::total_cmp);
    let undisturbed = all.get((all.len() as f64 * UNDISTURBED) as usize);
    let within = looks.iter().filter(|look| (begin..=end).contains(&look.at));
    let (count, sum) = within.fold((0, 0.0), |(count, sum), look| (count + 1, sum + look.took.as_secs_f64()));
    match undisturbed {
        Some(undisturbed) if count > 0 => sum / f64::from(count) / undisturbed,
        // Nothing is known: not even this thread ran.
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_longer_is_disturbed() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let look = |milliseconds: u64| {
            let took = if (1000..2000).contains(&milliseconds) { 400 } else { 200 };
            Look { at: at(milliseconds), took: Duration::from_micros(took) }
        };
        let looks: Vec<Look> = (0..300).map(|number| look(number * 10)).collect();
        for (from, to, expected) in [(0, 990, 1.0), (1000, 1990, 2.0), (800, 1199, 1.5)] {
            let factor = factor(&looks, at(from), at(to));
            assert!((factor - expected).abs() < 0.01, "{from} to {to}: {factor}");
        }
        assert_eq!(factor(&looks, at(5000), at(6000)), f64::INFINITY);
        assert_eq!(factor(&[], at(0), at(1)), f64::INFINITY);
    }

    #[test]
    fn it_is_looked_all_the_time() {
        let disturbance = Disturbance::watch().unwrap();
        let begin = Instant::now();
        thread::sleep(20 * PAUSE);
        let factor = disturbance.between(begin, Instant::now());
        assert!(factor.is_finite() && factor > 0.5, "{factor}");
    }
}
