//! The handshake: `auth` asks for a challenge, `attest` answers it.

use std::sync::Arc;

use aws_lc_rs::rand;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealpod_appraisal::appraise;
use sealpod_evidence::tpm::RequestParams;
use sealpod_evidence::{HashAlgorithm, Tee, init_data, report_data};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::Status;
use sealpod_kbs_protocol::rcar::{self, Attestation, Request, TokenResponse};
use sealpod_verifier::{Claims, Expected, Refusal, verify};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::audit::{Event, Subject};
use crate::broker::{Broker, blocking, now};
use crate::error::ApiError;
use crate::rules::Rules;
use crate::session::{AnswerError, Attested, Challenge, OpenError};

/// The session's cookie.
pub(crate) const SESSION_COOKIE: &str = "kbs-session-id";

/// What every request says of itself in `extra-params`.
#[derive(Default, Deserialize)]
struct ExtraParams {
    #[serde(rename = "supported-hash-algorithms", default)]
    hashes: Vec<String>,
    #[serde(default)]
    tpm: Option<RequestParams>,
}

/// `POST auth`: gives a nonce, and a credential to a TPM.
pub(crate) async fn auth(State(broker): State<Arc<Broker>>, body: Bytes) -> Result<Response, ApiError> {
    let request: Request = parse(&body)?;
    if !rcar::VERSIONS.contains(&request.version.as_str()) {
        return Err(ApiError::version(&request.version, &rcar::VERSIONS));
    }
    if let Err(refusal) = sealpod_verifier::supported(request.tee, &broker.anchors) {
        return Err(broker.deny(attempt(request.tee), vec![refusal]).await);
    }
    let params: ExtraParams = match request.extra_params {
        params @ Value::Object(_) => serde_json::from_value(params)
            .map_err(|error| ApiError::malformed(format!("extra-params: {error}")))?,
        _ => ExtraParams::default(),
    };
    // What can come to nothing gets no session: those are limited, and anybody may ask.
    if request.tee == Tee::Tpm && params.tpm.is_none() && broker.anchors.tpm_enrolled_aks.is_empty() {
        let refusal = Refusal::new("ak", "the request's keys, as the broker knows no enrolled one", "none");
        return Err(broker.deny(attempt(request.tee), vec![refusal]).await);
    }
    let hash = choose_hash(&params.hashes)?;
    let mut extra_params = json!({ "selected-hash-algorithm": hash });
    let mut credential = None;
    if let Some(tpm) = params.tpm.filter(|_| request.tee == Tee::Tpm) {
        let secret = Zeroizing::new(random()?);
        let secret = Secret::new(secret.to_vec());
        let (made, tpm, secret) = {
            let broker = broker.clone();
            let make = move || {
                let made =
                    sealpod_verifier::tpm::make_credential(&tpm, &broker.anchors, now(), secret.as_bytes());
                (made, tpm, secret)
            };
            blocking(make).await?
        };
        let made = match made {
            Ok(made) => made,
            Err(refusal) => return Err(broker.deny(attempt(request.tee), vec![refusal]).await),
        };
        if let Some(members) = extra_params.as_object_mut() {
            members.insert("tpm".into(), json!(made));
        }
        credential = Some((tpm, secret));
    }
    let nonce = STANDARD.encode(random()?);
    let challenge = Challenge { tee: request.tee, nonce: nonce.clone(), hash, credential };
    let session = broker.sessions.open(challenge).await.map_err(|error| match error {
        OpenError::Randomness(_) => ApiError::internal(error),
        OpenError::Store(error) => ApiError::store(error),
    })?;
    broker.metrics.challenge();
    let cookie = format!("{SESSION_COOKIE}={session}; Path=/kbs; HttpOnly; SameSite=Strict");
    Ok(([(header::SET_COOKIE, cookie)], Json(rcar::Challenge { nonce, extra_params })).into_response())
}

/// `POST attest`: takes evidence, gives a token.
pub(crate) async fn attest(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<TokenResponse>, ApiError> {
    let session = session_cookie(&headers).ok_or_else(|| ApiError::not_authenticated("no session cookie"))?;
    let attestation: Attestation = parse(&body)?;
    // First, so that no challenge is used up when the store is out of reach.
    let rules = broker.rules.get().await?;
    let challenge = broker.sessions.answer(&session).await.map_err(|error| match error {
        AnswerError::Unknown => ApiError::not_authenticated(error),
        AnswerError::Answered => ApiError::conflict(error),
        AnswerError::Store(error) => ApiError::store(error),
    })?;
    let tee = challenge.tee;
    let key = attestation.runtime_data.tee_pubkey.clone();
    let appraised = {
        let (broker, rules) = (broker.clone(), rules.clone());
        blocking(move || evaluate(&broker, &rules, &challenge, &attestation)).await?
    };
    let (appraisal, claims) = match appraised {
        Ok(appraised) => appraised,
        Err(failures) => return Err(broker.deny(attempt(tee), failures).await),
    };
    let lifetime = broker.lifetime;
    let (token, ear) = rules
        .signer
        .issue(&appraisal, &claims, &key, now(), lifetime.as_secs())
        .map_err(ApiError::internal)?;
    let guest = Some(key.thumbprint());
    broker.grant(Subject { guest, ..attempt(tee) }).await?;
    let attested = Attested { ear, key };
    broker.sessions.attested(&session, attested, lifetime).await.map_err(ApiError::store)?;
    Ok(Json(TokenResponse { token }))
}

/// The session that a request names.
pub(crate) fn session_cookie(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, session)| session.to_owned())
}

/// Parses JSON from a client; the error says where it is wrong.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(ApiError::malformed)
}

/// Verifies and appraises; only an affirmed guest passes.
fn evaluate(
    broker: &Broker,
    rules: &Rules,
    challenge: &Challenge,
    attestation: &Attestation,
) -> Result<(sealpod_appraisal::Appraisal, Claims), Vec<Refusal>> {
    let one = |refusal: Refusal| vec![refusal];
    let runtime_data = &attestation.runtime_data;
    if runtime_data.nonce != challenge.nonce {
        return Err(one(Refusal::new("nonce", &challenge.nonce, shortened(&runtime_data.nonce))));
    }
    let additional = &attestation.tee_evidence.additional_evidence;
    if !matches!(additional.as_str(), "" | "{}" | "null") {
        return Err(one(Refusal::new("additional_evidence", "none: devices are not supported", "some")));
    }
    let digest = match &attestation.init_data {
        None => None,
        Some(body) if body.format != "toml" => {
            return Err(one(Refusal::new("init_data", "the format toml", shortened(&body.format))));
        }
        Some(body) => {
            let digest = init_data::digest(&body.body);
            Some(digest.map_err(|error| one(Refusal::new("init_data", "well-formed init data", error)))?)
        }
    };
    let report_data = report_data(challenge.hash, &runtime_data.bound_with(additional));
    let credential = challenge.credential.as_ref();
    let expected = Expected {
        report_data: &report_data,
        init_data_digest: digest.as_deref(),
        credential: credential.map(|(_, secret)| secret.as_bytes()),
        tpm_request: credential.map(|(params, _)| params),
    };
    let evidence = &attestation.tee_evidence.primary_evidence;
    let claims = verify(challenge.tee, evidence, &expected, &broker.anchors, now()).map_err(one)?;
    let appraisal = appraise(&rules.attestation, challenge.tee, &claims, &rules.references)
        .map_err(|error| one(Refusal::new("policy", "a policy that can be evaluated", error)))?;
    if appraisal.status != Status::Affirming {
        return Err(appraisal.failures);
    }
    Ok((appraisal, claims))
}

/// An attestation for the audit log.
fn attempt(tee: Tee) -> Subject {
    Subject { tee: Some(tee), ..Subject::of_guest(Event::Attest) }
}

/// The first algorithm that the guest offers and the broker takes; the protocol's default where it offers none.
fn choose_hash(offered: &[String]) -> Result<HashAlgorithm, ApiError> {
    let wanted = [HashAlgorithm::Sha384, HashAlgorithm::Sha256, HashAlgorithm::Sha512];
    if offered.is_empty() {
        return Ok(HashAlgorithm::Sha384);
    }
    let chosen = wanted.into_iter().find(|algorithm| offered.iter().any(|name| name == algorithm.name()));
    chosen.ok_or_else(|| {
        ApiError::malformed("none of the hash algorithms is supported: sha256, sha384, sha512")
    })
}

fn random() -> Result<[u8; 32], ApiError> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(ApiError::internal)?;
    Ok(bytes)
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
