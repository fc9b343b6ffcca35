//! Sessions: one challenge, answered once.

pub(crate) mod memory;

use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use sealpod_evidence::tpm::RequestParams;
use sealpod_evidence::{HashAlgorithm, Tee};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::Ear;
use sealpod_kbs_protocol::jwe::TeePublicKey;

use crate::store::StoreError;

/// A challenge is good for so long.
pub(crate) const CHALLENGE_LIFETIME: Duration = Duration::from_secs(120);
/// At most so many sessions. Anybody can open one, so where there are as many, the one goes that would end first: of
/// those that did not attest, or, where all did, of all.
pub(crate) const MAX_SESSIONS: usize = 20_000;

/// What the broker asked of a guest.
#[derive(Clone)]
pub(crate) struct Challenge {
    pub(crate) tee: Tee,
    pub(crate) nonce: String,
    pub(crate) hash: HashAlgorithm,
    /// The TPM keys and the secret that only their TPM can find out.
    pub(crate) credential: Option<(RequestParams, Secret)>,
}

/// What an attestation gave.
#[derive(Clone)]
pub(crate) struct Attested {
    pub(crate) ear: Ear,
    pub(crate) key: TeePublicKey,
}

/// Why a session is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// There is no randomness for its id.
    #[error("there is no randomness")]
    Randomness(#[from] Unspecified),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a challenge cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// No such session, or no longer.
    #[error("no such session; ask for a challenge first")]
    Unknown,
    /// Its challenge was answered before.
    #[error("this session's challenge was answered before")]
    Answered,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All sessions.
#[async_trait]
pub(crate) trait Sessions: Send + Sync {
    /// Opens a session and gives its id.
    async fn open(&self, challenge: Challenge) -> Result<String, OpenError>;
    /// Takes a session's challenge, once: of several that try, one gets it. It is used up, whatever becomes of the answer.
    async fn answer(&self, id: &str) -> Result<Challenge, AnswerError>;
    /// Notes that a session's answer was good.
    async fn attested(&self, id: &str, attested: Attested, lifetime: Duration) -> Result<(), StoreError>;
    /// What a session's attestation gave, while it is good.
    async fn find(&self, id: &str) -> Result<Option<Attested>, StoreError>;
}

/// An id that nobody guesses.
pub(crate) fn new_id() -> Result<String, Unspecified> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}
