//! What anybody who has an image can see of it: a registry, a node, a network.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealpod_ocicrypt::annotations::{EncryptionAnnotations, Scheme, is_encrypted};
use sealpod_ocicrypt::keyprovider::AnnotationPacket;
use serde::Serialize;

use super::AuthorError;
use super::layout::Layout;
use crate::digest::Digest;
use crate::manifest::{Descriptor, ImageManifest, Manifest};
use crate::reference::Reference;
use crate::registry::{Client, RegistryError};
use crate::signature::{PAYLOAD_TYPE, signature_tag};

const MAX_MANIFEST: usize = 4 << 20;
const MAX_CONFIG: usize = 4 << 20;

/// What can be seen of an image.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Of the manifest.
    pub digest: Digest,
    /// The image configuration.
    pub config: serde_json::Value,
    /// The layers, lowest first.
    pub layers: Vec<LayerInspection>,
    /// How many signatures are beside it; nothing where that cannot be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signatures: Option<usize>,
}

/// What can be seen of a layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerInspection {
    /// As the registry has it.
    pub digest: Digest,
    /// Bytes, as the registry has them.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// Whether its content is hidden.
    pub encrypted: bool,
    /// For whom it is encrypted: key ids, or how the key is wrapped.
    pub recipients: Vec<String>,
}

/// Looks at an image in a folder.
///
/// # Errors
/// [`AuthorError`]: its configuration cannot be read or understood.
pub fn inspect_layout(layout: &Layout) -> Result<Inspection, AuthorError> {
    let config = layout.read(layout.manifest.config.digest)?;
    inspection(layout.digest, &layout.manifest, &config, None)
}

/// Looks at an image in a registry.
///
/// # Errors
/// [`AuthorError`]: the registry does not give it, it is not understood, or it is an index of several images.
pub async fn inspect_reference(client: &Client, reference: &Reference) -> Result<Inspection, AuthorError> {
    let served = client.manifest(reference, MAX_MANIFEST).await?;
    let Manifest::Image(manifest) = Manifest::parse(&served.bytes, &served.media_type)? else {
        let text = format!("{reference} is an index of several images; name one of them by its digest");
        return Err(AuthorError::Configuration(text));
    };
    let config = client.small_blob(reference, &manifest.config, MAX_CONFIG).await?;
    let tagged = reference.with_tag(&signature_tag(served.digest))?;
    let signatures = match client.manifest(&tagged, MAX_MANIFEST).await {
        Ok(signatures) => match Manifest::parse(&signatures.bytes, &signatures.media_type)? {
            Manifest::Image(manifest) => {
                manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD_TYPE).count()
            }
            Manifest::Index(_) => 0,
        },
        Err(RegistryError::NotFound { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    inspection(served.digest, &manifest, &config, Some(signatures))
}

fn inspection(
    digest: Digest,
    manifest: &ImageManifest,
    config: &[u8],
    signatures: Option<usize>,
) -> Result<Inspection, AuthorError> {
    let config =
        serde_json::from_slice(config).map_err(|error| AuthorError::Configuration(error.to_string()))?;
    Ok(Inspection { digest, config, layers: manifest.layers.iter().map(layer).collect(), signatures })
}

fn layer(descriptor: &Descriptor) -> LayerInspection {
    LayerInspection {
        digest: descriptor.digest,
        size: descriptor.size,
        media_type: descriptor.media_type.clone(),
        encrypted: is_encrypted(&descriptor.media_type),
        recipients: recipients(descriptor),
    }
}

/// The key ids that the annotations name; a kind of wrapping where they name none.
fn recipients(descriptor: &Descriptor) -> Vec<String> {
    const PROVIDER: &str = "org.opencontainers.image.enc.keys.provider.";
    let mut recipients = Vec::new();
    for (name, value) in &descriptor.annotations {
        if name.starts_with(PROVIDER) {
            let packets = value.split(',').filter_map(|packet| STANDARD.decode(packet).ok());
            recipients.extend(
                packets
                    .filter_map(|json| AnnotationPacket::parse(&json).ok())
                    .map(|packet| packet.kid().to_owned()),
            );
        } else if Scheme::of_annotation(name).is_some() {
            recipients.push(name.rsplit('.').next().unwrap_or(name).to_owned());
        }
    }
    // A layer that says it is encrypted but has no well-formed annotations is shown as what it is: for nobody.
    if EncryptionAnnotations::parse(&descriptor.annotations).is_err() { Vec::new() } else { recipients }
}
