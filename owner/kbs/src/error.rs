//! What a client is told when it gets nothing.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use sealpod_kbs_protocol::rcar::ErrorBody;

use crate::rules::RulesError;
use crate::store::StoreError;

/// The prefix of an error's type.
const TYPES: &str = "https://github.com/confidential-containers/kbs/errors/";

/// An answer that is no success. Made for whoever asks; the reason for a denial is in the audit log alone.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    name: &'static str,
    detail: String,
    denial: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, name: &'static str, detail: impl ToString) -> Self {
        Self { status, name, detail: detail.to_string(), denial: None }
    }

    pub(crate) fn malformed(detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", detail)
    }

    pub(crate) fn version(actual: &str, expected: &[&str]) -> Self {
        let actual: String = actual.chars().take(32).collect();
        let detail =
            format!("protocol version {actual:?} is not among those supported: {}", expected.join(", "));
        Self::new(StatusCode::BAD_REQUEST, "ProtocolVersion", detail)
    }

    pub(crate) fn not_authenticated(detail: impl ToString) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthenticated", detail)
    }

    /// A denial whose reason stands in the audit log under this id.
    pub(crate) fn denied(denial: String) -> Self {
        let error =
            Self::new(StatusCode::FORBIDDEN, "Denied", "denied; the owner finds the reason under the id");
        Self { denial: Some(denial), ..error }
    }

    pub(crate) fn not_found(detail: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", detail)
    }

    pub(crate) fn conflict(detail: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", detail)
    }

    pub(crate) fn busy(detail: impl ToString) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Busy", detail)
    }

    pub(crate) fn timed_out() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the request took too long")
    }

    /// A request that was refused before anything looked at it.
    pub(crate) fn refused(status: StatusCode) -> Self {
        let name = match status {
            StatusCode::PAYLOAD_TOO_LARGE => "TooLarge",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
            _ => "InvalidRequest",
        };
        Self::new(status, name, status.canonical_reason().unwrap_or("the request was refused"))
    }

    /// Whether there was no room.
    pub(crate) fn is_full(&self) -> bool {
        self.status == StatusCode::INSUFFICIENT_STORAGE
    }

    /// A fault of the store's.
    pub(crate) fn store(error: StoreError) -> Self {
        if error.is_full() {
            tracing::error!(%error, "the disk with the store is full");
            let detail =
                "the key broker's disk is full and nothing was changed; make room where its store is";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "StorageFull", detail);
        }
        if error.is_temporary() {
            tracing::error!(%error, "the store is out of reach");
            let detail = "the key broker does not reach its store; try again";
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", detail);
        }
        Self::internal(error)
    }

    /// What stands in the store cannot decide.
    pub(crate) fn rules(error: RulesError) -> Self {
        match error {
            RulesError::Store(error) => Self::store(error),
            error => Self::internal(error),
        }
    }

    /// A fault of the broker's own, which its log explains.
    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", "the key broker failed; its log says why")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body =
            ErrorBody { kind: format!("{TYPES}{}", self.name), detail: self.detail, denial: self.denial };
        (self.status, Json(body)).into_response()
    }
}
