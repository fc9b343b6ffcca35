//! What decides: the policies, the reference values and the key that signs tokens, as they stand in the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealpod_appraisal::{DEFAULT_POLICY, Policy, PolicyError, ReferenceValues, TokenError, TokenSigner};
use sealpod_kbs_protocol::Secret;
use tokio::sync::Mutex;

use crate::error::ApiError;
use crate::resource_policy::{self, ResourcePolicy};
use crate::store::{Kind, Store, StoreError};

/// Names of settings in the store.
pub(crate) const ATTESTATION_POLICY: &str = "attestation-policy";
pub(crate) const RESOURCE_POLICY: &str = "resource-policy";
const SIGNING_KEY: &str = "token-signing-key";

/// Parsed once after every change.
pub(crate) struct Rules {
    pub(crate) attestation: Policy,
    pub(crate) resource: ResourcePolicy,
    pub(crate) references: ReferenceValues,
    pub(crate) signer: TokenSigner,
    /// The store's when they were read.
    revision: String,
}

/// The rules that were read last.
pub(crate) struct CurrentRules {
    store: Arc<dyn Store>,
    /// Locked while they are read, so that of two changes the later one is taken up last.
    rules: Mutex<Arc<Rules>>,
}

/// Why what stands in the store cannot decide.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
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

impl CurrentRules {
    /// Reads them for the first time, and makes the signing key if nobody did.
    pub(crate) async fn read(store: Arc<dyn Store>) -> Result<Self, RulesError> {
        let rules = Mutex::new(Arc::new(Rules::read(store.as_ref()).await?));
        Ok(Self { store, rules })
    }

    /// The rules as they are now: what was changed before this is in them, whichever broker changed it.
    pub(crate) async fn get(&self) -> Result<Arc<Rules>, ApiError> {
        let revision = self.store.revision().await.map_err(ApiError::store)?;
        let mut rules = self.rules.lock().await;
        if rules.revision != revision {
            *rules = Arc::new(Rules::read(self.store.as_ref()).await.map_err(ApiError::rules)?);
        }
        Ok(rules.clone())
    }
}

impl Rules {
    async fn read(store: &dyn Store) -> Result<Self, RulesError> {
        let mut revision = store.revision().await?;
        loop {
            let rules = Self::read_as(store, revision).await?;
            revision = store.revision().await?;
            // Otherwise they were changed meanwhile, and some of them may be older than others.
            if revision == rules.revision {
                return Ok(rules);
            }
        }
    }

    async fn read_as(store: &dyn Store, revision: String) -> Result<Self, RulesError> {
        let text = async |name, default: &str| -> Result<String, StoreError> {
            let bytes = store.get(Kind::Setting, name).await?;
            let bytes = bytes.as_ref().map_or(default.as_bytes(), Secret::as_bytes);
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let mut references = BTreeMap::new();
        for (id, json) in store.list(Kind::ReferenceValue).await? {
            // A value that cannot be read is one that nobody registered.
            if let Ok(value) = serde_json::from_slice(&json) {
                references.insert(id, value);
            }
        }
        Ok(Self {
            attestation: Policy::parse("default", &text(ATTESTATION_POLICY, DEFAULT_POLICY).await?)?,
            resource: ResourcePolicy::parse(&text(RESOURCE_POLICY, resource_policy::DEFAULT_POLICY).await?)
                .map_err(RulesError::ResourcePolicy)?,
            references,
            signer: TokenSigner::new(&signing_key(store).await?)?,
            revision,
        })
    }
}

/// The token signing key, made at the first start.
async fn signing_key(store: &dyn Store) -> Result<Secret, RulesError> {
    if let Some(key) = store.get(Kind::Setting, SIGNING_KEY).await? {
        return Ok(key);
    }
    // Another broker may start for the first time, too.
    Ok(store.settle(Kind::Setting, SIGNING_KEY, TokenSigner::generate()?).await?)
}
