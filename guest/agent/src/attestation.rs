//! The guest's proof of what it is, and the key broker that asks for it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sealpod_agent_protocol::{Failure, FailureKind};
use sealpod_attester::{Attester, Error, KbsClient, KbsConfig, SampleAttester, Token, TpmAttester};
use sealpod_evidence::Tee;
use sealpod_evidence::init_data::{self, KeyBroker};
use sealpod_kbs_protocol::{ResourcePath, Secret};
use serde_json::Value;

use crate::failure::{Hint, chain, failure, internal};
use crate::roots;

const TPM: &str = "/dev/tpm0";
const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// The TEE, opened, with the init data's digest extended into it.
#[derive(Clone)]
pub(crate) struct Evidence(Arc<Mutex<Box<dyn Attester>>>);

/// Init data whose digest is a part of all evidence to come, or that there is none. Only measuring makes one, so that
/// nothing that init data says takes effect before, but for the algorithm of its digest.
#[derive(Debug)]
pub(crate) struct MeasuredInitData(Option<String>);

/// What the pod can prove, and whom it proves it to.
pub(crate) struct Attestation {
    evidence: Evidence,
    broker: Option<KbsClient>,
}

impl Evidence {
    /// Opens the TEE, and extends the digest of the init data into it.
    pub(crate) async fn open(
        tee: Tee,
        init_data: Option<String>,
    ) -> Result<(Self, MeasuredInitData), Failure> {
        let open = move || -> Result<_, Failure> {
            let mut attester: Box<dyn Attester> = match tee {
                Tee::Sample => Box::new(SampleAttester),
                _ => Box::new(TpmAttester::open(Path::new(TPM), Path::new(EVENT_LOG)).map_err(no_tpm)?),
            };
            let measured = MeasuredInitData::measure(attester.as_mut(), init_data)?;
            Ok((Self(Arc::new(Mutex::new(attester))), measured))
        };
        tokio::task::spawn_blocking(open).await.map_err(|error| internal("open the TPM", &error))?
    }
}

impl MeasuredInitData {
    fn measure(attester: &mut dyn Attester, raw: Option<String>) -> Result<Self, Failure> {
        if let Some(raw) = &raw {
            // Reads of the text what the digest is made with, and that it is init data at all.
            let digest = init_data::digest(raw)
                .map_err(|error| failure(FailureKind::Invalid, format!("init data: {error}")))?;
            attester.extend_init_data(&digest).map_err(no_tpm)?;
        }
        Ok(Self(raw))
    }

    /// The text (TOML), where the host gave any.
    pub(crate) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

fn no_tpm(error: Error) -> Failure {
    internal("open the TPM", &error)
        .hint("the VM needs a TPM; sealpod.tee=sample on the command line is for tests without one")
}

/// The client of the key broker and the workload's API share one TEE.
impl Attester for Evidence {
    fn tee(&self) -> Tee {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tee()
    }

    fn report_data_length(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).report_data_length()
    }

    fn request_params(&mut self) -> Result<Value, Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).request_params()
    }

    fn evidence(&mut self, report_data: &[u8], challenge: &Value) -> Result<Value, Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).evidence(report_data, challenge)
    }

    fn extend_init_data(&mut self, digest: &[u8]) -> Result<(), Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_init_data(digest)
    }
}

impl Attestation {
    pub(crate) fn new(
        evidence: Evidence,
        broker: Option<KeyBroker>,
        init_data: MeasuredInitData,
    ) -> Result<Self, Failure> {
        let client =
            broker.map(|broker| KbsClient::new(kbs_config(broker), Box::new(evidence.clone()), init_data.0));
        let broker = client.transpose().map_err(|error| broker_failure("key broker", &error))?;
        Ok(Self { evidence, broker })
    }

    /// Attests to the key broker.
    pub(crate) async fn attest(&self) -> Result<(), Failure> {
        self.broker()?.attest().await.map_err(|error| broker_failure("attestation", &error))
    }

    /// Fetches a secret.
    pub(crate) async fn resource(&self, path: &ResourcePath) -> Result<Secret, Failure> {
        let resource = self.broker()?.resource(path).await;
        resource.map_err(|error| broker_failure(&format!("resource {path}"), &error))
    }

    /// The attestation token, with the key that it names.
    pub(crate) async fn token(&self) -> Result<Token, Failure> {
        self.broker()?.token().await.map_err(|error| broker_failure("attestation token", &error))
    }

    /// Evidence over data of a workload's own. Of data that is longer than what the TEE binds, the rest could be any.
    pub(crate) async fn evidence(&self, runtime_data: Vec<u8>) -> Result<Value, Failure> {
        let mut evidence = self.evidence.clone();
        let (length, limit) = (runtime_data.len(), evidence.report_data_length());
        if length > limit {
            let message =
                format!("runtime_data has {length} bytes, and {} evidence binds {limit}", evidence.tee());
            return Err(failure(FailureKind::Invalid, message).hint("give a SHA-256 digest of it instead"));
        }
        let collect = move || Attester::evidence(&mut evidence, &runtime_data, &Value::Null);
        match tokio::task::spawn_blocking(collect).await {
            Ok(evidence) => evidence.map_err(|error| internal("collect evidence", &error)),
            Err(error) => Err(internal("collect evidence", &error)),
        }
    }

    fn broker(&self) -> Result<&KbsClient, Failure> {
        self.broker.as_ref().ok_or_else(|| {
            failure(FailureKind::Conflict, "the pod has no key broker")
                .hint("name one in aa.toml of the init data, or with sealpod.kbs on the command line")
        })
    }
}

/// A pinned certificate is the only one that is trusted.
fn kbs_config(KeyBroker { url, cert }: KeyBroker) -> KbsConfig {
    let certificates = match cert {
        Some(pinned) => vec![pinned],
        None if url.starts_with("https://") => roots::with(&[]),
        None => Vec::new(),
    };
    KbsConfig { url, certificates }
}

/// What the key broker's answer means to the host: never which claim failed, but the owner's id for it.
fn broker_failure(what: &str, error: &Error) -> Failure {
    let message = format!("{what}: {}", chain(error));
    match error {
        Error::Unreachable { .. } => failure(FailureKind::Unreachable, message)
            .hint("check that the key broker runs, and its address and certificate in the init data"),
        Error::Denied { denial, .. } => {
            let mut failure = failure(FailureKind::DeniedByKeyBroker, message)
                .hint("the key broker's owner finds the reason in its audit log, under the denial's id");
            failure.denial = denial.clone();
            failure
        }
        Error::NotFound { .. } => failure(FailureKind::NotFound, message)
            .hint("the key broker's owner adds it with `sealpod kbs resource set`"),
        _ => failure(FailureKind::Internal, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Parameters;
    use crate::config::Config;

    const INIT_DATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\
        \"policy.rego\" = \"package agent_policy\"\n";

    /// A TEE that takes notes, or refuses to measure.
    #[derive(Default)]
    struct Notes {
        measured: Vec<Vec<u8>>,
        broken: bool,
    }

    impl Attester for Notes {
        fn tee(&self) -> Tee {
            Tee::Sample
        }

        fn report_data_length(&self) -> usize {
            32
        }

        fn request_params(&mut self) -> Result<Value, Error> {
            Ok(Value::Null)
        }

        fn evidence(&mut self, _: &[u8], _: &Value) -> Result<Value, Error> {
            Ok(Value::Null)
        }

        fn extend_init_data(&mut self, digest: &[u8]) -> Result<(), Error> {
            self.measured.push(digest.to_vec());
            match self.broken {
                true => Err(Error::Evidence("it does not work".into())),
                false => Ok(()),
            }
        }
    }

    #[tokio::test]
    async fn data_that_evidence_would_cut_is_refused() {
        let evidence = Evidence(Arc::new(Mutex::new(Box::new(Notes::default()))));
        let attestation = Attestation::new(evidence, None, MeasuredInitData(None)).unwrap();
        attestation.evidence(vec![7; 32]).await.unwrap();
        let failure = attestation.evidence(vec![7; 33]).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains("33 bytes") && failure.message.contains("binds 32"), "{failure}");
    }

    #[test]
    fn a_broker_is_known_by_its_pinned_certificate_or_by_a_public_authority() {
        let certificates = |url: &str, cert: Option<&str>| {
            kbs_config(KeyBroker { url: url.into(), cert: cert.map(Into::into) }).certificates
        };
        assert_eq!(certificates("https://kbs", Some("PEM")), ["PEM"]);
        assert_eq!(certificates("https://kbs", None), roots::with(&[]));
        assert_eq!(certificates("http://kbs", None), [""; 0]);
        let broker = |url: &str| {
            let evidence = Evidence(Arc::new(Mutex::new(Box::new(SampleAttester))));
            let broker = KeyBroker { url: url.into(), cert: None };
            Attestation::new(evidence, Some(broker), MeasuredInitData(None))
        };
        assert!(broker("https://kbs").is_ok() && broker("http://kbs").is_ok());
    }

    #[test]
    fn a_configuration_comes_from_init_data_that_was_measured() {
        let mut tee = Notes::default();
        let measured = MeasuredInitData::measure(&mut tee, Some(INIT_DATA.into())).unwrap();
        assert_eq!(tee.measured, [init_data::digest(INIT_DATA).unwrap()]);
        let config = Config::new(&Parameters::default(), &measured).unwrap();
        assert_eq!(config.policy.as_deref(), Some("package agent_policy"));
    }

    #[test]
    fn init_data_that_cannot_be_measured_configures_nothing() {
        let mut broken = Notes { broken: true, ..Notes::default() };
        let failure = MeasuredInitData::measure(&mut broken, Some(INIT_DATA.into())).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Internal);
        let mut tee = Notes::default();
        let failure = MeasuredInitData::measure(&mut tee, Some("no init data".into())).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(tee.measured.is_empty());
    }

    #[test]
    fn without_init_data_nothing_is_measured_and_the_command_line_configures() {
        let mut tee = Notes::default();
        let measured = MeasuredInitData::measure(&mut tee, None).unwrap();
        assert!(tee.measured.is_empty());
        let parameters = Parameters { key_broker: Some("https://kbs".into()), ..Parameters::default() };
        let config = Config::new(&parameters, &measured).unwrap();
        assert_eq!(config.key_broker.unwrap().url, "https://kbs");
        assert_eq!(config.policy, None);
    }
}
