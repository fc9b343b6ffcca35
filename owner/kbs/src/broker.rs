//! The broker as a whole: what its handlers share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sealpod_appraisal::{DEFAULT_POLICY, Policy, PolicyError, ReferenceValues, TokenError, TokenSigner};
use sealpod_kbs_protocol::Secret;
use sealpod_verifier::TrustAnchors;

use crate::admin_key::AdminKeys;
use crate::config::{Audit, Config};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::rate::Rate;
use crate::resource_policy::{self, ResourcePolicy};
use crate::session::Sessions;
use crate::store::{Kind, RedbStore, Store, StoreError};

/// Names of settings in the store.
pub(crate) const ATTESTATION_POLICY: &str = "attestation-policy";
pub(crate) const RESOURCE_POLICY: &str = "resource-policy";
const SIGNING_KEY: &str = "token-signing-key";

/// A key broker without its listener.
pub struct Broker {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sessions: Sessions,
    pub(crate) anchors: TrustAnchors,
    pub(crate) admin: AdminKeys,
    pub(crate) signer: TokenSigner,
    pub(crate) lifetime: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Audit,
    /// Those that anybody can cause.
    pub(crate) refusals: Rate,
    policies: RwLock<Policies>,
    /// Held while policies are read from the store, so that of two changes the later one is taken up last.
    reload: Mutex<()>,
}

/// Parsed once, when they are set.
#[derive(Clone)]
struct Policies {
    attestation: Policy,
    resource: ResourcePolicy,
    references: Arc<ReferenceValues>,
}

/// Why a broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of the configuration cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the configuration is not what it should be.
    #[error("{path} is not {expected}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Without an administrator's key nobody could put anything in.
    #[error("the configuration names no administrator's key (admin_keys)")]
    NoAdministrator,
    /// An enrolled key is not a digest.
    #[error("{0:?} is not a SHA-256 digest in hexadecimal (tpm.enrolled_aks)")]
    EnrolledKey(String),
    /// The store cannot be opened: another process uses it, say.
    #[error("cannot open the store {path}")]
    Unopened {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The store.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A policy in the store.
    #[error("the stored attestation policy cannot be used")]
    AttestationPolicy(#[from] PolicyError),
    /// A policy in the store.
    #[error("the stored resource policy cannot be used: {0}")]
    ResourcePolicy(String),
    /// The signing key in the store.
    #[error(transparent)]
    SigningKey(#[from] TokenError),
}

impl Broker {
    /// Opens the store and reads what the configuration names.
    pub fn open(config: &Config) -> Result<Arc<Self>, StartError> {
        let (admin, anchors) = (administrators(config)?, anchors(config)?);
        let store = RedbStore::open(&config.store)
            .map_err(|source| StartError::Unopened { path: config.store.clone(), source })?;
        let store: Arc<dyn Store> = Arc::new(store);
        let policies = Policies::load(store.as_ref())?;
        Ok(Arc::new(Self {
            signer: TokenSigner::new(&signing_key(store.as_ref())?)?,
            sessions: Sessions::default(),
            anchors,
            admin,
            lifetime: Duration::from_secs(config.token_lifetime_seconds),
            metrics: Metrics::default(),
            refusals: Rate::per_minute(config.audit.refusals_per_minute),
            audit: config.audit.clone(),
            policies: RwLock::new(policies),
            reload: Mutex::default(),
            store,
        }))
    }

    /// Checks the files that a configuration names, and leaves the store alone: another broker may use it.
    pub fn check(config: &Config) -> Result<(), StartError> {
        administrators(config)?;
        anchors(config)?;
        let folder = config.store.parent().unwrap_or(Path::new("."));
        std::fs::metadata(folder)
            .map_err(|source| StartError::Unreadable { path: folder.to_owned(), source })?;
        Ok(())
    }

    pub(crate) fn attestation_policy(&self) -> (Policy, Arc<ReferenceValues>) {
        let policies = self.policies.read().unwrap_or_else(PoisonError::into_inner);
        (policies.attestation.clone(), policies.references.clone())
    }

    pub(crate) fn resource_policy(&self) -> ResourcePolicy {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).resource.clone()
    }

    /// Takes up what an administrator changed in the store.
    pub(crate) fn reload_policies(&self) -> Result<(), StartError> {
        let _turn = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let policies = Policies::load(self.store.as_ref())?;
        *self.policies.write().unwrap_or_else(PoisonError::into_inner) = policies;
        Ok(())
    }
}

impl Policies {
    fn load(store: &dyn Store) -> Result<Self, StartError> {
        let text = |name, default: &str| -> Result<String, StoreError> {
            let bytes = store.get(Kind::Setting, name)?;
            Ok(bytes.map_or_else(|| default.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let mut references = BTreeMap::new();
        for (id, json) in store.list(Kind::ReferenceValue)? {
            // A value that cannot be read is one that nobody registered.
            if let Ok(value) = serde_json::from_slice(&json) {
                references.insert(id, value);
            }
        }
        Ok(Self {
            attestation: Policy::parse("default", &text(ATTESTATION_POLICY, DEFAULT_POLICY)?)?,
            resource: ResourcePolicy::parse(&text(RESOURCE_POLICY, resource_policy::DEFAULT_POLICY)?)
                .map_err(StartError::ResourcePolicy)?,
            references: Arc::new(references),
        })
    }
}

/// Runs what blocks on a thread of its own: the store, and verification.
pub(crate) async fn blocking<V: Send + 'static>(
    work: impl FnOnce() -> V + Send + 'static,
) -> Result<V, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The token signing key, made at the first start.
fn signing_key(store: &dyn Store) -> Result<Secret, StartError> {
    if let Some(key) = store.get(Kind::Setting, SIGNING_KEY)? {
        return Ok(Secret::new(key));
    }
    let key = TokenSigner::generate()?;
    store.set(Kind::Setting, &[(SIGNING_KEY, key.as_bytes())])?;
    Ok(key)
}

fn administrators(config: &Config) -> Result<AdminKeys, StartError> {
    if config.admin_keys.is_empty() {
        return Err(StartError::NoAdministrator);
    }
    let mut keys = AdminKeys::default();
    for path in &config.admin_keys {
        keys.add(&read(path)?).map_err(|_| StartError::Unusable {
            path: path.clone(),
            expected: "an Ed25519 public key (PEM)",
        })?;
    }
    Ok(keys)
}

fn anchors(config: &Config) -> Result<TrustAnchors, StartError> {
    let mut tpm_ek_roots = Vec::new();
    for path in &config.tpm.ek_roots {
        let unusable = || StartError::Unusable { path: path.clone(), expected: "a certificate (PEM)" };
        let pem = read(path)?;
        let before = tpm_ek_roots.len();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            tpm_ek_roots.push(certificate.map_err(|_| unusable())?.to_vec());
        }
        if tpm_ek_roots.len() == before {
            return Err(unusable());
        }
    }
    let digest = |text: &String| {
        let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| StartError::EnrolledKey(text.clone()))
    };
    let tpm_enrolled_aks = config.tpm.enrolled_aks.iter().map(digest).collect::<Result<_, _>>()?;
    Ok(TrustAnchors { tpm_ek_roots, tpm_enrolled_aks, allow_sample: config.allow_sample })
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|source| StartError::Unreadable { path: path.to_owned(), source })
}
