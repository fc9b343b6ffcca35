//! The sessions of all brokers that share the database: a guest may ask one for a challenge and answer another.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealpod_evidence::tpm::RequestParams;
use sealpod_evidence::{HashAlgorithm, Tee};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::Ear;
use sealpod_kbs_protocol::jwe::TeePublicKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use super::PostgresStore;
use super::error::PostgresError;
use super::pool::Parameter;
use crate::session::{
    AnswerError, Attested, CHALLENGE_LIFETIME, Challenge, MAX_SESSIONS, OpenError, Sessions, new_id,
};
use crate::store::StoreError;

/// Each session that is opened clears away some that have expired, and what is too many: of those that did not attest
/// first, the ones that end first. It never waits for another that does the same.
const OPEN: &str = "\
    WITH expired AS ( \
        DELETE FROM sealpod.session WHERE id IN ( \
            SELECT id FROM sealpod.session WHERE expires <= now() LIMIT 64 FOR UPDATE SKIP LOCKED)), \
    surplus AS ( \
        DELETE FROM sealpod.session WHERE id IN ( \
            SELECT id FROM sealpod.session WHERE expires > now() ORDER BY attested IS NOT NULL, expires \
                LIMIT greatest(0, (SELECT count(*) FROM sealpod.session WHERE expires > now()) - $4 + 1) \
                FOR UPDATE SKIP LOCKED)) \
    INSERT INTO sealpod.session (id, challenge, expires) VALUES ($1, $2, now() + make_interval(secs => $3))";
/// Of several at a time, the first changes the row; the others wait for it, look again and find no such row.
const ANSWER: &str = "\
    UPDATE sealpod.session SET answered = true \
        WHERE id = $1 AND NOT answered AND expires > now() RETURNING challenge";
const IS_KNOWN: &str = "SELECT true FROM sealpod.session WHERE id = $1 AND expires > now()";
const ATTESTED: &str = "\
    UPDATE sealpod.session SET attested = $2, challenge = '', expires = now() + make_interval(secs => $3) \
        WHERE id = $1 AND expires > now()";
const FIND: &str = "\
    SELECT attested FROM sealpod.session WHERE id = $1 AND expires > now() AND attested IS NOT NULL";

/// A challenge as the database has it: JSON.
#[derive(Serialize, Deserialize)]
struct StoredChallenge {
    tee: Tee,
    nonce: String,
    hash: HashAlgorithm,
    credential: Option<StoredCredential>,
}

#[derive(Serialize, Deserialize)]
struct StoredCredential {
    tpm: RequestParams,
    #[serde(with = "base64_secret")]
    secret: Secret,
}

/// What an attestation gave as the database has it: JSON.
#[derive(Serialize, Deserialize)]
struct StoredAttested {
    ear: Ear,
    key: TeePublicKey,
}

#[async_trait]
impl Sessions for PostgresStore {
    async fn open(&self, challenge: Challenge) -> Result<String, OpenError> {
        let id = new_id()?;
        let challenge = write(&StoredChallenge::from(challenge))?;
        let (name, challenge, lifetime) =
            (id.as_bytes(), challenge.as_slice(), CHALLENGE_LIFETIME.as_secs_f64());
        let limit = i64::try_from(MAX_SESSIONS).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 4] = [
            (&name, Type::BYTEA),
            (&challenge, Type::BYTEA),
            (&lifetime, Type::FLOAT8),
            (&limit, Type::INT8),
        ];
        self.pool.query(OPEN, &parameters).await.map_err(StoreError::from)?;
        Ok(id)
    }

    async fn answer(&self, id: &str) -> Result<Challenge, AnswerError> {
        let name = id.as_bytes();
        let query = async |statement| {
            let rows = self.pool.query(statement, &[(&name, Type::BYTEA)]).await;
            rows.map_err(StoreError::from)
        };
        if let Some(row) = query(ANSWER).await?.first() {
            let stored: StoredChallenge = read(row)?;
            return Ok(stored.into());
        }
        let known = !query(IS_KNOWN).await?.is_empty();
        Err(if known { AnswerError::Answered } else { AnswerError::Unknown })
    }

    async fn attested(&self, id: &str, attested: Attested, lifetime: Duration) -> Result<(), StoreError> {
        let Attested { ear, key } = attested;
        let attested = write(&StoredAttested { ear, key })?;
        let (name, attested, lifetime) = (id.as_bytes(), attested.as_slice(), lifetime.as_secs_f64());
        let parameters: [Parameter<'_>; 3] =
            [(&name, Type::BYTEA), (&attested, Type::BYTEA), (&lifetime, Type::FLOAT8)];
        self.pool.query(ATTESTED, &parameters).await?;
        Ok(())
    }

    async fn find(&self, id: &str) -> Result<Option<Attested>, StoreError> {
        let name = id.as_bytes();
        let rows = self.pool.query(FIND, &[(&name, Type::BYTEA)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let StoredAttested { ear, key } = read(row)?;
        Ok(Some(Attested { ear, key }))
    }
}

impl From<Challenge> for StoredChallenge {
    fn from(challenge: Challenge) -> Self {
        let Challenge { tee, nonce, hash, credential } = challenge;
        let credential = credential.map(|(tpm, secret)| StoredCredential { tpm, secret });
        Self { tee, nonce, hash, credential }
    }
}

impl From<StoredChallenge> for Challenge {
    fn from(stored: StoredChallenge) -> Self {
        let StoredChallenge { tee, nonce, hash, credential } = stored;
        let credential = credential.map(|StoredCredential { tpm, secret }| (tpm, secret));
        Self { tee, nonce, hash, credential }
    }
}

mod base64_secret {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(super) fn serialize<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(secret.as_bytes())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        STANDARD.decode(text.as_bytes()).map(Secret::new).map_err(serde::de::Error::custom)
    }
}

fn write<V: Serialize>(value: &V) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    Ok(serde_json::to_vec(value).map(Zeroizing::new).map_err(PostgresError::Session)?)
}

/// Reads a row's only column.
fn read<V: DeserializeOwned>(row: &tokio_postgres::Row) -> Result<V, StoreError> {
    let json: &[u8] = row.try_get(0).map_err(PostgresError::from)?;
    Ok(serde_json::from_slice(json).map_err(PostgresError::Session)?)
}
