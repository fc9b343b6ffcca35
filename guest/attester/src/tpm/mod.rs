//! The evidence of a measured boot: a quote by a key that its TPM vouches for, and the firmware's event log.

mod commands;
mod device;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use sealpod_evidence::tpm::{
    AK_P256, ChallengeParams, EK_P256, EK_RSA_2048, Evidence, INIT_DATA_PCR, Public, QUOTED_PCRS,
    QuoteEvidence, RequestParams,
};
use sealpod_evidence::{HashAlgorithm, Tee, fit};
use serde_json::{Value, json};

pub use commands::Tpm;
pub use device::{Device, Transport};

use crate::{Attester, Error};
use commands::{Handle, RC_HANDLE};

/// Report data is cut to this many bytes.
const REPORT_DATA_LENGTH: usize = 32;

/// An endorsement key: where its certificate is, where the key usually is, and how it is made where it is not there
/// (TCG EK Credential Profile §2.2).
struct EndorsementKind {
    certificate: Handle,
    key: Handle,
    template: Option<&'static [u8]>,
}

/// In the order of preference: elliptic curves are quicker.
const ENDORSEMENT_KINDS: [EndorsementKind; 3] = [
    EndorsementKind { certificate: 0x01c0_0016, key: 0x8101_0016, template: None },
    EndorsementKind { certificate: 0x01c0_000a, key: 0x8101_0002, template: Some(EK_P256) },
    EndorsementKind { certificate: 0x01c0_0002, key: 0x8101_0001, template: Some(EK_RSA_2048) },
];

/// A TPM 2.0 whose registers hold a measured boot.
pub struct TpmAttester<T: Transport = Device> {
    tpm: Tpm<T>,
    event_log: PathBuf,
    keys: Option<Keys>,
    quote_time: Duration,
}

/// The keys of this boot.
struct Keys {
    endorsement: Handle,
    endorsement_public: Public,
    certificate: Vec<u8>,
    attestation: Handle,
    attestation_public: Public,
}

impl TpmAttester<Device> {
    /// Opens the kernel's TPM device. The event log is read when evidence is made.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn open(device: &Path, event_log: &Path) -> Result<Self, Error> {
        Ok(Self::new(Device::open(device)?, event_log))
    }
}

impl<T: Transport> TpmAttester<T> {
    /// Uses a TPM behind any transport.
    pub fn new(transport: T, event_log: &Path) -> Self {
        Self {
            tpm: Tpm::new(transport),
            event_log: event_log.to_owned(),
            keys: None,
            quote_time: Duration::ZERO,
        }
    }

    /// How long the last quote took the TPM.
    pub fn quote_time(&self) -> Duration {
        self.quote_time
    }

    /// The endorsement key as it is, and an attestation key made once.
    fn keys(&mut self) -> Result<&Keys, Error> {
        let keys = match self.keys.take() {
            Some(keys) => keys,
            None => {
                let (endorsement, endorsement_public, certificate) = self.endorsement_key()?;
                let (attestation, attestation_public) = self.tpm.create_primary(AK_P256)?;
                Keys { endorsement, endorsement_public, certificate, attestation, attestation_public }
            }
        };
        Ok(self.keys.insert(keys))
    }

    fn endorsement_key(&mut self) -> Result<(Handle, Public, Vec<u8>), Error> {
        for kind in &ENDORSEMENT_KINDS {
            let Some(certificate) = absent(self.tpm.nv_read(kind.certificate))? else { continue };
            if let Some(public) = absent(self.tpm.read_public(kind.key))? {
                return Ok((kind.key, public, certificate));
            }
            if let Some(template) = kind.template {
                let (key, public) = self.tpm.create_primary(template)?;
                return Ok((key, public, certificate));
            }
        }
        Err(Error::NoEndorsementKey)
    }

    /// Proves that the attestation key is in the TPM of the endorsement key, over this quote.
    fn credential_proof(&mut self, challenge: &Value, message: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let Some(params) = challenge.get("tpm") else { return Ok(None) };
        let params: ChallengeParams = serde_json::from_value(params.clone())
            .map_err(|error| Error::Protocol(format!("the challenge's tpm part: {error}")))?;
        let keys = self.keys()?;
        let (attestation, endorsement) = (keys.attestation, keys.endorsement);
        let policy = !keys.endorsement_public.has(sealpod_evidence::tpm::attributes::USER_WITH_AUTH);
        let secret = self.tpm.activate_credential(
            attestation,
            endorsement,
            policy,
            &params.credential_blob,
            &params.encrypted_secret,
        )?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(Some(hmac::sign(&key, message).as_ref().to_vec()))
    }
}

impl<T: Transport> Attester for TpmAttester<T> {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn report_data_length(&self) -> usize {
        REPORT_DATA_LENGTH
    }

    fn request_params(&mut self) -> Result<Value, Error> {
        let keys = self.keys()?;
        let params = RequestParams {
            ek_certificate: keys.certificate.clone(),
            ek_public: keys.endorsement_public.as_bytes().to_vec(),
            ak_public: keys.attestation_public.as_bytes().to_vec(),
        };
        Ok(json!({ "tpm": params }))
    }

    fn evidence(&mut self, report_data: &[u8], challenge: &Value) -> Result<Value, Error> {
        let keys = self.keys()?;
        let (attestation, ak_public) = (keys.attestation, keys.attestation_public.spki_der());
        let event_log = std::fs::read(&self.event_log).map_err(|source| Error::Device {
            action: "read",
            device: self.event_log.display().to_string(),
            source,
        })?;
        let began = Instant::now();
        let (message, signature) =
            self.tpm.quote(attestation, &fit(report_data, REPORT_DATA_LENGTH), QUOTED_PCRS)?;
        self.quote_time = began.elapsed();
        let pcrs = self.tpm.read_pcrs(QUOTED_PCRS)?;
        let credential_proof = self.credential_proof(challenge, &message)?;
        let evidence = Evidence {
            tpm_quote: QuoteEvidence {
                signature,
                message,
                pcrs: pcrs
                    .iter()
                    .map(|value| value.iter().map(|byte| format!("{byte:02x}")).collect())
                    .collect(),
            },
            ak_public,
            event_log: Some(event_log),
            credential_proof,
        };
        serde_json::to_value(evidence).map_err(|error| Error::Evidence(error.to_string()))
    }

    fn extend_init_data(&mut self, digest: &[u8]) -> Result<(), Error> {
        self.tpm.extend(INIT_DATA_PCR, &fit(digest, HashAlgorithm::Sha256.length()))
    }
}

/// Nothing where the TPM says that there is no such handle.
fn absent<V>(answer: Result<V, Error>) -> Result<Option<V>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        // The handle's number stands in bits 8 to 11.
        Err(Error::Tpm { code, .. }) if code & 0xff == RC_HANDLE => Ok(None),
        Err(error) => Err(error),
    }
}
