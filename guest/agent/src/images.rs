//! The pod's images: pulled by the owner's policy, decrypted with keys from the owner's key broker.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::image::ImageConfiguration;
use sealpod_agent_protocol::{Failure, FailureKind, PulledImage};
use sealpod_image::platform::Platform;
use sealpod_image::policy::Policy;
use sealpod_image::pull::{Limits, PullError, PullOptions, Puller};
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, ClientOptions, Credentials, RegistryError};
use sealpod_image::store::Store;
use sealpod_kbs_protocol::{ResourcePath, ResourceUri};
use sealpod_ocicrypt::{AttemptError, KeyError, KeyResolver, Secret, UnwrapError, Unwrapper};
use tokio::sync::OnceCell;

use crate::attestation::Attestation;
use crate::config;
use crate::container::{ContainerImage, ImageProcess};
use crate::failure::{Hint, chain, failure, internal};

/// Where layers are unpacked: in memory, or on the encrypted ephemeral disk where there is one.
const STORE: &str = "/run/sealpod/images";

/// The images of the pod.
pub(crate) struct Images {
    config: config::Image,
    attestation: Arc<Attestation>,
    /// Made at the first pull: its policy may have to be fetched.
    puller: OnceCell<Puller>,
    pulled: Mutex<HashMap<String, Arc<sealpod_image::pull::PulledImage>>>,
}

impl Images {
    pub(crate) fn new(config: config::Image, attestation: Arc<Attestation>) -> Result<Self, Failure> {
        Ok(Self { config, attestation, puller: OnceCell::new(), pulled: Mutex::default() })
    }

    /// Pulls an image, if the owner's policy allows it.
    pub(crate) async fn pull(&self, image: &str) -> Result<PulledImage, Failure> {
        let reference = Reference::parse(image)
            .map_err(|error| failure(FailureKind::Invalid, format!("image {image:?}: {error}")))?;
        let puller = self.puller.get_or_try_init(|| self.make_puller()).await?;
        let pulled = puller.pull(&reference).await.map_err(|error| pull_failure(&error))?;
        let reply = PulledImage { digest: pulled.digest.to_string(), bytes: pulled.bytes };
        self.lock().insert(image.to_owned(), Arc::new(pulled));
        Ok(reply)
    }

    /// The digest of an image that was pulled under this name.
    pub(crate) fn digest(&self, image: &str) -> Result<String, Failure> {
        Ok(self.find(image)?.digest.to_string())
    }

    /// What a container of an image is made of.
    pub(crate) fn for_container(&self, image: &str) -> Result<ContainerImage, Failure> {
        let pulled = self.find(image)?;
        Ok(ContainerImage { process: process(&pulled.config), layers: pulled.layers.clone() })
    }

    fn find(&self, image: &str) -> Result<Arc<sealpod_image::pull::PulledImage>, Failure> {
        let found = self.lock().get(image).cloned();
        found.ok_or_else(|| {
            failure(FailureKind::NotFound, format!("the image {image:?} was not pulled"))
                .hint("send PullImage first")
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<sealpod_image::pull::PulledImage>>> {
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make_puller(&self) -> Result<Puller, Failure> {
        let policy = self.policy().await?;
        let credentials = match &self.config.authenticated_registry_credentials_uri {
            None => Credentials::default(),
            Some(uri) => {
                let json = self.text(uri).await?;
                Credentials::parse(&json).map_err(|error| {
                    failure(FailureKind::Invalid, format!("registry credentials: {error}"))
                })?
            }
        };
        let options = ClientOptions {
            plain_http: self.config.plain_http_registries.iter().cloned().collect::<BTreeSet<_>>(),
            extra_root_certificates: self.config.extra_root_certificates.clone(),
            credentials,
            ..ClientOptions::default()
        };
        let client =
            Client::new(options).map_err(|error| internal("prepare to speak to registries", &error))?;
        let store =
            Store::new(Path::new(STORE)).map_err(|error| internal("prepare the image store", &error))?;
        let keys = Arc::new(BrokerKeys { attestation: self.attestation.clone() });
        Ok(Puller::new(PullOptions {
            client,
            policy,
            unwrapper: Arc::new(Unwrapper::new(Vec::new(), Some(keys))),
            store: Arc::new(store),
            platform: Platform::host(),
            limits: Limits::default(),
        }))
    }

    /// The owner's image policy, with the keys that it names. Without one nothing runs.
    async fn policy(&self) -> Result<Policy, Failure> {
        let json = match (&self.config.image_security_policy, &self.config.image_security_policy_uri) {
            (Some(_), Some(_)) => {
                return Err(failure(
                    FailureKind::Invalid,
                    "two image policies are configured, inline and by URI",
                ));
            }
            (Some(inline), None) => inline.clone(),
            (None, Some(uri)) => self.text(uri).await?,
            (None, None) => {
                return Err(failure(
                    FailureKind::ImageRefused,
                    "there is no image policy, so no image may run",
                )
                .hint("name one in cdh.toml of the init data (image_security_policy_uri)"));
            }
        };
        let refused = |error: &dyn std::error::Error| {
            failure(FailureKind::Invalid, format!("the image policy: {}", chain(error)))
        };
        let mut policy = Policy::parse(&json).map_err(|error| refused(&error))?;
        let missing: Vec<String> = policy.missing_keys().into_iter().map(str::to_owned).collect();
        for name in missing {
            let uri: ResourceUri = name.parse().map_err(|error| refused(&error))?;
            let pem = self.attestation.resource(&uri.path).await?;
            policy.load_key(&name, pem.as_bytes()).map_err(|error| refused(&error))?;
        }
        Ok(policy)
    }

    async fn text(&self, uri: &ResourceUri) -> Result<String, Failure> {
        let bytes = self.attestation.resource(&uri.path).await?;
        String::from_utf8(bytes.as_bytes().to_vec())
            .map_err(|_| failure(FailureKind::Invalid, format!("the resource {} is not text", uri.path)))
    }
}

/// Layer keys from the owner's key broker.
struct BrokerKeys {
    attestation: Arc<Attestation>,
}

impl KeyResolver for BrokerKeys {
    fn key<'a>(
        &'a self,
        kid: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Secret, KeyError>> + Send + 'a>> {
        Box::pin(async move {
            // Old images name a key by its path alone.
            let path =
                kid.parse::<ResourceUri>().map(|uri| uri.path).or_else(|_| kid.parse::<ResourcePath>());
            let path = path.map_err(|error| KeyError::Unavailable(Box::new(error)))?;
            let key = self.attestation.resource(&path).await.map_err(|failure| match failure.kind {
                FailureKind::NotFound => KeyError::NotFound,
                FailureKind::DeniedByKeyBroker => KeyError::Denied { denial: failure.denial },
                _ => KeyError::Unavailable(Box::new(failure)),
            })?;
            Ok(Secret::new(key.as_bytes().to_vec()))
        })
    }
}

/// What the image says of its process.
fn process(config: &ImageConfiguration) -> ImageProcess {
    let Some(config) = config.config() else { return ImageProcess::default() };
    ImageProcess {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        environment: config.env().clone().unwrap_or_default(),
        working_directory: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
    }
}

/// What a failed pull means to the host.
fn pull_failure(error: &PullError) -> Failure {
    let message = chain(error);
    if error.is_exhausted() {
        return failure(FailureKind::Exhausted, message)
            .hint("give the pod more memory, or an ephemeral disk");
    }
    match error {
        PullError::Refused(_) => failure(FailureKind::ImageRefused, message)
            .hint("the image's owner signs it with `sealpod image sign`, or changes the image policy"),
        PullError::Registry(RegistryError::Unreachable { .. }) => failure(FailureKind::Unreachable, message)
            .hint("check the registry's address, and whether it speaks plain HTTP (plain_http_registries)"),
        PullError::Registry(RegistryError::NotFound { .. }) => failure(FailureKind::NotFound, message),
        PullError::Registry(RegistryError::Digest { .. } | RegistryError::Length { .. }) => {
            failure(FailureKind::ImageCorrupt, message).hint("the registry does not serve what was pushed")
        }
        PullError::Registry(_) | PullError::Reference(_) => failure(FailureKind::Invalid, message),
        PullError::Platform { .. } => {
            failure(FailureKind::Invalid, message).hint("push the image for this platform")
        }
        PullError::Key { source, .. } => key_failure(source, message),
        PullError::Manifest(_)
        | PullError::Malformed(_)
        | PullError::Decrypt { .. }
        | PullError::Unpack { .. }
        | PullError::DiffId { .. } => failure(FailureKind::ImageCorrupt, message),
        PullError::Store(_) | PullError::Internal => failure(FailureKind::Internal, message),
    }
}

/// Where the key broker refused the key, its denial's id is what the owner needs.
fn key_failure(error: &UnwrapError, message: String) -> Failure {
    if let UnwrapError::NoneOpened(attempts) = error {
        for attempt in attempts {
            if let AttemptError::Key { source: KeyError::Denied { denial }, .. } = &attempt.error {
                let mut failure = failure(FailureKind::DeniedByKeyBroker, message);
                failure.denial.clone_from(denial);
                return failure;
            }
        }
    }
    failure(FailureKind::ImageCorrupt, message).hint("is the layer's key in the pod's key broker?")
}
