//! Counters in Prometheus' text format. Labels are fixed words, never anything that a client sent.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::audit::{Event, Outcome};

/// What is counted.
#[derive(Default)]
pub(crate) struct Metrics {
    challenges: AtomicU64,
    attestations_granted: AtomicU64,
    attestations_denied: AtomicU64,
    resources_granted: AtomicU64,
    resources_denied: AtomicU64,
    refusals_unnoted: AtomicU64,
}

impl Metrics {
    pub(crate) fn challenge(&self) {
        self.challenges.fetch_add(1, Ordering::Relaxed);
    }

    /// A denial that is counted but not in the audit log.
    pub(crate) fn unnoted(&self) {
        self.refusals_unnoted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, event: Event, outcome: Outcome) {
        let counter = match (event, outcome) {
            (Event::Attest, Outcome::Granted) => &self.attestations_granted,
            (Event::Attest, Outcome::Denied) => &self.attestations_denied,
            (Event::Resource, Outcome::Granted) => &self.resources_granted,
            (Event::Resource, Outcome::Denied) => &self.resources_denied,
            // What administrators do.
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn text(&self) -> String {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "# HELP kbs_challenges_total Challenges sent.\n\
             # TYPE kbs_challenges_total counter\n\
             kbs_challenges_total {}\n\
             # HELP kbs_attestations_total Attestations answered.\n\
             # TYPE kbs_attestations_total counter\n\
             kbs_attestations_total{{outcome=\"granted\"}} {}\n\
             kbs_attestations_total{{outcome=\"denied\"}} {}\n\
             # HELP kbs_resources_total Resources asked for by guests.\n\
             # TYPE kbs_resources_total counter\n\
             kbs_resources_total{{outcome=\"granted\"}} {}\n\
             kbs_resources_total{{outcome=\"denied\"}} {}\n\
             # HELP kbs_refusals_unnoted_total Denials that came too fast to be in the audit log.\n\
             # TYPE kbs_refusals_unnoted_total counter\n\
             kbs_refusals_unnoted_total {}\n",
            value(&self.challenges),
            value(&self.attestations_granted),
            value(&self.attestations_denied),
            value(&self.resources_granted),
            value(&self.resources_denied),
            value(&self.refusals_unnoted),
        )
    }
}
