//! The audit log: grants and refusals, with the reason that only the owner learns, and what administrators do.
//!
//! Nothing is given or changed before it is noted, only deleted where there is no room for the note. What is about an attested guest is noted always, and so is each
//! secret that an administrator reads, and each change. A refusal of somebody else's, which anybody can cause at will,
//! is noted as often as the configuration says. None of the three displaces another. Of each, the newest entries are
//! kept, as many as the configuration says.

use std::sync::Arc;

use aws_lc_rs::rand;
use sealpod_evidence::Tee;
use sealpod_verifier::Refusal;
use serde::Serialize;

use crate::admin_key::Admin;
use crate::broker::{Broker, now};
use crate::error::ApiError;
use crate::store::{Class, Store, StoreError};

/// No text of an entry is longer, in characters.
const MAX_TEXT: usize = 4096;

/// One entry.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    /// Under which a guest and its host know it.
    id: String,
    /// Seconds since the Unix epoch.
    time: u64,
    event: Event,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    tee: Option<Tee>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    administrator: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a str>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    failures: &'a [Refusal],
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// An attestation.
    Attest,
    /// A secret that a guest asks for.
    Resource,
    /// A secret that an administrator reads.
    ReadResource,
    SetResource,
    DeleteResource,
    SetAttestationPolicy,
    SetResourcePolicy,
    SetReferenceValues,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It was given.
    Granted,
    /// It was not.
    Denied,
    /// An administrator may: it is done next.
    Accepted,
}

/// What somebody asked for.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) event: Event,
    /// The guest's TEE, where it is known.
    pub(crate) tee: Option<Tee>,
    /// The resource, where one was asked for.
    pub(crate) resource: Option<String>,
    /// The thumbprint of the key that the guest attested, where it did.
    pub(crate) guest: Option<String>,
    /// The digest of the administrator's key, where it was one.
    pub(crate) administrator: Option<String>,
    /// What is set, where that is no secret.
    pub(crate) details: Option<String>,
}

impl Broker {
    /// Notes a grant. Nothing is given before that.
    pub(crate) async fn grant(self: &Arc<Self>, subject: Subject) -> Result<(), ApiError> {
        let event = subject.event;
        self.note(subject, Outcome::Granted, Vec::new()).await?;
        self.metrics.count(event, Outcome::Granted);
        Ok(())
    }

    /// Notes a denial for the owner; the answer has its id and nothing more. Whoever did not attest and is denied too
    /// often is not noted but told to wait.
    pub(crate) async fn deny(self: &Arc<Self>, subject: Subject, failures: Vec<Refusal>) -> ApiError {
        self.metrics.count(subject.event, Outcome::Denied);
        if subject.class(Outcome::Denied) == Class::Anybody && !self.refusals.take() {
            self.metrics.unnoted();
            return ApiError::busy("too many were refused lately; try again in a minute");
        }
        match self.note(subject, Outcome::Denied, failures).await {
            Ok(id) => ApiError::denied(id),
            Err(error) => error,
        }
    }

    /// Notes what an administrator is about to read or to change. Nothing is done before that.
    pub(crate) async fn accept(self: &Arc<Self>, subject: Subject) -> Result<(), ApiError> {
        self.note(subject, Outcome::Accepted, Vec::new()).await.map(drop)
    }

    async fn note(
        self: &Arc<Self>,
        subject: Subject,
        outcome: Outcome,
        failures: Vec<Refusal>,
    ) -> Result<String, ApiError> {
        let class = subject.class(outcome);
        let keep = match class {
            Class::Guest | Class::Administrator => self.audit.keep,
            Class::Anybody => self.audit.keep_refusals,
        };
        let noted = record(self.store.as_ref(), (class, keep), &subject, outcome, failures).await;
        noted.map_err(ApiError::store)
    }
}

impl Subject {
    /// What a guest asks for, or somebody who says to be one.
    pub(crate) fn of_guest(event: Event) -> Self {
        Self { event, tee: None, resource: None, guest: None, administrator: None, details: None }
    }

    /// What an administrator does.
    pub(crate) fn of_administrator(admin: Admin, event: Event) -> Self {
        Self { administrator: Some(admin.key), ..Self::of_guest(event) }
    }

    /// Who can cause an entry about it.
    fn class(&self, outcome: Outcome) -> Class {
        match (outcome, &self.guest) {
            (Outcome::Accepted, _) => Class::Administrator,
            (Outcome::Denied, None) => Class::Anybody,
            (Outcome::Granted, _) | (Outcome::Denied, Some(_)) => Class::Guest,
        }
    }
}

/// Appends an entry and gives its id.
async fn record(
    store: &dyn Store,
    (class, keep): (Class, u64),
    subject: &Subject,
    outcome: Outcome,
    failures: Vec<Refusal>,
) -> Result<String, StoreError> {
    let failures: Vec<Refusal> = failures.into_iter().map(shortened).collect();
    let Subject { event, tee, resource, guest, administrator, details } = subject;
    let details = details.as_deref().map(cut);
    let (id, time) = (new_id(), now());
    let entry = Entry {
        id: id.clone(),
        time,
        event: *event,
        outcome,
        tee: *tee,
        resource: resource.as_deref(),
        guest: guest.as_deref(),
        administrator: administrator.as_deref(),
        details: details.as_deref(),
        failures: &failures,
    };
    let json = serde_json::to_vec(&entry).unwrap_or_default();
    store.append_audit(class, keep, &id, json).await?;
    match outcome {
        Outcome::Granted => tracing::info!(id, ?event, resource, guest, "granted"),
        Outcome::Accepted => tracing::info!(id, ?event, resource, administrator, details, "accepted"),
        Outcome::Denied => {
            let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
            tracing::warn!(id, ?event, resource, guest, reasons = reasons.join("; "), "denied");
        }
    }
    Ok(id)
}

/// What came from a guest has bounds.
fn shortened(refusal: Refusal) -> Refusal {
    let Refusal { claim, expected, actual } = refusal;
    Refusal { claim: cut(&claim), expected: cut(&expected), actual: cut(&actual) }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn new_id() -> String {
    let mut bytes = [0; 8];
    // Without randomness the broker does not get this far: sessions need it too.
    let _ = rand::fill(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_sends_is_cut_before_it_is_kept() {
        let short = Refusal::new("claim", "expected", "é".repeat(MAX_TEXT));
        assert_eq!(shortened(short.clone()), short);
        let long = shortened(Refusal::new("claim", "expected", "é".repeat(MAX_TEXT + 1)));
        assert_eq!(long.actual.chars().count(), MAX_TEXT + 1);
        assert!(long.actual.ends_with('…'));
    }
}
