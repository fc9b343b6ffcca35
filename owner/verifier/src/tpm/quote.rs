//! The quote: its signature, and the registers that it covers.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    UnparsedPublicKey, VerificationAlgorithm,
};
use sealpod_evidence::HashAlgorithm;
use sealpod_evidence::tpm::codec::{Endian, Writer};
use sealpod_evidence::tpm::{Attest, PcrSelection, QUOTED_PCRS, QuoteEvidence, Signature};
use x509_cert::der::Decode;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::{SHA256_LENGTH, malformed};
use crate::Refusal;
use crate::claims::hexadecimal;

/// The content of a quote that the key signed, and the hash that its signature is made with.
pub(super) fn verify(quote: &QuoteEvidence, key_der: &[u8]) -> Result<(Attest, HashAlgorithm), Refusal> {
    let signature = Signature::parse(&quote.signature).map_err(malformed("quote_signature"))?;
    let refused = |actual| Refusal::new("quote_signature", "a signature by the attestation key", actual);
    let key = public_key(key_der).ok_or_else(|| refused("a key that is not SubjectPublicKeyInfo"))?;
    let too_long = || refused("numbers that are too long");
    let (algorithm, hash, signature): (&dyn VerificationAlgorithm, _, Vec<u8>) = match signature {
        Signature::Ecdsa { hash: hash @ HashAlgorithm::Sha256, r, s } => {
            (&ECDSA_P256_SHA256_FIXED, hash, fixed(&r, &s, 32).ok_or_else(too_long)?)
        }
        Signature::Ecdsa { hash: hash @ HashAlgorithm::Sha384, r, s } => {
            (&ECDSA_P384_SHA384_FIXED, hash, fixed(&r, &s, 48).ok_or_else(too_long)?)
        }
        Signature::RsaPkcs1 { hash: hash @ HashAlgorithm::Sha256, signature } => {
            (&RSA_PKCS1_2048_8192_SHA256, hash, signature)
        }
        Signature::RsaPss { hash: hash @ HashAlgorithm::Sha256, signature } => {
            (&RSA_PSS_2048_8192_SHA256, hash, signature)
        }
        _ => return Err(refused("an algorithm that is not supported")),
    };
    UnparsedPublicKey::new(algorithm, key)
        .verify(&quote.message, &signature)
        .map_err(|_| refused("another signature"))?;
    let attest = Attest::parse(&quote.message).map_err(malformed("quote"))?;
    Ok((attest, hash))
}

/// The values of the quoted registers, in order: exactly those that policy relies upon, and the ones that were signed.
///
/// The digest over them is by the hash of the signature (part 2 §10.12.1).
pub(super) fn registers(
    quote: &QuoteEvidence,
    attest: &Attest,
    hash: HashAlgorithm,
) -> Result<Vec<Vec<u8>>, Refusal> {
    let expected = PcrSelection::of(HashAlgorithm::Sha256, QUOTED_PCRS);
    if attest.selection != expected {
        return Err(Refusal::new("pcr_selection", expected, &attest.selection));
    }
    // A selection may name a bank more than once, and the TPM takes the registers in the order of the names. The one
    // that is expected stands there as one name, just before the digest that ends the quote.
    let mut end = Writer::new(Endian::Big);
    expected.write(&mut end);
    end.sized(&attest.pcr_digest);
    if !quote.message.ends_with(&end.into_bytes()) {
        return Err(Refusal::new("pcr_selection", expected, "the same registers in another form"));
    }
    let count = QUOTED_PCRS.count();
    if quote.pcrs.len() != count {
        return Err(Refusal::new("pcrs", format!("{count} registers"), quote.pcrs.len()));
    }
    let mut registers = Vec::with_capacity(count);
    for text in &quote.pcrs {
        let value = hex::decode(text).ok().filter(|value| value.len() == SHA256_LENGTH);
        registers.push(
            value.ok_or_else(|| Refusal::new("pcrs", "32 bytes in hexadecimal each", "something else"))?,
        );
    }
    let parts: Vec<&[u8]> = registers.iter().map(Vec::as_slice).collect();
    let digest = hash.digest_parts(&parts);
    if attest.pcr_digest != digest {
        return Err(Refusal::new("pcr_digest", hexadecimal(&attest.pcr_digest), hexadecimal(&digest)));
    }
    Ok(registers)
}

/// The bytes of the key itself: a point, or an RSAPublicKey. Only DER is taken, so that a key has one digest.
fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let info = SubjectPublicKeyInfoOwned::from_der(der).ok()?;
    info.subject_public_key.as_bytes().map(<[u8]>::to_vec)
}

/// ECDSA's two numbers, each as long as the field.
fn fixed(r: &[u8], s: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut signature = Vec::with_capacity(2 * length);
    for number in [r, s] {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
        let digits = number.get(start..)?;
        signature.resize(signature.len() + length.checked_sub(digits.len())?, 0);
        signature.extend_from_slice(digits);
    }
    Some(signature)
}
