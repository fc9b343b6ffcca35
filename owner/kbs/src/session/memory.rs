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
            make_room(&mut sessions);
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

fn make_room(sessions: &mut HashMap<String, Session>) {
    if sessions.len() < MAX_SESSIONS {
        return;
    }
    let last = |session: &Session| (matches!(session.state, State::Attested(_)), session.expires);
    let goes = sessions.iter().min_by_key(|(_, session)| last(session)).map(|(id, _)| id.clone());
    if let Some(id) = goes {
        sessions.remove(&id);
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

    fn attestation() -> Attested {
        let ear = serde_json::from_value(serde_json::json!({
            "eat_profile": "p", "iat": 0, "exp": 1, "iss": "i",
            "ear.verifier-id": { "build": "b", "developer": "d" }, "submods": {},
        }));
        let key = serde_json::from_value(serde_json::json!({
            "kty": "EC", "alg": "ECDH-ES+A256KW", "crv": "P-256", "x": "AA", "y": "AA",
        }));
        Attested { ear: ear.unwrap(), key: key.unwrap() }
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
    async fn the_number_of_sessions_is_bounded_and_nobody_is_locked_out() {
        let sessions = MemorySessions::default();
        let attested = sessions.open(challenge()).await.unwrap();
        sessions.answer(&attested).await.unwrap();
        // It would end first.
        sessions.attested(&attested, attestation(), Duration::from_secs(60)).await.unwrap();
        let mut opened = Vec::new();
        for _ in 1..MAX_SESSIONS {
            opened.push(sessions.open(challenge()).await.unwrap());
        }
        // Whether it was answered, and denied, makes no difference.
        sessions.answer(&opened[0]).await.unwrap();
        for _ in 0..2 {
            opened.push(sessions.open(challenge()).await.unwrap());
        }
        assert_eq!(sessions.lock().len(), MAX_SESSIONS);
        for gone in &opened[..2] {
            assert!(matches!(sessions.answer(gone).await, Err(AnswerError::Unknown)));
        }
        for kept in [&opened[2], opened.last().unwrap()] {
            sessions.answer(kept).await.unwrap();
        }
        assert!(sessions.find(&attested).await.unwrap().is_some());

        let expired = opened[10].clone();
        sessions.lock().get_mut(&expired).unwrap().expires = Instant::now();
        sessions.open(challenge()).await.unwrap();
        sessions.answer(&opened[3]).await.unwrap();
    }

    #[tokio::test]
    async fn where_all_attested_the_one_that_ends_first_makes_room() {
        let sessions = MemorySessions::default();
        let mut ids = Vec::new();
        for number in 0..MAX_SESSIONS {
            let id = sessions.open(challenge()).await.unwrap();
            let lifetime = Duration::from_secs(if number == 7 { 60 } else { 600 });
            sessions.attested(&id, attestation(), lifetime).await.unwrap();
            ids.push(id);
        }
        let id = sessions.open(challenge()).await.unwrap();
        assert!(sessions.find(&ids[7]).await.unwrap().is_none());
        assert!(sessions.find(&ids[6]).await.unwrap().is_some());
        sessions.answer(&id).await.unwrap();
    }
}
