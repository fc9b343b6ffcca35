//! The sessions of one broker. They end with it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::{
    AnswerError, Attested, CHALLENGE_LIFETIME, Challenge, MAX_SESSIONS, OpenError, Sessions, new_id,
};
use crate::store::StoreError;

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

/// Sessions in memory.
#[derive(Default)]
pub(crate) struct MemorySessions {
    sessions: Mutex<HashMap<String, Session>>,
}

#[async_trait]
impl Sessions for MemorySessions {
    async fn open(&self, challenge: Challenge) -> Result<String, OpenError> {
        let id = new_id()?;
        let mut sessions = self.lock();
        if sessions.len() >= MAX_SESSIONS {
            let now = Instant::now();
            sessions.retain(|_, session| session.expires > now);
            if sessions.len() >= MAX_SESSIONS {
                return Err(OpenError::TooMany);
            }
        }
        let state = State::Challenged(Box::new(challenge));
        sessions.insert(id.clone(), Session { state, expires: Instant::now() + CHALLENGE_LIFETIME });
        Ok(id)
    }

    async fn answer(&self, id: &str) -> Result<Challenge, AnswerError> {
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

    async fn attested(&self, id: &str, attested: Attested, lifetime: Duration) -> Result<(), StoreError> {
        if let Some(session) = current(&mut self.lock(), id) {
            *session =
                Session { state: State::Attested(Box::new(attested)), expires: Instant::now() + lifetime };
        }
        Ok(())
    }

    async fn find(&self, id: &str) -> Result<Option<Attested>, StoreError> {
        Ok(match current(&mut self.lock(), id).map(|session| &session.state) {
            Some(State::Attested(attested)) => Some(Attested::clone(attested)),
            _ => None,
        })
    }
}

impl MemorySessions {
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
    use sealpod_evidence::{HashAlgorithm, Tee};

    use super::*;

    fn challenge() -> Challenge {
        Challenge { tee: Tee::Sample, nonce: "n".into(), hash: HashAlgorithm::Sha384, credential: None }
    }

    #[tokio::test]
    async fn an_expired_session_is_forgotten() {
        let sessions = MemorySessions::default();
        let id = sessions.open(challenge()).await.unwrap();
        sessions.lock().get_mut(&id).unwrap().expires = Instant::now();
        assert!(matches!(sessions.answer(&id).await, Err(AnswerError::Unknown)));
        assert!(sessions.lock().is_empty());
    }

    #[tokio::test]
    async fn the_number_of_sessions_is_bounded_and_expired_ones_make_room() {
        let sessions = MemorySessions::default();
        for _ in 0..MAX_SESSIONS {
            sessions.open(challenge()).await.unwrap();
        }
        assert!(matches!(sessions.open(challenge()).await, Err(OpenError::TooMany)));
        sessions.lock().values_mut().next().unwrap().expires = Instant::now();
        sessions.open(challenge()).await.unwrap();
    }
}
