//! The broker as a whole: what its handlers share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sealpod_verifier::TrustAnchors;

use crate::admin_key::AdminKeys;
use crate::config::{self, Audit, Config};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::rate::Rate;
use crate::rules::{CurrentRules, RulesError};
use crate::session::Sessions;
use crate::store::{self, Store, StoreError};

/// A key broker without its listener.
pub struct Broker {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sessions: Arc<dyn Sessions>,
    pub(crate) rules: CurrentRules,
    pub(crate) anchors: TrustAnchors,
    pub(crate) admin: AdminKeys,
    pub(crate) lifetime: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Audit,
    /// Those that anybody can cause.
    pub(crate) refusals: Rate,
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
    /// The store cannot be opened: another process uses its file, or its database is out of reach, say.
    #[error("cannot open the store {store}")]
    Unopened {
        /// Its file, or that with its URL.
        store: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The store's configuration cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// What stands in the store.
    #[error(transparent)]
    Rules(#[from] RulesError),
}

impl Broker {
    /// Opens the store and reads what the configuration names.
    ///
    /// # Errors
    /// [`StartError`]: a file that the configuration names cannot be used, or the store cannot be opened, or what stands in
    /// it.
    pub async fn open(config: &Config) -> Result<Arc<Self>, StartError> {
        let (admin, anchors) = (administrators(config)?, anchors(config)?);
        let (store, sessions) = store::open(&config.store)
            .await
            .map_err(|source| StartError::Unopened { store: config.store.file().to_owned(), source })?;
        Ok(Arc::new(Self {
            rules: CurrentRules::read(store.clone()).await?,
            sessions,
            anchors,
            admin,
            lifetime: Duration::from_secs(config.token_lifetime_seconds),
            metrics: Metrics::default(),
            refusals: Rate::per_minute(config.audit.refusals_per_minute),
            audit: config.audit.clone(),
            store,
        }))
    }

    /// Checks the files that a configuration names, and leaves the store alone: another broker may use it.
    ///
    /// # Errors
    /// [`StartError`]: a file that the configuration names cannot be used, or the store's folder or address cannot be.
    pub fn check(config: &Config) -> Result<(), StartError> {
        administrators(config)?;
        anchors(config)?;
        match &config.store {
            config::Store::Embedded(path) => {
                let folder = path.parent().unwrap_or(Path::new("."));
                std::fs::metadata(folder)
                    .map_err(|source| StartError::Unreadable { path: folder.to_owned(), source })?;
            }
            config::Store::Postgres(database) => store::check_database(database)?,
        }
        Ok(())
    }
}

/// Runs what takes the processor for long on a thread of its own: verification, and policies.
pub(crate) async fn blocking<V: Send + 'static>(
    work: impl FnOnce() -> V + Send + 'static,
) -> Result<V, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
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
