//! Who administrates: the holder of a private key whose public half the configuration names.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use sealpod_evidence::HashAlgorithm;
use serde::Deserialize;

use crate::broker::Broker;
use crate::error::ApiError;

/// Clocks may differ by so many seconds.
const LEEWAY: u64 = 10;
const ROLE: &str = "admin";

/// Shows that a request is an administrator's. A handler that takes it first runs for nobody else, and nobody else's
/// request body is read.
#[derive(Clone)]
pub(crate) struct Admin {
    /// Which one: the SHA-256 digest of the public key (SubjectPublicKeyInfo, DER), hexadecimal.
    pub(crate) key: String,
}

/// The public keys of the configuration.
#[derive(Default)]
pub(crate) struct AdminKeys(Vec<AdminKey>);

struct AdminKey {
    digest: String,
    key: DecodingKey,
}

/// The claims of an administrator's token. An expiry is required; older clients name no role.
#[derive(Deserialize)]
struct Claims {
    role: Option<String>,
}

impl AdminKeys {
    /// Adds an Ed25519 public key, PEM.
    pub(crate) fn add(&mut self, pem: &[u8]) -> Result<(), Error> {
        let key = DecodingKey::from_ed_pem(pem)?;
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| ErrorKind::InvalidKeyFormat)?;
        self.0.push(AdminKey { digest: hex::encode(HashAlgorithm::Sha256.digest(&der)), key });
        Ok(())
    }

    /// The administrator who made a bearer token, for now.
    pub(crate) fn accept(&self, token: &str) -> Option<Admin> {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        let made_it = |AdminKey { key, .. }: &&AdminKey| {
            let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation);
            decoded.is_ok_and(|token| token.claims.role.is_none_or(|role| role == ROLE))
        };
        self.0.iter().find(made_it).map(|AdminKey { digest, .. }| Admin { key: digest.clone() })
    }
}

impl FromRequestParts<Arc<Broker>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers)
            .ok_or_else(|| ApiError::not_authenticated("an administrator's token is needed"))?;
        broker.admin.accept(token).ok_or_else(|| {
            ApiError::not_authenticated("the token is not an administrator's, or not any more")
        })
    }
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}
