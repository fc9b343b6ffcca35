//! Who administrates: the holder of a private key whose public half the configuration names.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use jsonwebtoken::errors::Error;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::broker::Broker;
use crate::error::ApiError;

/// Clocks may differ by so many seconds.
const LEEWAY: u64 = 10;
const ROLE: &str = "admin";

/// Shows that a request is an administrator's. A handler that takes it first runs for nobody else, and nobody else's
/// request body is read.
pub(crate) struct Admin;

/// The public keys of the configuration.
#[derive(Default)]
pub(crate) struct AdminKeys(Vec<DecodingKey>);

/// The claims of an administrator's token. An expiry is required; older clients name no role.
#[derive(Deserialize)]
struct Claims {
    role: Option<String>,
}

impl AdminKeys {
    /// Adds an Ed25519 public key, PEM.
    pub(crate) fn add(&mut self, pem: &[u8]) -> Result<(), Error> {
        self.0.push(DecodingKey::from_ed_pem(pem)?);
        Ok(())
    }

    /// Whether a bearer token was made by an administrator, for now.
    pub(crate) fn accept(&self, token: &str) -> bool {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        self.0.iter().any(|key| {
            let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation);
            decoded.is_ok_and(|token| token.claims.role.is_none_or(|role| role == ROLE))
        })
    }
}

impl FromRequestParts<Arc<Broker>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, ApiError> {
        match bearer(&parts.headers) {
            Some(token) if broker.admin.accept(token) => Ok(Self),
            Some(_) => {
                Err(ApiError::not_authenticated("the token is not an administrator's, or not any more"))
            }
            None => Err(ApiError::not_authenticated("an administrator's token is needed")),
        }
    }
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
