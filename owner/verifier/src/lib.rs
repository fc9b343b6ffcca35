//! Evidence in, claims or a reason out: a pure function, a module a TEE.
//!
//! Nothing here has a clock, a network, a file or an environment. Whoever calls it brings the time and the trust
//! anchors.

mod claims;
mod sample;
pub mod tpm;

pub use claims::{Claims, Refusal};

use sealpod_evidence::Tee;
use sealpod_evidence::tpm::RequestParams;
use serde_json::Value;

/// Seconds since the Unix epoch.
pub type UnixSeconds = u64;

/// What evidence must bind. It does not print: the credential is a secret.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// The hash over the nonce and the guest's key; a TEE takes as much of it as it has room for.
    pub report_data: &'a [u8],
    /// The digest of the init data that came with the evidence, or that none came.
    pub init_data_digest: Option<&'a [u8]>,
    /// The secret of the TPM credential in the challenge.
    pub credential: Option<&'a [u8]>,
    /// The TPM keys for which that credential was made.
    pub tpm_request: Option<&'a RequestParams>,
}

/// Whom the owner trusts to vouch for hardware.
#[derive(Clone, Debug, Default)]
pub struct TrustAnchors {
    /// Certificates (DER) to which a TPM's endorsement key certificate may chain: roots, or intermediates that are
    /// trusted by themselves.
    pub tpm_ek_roots: Vec<Vec<u8>>,
    /// Attestation keys that need no endorsement: SHA-256 of their SubjectPublicKeyInfo.
    pub tpm_enrolled_aks: Vec<[u8; 32]>,
    /// Whether evidence that proves nothing is taken.
    pub allow_sample: bool,
}

/// What verifies the evidence of a TEE.
enum Verifier {
    Tpm,
    Sample,
}

/// Checks that evidence of a TEE can be verified, and is wanted.
///
/// # Errors
///
/// When no evidence of this TEE would be taken.
pub fn supported(tee: Tee, anchors: &TrustAnchors) -> Result<(), Refusal> {
    verifier(tee, anchors).map(drop)
}

/// Verifies evidence and gives what it proves.
///
/// # Errors
/// [`Refusal`], with what was expected and what came.
pub fn verify(
    tee: Tee,
    evidence: &Value,
    expected: &Expected<'_>,
    anchors: &TrustAnchors,
    now: UnixSeconds,
) -> Result<Claims, Refusal> {
    match verifier(tee, anchors)? {
        Verifier::Tpm => tpm::verify(evidence, expected, anchors, now),
        Verifier::Sample => sample::verify(evidence, expected),
    }
}

fn verifier(tee: Tee, anchors: &TrustAnchors) -> Result<Verifier, Refusal> {
    match tee {
        Tee::Tpm => Ok(Verifier::Tpm),
        Tee::Sample if anchors.allow_sample => Ok(Verifier::Sample),
        Tee::Sample => Err(Refusal::new("tee", "a TEE with evidence (sample is not allowed here)", tee)),
        other => Err(Refusal::new("tee", "tpm, or sample where it is allowed", other)),
    }
}
