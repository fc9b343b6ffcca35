//! What is where.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::broker::Broker;
use crate::error::ApiError;
use crate::{administration, attestation, resources};

/// No request of an administrator is larger, in bytes.
const MAX_BODY: usize = 4 << 20;
/// No evidence is larger, in bytes.
const MAX_ATTESTATION: usize = 1 << 20;
/// No request for a challenge is larger, in bytes.
const MAX_AUTHENTICATION: usize = 64 << 10;
/// No request takes longer, its body included.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// The broker's routes.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    let api = Router::new()
        .route("/auth", post(attestation::auth).layer(DefaultBodyLimit::max(MAX_AUTHENTICATION)))
        .route("/attest", post(attestation::attest).layer(DefaultBodyLimit::max(MAX_ATTESTATION)))
        .route("/resource", get(resources::list))
        .route(
            "/resource/{repository}/{type}/{tag}",
            get(resources::get).post(resources::set).delete(resources::delete),
        )
        .route(
            "/attestation-policy",
            get(administration::attestation_policy).post(administration::set_attestation_policy),
        )
        .route(
            "/resource-policy",
            get(administration::resource_policy).post(administration::set_resource_policy),
        )
        .route(
            "/reference-value",
            get(administration::reference_values).post(administration::set_reference_values),
        )
        .route("/reference-value/{id}", get(administration::reference_value))
        .route("/audit", get(administration::audit));
    Router::new()
        .nest("/kbs/v0", api)
        .route("/healthz", get(async || StatusCode::OK))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::not_found("there is nothing here; the interface is below /kbs/v0"))
        .layer(middleware::from_fn(uniform_errors))
        .layer(middleware::from_fn(limit_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(broker)
}

async fn metrics(State(broker): State<Arc<Broker>>) -> String {
    broker.metrics.text()
}

/// What the framework refuses by itself gets the same kind of body as everything else.
async fn uniform_errors(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let ours = |response: &Response| {
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        kind.is_some_and(|kind| kind.starts_with("application/json"))
    };
    if !response.status().is_client_error() || ours(&response) {
        return response;
    }
    ApiError::refused(response.status()).into_response()
}

/// A client that sends its body too slowly is not waited for.
async fn limit_time(request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await;
    answered.unwrap_or_else(|_| ApiError::timed_out().into_response())
}
