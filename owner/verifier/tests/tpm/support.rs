//! A guest with a software TPM, and what the owner's broker keeps of a handshake with it. Each part can be altered
//! before it is signed, and what the guest sends after.

use aws_lc_rs::{digest, hmac};
use rcgen::CertificateParams;
use sealpod_evidence::Tee;
use sealpod_evidence::event_log::Event;
use sealpod_evidence::tpm::codec::{Endian, Writer};
use sealpod_evidence::tpm::{ChallengeParams, Evidence, PcrSelection, Public, QuoteEvidence, RequestParams};
use sealpod_evidence::{HashAlgorithm, fit};
use sealpod_verifier::{Claims, Expected, Refusal, TrustAnchors, UnixSeconds, tpm, verify};
use serde_json::Value;

use crate::authority::Authority;
use crate::event_log::{encode, extend, genuine, genuine_registers, sha256};
use crate::keys::{AttestationKey, EndorsementKey};

/// While the certificates are valid.
pub(crate) const NOW: UnixSeconds = 1_800_000_000;
/// As long as the broker makes it, longer than a TPM takes.
pub(crate) const REPORT_DATA: [u8; 48] = [0x5a; 48];
pub(crate) const SECRET: [u8; 32] = [0x5e; 32];

/// A guest, and its handshake.
pub(crate) struct Guest {
    pub(crate) root: Authority,
    pub(crate) endorsement: EndorsementKey,
    pub(crate) attestation: AttestationKey,
    /// What the guest asked a credential for, if it did.
    pub(crate) request: Option<RequestParams>,
    /// The secret of the credential, if the broker made one.
    pub(crate) credential: Option<Vec<u8>>,
    pub(crate) anchors: TrustAnchors,
    pub(crate) now: UnixSeconds,
    pub(crate) report_data: Vec<u8>,
    pub(crate) init_data_digest: Option<Vec<u8>>,
    /// The registers 0 to 9.
    pub(crate) registers: Vec<Vec<u8>>,
    pub(crate) event_log: Option<Vec<u8>>,
    pub(crate) quote: Quote,
}

/// The fields of a quote (`TPMS_ATTEST`) that are not what they are computed to be otherwise.
pub(crate) struct Quote {
    pub(crate) magic: u32,
    pub(crate) kind: u16,
    pub(crate) extra_data: Vec<u8>,
    /// `TPML_PCR_SELECTION`.
    pub(crate) selection: Vec<u8>,
    pub(crate) pcr_digest: Option<Vec<u8>>,
    pub(crate) trailing: Vec<u8>,
}

impl Default for Quote {
    fn default() -> Self {
        Self {
            magic: 0xff54_4347,
            kind: 0x8018,
            extra_data: fit(&REPORT_DATA, 32),
            selection: selection(HashAlgorithm::Sha256, 0..=9),
            pcr_digest: None,
            trailing: Vec::new(),
        }
    }
}

impl Guest {
    /// A guest whose evidence is good.
    pub(crate) fn new() -> Self {
        Self::with_keys(EndorsementKey::p256(), AttestationKey::p256())
    }

    pub(crate) fn with_keys(endorsement: EndorsementKey, attestation: AttestationKey) -> Self {
        let root = Authority::root(|_| ());
        let request = RequestParams {
            ek_certificate: root.endorse(&endorsement, |_| ()),
            ek_public: endorsement.public(&endorsement.area()),
            ak_public: attestation.public(&attestation.area()),
        };
        let anchors =
            TrustAnchors { tpm_ek_roots: vec![root.certificate.clone()], ..TrustAnchors::default() };
        Self {
            root,
            endorsement,
            attestation,
            request: Some(request),
            credential: Some(SECRET.to_vec()),
            anchors,
            now: NOW,
            report_data: REPORT_DATA.to_vec(),
            init_data_digest: None,
            registers: genuine_registers(),
            event_log: Some(genuine()),
            quote: Quote::default(),
        }
    }

    /// A guest that booted as these events tell.
    pub(crate) fn booted(events: &[Event]) -> Self {
        Self { registers: extend(events), event_log: Some(encode(events)), ..Self::new() }
    }

    /// The guest with another certificate for its endorsement key.
    pub(crate) fn endorsed(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut guest = Self::new();
        guest.request_mut().ek_certificate = guest.root.endorse(&guest.endorsement, change);
        guest
    }

    pub(crate) fn request_mut(&mut self) -> &mut RequestParams {
        self.request.as_mut().unwrap()
    }

    /// The attestation key as SubjectPublicKeyInfo.
    pub(crate) fn ak_public(&self) -> Vec<u8> {
        Public::parse(&self.attestation.public(&self.attestation.area())).unwrap().spki_der()
    }

    /// Makes the owner trust the attestation key by itself.
    pub(crate) fn enrol(&mut self) {
        self.anchors.tpm_enrolled_aks = vec![sha256(&self.ak_public()).try_into().unwrap()];
    }

    /// The quote's message.
    pub(crate) fn message(&self) -> Vec<u8> {
        let (_, hash) = self.attestation.hash();
        let computed = || digest::digest(hash, &self.registers.concat()).as_ref().to_vec();
        let mut out = Writer::new(Endian::Big);
        out.u32(self.quote.magic).u16(self.quote.kind).sized(b"signer").sized(&self.quote.extra_data);
        // Clock, reset and restart counts, whether the clock is safe, firmware version.
        out.bytes(&[1; 8 + 4 + 4 + 1 + 8]).bytes(&self.quote.selection);
        out.sized(&self.quote.pcr_digest.clone().unwrap_or_else(computed)).bytes(&self.quote.trailing);
        out.into_bytes()
    }

    /// What the guest sends.
    pub(crate) fn evidence(&self) -> Evidence {
        let message = self.message();
        let proof = self.credential.as_ref().map(|secret| proof(secret, &message));
        Evidence {
            tpm_quote: QuoteEvidence {
                signature: self.attestation.sign(&message),
                message,
                pcrs: self.registers.iter().map(hex::encode).collect(),
            },
            ak_public: self.ak_public(),
            event_log: self.event_log.clone(),
            credential_proof: proof,
        }
    }

    pub(crate) fn verify(&self) -> Result<Claims, Refusal> {
        self.verify_altered(|_| ())
    }

    /// Verifies the evidence as somebody altered it on its way.
    pub(crate) fn verify_altered(&self, alter: impl FnOnce(&mut Evidence)) -> Result<Claims, Refusal> {
        let mut evidence = self.evidence();
        alter(&mut evidence);
        self.verify_value(&serde_json::to_value(evidence).unwrap())
    }

    pub(crate) fn verify_value(&self, evidence: &Value) -> Result<Claims, Refusal> {
        let expected = Expected {
            report_data: &self.report_data,
            init_data_digest: self.init_data_digest.as_deref(),
            credential: self.credential.as_deref(),
            tpm_request: self.request.as_ref(),
        };
        verify(Tee::Tpm, evidence, &expected, &self.anchors, self.now)
    }

    /// What the broker answers to the guest's request.
    pub(crate) fn make_credential(&self, secret: &[u8]) -> Result<ChallengeParams, Refusal> {
        tpm::make_credential(self.request.as_ref().unwrap(), &self.anchors, self.now, secret)
    }

    /// Asserts that the broker neither makes a credential for the guest nor takes its evidence, and gives the reason.
    #[track_caller]
    pub(crate) fn refused_twice(&self) -> Refusal {
        let refusal = self.make_credential(&SECRET).unwrap_err();
        assert_eq!(self.verify().unwrap_err(), refusal);
        refusal
    }
}

/// The proof that the credential of this secret was opened, over this quote.
pub(crate) fn proof(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

/// Registers of one bank, as `TPML_PCR_SELECTION`.
pub(crate) fn selection(algorithm: HashAlgorithm, registers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut out = Writer::new(Endian::Big);
    PcrSelection::of(algorithm, registers).write(&mut out);
    out.into_bytes()
}

/// Asserts what a refusal says was looked at, and a part of what came.
#[track_caller]
pub(crate) fn assert_refused(result: Result<Claims, Refusal>, claim: &str, actual: &str) {
    let refusal = result.expect_err("it was taken");
    assert_eq!(refusal.claim, claim, "{refusal}");
    assert!(refusal.actual.contains(actual), "{refusal}");
}
