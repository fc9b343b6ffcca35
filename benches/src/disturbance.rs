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

/// Looks, from a thread of its own until nobody asks any more, how long the same work takes.
#[derive(Debug)]
pub(crate) struct Disturbance(Arc<Mutex<Vec<Look>>>);

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    /// Processor time, so that it does not count how long this machine has others run there.
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
        let watch = move || {
            while let Some(looks) = looks.upgrade() {
                let look = look();
                looks.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                drop(looks);
                thread::sleep(PAUSE);
            }
        };
        thread::Builder::new().name("disturbance".into()).spawn(watch).context("cannot start a thread")?;
        Ok(this)
    }

    /// How long each look took, in seconds, between two moments.
    pub(crate) fn looks(&self, begin: Instant, end: Instant) -> Vec<f64> {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let within = looks.iter().filter(|look| (begin..=end).contains(&look.at));
        within.map(|look| look.took.as_secs_f64()).collect()
    }
}

/// How many times as long as undisturbed some looks took: 1 if nothing disturbed them. `all` are those to compare with.
pub(crate) fn factor(looks: &[f64], all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f64::total_cmp);
    match all.get((all.len() as f64 * UNDISTURBED) as usize) {
        Some(undisturbed) if !looks.is_empty() => {
            looks.iter().sum::<f64>() / looks.len() as f64 / undisturbed
        }
        // Nothing is known: not even this thread ran.
        _ => f64::INFINITY,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_longer_is_disturbed() {
        let looks: Vec<f64> = (0..300).map(|number| if number < 100 { 0.0004 } else { 0.0002 }).collect();
        for (range, expected) in [(100..300, 1.0), (0..100, 2.0), (50..150, 1.5)] {
            let factor = factor(&looks[range.clone()], &looks);
            assert!((factor - expected).abs() < 0.01, "{range:?}: {factor}");
        }
        assert_eq!(factor(&[], &looks), f64::INFINITY);
        assert_eq!(factor(&looks, &[]), f64::INFINITY);
    }

    #[test]
    fn it_is_looked_all_the_time() {
        let disturbance = Disturbance::watch().unwrap();
        let begin = Instant::now();
        while disturbance.looks(begin, Instant::now()).len() < 3 {
            assert!(begin.elapsed() < Duration::from_secs(20), "nobody looks");
            thread::sleep(PAUSE);
        }
        assert!(disturbance.looks(begin, begin).len() <= 1);
    }
}
