//! What the owner sets and looks up: policies, reference values, and the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sealpod_appraisal::{DEFAULT_POLICY, Policy};
use sealpod_evidence::HashAlgorithm;
use sealpod_kbs_protocol::Secret;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::admin_key::Admin;
use crate::attestation::parse;
use crate::audit::{Event, Subject};
use crate::broker::Broker;
use crate::error::ApiError;
use crate::resource_policy::{self, ResourcePolicy};
use crate::rules::{ATTESTATION_POLICY, RESOURCE_POLICY};
use crate::store::Kind;

/// No answer has more entries of the audit log.
const MAX_AUDIT_ENTRIES: usize = 1000;
const DEFAULT_AUDIT_ENTRIES: usize = 50;
const MAX_REFERENCE_ID: usize = 256;

/// A policy as it travels: base64url without padding.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy_id: Option<String>,
    policy: String,
}

/// A message to the reference value provider service.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferenceValueMessage {
    version: String,
    #[serde(rename = "type")]
    kind: String,
    payload: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    id: Option<String>,
    limit: Option<usize>,
}

pub(crate) async fn set_attestation_policy(
    admin: Admin,
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let body: PolicyBody = parse(&body)?;
    if body.policy_id.as_deref().is_some_and(|id| id != "default") {
        return Err(ApiError::malformed("the only attestation policy is `default`"));
    }
    let text = decode_policy(&body.policy)?;
    Policy::parse("default", &text).map_err(ApiError::malformed)?;
    let subject = Subject::of_administrator(admin, Event::SetAttestationPolicy);
    save_policy(broker, subject, ATTESTATION_POLICY, text).await
}

pub(crate) async fn attestation_policy(
    _: Admin,
    State(broker): State<Arc<Broker>>,
) -> Result<Json<PolicyBody>, ApiError> {
    load_policy(broker, ATTESTATION_POLICY, DEFAULT_POLICY).await
}

pub(crate) async fn set_resource_policy(
    admin: Admin,
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let body: PolicyBody = parse(&body)?;
    let text = decode_policy(&body.policy)?;
    ResourcePolicy::parse(&text).map_err(ApiError::malformed)?;
    let subject = Subject::of_administrator(admin, Event::SetResourcePolicy);
    save_policy(broker, subject, RESOURCE_POLICY, text).await
}

pub(crate) async fn resource_policy(
    _: Admin,
    State(broker): State<Arc<Broker>>,
) -> Result<Json<PolicyBody>, ApiError> {
    load_policy(broker, RESOURCE_POLICY, resource_policy::DEFAULT_POLICY).await
}

/// `POST reference-value`: sets the accepted values of some ids.
pub(crate) async fn set_reference_values(
    admin: Admin,
    State(broker): State<Arc<Broker>>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let message: ReferenceValueMessage = parse(&body)?;
    if message.version != "0.1.0" || message.kind != "sample" {
        return Err(ApiError::malformed("expected version 0.1.0 and type sample"));
    }
    let payload = STANDARD.decode(&message.payload).map_err(ApiError::malformed)?;
    let values: BTreeMap<String, Value> = parse(&payload)?;
    if values.keys().any(|id| id.is_empty() || id.len() > MAX_REFERENCE_ID) {
        return Err(ApiError::malformed(format!("an id has 1 to {MAX_REFERENCE_ID} bytes")));
    }
    let details = serde_json::to_string(&values).map_err(ApiError::internal)?;
    let subject = Subject::of_administrator(admin, Event::SetReferenceValues);
    broker.accept(Subject { details: Some(details), ..subject }).await?;
    let entry = |(id, value): (String, Value)| (id, Secret::new(value.to_string().into_bytes()));
    let entries = values.into_iter().map(entry).collect();
    broker.store.set(Kind::ReferenceValue, entries).await.map_err(ApiError::store)?;
    Ok(StatusCode::OK)
}

pub(crate) async fn reference_value(
    _: Admin,
    State(broker): State<Arc<Broker>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let value = broker.rules.get().await?.references.get(&id).cloned();
    value.map(Json).ok_or_else(|| ApiError::not_found(format!("there is no reference value {id:?}")))
}

pub(crate) async fn reference_values(
    _: Admin,
    State(broker): State<Arc<Broker>>,
) -> Result<Json<BTreeMap<String, Value>>, ApiError> {
    Ok(Json(broker.rules.get().await?.references.clone()))
}

/// `GET audit`: one entry by its id, or the latest ones, oldest first.
pub(crate) async fn audit(
    _: Admin,
    State(broker): State<Arc<Broker>>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let entries = match query.id {
        Some(id) => broker.store.audit_entry(&id).await.map(|entry| entry.into_iter().collect()),
        None => {
            let limit = query.limit.unwrap_or(DEFAULT_AUDIT_ENTRIES).min(MAX_AUDIT_ENTRIES);
            broker.store.latest_audit(limit).await
        }
    };
    let entries: Vec<Vec<u8>> = entries.map_err(ApiError::store)?;
    let entries = entries.iter().map(|entry| serde_json::from_slice(entry)).collect::<Result<_, _>>();
    Ok(Json(entries.map_err(ApiError::internal)?))
}

fn decode_policy(text: &str) -> Result<String, ApiError> {
    let bytes =
        URL_SAFE_NO_PAD.decode(text).map_err(|error| ApiError::malformed(format!("policy: {error}")))?;
    String::from_utf8(bytes).map_err(|error| ApiError::malformed(format!("policy: {error}")))
}

/// Saves a policy, whose digest is noted.
async fn save_policy(
    broker: Arc<Broker>,
    subject: Subject,
    name: &str,
    text: String,
) -> Result<StatusCode, ApiError> {
    let digest = hex::encode(HashAlgorithm::Sha256.digest(text.as_bytes()));
    broker.accept(Subject { details: Some(format!("sha256:{digest}")), ..subject }).await?;
    let entry = (name.to_owned(), Secret::new(text.into_bytes()));
    broker.store.set(Kind::Setting, vec![entry]).await.map_err(ApiError::store)?;
    Ok(StatusCode::OK)
}

async fn load_policy(broker: Arc<Broker>, name: &str, default: &str) -> Result<Json<PolicyBody>, ApiError> {
    let stored = broker.store.get(Kind::Setting, name).await.map_err(ApiError::store)?;
    let policy = URL_SAFE_NO_PAD.encode(stored.as_ref().map_or(default.as_bytes(), Secret::as_bytes));
    Ok(Json(PolicyBody { policy_id: None, policy }))
}
