//! The pod's images: pulled by the guest itself, under the image policy, with keys from the key broker.

mod failures;
mod keys;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::image::ImageConfiguration;
use sealpod_agent_protocol::{Failure, FailureKind, PulledImage};
use sealpod_image::platform::Platform;
use sealpod_image::policy::Policy;
use sealpod_image::pull::{self, Limits, PullOptions, Puller};
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, ClientOptions, Credentials};
use sealpod_image::store::Store;
use sealpod_kbs_protocol::ResourceUri;
use sealpod_ocicrypt::Unwrapper;

use crate::attestation::Attestation;
use crate::config;
use crate::container::{ContainerImage, ImageProcess};
use crate::failure::{Hint, failure, internal};
use crate::roots;
use keys::BrokerKeys;

const STORE: &str = "/run/sealpod/images";

/// The images that were pulled, and what pulling takes.
pub(crate) struct Images {
    config: config::Image,
    attestation: Arc<Attestation>,
    store: Arc<Store>,
    /// By the reference as the host gave it.
    pulled: Mutex<BTreeMap<String, pull::PulledImage>>,
}

impl Images {
    pub(crate) fn new(config: config::Image, attestation: Arc<Attestation>) -> Result<Self, Failure> {
        std::fs::create_dir_all(STORE).map_err(|error| internal("create the image store", &error))?;
        let store = Store::new(STORE).map_err(|error| internal("open the image store", &error))?;
        Ok(Self { config, attestation, store: Arc::new(store), pulled: Mutex::default() })
    }

    /// Pulls an image, if the image policy allows it.
    pub(crate) async fn pull(&self, image: &str) -> Result<PulledImage, Failure> {
        let reference = Reference::parse(image)
            .map_err(|error| failure(FailureKind::Invalid, format!("{image:?}: {error}")))?;
        // Policy, keys and credentials are asked for each time: their owner may have changed them.
        let puller = Puller::new(PullOptions {
            policy: self.policy().await?,
            client: self.client().await?,
            unwrapper: Arc::new(Unwrapper::new(
                Vec::new(),
                Some(Arc::new(BrokerKeys(self.attestation.clone()))),
            )),
            store: self.store.clone(),
            platform: Platform::host(),
            limits: Limits::default(),
        });
        let pulled = puller.pull(&reference).await.map_err(|error| failures::of_pull(&error))?;
        let answer = PulledImage { digest: pulled.digest.to_string(), bytes: pulled.bytes };
        tracing::info!("pulled {reference} as {}", pulled.digest);
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner).insert(image.into(), pulled);
        Ok(answer)
    }

    /// What a container needs of an image that was pulled.
    pub(crate) fn for_container(&self, image: &str) -> Result<ContainerImage, Failure> {
        self.with(image, |pulled| ContainerImage {
            digest: pulled.digest.to_string(),
            process: process(&pulled.config),
            layers: pulled.layers.clone(),
        })
    }

    fn with<T>(&self, image: &str, what: impl FnOnce(&pull::PulledImage) -> T) -> Result<T, Failure> {
        let pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        pulled.get(image).map(what).ok_or_else(|| {
            failure(FailureKind::NotFound, format!("image {image:?} was not pulled"))
                .hint("send PullImage with the same reference first")
        })
    }

    /// The image policy with the keys that it names. Without a policy, no image runs.
    async fn policy(&self) -> Result<Policy, Failure> {
        let config = &self.config;
        let text = match (&config.security_policy, &config.security_policy_uri) {
            (Some(text), _) => text.clone(),
            (None, Some(uri)) => self.text(uri, "the image policy").await?,
            (None, None) => {
                return Err(failure(
                    FailureKind::ImageRefused,
                    "the pod has no image policy, so no image may run",
                )
                .hint(
                    "give one in cdh.toml of the init data, or by sealpod.image_policy on the command line",
                ));
            }
        };
        let invalid = |error| {
            failure(FailureKind::Invalid, format!("{error}"))
                .hint("its owner corrects it (containers-policy.json(5)), or the key that it names (PEM)")
        };
        let mut policy = Policy::parse(&text).map_err(invalid)?;
        let missing: Vec<_> = policy.missing_keys().into_iter().map(ToOwned::to_owned).collect();
        for name in missing {
            // A key that cannot be had leaves what it would allow refused; a file's name means nothing here.
            let Ok(uri) = name.parse::<ResourceUri>() else { continue };
            match self.attestation.resource(&uri.path).await {
                Ok(key) => policy.load_key(&name, key.as_bytes()).map_err(invalid)?,
                Err(failure) if failure.kind == FailureKind::NotFound => {
                    tracing::warn!("{}", failure.message)
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(policy)
    }

    async fn client(&self) -> Result<Client, Failure> {
        let config = &self.config;
        let credentials = match &config.credentials_uri {
            Some(uri) => Credentials::parse(&self.text(uri, "the registry credentials").await?)
                .map_err(|error| failure(FailureKind::Invalid, error.to_string()))?,
            None => Credentials::default(),
        };
        let options = ClientOptions {
            plain_http: config.plain_http_registries.iter().cloned().collect(),
            extra_root_certificates: roots::with(&config.extra_root_certificates),
            // The guest has no folder of certificates.
            system_roots: false,
            credentials,
            ..ClientOptions::default()
        };
        Client::new(options).map_err(|error| failure(FailureKind::Invalid, error.to_string()))
    }

    async fn text(&self, uri: &ResourceUri, what: &str) -> Result<String, Failure> {
        let secret = self.attestation.resource(&uri.path).await?;
        String::from_utf8(secret.as_bytes().to_vec())
            .map_err(|_| failure(FailureKind::Invalid, format!("{what} at {uri} is not text")))
    }
}

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
