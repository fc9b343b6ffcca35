//! Sessions: one challenge, answered once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use sealpod_evidence::tpm::RequestParams;
use sealpod_evidence::{HashAlgorithm, Tee};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::Ear;
use sealpod_kbs_protocol::jwe::TeePublicKey;

/// A challenge is good for so long.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(120);
/// At most so many sessions.
const MAX_SESSIONS: usize = 20_000;

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

enum State {
    Challenged(Box<Challenge>),
    /// The nonce is used up, whatever became of the answer.
    Answered,
    Attested(Box<Attested>),
}

struct Session {
    state: State,
    expires: Instant,
}

/// Why a challenge cannot be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnswerError {
    /// No such session, or no longer.
    Unknown,
    /// Its challenge was answered before.
    Answered,
}

/// All sessions.
#[derive(Default)]
pub(crate) struct Sessions {
    sessions: Mutex<HashMap<String, Session>>,
}

impl Sessions {
    /// Opens a session and gives its id; nothing where there are too many.
    pub(crate) fn open(&self, challenge: Challenge) -> Option<String> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).ok()?;
        let id = hex::encode(bytes);
        let mut sessions = self.lock();
        if sessions.len() >= MAX_SESSIONS {
            let now = Instant::now();
            sessions.retain(|_, session| session.expires > now);
            if sessions.len() >= MAX_SESSIONS {
                return None;
            }
        }
        let state = State::Challenged(Box::new(challenge));
        sessions.insert(id.clone(), Session { state, expires: Instant::now() + CHALLENGE_LIFETIME });
        Some(id)
    }

    /// Takes a session's challenge, once: of several that try, one gets it.
    pub(crate) fn answer(&self, id: &str) -> Result<Challenge, AnswerError> {
        let mut sessions = self.lock();
        let session = current(&mut sessions, id).ok_or(AnswerError::Unknown)?;
        match std::mem::replace(&mut session.state, State::Answered) {
            State::Challenged(challenge) => Ok(*challenge),
            before => {
                session.state = before;
                Err(AnswerError::Answered)
            }
        }
    }

    /// Notes that a session's answer was good.
    pub(crate) fn attested(&self, id: &str, attested: Attested, lifetime: Duration) {
        if let Some(session) = current(&mut self.lock(), id) {
            *session =
                Session { state: State::Attested(Box::new(attested)), expires: Instant::now() + lifetime };
        }
    }

    /// What a session's attestation gave, while it is good.
    pub(crate) fn find(&self, id: &str) -> Option<Attested> {
        match &current(&mut self.lock(), id)?.state {
            State::Attested(attested) => Some(Attested::clone(attested)),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that has not expired; one that has is forgotten.
fn current<'a>(sessions: &'a mut HashMap<String, Session>, id: &str) -> Option<&'a mut Session> {
    if sessions.get(id)?.expires <= Instant::now() {
        sessions.remove(id);
        return None;
    }
    sessions.get_mut(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge() -> Challenge {
        Challenge { tee: Tee::Sample, nonce: "n".into(), hash: HashAlgorithm::Sha384, credential: None }
    }

    #[test]
    fn of_many_that_answer_at_once_one_gets_the_challenge() {
        let sessions = Sessions::default();
        let id = sessions.open(challenge()).unwrap();
        let wins = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| sessions.answer(&id).is_ok())).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().then_some(())).count()
        });
        assert_eq!(wins, 1);
        assert_eq!(sessions.answer(&id).err(), Some(AnswerError::Answered));
        assert_eq!(sessions.answer("other").err(), Some(AnswerError::Unknown));
    }

    #[test]
    fn an_expired_session_is_forgotten() {
        let sessions = Sessions::default();
        let id = sessions.open(challenge()).unwrap();
        sessions.lock().get_mut(&id).unwrap().expires = Instant::now();
        assert_eq!(sessions.answer(&id).err(), Some(AnswerError::Unknown));
        assert!(sessions.lock().is_empty());
    }

    #[test]
    fn the_number_of_sessions_is_bounded_and_expired_ones_make_room() {
        let sessions = Sessions::default();
        for _ in 0..MAX_SESSIONS {
            sessions.open(challenge()).unwrap();
        }
        assert!(sessions.open(challenge()).is_none());
        sessions.lock().values_mut().next().unwrap().expires = Instant::now();
        assert!(sessions.open(challenge()).is_some());
    }
}
