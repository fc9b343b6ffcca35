//! The handshake (RCAR, protocol 0.4.0): request, challenge, attestation, response.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealpod_evidence::{HashAlgorithm, report_data};
use sealpod_kbs_protocol::jwe::TeeKeyPair;
use sealpod_kbs_protocol::rcar::{
    Attestation, Challenge, InitDataBody, Request, RuntimeData, TeeEvidence, TokenResponse, VERSION,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Timings;
use super::http::{Answer, Http};
use crate::{Attester, Error};

/// What an attestation gave.
pub(super) struct Session {
    pub(super) cookie: String,
    pub(super) token: String,
    pub(super) keys: TeeKeyPair,
    /// Until then the token is given out: whoever gets it needs time to use it.
    fresh_until: Instant,
    /// Until then the token is good.
    good_until: Instant,
}

impl Session {
    /// Whether the token is good for some time to come.
    pub(super) fn has_fresh_token(&self) -> bool {
        Instant::now() < self.fresh_until
    }

    /// Whether the token is good, if only for a moment.
    pub(super) fn has_good_token(&self) -> bool {
        Instant::now() < self.good_until
    }
}

/// The claims of a token that say how long it is good for.
#[derive(Deserialize)]
struct Lifetime {
    iat: u64,
    exp: u64,
}

/// The part of a challenge's parameters that every TEE has.
#[derive(Deserialize)]
struct ChallengeParams {
    #[serde(rename = "selected-hash-algorithm", default = "default_hash")]
    hash: HashAlgorithm,
}

fn default_hash() -> HashAlgorithm {
    HashAlgorithm::Sha384
}

/// No token counts as good for longer, in seconds.
const MAX_LIFETIME: u64 = 86_400;

type SharedAttester = Arc<Mutex<Box<dyn Attester>>>;

/// Proves to the broker what runs here.
pub(super) async fn handshake(
    http: &Http,
    attester: &SharedAttester,
    init_data: Option<&str>,
    keys: TeeKeyPair,
) -> Result<(Session, Timings), Error> {
    let (tee, params) =
        with_attester(attester, |attester| Ok((attester.tee(), attester.request_params()?))).await?;
    let mut extra_params = json!({ "supported-hash-algorithms": ["sha256", "sha384", "sha512"] });
    if let (Some(extra_params), Value::Object(params)) = (extra_params.as_object_mut(), params) {
        extra_params.extend(params);
    }

    let began = Instant::now();
    let request = Request { version: VERSION.into(), tee, extra_params };
    let (body, cookie) = done(http.post("auth", encode(&request)?, None).await?)?;
    let cookie = cookie.ok_or_else(|| Error::Protocol("the challenge sets no session cookie".into()))?;
    let challenge: Challenge = decode(&body)?;
    let hash = match &challenge.extra_params {
        Value::Object(_) => {
            let params: ChallengeParams = serde_json::from_value(challenge.extra_params.clone())
                .map_err(|error| Error::Protocol(format!("the challenge's parameters: {error}")))?;
            params.hash
        }
        _ => default_hash(),
    };
    let challenged = Instant::now();

    let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: keys.public_key().clone() };
    let additional = String::new();
    let report_data = report_data(hash, &runtime_data.bound_with(&additional));
    let params = challenge.extra_params;
    let primary = with_attester(attester, move |attester| attester.evidence(&report_data, &params)).await?;
    let evidenced = Instant::now();

    let attestation = Attestation {
        init_data: init_data.map(|body| InitDataBody { format: "toml".into(), body: body.into() }),
        runtime_data,
        tee_evidence: TeeEvidence { primary_evidence: primary, additional_evidence: additional },
    };
    let (body, _) = done(http.post("attest", encode(&attestation)?, Some(&cookie)).await?)?;
    let TokenResponse { token } = decode(&body)?;
    let lifetime = lifetime(&token);
    let (fresh_until, good_until) = (evidenced + lifetime / 5 * 4, evidenced + lifetime);
    let timings = Timings {
        challenge: challenged - began,
        evidence: evidenced - challenged,
        token: evidenced.elapsed(),
    };
    Ok((Session { cookie, token, keys, fresh_until, good_until }, timings))
}

/// How long a token is good for from when it was issued: no two clocks are compared. None at all where it does not say.
fn lifetime(token: &str) -> Duration {
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
    let lifetime = claims.and_then(|claims| serde_json::from_slice::<Lifetime>(&claims).ok());
    Duration::from_secs(lifetime.map_or(0, |Lifetime { iat, exp }| exp.saturating_sub(iat).min(MAX_LIFETIME)))
}

/// A TEE's devices block: they are used on a thread of their own.
async fn with_attester<V: Send + 'static>(
    attester: &SharedAttester,
    work: impl FnOnce(&mut dyn Attester) -> Result<V, Error> + Send + 'static,
) -> Result<V, Error> {
    let attester = attester.clone();
    let work = move || work(attester.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).as_mut());
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Evidence(error.to_string()))?
}

fn done(answer: Answer) -> Result<(Vec<u8>, Option<String>), Error> {
    match answer {
        Answer::Done { body, cookie } => Ok((body, cookie)),
        Answer::NotAuthenticated { denial } | Answer::Denied { denial } => Err(Error::Denied { denial }),
        Answer::NotFound => Err(Error::Protocol("there is no key broker at this address (404)".into())),
    }
}

fn encode<T: serde::Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(message).map_err(|error| Error::Protocol(error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| Error::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_as_long_as_it_says() {
        let of = |claims: &str| lifetime(&format!("e30.{}.AAAA", URL_SAFE_NO_PAD.encode(claims)));
        assert_eq!(of(r#"{"iat": 1000, "exp": 1300, "iss": "a"}"#), Duration::from_secs(300));
        assert_eq!(of(&json!({ "iat": 0, "exp": u64::MAX }).to_string()), Duration::from_secs(MAX_LIFETIME));
        for claims in
            [r#"{"iat": 1300, "exp": 1000}"#, r#"{"exp": 1300}"#, r#"{"iat": -1, "exp": 1}"#, "", "[]"]
        {
            assert_eq!(of(claims), Duration::ZERO, "{claims}");
        }
        for token in ["", "a", "a.%.c"] {
            assert_eq!(lifetime(token), Duration::ZERO, "{token}");
        }
    }
}
