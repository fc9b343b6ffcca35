//! A measured boot with a TPM 2.0: a quote by a key that a certified TPM holds, over registers that the firmware's
//! event log explains.

mod certificate;
mod credential;
mod measured_boot;
mod quote;

use aws_lc_rs::{constant_time, digest, hmac};
use sealpod_evidence::tpm::{
    ChallengeParams, Evidence, INIT_DATA_PCR, Public, QUOTED_PCRS, RequestParams, StructureError, attributes,
};
use sealpod_evidence::{HashAlgorithm, fit};
use serde_json::{Value, json};

use crate::claims::hexadecimal;
use crate::{Claims, Expected, Refusal, TrustAnchors, UnixSeconds};

const SHA256_LENGTH: usize = 32;

/// Makes a credential for a TPM's keys (part 1 §24): only the TPM that holds both opens it and gets `secret`.
///
/// # Errors
///
/// When the endorsement key's certificate does not chain to an anchor, or a key is not what it should be.
pub fn make_credential(
    params: &RequestParams,
    anchors: &TrustAnchors,
    now: UnixSeconds,
    secret: &[u8],
) -> Result<ChallengeParams, Refusal> {
    let (endorsement, _) = endorsement_key(params, anchors, now)?;
    let attestation = attestation_key(params)?;
    credential::make(&endorsement, &attestation.name(), secret)
}

pub(crate) fn verify(
    evidence: &Value,
    expected: &Expected<'_>,
    anchors: &TrustAnchors,
    now: UnixSeconds,
) -> Result<Claims, Refusal> {
    let evidence: Evidence = serde_json::from_value(evidence.clone())
        .map_err(|error| Refusal::new("evidence", "evidence of a TPM", error))?;
    let key_digest = digest::digest(&digest::SHA256, &evidence.ak_public);
    let certificate = certified(&evidence, key_digest.as_ref(), expected, anchors, now)?;

    let (attest, hash) = quote::verify(&evidence.tpm_quote, &evidence.ak_public)?;
    let report_data = fit(expected.report_data, SHA256_LENGTH);
    if attest.extra_data != report_data {
        return Err(Refusal::new("report_data", hexadecimal(&report_data), hexadecimal(&attest.extra_data)));
    }
    let registers = quote::registers(&evidence.tpm_quote, &attest, hash)?;
    let boot = measured_boot::explain(evidence.event_log.as_deref().unwrap_or_default(), &registers)?;
    let init_data = bound_init_data(&registers, expected.init_data_digest)?;

    let pcrs: serde_json::Map<String, Value> = QUOTED_PCRS
        .zip(&registers)
        .map(|(register, value)| (register.to_string(), hexadecimal(value).into()))
        .collect();
    let mut claims = Claims(boot.into_claims());
    claims.0.insert("init_data".into(), init_data.into());
    claims.0.insert(
        "tpm".into(),
        json!({
            "pcrs": pcrs,
            "ak": hexadecimal(key_digest.as_ref()),
            "ek_certificate": certificate.map(|digest| hexadecimal(&digest)),
        }),
    );
    Ok(claims)
}

/// Whether somebody vouches for the attestation key: the owner who enrolled it, or a certified TPM that proved to
/// hold it. Gives the digest of the certificate in the latter case.
fn certified(
    evidence: &Evidence,
    key_digest: &[u8],
    expected: &Expected<'_>,
    anchors: &TrustAnchors,
    now: UnixSeconds,
) -> Result<Option<Vec<u8>>, Refusal> {
    if anchors.tpm_enrolled_aks.iter().any(|enrolled| enrolled == key_digest) {
        return Ok(None);
    }
    let nobody =
        |actual| Refusal::new("ak", "an enrolled attestation key, or one that a certified TPM holds", actual);
    let params = expected.tpm_request.ok_or_else(|| nobody("neither"))?;
    let credential = expected.credential.ok_or_else(|| nobody("no credential in the challenge"))?;
    let proof = evidence.credential_proof.as_deref().ok_or_else(|| nobody("no proof of the credential"))?;

    let (_, certificate) = endorsement_key(params, anchors, now)?;
    let attestation = attestation_key(params)?;
    if attestation.spki_der() != evidence.ak_public {
        return Err(Refusal::new("ak", "the key that the request named", "another key"));
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, credential);
    let own = hmac::sign(&key, &evidence.tpm_quote.message);
    constant_time::verify_slices_are_equal(own.as_ref(), proof).map_err(|_| {
        Refusal::new("ak", "a proof that the TPM opened the challenge's credential", "another proof")
    })?;
    Ok(Some(certificate))
}

/// The endorsement key, if its certificate is good and it is of the kind that opens credentials; and the
/// certificate's digest.
fn endorsement_key(
    params: &RequestParams,
    anchors: &TrustAnchors,
    now: UnixSeconds,
) -> Result<(Public, Vec<u8>), Refusal> {
    let public = Public::parse(&params.ek_public).map_err(malformed("ek"))?;
    let certified = certificate::certified_key(&params.ek_certificate, &anchors.tpm_ek_roots, now)?;
    if certified.key != public.spki_der() {
        return Err(Refusal::new("ek", "the key of the endorsement key certificate", "another key"));
    }
    let needed = attributes::FIXED_TPM
        | attributes::FIXED_PARENT
        | attributes::SENSITIVE_DATA_ORIGIN
        | attributes::RESTRICTED
        | attributes::DECRYPT;
    if !public.has(needed) || public.has(attributes::SIGN) || public.symmetric.is_none() {
        return Err(Refusal::new(
            "ek",
            "a restricted decryption key",
            format!("attributes {:#010x}", public.attributes),
        ));
    }
    Ok((public, certified.digest))
}

/// The attestation key, if it signs nothing but what its TPM made.
fn attestation_key(params: &RequestParams) -> Result<Public, Refusal> {
    let public = Public::parse(&params.ak_public).map_err(malformed("ak"))?;
    let needed = attributes::FIXED_TPM
        | attributes::FIXED_PARENT
        | attributes::SENSITIVE_DATA_ORIGIN
        | attributes::RESTRICTED
        | attributes::SIGN;
    if !public.has(needed) || public.has(attributes::DECRYPT) {
        return Err(Refusal::new(
            "ak",
            "a restricted signing key that its TPM made and keeps",
            format!("attributes {:#010x}", public.attributes),
        ));
    }
    if public.name_algorithm == HashAlgorithm::Sha1 {
        return Err(Refusal::new("ak", "a name by SHA-256 or better", public.name_algorithm));
    }
    Ok(public)
}

/// The init data's digest as the register has it; an empty text for none.
fn bound_init_data(registers: &[Vec<u8>], digest: Option<&[u8]>) -> Result<String, Refusal> {
    let zeros = vec![0; SHA256_LENGTH];
    let expected = match digest {
        Some(digest) => HashAlgorithm::Sha256.digest_parts(&[&zeros, &fit(digest, SHA256_LENGTH)]),
        None => zeros,
    };
    let actual = usize::try_from(INIT_DATA_PCR).ok().and_then(|index| registers.get(index));
    if actual != Some(&expected) {
        let expected = match digest {
            Some(digest) => format!("PCR 8 with init data {}", hexadecimal(digest)),
            None => "PCR 8 without init data".into(),
        };
        return Err(Refusal::new(
            "init_data",
            expected,
            format!("PCR 8 {}", hexadecimal(actual.map_or(&[], Vec::as_slice))),
        ));
    }
    Ok(digest.map(hexadecimal).unwrap_or_default())
}

fn malformed(claim: &'static str) -> impl FnOnce(StructureError) -> Refusal {
    move |error| Refusal::new(claim, "a well-formed TPM structure", error)
}
