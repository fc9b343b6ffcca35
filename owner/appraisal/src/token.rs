//! Attestation tokens: an EAR as a JWT signed with ES256.

use std::collections::BTreeMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters, EllipticCurveKeyType,
    Jwk,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::{CPU, Ear, PROFILE, Submod, VerifierId};
use sealpod_kbs_protocol::jwe::TeePublicKey;
use sealpod_verifier::Claims;
use serde_json::{Value, json};

use crate::Appraisal;

const ISSUER: &str = "sealpod-kbs";
/// Clocks may differ by so many seconds.
const LEEWAY: u64 = 5;

/// Issues tokens, and verifies those that it issued.
pub struct TokenSigner {
    encoding: EncodingKey,
    decoding: DecodingKey,
    public: Jwk,
}

/// Why a token cannot be issued or is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The signing key cannot be used.
    #[error("the token signing key cannot be used")]
    Key,
    /// The token is not ours, altered or expired.
    #[error("the token is not valid: {0}")]
    Invalid(#[from] jsonwebtoken::errors::Error),
}

impl TokenSigner {
    /// A new signing key, PKCS#8 DER.
    ///
    /// # Errors
    /// [`TokenError::Key`], where the system has no random numbers.
    pub fn generate() -> Result<Secret, TokenError> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        key.map(|key| Secret::new(key.as_ref().to_vec())).map_err(|_| TokenError::Key)
    }

    /// Uses a signing key, PKCS#8 DER.
    ///
    /// # Errors
    /// [`TokenError::Key`], where it is no key on P-256.
    pub fn new(pkcs8: &Secret) -> Result<Self, TokenError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_bytes())
            .map_err(|_| TokenError::Key)?;
        let point = pair.public_key().as_ref();
        let (x, y) = point.get(1..65).ok_or(TokenError::Key)?.split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let decoding = DecodingKey::from_ec_components(&x, &y)?;
        let public = Jwk {
            common: CommonParameters::default(),
            algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve: EllipticCurve::P256,
                x,
                y,
            }),
        };
        Ok(Self { encoding: EncodingKey::from_ec_der(pkcs8.as_bytes()), decoding, public })
    }

    /// Issues a token for a guest that was appraised, bound to the guest's key.
    ///
    /// # Errors
    /// [`TokenError`], where it cannot be signed.
    pub fn issue(
        &self,
        appraisal: &Appraisal,
        claims: &Claims,
        key: &TeePublicKey,
        now: u64,
        lifetime: u64,
    ) -> Result<(String, Ear), TokenError> {
        let mut annotated_evidence = claims.0.clone();
        annotated_evidence.insert("runtime_data_claims".into(), json!({ "tee-pubkey": key }));
        let submod = Submod {
            status: appraisal.status,
            vector: appraisal.vector.clone(),
            policy_id: appraisal.policy_id.clone(),
            annotated_evidence: annotated_evidence.into(),
            extensions: appraisal.extensions.clone(),
        };
        let ear = Ear {
            eat_profile: PROFILE.into(),
            iat: now,
            exp: now.saturating_add(lifetime),
            iss: ISSUER.into(),
            verifier_id: VerifierId {
                build: concat!("sealpod ", env!("CARGO_PKG_VERSION")).into(),
                developer: "sealpod".into(),
            },
            submods: BTreeMap::from([(CPU.to_owned(), submod)]),
        };
        let header = Header { jwk: Some(self.public.clone()), ..Header::new(Algorithm::ES256) };
        Ok((jsonwebtoken::encode(&header, &ear, &self.encoding)?, ear))
    }

    /// The claims of a token that this key signed and that has not expired.
    ///
    /// # Errors
    /// [`TokenError::Invalid`], where it is another's, altered or expired.
    pub fn verify(&self, token: &str) -> Result<Ear, TokenError> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY;
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        Ok(jsonwebtoken::decode::<Ear>(token, &self.decoding, &validation)?.claims)
    }

    /// The guest's key that a token is bound to.
    pub fn bound_key(ear: &Ear) -> Option<TeePublicKey> {
        let evidence: &Value = &ear.submods.get(CPU)?.annotated_evidence;
        serde_json::from_value(evidence.pointer("/runtime_data_claims/tee-pubkey")?.clone()).ok()
    }
}

#[cfg(test)]
mod tests {
    use sealpod_kbs_protocol::ear::Status;
    use sealpod_kbs_protocol::jwe::TeeKeyPair;

    use super::*;

    fn signer() -> TokenSigner {
        TokenSigner::new(&TokenSigner::generate().unwrap()).unwrap()
    }

    fn issue(signer: &TokenSigner, now: u64) -> (String, TeePublicKey) {
        let key = TeeKeyPair::generate().unwrap().public_key().clone();
        let appraisal = Appraisal {
            status: Status::Affirming,
            vector: [("hardware".to_owned(), 2)].into(),
            policy_id: "default".into(),
            extensions: [("ear.trustee.identifiers".to_owned(), json!({ "image": "web" }))].into(),
            failures: vec![],
        };
        let claims = Claims(json!({ "sample": { "svn": "1" } }).as_object().unwrap().clone());
        (signer.issue(&appraisal, &claims, &key, now, 300).unwrap().0, key)
    }

    fn now() -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn a_token_verifies_with_its_signer_and_names_the_guests_key() {
        let signer = signer();
        let (token, key) = issue(&signer, now());
        let ear = signer.verify(&token).unwrap();
        assert_eq!(TokenSigner::bound_key(&ear), Some(key));
        assert_eq!(ear.submods[CPU].status, Status::Affirming);
    }

    #[test]
    fn a_token_has_its_claims_where_other_relying_parties_look() {
        let signer = signer();
        let (token, key) = issue(&signer, now());
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let payload: Value = serde_json::from_slice(&payload).unwrap();
        let at = |pointer: &str| payload.pointer(&format!("/submods/cpu0/{pointer}")).cloned();
        assert_eq!(at("ear.status"), Some(json!("affirming")));
        assert_eq!(at("ear.trustworthiness-vector/hardware"), Some(json!(2)));
        assert_eq!(at("ear.trustee.identifiers/image"), Some(json!("web")));
        let evidence = "ear.veraison.annotated-evidence";
        assert_eq!(at(&format!("{evidence}/sample/svn")), Some(json!("1")));
        assert_eq!(at(&format!("{evidence}/runtime_data_claims/tee-pubkey")), Some(json!(key)));
    }

    #[test]
    fn a_token_names_the_key_that_verifies_it() {
        let (token, _) = issue(&signer(), now());
        let key = jsonwebtoken::decode_header(&token).unwrap().jwk.unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        let key = DecodingKey::from_jwk(&key).unwrap();
        assert!(jsonwebtoken::decode::<Ear>(&token, &key, &validation).is_ok());
    }

    #[test]
    fn a_token_of_another_signer_and_an_expired_one_are_refused() {
        let signer_of_ours = signer();
        assert!(signer_of_ours.verify(&issue(&signer(), now()).0).is_err());
        assert!(signer_of_ours.verify(&issue(&signer_of_ours, now() - 1000).0).is_err());
    }

    #[test]
    fn a_token_without_a_signature_is_refused() {
        let signer = signer();
        let (token, _) = issue(&signer, now());
        let payload = token.split('.').nth(1).unwrap();
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        assert!(signer.verify(&format!("{header}.{payload}.")).is_err());
    }
}
