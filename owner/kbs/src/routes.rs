//! What is where.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, http::StatusCode};

use crate::broker::Broker;
use crate::error::ApiError;
use crate::{administration, attestation, resources};

/// No request is larger, in bytes.
const MAX_BODY: usize = 4 << 20;
/// No request takes longer, its body included.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// The broker's routes.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    let api = Router::new()
        .route("/auth", post(attestation::auth))
        .route("/attest", post(attestation::attest))
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
        .layer(middleware::from_fn(limit_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(broker)
}

async fn metrics(State(broker): State<Arc<Broker>>) -> String {
    broker.metrics.text()
}

/// A client that sends its body too slowly is not waited for.
async fn limit_time(request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(REQUEST_LIMIT, next.run(request)).await;
    answered.unwrap_or_else(|_| ApiError::timed_out().into_response())
}
