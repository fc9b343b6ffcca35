//! The audit log: every grant and every refusal, with the reason that only the owner learns.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use sealpod_evidence::Tee;
use sealpod_verifier::Refusal;
use serde::Serialize;

use crate::store::{Store, StoreError};

/// One entry.
#[derive(Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// Under which a guest and its host know it.
    pub(crate) id: String,
    /// Seconds since the Unix epoch.
    pub(crate) time: u64,
    /// What was asked for.
    pub(crate) event: Event,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// The guest's TEE, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tee: Option<Tee>,
    /// The resource, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource: Option<&'a str>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) failures: &'a [Refusal],
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// An attestation.
    Attest,
    /// A secret.
    Resource,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Granted,
    Denied,
}

/// Appends an entry and gives its id.
pub(crate) fn record(
    store: &dyn Store,
    event: Event,
    outcome: Outcome,
    tee: Option<Tee>,
    resource: Option<&str>,
    failures: &[Refusal],
) -> Result<String, StoreError> {
    let id = new_id();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let entry = Entry { id: id.clone(), time, event, outcome, tee, resource, failures };
    let json = serde_json::to_vec(&entry).unwrap_or_default();
    store.append_audit(&id, &json)?;
    match outcome {
        Outcome::Granted => tracing::info!(id, ?event, resource, "granted"),
        Outcome::Denied => {
            let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
            tracing::warn!(id, ?event, resource, reasons = reasons.join("; "), "denied");
        }
    }
    Ok(id)
}

fn new_id() -> String {
    let mut bytes = [0; 8];
    // Without randomness the broker does not get this far: sessions need it too.
    let _ = rand::fill(&mut bytes);
    hex::encode(bytes)
}
