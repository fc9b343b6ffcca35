//! Pulling: from a reference to verified layers in the store.
//!
//! The order is the point. The policy is asked on the reference that the user gave and the manifest that came for it,
//! before anything else is fetched and before any layer that is already here is used. Each layer goes in one pass from
//! the registry's socket through digest, decryption, decompression and diff id into a folder that nobody sees until
//! all of them were right, in all layers of the image. Nor does anybody learn how unpacking went before the bytes of all
//! layers have proved authentic: until then it says what somebody made of a ciphertext that he cannot read.

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
use crate::store::{Store, StoreError};
use crate::unpack::{Budget, hides_all_below};

pub use error::PullError;
use layer::{Fetched, Wanted};

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
        let layers = self.layers(reference, &manifest, &diff_ids).await?;
        let bytes = manifest.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        Ok(PulledImage { reference: reference.clone(), digest, config, layers, bytes })
    }

    /// The layers' trees, from the store or from the registry.
    async fn layers(
        &self,
        reference: &Reference,
        manifest: &ImageManifest,
        diff_ids: &[Digest],
    ) -> Result<Vec<PathBuf>, PullError> {
        let store = &self.options.store;
        let Limits { unpacked_bytes, files } = self.options.limits;
        let budget = Arc::new(Budget::new(unpacked_bytes, files));
        let mut places = Vec::new();
        for ((descriptor, diff_id), chain_id) in
            manifest.layers.iter().zip(diff_ids.iter().copied()).zip(chain_ids(diff_ids))
        {
            // The same layer of two images at once is unpacked once.
            let exclusive = store.exclusive(chain_id).await;
            places.push(match store.layer(chain_id) {
                Some(path) => Place::Stored(path),
                None => Place::Other(Wanted { descriptor, diff_id, chain_id, exclusive }),
            });
        }
        let fetched: Vec<_> = places
            .into_iter()
            .map(|place| {
                let budget = budget.clone();
                async move {
                    Ok::<_, PullError>(match place {
                        Place::Stored(path) => Place::Stored(path),
                        Place::Other(wanted) => {
                            Place::Other(layer::fetch(&self.options, reference, wanted, budget).await?)
                        }
                    })
                }
            })
            .collect();
        let places: Vec<_> = stream::iter(fetched).buffered(PARALLEL_LAYERS).try_collect().await?;
        tokio::task::spawn_blocking(move || complete(places)).await.map_err(|_| PullError::Internal)?
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

/// Where a layer is: in the store, or not yet.
enum Place<Other> {
    Stored(PathBuf),
    Other(Other),
}

/// Makes the layers of an image visible if all of them are right, now that the bytes of all are authentic, and gives
/// those that the image is made of.
fn complete(places: Vec<Place<Fetched>>) -> Result<Vec<PathBuf>, PullError> {
    let mut below = Vec::new();
    let mut settled = Vec::new();
    for place in places {
        let (path, place) = match place {
            Place::Stored(path) => (path.clone(), Place::Stored(path)),
            Place::Other(fetched) => {
                let layer = fetched.settle(&below)?;
                (layer.path().to_owned(), Place::Other(layer))
            }
        };
        below.push(path);
        settled.push(place);
    }
    let mut layers = Vec::new();
    for place in settled {
        let path = match place {
            Place::Stored(path) => path,
            Place::Other(layer) => layer.commit()?,
        };
        let hides_all = hides_all_below(&path)
            .map_err(|error| StoreError::Io { path: path.clone(), source: error.into() })?;
        if hides_all {
            layers.clear();
        }
        layers.push(path);
    }
    Ok(layers)
}

/// Each layer's chain id (OCI image specification, config.md, "Layer ChainID"): it stands for the layer and all that
/// are below it.
fn chain_ids(diff_ids: &[Digest]) -> impl Iterator<Item = Digest> {
    diff_ids.iter().scan(None, |below: &mut Option<Digest>, diff_id| {
        let chain_id = below.map_or(*diff_id, |below| Digest::of(format!("{below} {diff_id}").as_bytes()));
        *below = Some(chain_id);
        Some(chain_id)
    })
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
