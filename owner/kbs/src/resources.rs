//! Secrets: guests get them sealed to their key, the administrator as they are.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sealpod_appraisal::TokenSigner;
use sealpod_kbs_protocol::jwe::Jwe;
use sealpod_kbs_protocol::{ResourcePath, Secret};
use sealpod_verifier::Refusal;

use crate::admin_key::{Admin, bearer};
use crate::attestation::session_cookie;
use crate::audit::{Event, Subject};
use crate::broker::{Broker, blocking};
use crate::error::ApiError;
use crate::rules::Rules;
use crate::session::Attested;
use crate::store::Kind;

type Parts = (String, String, String);

/// `GET resource/{repository}/{type}/{tag}`.
pub(crate) async fn get(
    State(broker): State<Arc<Broker>>,
    Path(parts): Path<Parts>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = path(&parts)?;
    if let Some(admin) = bearer(&headers).and_then(|token| broker.admin.accept(token)) {
        let secret = find(&broker, &path).await?;
        broker.accept(of_administrator(admin, Event::ReadResource, &path)).await?;
        let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
        return Ok((kind, Bytes::from_owner(secret)).into_response());
    }
    let rules = broker.rules.get().await?;
    let attested = guest(&broker, &rules, &headers).await?;
    let allowed = {
        let (path, ear) = (path.clone(), attested.ear.clone());
        blocking(move || rules.resource.allows(&ear, &path)).await?
    };
    let refusal = match allowed {
        Ok(true) => None,
        Ok(false) => Some(Refusal::new("resource policy", "allow", "not allowed")),
        Err(error) => Some(Refusal::new("resource policy", "a policy that can be evaluated", error)),
    };
    let subject = Subject {
        resource: Some(path.to_string()),
        guest: Some(attested.key.thumbprint()),
        ..Subject::of_guest(Event::Resource)
    };
    // A guest that may not have it does not learn whether it is there.
    if let Some(refusal) = refusal {
        return Err(broker.deny(subject, vec![refusal]).await);
    }
    let secret = find(&broker, &path).await?;
    let jwe =
        blocking(move || Jwe::seal(&attested.key, secret.as_bytes())).await?.map_err(ApiError::malformed)?;
    broker.grant(subject).await?;
    Ok(Json(jwe).into_response())
}

/// `POST resource/{repository}/{type}/{tag}`, by the administrator.
pub(crate) async fn set(
    admin: Admin,
    State(broker): State<Arc<Broker>>,
    Path(parts): Path<Parts>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let path = path(&parts)?;
    let entry = (path.to_string(), Secret::new(Vec::from(body)));
    broker.accept(of_administrator(admin, Event::SetResource, &path)).await?;
    broker.store.set(Kind::Resource, vec![entry]).await.map_err(ApiError::store)?;
    Ok(StatusCode::OK)
}

/// `DELETE resource/{repository}/{type}/{tag}`, by the administrator.
pub(crate) async fn delete(
    admin: Admin,
    State(broker): State<Arc<Broker>>,
    Path(parts): Path<Parts>,
) -> Result<StatusCode, ApiError> {
    let path = path(&parts)?;
    let noted = broker.accept(of_administrator(admin.clone(), Event::DeleteResource, &path)).await;
    let is_full = match noted {
        // It gives nothing away, and makes the room that the note takes.
        Err(error) if error.is_full() => true,
        noted => noted.map(|()| false)?,
    };
    let name = path.to_string();
    if !broker.store.remove(Kind::Resource, &name).await.map_err(ApiError::store)? {
        return Err(ApiError::not_found(format!("there is no resource {name}")));
    }
    if is_full {
        broker.accept(of_administrator(admin, Event::DeleteResource, &path)).await?;
    }
    Ok(StatusCode::OK)
}

/// `GET resource`, by the administrator: all paths.
pub(crate) async fn list(_: Admin, State(broker): State<Arc<Broker>>) -> Result<Json<Vec<String>>, ApiError> {
    Ok(Json(broker.store.names(Kind::Resource).await.map_err(ApiError::store)?))
}

/// Who asks: an attested session, or the bearer of a token of ours.
async fn guest(broker: &Broker, rules: &Rules, headers: &HeaderMap) -> Result<Attested, ApiError> {
    if let Some(token) = bearer(headers) {
        let ear =
            rules.signer.verify(token).map_err(|_| ApiError::not_authenticated("the token is not valid"))?;
        let key = TokenSigner::bound_key(&ear);
        let key = key.ok_or_else(|| ApiError::not_authenticated("the token is bound to no key"))?;
        return Ok(Attested { ear, key });
    }
    let attested = match session_cookie(headers) {
        Some(session) => broker.sessions.find(&session).await.map_err(ApiError::store)?,
        None => None,
    };
    attested.ok_or_else(|| ApiError::not_authenticated("not attested, or not any more"))
}

fn of_administrator(admin: Admin, event: Event, path: &ResourcePath) -> Subject {
    Subject { resource: Some(path.to_string()), ..Subject::of_administrator(admin, event) }
}

async fn find(broker: &Broker, path: &ResourcePath) -> Result<Secret, ApiError> {
    let found = broker.store.get(Kind::Resource, &path.to_string()).await.map_err(ApiError::store)?;
    found.ok_or_else(|| ApiError::not_found(format!("there is no resource {path}")))
}

fn path((repository, kind, tag): &Parts) -> Result<ResourcePath, ApiError> {
    format!("{repository}/{kind}/{tag}").parse().map_err(ApiError::malformed)
}
