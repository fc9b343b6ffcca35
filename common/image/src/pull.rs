//! Pulling: from a reference to verified layers in the store.
//!
//! The order is the point. The policy is asked on the reference that the user gave and the manifest that came for it,
//! before anything else is fetched and before any layer that is already here is used. Each layer goes in one pass from
//! the registry's socket through digest, decryption, decompression and diff id into a folder that nobody sees until
//! all of them were right.

mod error;
mod layer;

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::{self, TryStreamExt};
use oci_spec::image::ImageConfiguration;
use sealpod_ocicrypt::Unwrapper;

use crate::digest::Digest;
use crate::manifest::{DOCKER_CONFIG, ImageManifest, LayerKind, Manifest, OCI_CONFIG};
use crate::platform::Platform;
use crate::policy::{Admission, Policy};
use crate::reference::Reference;
use crate::registry::{Client, RegistryError};
use crate::signature::{PAYLOAD_TYPE, SIGNATURE_ANNOTATION, Signature, signature_tag};
use crate::store::Store;
use crate::unpack::Budget;

pub use error::PullError;

/// No manifest is longer, in bytes.
const MAX_MANIFEST: usize = 4 << 20;
/// No configuration is longer, in bytes.
const MAX_CONFIG: usize = 4 << 20;
/// No signed document is longer, in bytes.
const MAX_PAYLOAD: usize = 64 << 10;
const MAX_SIGNATURES: usize = 64;
/// Overlayfs takes no more lower directories.
const MAX_LAYERS: usize = 500;
const PARALLEL_LAYERS: usize = 3;

/// How much an image may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all layers together, unpacked.
    pub unpacked_bytes: u64,
    /// Files of all layers together.
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unpacked_bytes: 64 << 30, files: 4_000_000 }
    }
}

/// What a puller works with.
pub struct PullOptions {
    /// Speaks to registries.
    pub client: Client,
    /// Which images may run.
    pub policy: Policy,
    /// Has or finds the keys of encrypted layers.
    pub unwrapper: Arc<Unwrapper>,
    /// Where layers go.
    pub store: Arc<Store>,
    /// What images must be for.
    pub platform: Platform,
    /// How much they may be.
    pub limits: Limits,
}

/// Pulls images.
pub struct Puller {
    options: PullOptions,
}

/// An image whose layers are in the store.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// As it was asked for.
    pub reference: Reference,
    /// Of the manifest, or the index, that the reference led to: what was signed.
    pub digest: Digest,
    /// What the image says of itself.
    pub config: ImageConfiguration,
    /// The layers' trees, lowest first.
    pub layers: Vec<PathBuf>,
    /// The layers' length as the registry has them.
    pub bytes: u64,
}

impl Puller {
    /// Prepares to pull.
    pub fn new(options: PullOptions) -> Self {
        Self { options }
    }

    /// Pulls an image. What was fetched when this fails, or is dropped, is removed.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn pull(&self, reference: &Reference) -> Result<PulledImage, PullError> {
        let admission = self.options.policy.admission(reference)?;
        let client = &self.options.client;
        let served = client.manifest(reference, MAX_MANIFEST).await?;
        let digest = served.digest;
        let signatures = match admission {
            Admission::Unconditional => Vec::new(),
            Admission::BySignatures => self.signatures(reference, digest).await?,
        };
        self.options.policy.evaluate(reference, digest, &signatures)?;

        let manifest = self.choose(reference, Manifest::parse(&served.bytes, &served.media_type)?).await?;
        let config = self.config(reference, &manifest).await?;
        let diff_ids = diff_ids(&config, &manifest)?;
        let budget = Arc::new(Budget::new(self.options.limits.unpacked_bytes, self.options.limits.files));
        let bytes = manifest.layers.iter().map(|layer| layer.size).sum();
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(descriptor, diff_id)| {
                layer::ready(&self.options, reference, descriptor, diff_id, budget.clone())
            })
            .collect();
        let layers = stream::iter(layers).buffered(PARALLEL_LAYERS).try_collect().await?;
        Ok(PulledImage { reference: reference.clone(), digest, config, layers, bytes })
    }

    /// All signatures that the repository has for a manifest. None is not an error: the policy decides.
    async fn signatures(&self, reference: &Reference, manifest: Digest) -> Result<Vec<Signature>, PullError> {
        let client = &self.options.client;
        let tagged = reference.with_tag(&signature_tag(manifest))?;
        let served = match client.manifest(&tagged, MAX_MANIFEST).await {
            Ok(served) => served,
            Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let Manifest::Image(manifest) = Manifest::parse(&served.bytes, &served.media_type)? else {
            return Ok(Vec::new());
        };
        let mut signatures = Vec::new();
        for descriptor in
            manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD_TYPE).take(MAX_SIGNATURES)
        {
            let Some(signature) = descriptor.annotations.get(SIGNATURE_ANNOTATION) else { continue };
            // What is no base64 is no signature; the policy will say that there is none.
            let Ok(signature) = STANDARD.decode(signature) else { continue };
            let payload = client.small_blob(&tagged, descriptor, MAX_PAYLOAD).await?;
            signatures.push(Signature { payload, signature });
        }
        Ok(signatures)
    }

    /// The manifest for this platform.
    async fn choose(&self, reference: &Reference, manifest: Manifest) -> Result<ImageManifest, PullError> {
        let platform = &self.options.platform;
        let index = match manifest {
            Manifest::Image(manifest) => return Ok(manifest),
            Manifest::Index(index) => index,
        };
        let chosen = index
            .choose(platform)
            .map_err(|offered| PullError::Platform { wanted: platform.clone(), offered })?;
        let by_digest = reference.with_digest(chosen.digest);
        let served = self.options.client.manifest(&by_digest, MAX_MANIFEST).await?;
        match Manifest::parse(&served.bytes, &chosen.media_type)? {
            Manifest::Image(manifest) => Ok(manifest),
            Manifest::Index(_) => Err(PullError::Malformed("an index leads to another index".into())),
        }
    }

    async fn config(
        &self,
        reference: &Reference,
        manifest: &ImageManifest,
    ) -> Result<ImageConfiguration, PullError> {
        let descriptor = &manifest.config;
        if !matches!(descriptor.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let message = format!("its configuration has the media type {:?}", descriptor.media_type);
            return Err(PullError::Malformed(message));
        }
        let bytes = self.options.client.small_blob(reference, descriptor, MAX_CONFIG).await?;
        let config: ImageConfiguration = serde_json::from_slice(&bytes)
            .map_err(|error| PullError::Malformed(format!("its configuration: {error}")))?;
        let offered = Platform {
            os: config.os().to_string(),
            architecture: config.architecture().to_string(),
            variant: config.variant().clone(),
        };
        if !self.options.platform.accepts(&offered) {
            return Err(PullError::Platform {
                wanted: self.options.platform.clone(),
                offered: vec![offered],
            });
        }
        Ok(config)
    }
}

/// Each layer's diff id: as many as there are layers, which must be layers.
fn diff_ids(config: &ImageConfiguration, manifest: &ImageManifest) -> Result<Vec<Digest>, PullError> {
    let ids = config.rootfs().diff_ids();
    if ids.len() != manifest.layers.len() || ids.len() > MAX_LAYERS {
        let message = format!(
            "{} layers, and diff ids for {} (at most {MAX_LAYERS} of each are allowed)",
            manifest.layers.len(),
            ids.len()
        );
        return Err(PullError::Malformed(message));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| LayerKind::of(&layer.media_type).is_none()) {
        return Err(PullError::Malformed(format!("a layer has the media type {:?}", layer.media_type)));
    }
    ids.iter()
        .map(|id| id.parse().map_err(|error| PullError::Malformed(format!("a diff id: {error}"))))
        .collect()
}
