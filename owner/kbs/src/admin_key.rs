//! Who administrates: the holder of a private key whose public half the configuration names.

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// Clocks may differ by so many seconds.
const LEEWAY: u64 = 10;

/// The public keys of the configuration.
pub(crate) struct AdminKeys(Vec<DecodingKey>);

/// The claims of an administrator's token. An expiry is required.
#[derive(Deserialize)]
struct Claims {
    role: String,
}

impl AdminKeys {
    /// Takes Ed25519 public keys, PEM.
    pub(crate) fn new(pems: &[Vec<u8>]) -> Result<Self, jsonwebtoken::errors::Error> {
        pems.iter().map(|pem| DecodingKey::from_ed_pem(pem)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a bearer token was made by an administrator, for now.
    pub(crate) fn accept(&self, token: &str) -> bool {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        self.0.iter().any(|key| {
            let decoded = jsonwebtoken::decode::<Claims>(token, key, &validation);
            decoded.is_ok_and(|token| token.claims.role == "admin")
        })
    }
}
