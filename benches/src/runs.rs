//! Which of the runs count: those that others disturbed least.

use std::time::{Duration, Instant};

use crate::disturbance::{self, Disturbance};
use crate::machine::Pair;
use crate::report::Boots;

/// How many of each kind count, by their medians.
pub(crate) const RUNS: usize = 5;
/// How many times as long work may take because of others in a run that is hardly disturbed.
const HARDLY_DISTURBED: f64 = 1.2;

/// What is kept of a pair.
#[derive(Debug)]
pub(crate) struct Run {
    bare: Duration,
    agent_ready: Duration,
    /// How long looks took during the whole boot, and from the bare guest's line to the agent's answer.
    looks: Vec<f64>,
    looks_between: Vec<f64>,
}

impl Run {
    /// Of a pair whose start began then.
    pub(crate) fn of(pair: &Pair, began: Instant, disturbance: &Disturbance) -> Self {
        let (first, last) = (pair.bare_at.min(pair.ready_at), pair.bare_at.max(pair.ready_at));
        Self {
            bare: pair.bare,
            agent_ready: pair.ready(),
            looks: disturbance.looks(began, last),
            looks_between: disturbance.looks(first, last),
        }
    }

    fn apart_ms(&self) -> f64 {
        (self.agent_ready.as_secs_f64() - self.bare.as_secs_f64()) * 1000.0
    }
}

/// Runs of one kind.
#[derive(Debug, Default)]
pub(crate) struct Runs(Vec<Run>);

impl Runs {
    /// Adds one.
    pub(crate) fn add(&mut self, run: Run) {
        self.0.push(run);
    }

    /// Whether so many as count were hardly disturbed.
    pub(crate) fn are_enough(&self) -> bool {
        self.factors().iter().filter(|factor| **factor <= HARDLY_DISTURBED).count() >= RUNS
    }

    /// Those that count. What disturbed them is judged at the end: by then it is known how fast work can be.
    pub(crate) fn least_disturbed(self) -> Boots {
        let mut boots =
            Boots { all_apart_ms: self.0.iter().map(Run::apart_ms).collect(), ..Boots::default() };
        let mut runs: Vec<(f64, Run)> = self.factors().into_iter().zip(self.0).collect();
        runs.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        for (factor, run) in runs.into_iter().take(RUNS) {
            boots.bare.push(run.bare);
            boots.agent_ready.push(run.agent_ready);
            boots.disturbance = factor;
        }
        boots
    }

    /// How much each was disturbed, compared with the best that there was while guests booted.
    fn factors(&self) -> Vec<f64> {
        let all: Vec<f64> = self.0.iter().flat_map(|run| run.looks.iter().copied()).collect();
        self.0.iter().map(|run| disturbance::factor(&run.looks_between, &all)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run whose agent is there so many ms after the bare guest; looks take so long between the two.
    fn run(apart: u64, look: f64) -> Run {
        let (bare, apart) = (Duration::from_secs(9), Duration::from_millis(apart));
        Run { bare, agent_ready: bare + apart, looks: vec![1.0; 100], looks_between: vec![look; 10] }
    }

    fn runs(runs: impl IntoIterator<Item = (u64, f64)>) -> Runs {
        Runs(runs.into_iter().map(|(apart, look)| run(apart, look)).collect())
    }

    #[test]
    fn runs_are_enough_once_five_were_hardly_disturbed() {
        let disturbed = (0..9).map(|_| (700, 1.5));
        assert!(!runs(disturbed.clone()).are_enough());
        assert!(!runs(disturbed.clone().chain([(300, 1.2); 4])).are_enough());
        assert!(runs(disturbed.chain([(300, 1.2); 5])).are_enough());
    }

    #[test]
    fn the_least_disturbed_count_whatever_their_times() {
        let looks = [1.9, 1.1, 1.0, 1.5, 1.8, 1.7, 1.3];
        let boots = runs((1..).zip(looks)).least_disturbed();
        let apart: Vec<u128> = boots
            .agent_ready
            .iter()
            .zip(&boots.bare)
            .map(|(ready, bare)| (*ready - *bare).as_millis())
            .collect();
        assert_eq!(apart, [3, 2, 7, 4, 6]);
        assert!((boots.disturbance - 1.7).abs() < 1e-9, "{}", boots.disturbance);
        assert_eq!(boots.all_apart_ms.len(), 7);
    }

    #[test]
    fn of_what_is_always_disturbed_the_best_counts_all_the_same() {
        let boots = runs([(900, 3.0); 6]).least_disturbed();
        assert_eq!((boots.bare.len(), boots.all_apart_ms.len()), (5, 6));
        assert!((boots.disturbance - 3.0).abs() < 1e-9, "{}", boots.disturbance);
    }
}
