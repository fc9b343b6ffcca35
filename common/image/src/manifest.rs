//! Manifests and indexes, as registries serve and layouts hold them.
//!
//! Both the OCI types and Docker's schema 2, which have the same shape. Docker's schema 1 is refused.

use std::collections::BTreeMap;

use sealpod_ocicrypt::annotations::{decrypted_media_type, is_encrypted};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Every media type that a manifest may be asked for by.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Points to content: a manifest, a configuration or a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's length, in bytes.
    pub size: u64,
    /// Other places where the content is; none are used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What else is said of the content; the keys of encrypted layers stand here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: the platform that the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Of this content.
    pub fn of(media_type: &str, content: &[u8]) -> Self {
        Self::new(media_type, Digest::of(content), content.len() as u64)
    }

    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// The manifest of one image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// What else is said of the image.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Several images, for a platform each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_INDEX`] or [`DOCKER_LIST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
    /// What else is said of the index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl ImageIndex {
    /// The first image for this platform.
    ///
    /// # Errors
    /// The platforms that there are instead.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, Vec<Platform>> {
        let offers =
            |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(|p| wanted.accepts(p));
        self.manifests.iter().find(offers).ok_or_else(|| {
            // Build attestations ride along as images for the platform "unknown".
            let known = |platform: &Platform| platform.os != "unknown";
            self.manifests.iter().filter_map(|d| d.platform.clone()).filter(known).collect()
        })
    }
}

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image(ImageManifest),
    /// Several.
    Index(ImageIndex),
}

impl Manifest {
    /// Reads a manifest. `served_as` is the media type that the registry or the descriptor gives; it may be
    /// empty if the document names its own.
    ///
    /// # Errors
    /// [`ManifestError`]. A document that could be read as either kind is one of them: two readers could
    /// see different images behind one digest.
    pub fn parse(bytes: &[u8], served_as: &str) -> Result<Self, ManifestError> {
        let probe: Probe = serde_json::from_slice(bytes).map_err(ManifestError::Malformed)?;
        if probe.schema_version != 2 {
            return Err(ManifestError::Schema { actual: probe.schema_version });
        }
        let media_type = match probe.media_type.as_deref() {
            Some(own) if !served_as.is_empty() && own != served_as => {
                return Err(ManifestError::Ambiguous(format!(
                    "it says {own}, but was served as {served_as}"
                )));
            }
            Some(own) => own,
            None => served_as,
        };
        let is_index = match media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            OCI_INDEX | DOCKER_LIST => true,
            other => return Err(ManifestError::MediaType { actual: other.into() }),
        };
        match (is_index, probe.manifests.is_some(), probe.config.is_some() || probe.layers.is_some()) {
            (false, false, _) => {
                serde_json::from_slice(bytes).map(Self::Image).map_err(ManifestError::Malformed)
            }
            (true, _, false) => {
                serde_json::from_slice(bytes).map(Self::Index).map_err(ManifestError::Malformed)
            }
            _ => Err(ManifestError::Ambiguous(format!(
                "it is {media_type}, but has the other kind's fields too"
            ))),
        }
    }
}

/// Why a document is refused as a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("the manifest is malformed: {0}")]
    Malformed(#[source] serde_json::Error),
    /// An old schema.
    #[error("the manifest has schema version {actual}, expected 2; push the image again with a current tool")]
    Schema {
        /// What it says.
        actual: u32,
    },
    /// Neither a manifest nor an index.
    #[error(
        "the manifest's media type is {actual:?}, expected an image manifest or index (OCI or Docker schema 2)"
    )]
    MediaType {
        /// What it says.
        actual: String,
    },
    /// It could be read as two different things.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(String),
}

/// How the tar archive in a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// What a layer's media type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Under the cipher of [`sealpod_ocicrypt::layer`].
    pub encrypted: bool,
    /// Inside the cipher.
    pub compression: Compression,
}

impl LayerKind {
    /// Of this media type; `None` for anything but a layer that a registry itself holds: layers to be had
    /// from elsewhere only ("foreign", "non-distributable") are not among them.
    pub fn of(media_type: &str) -> Option<Self> {
        let encrypted = is_encrypted(media_type);
        let compression = match decrypted_media_type(media_type).unwrap_or(media_type) {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Compression::None
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
            _ => return None,
        };
        Some(Self { encrypted, compression })
    }
}

/// As much of a document as tells what kind it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// Go writes empty maps as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn descriptor(media_type: &str) -> serde_json::Value {
        serde_json::to_value(Descriptor::of(media_type, b"")).unwrap()
    }

    fn parse(document: serde_json::Value, served_as: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(document.to_string().as_bytes(), served_as)
    }

    #[test]
    fn the_media_type_may_come_from_the_document_or_from_the_registry() {
        let bare = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": []});
        assert!(matches!(parse(bare.clone(), OCI_MANIFEST), Ok(Manifest::Image(_))));
        assert!(matches!(parse(bare, ""), Err(ManifestError::MediaType { .. })));
        let named = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []});
        assert!(matches!(parse(named, ""), Ok(Manifest::Index(_))));
    }

    #[test]
    fn a_document_that_reads_as_manifest_and_as_index_is_refused() {
        let both =
            json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [], "manifests": []});
        for served_as in [OCI_MANIFEST, OCI_INDEX] {
            assert!(matches!(parse(both.clone(), served_as), Err(ManifestError::Ambiguous(_))));
        }
    }

    #[test]
    fn a_document_served_as_something_else_than_it_says_is_refused() {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
        assert!(matches!(parse(index, OCI_MANIFEST), Err(ManifestError::Ambiguous(_))));
    }

    #[test]
    fn schema_1_is_refused() {
        let old = json!({"schemaVersion": 1, "fsLayers": []});
        let media_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(parse(old, media_type), Err(ManifestError::Schema { actual: 1 })));
    }

    #[test]
    fn null_annotations_are_none() {
        let mut layer = descriptor("application/vnd.oci.image.layer.v1.tar");
        layer["annotations"] = serde_json::Value::Null;
        let document = json!({"schemaVersion": 2, "config": descriptor(OCI_CONFIG), "layers": [layer]});
        assert!(parse(document, OCI_MANIFEST).is_ok());
    }

    #[rstest]
    fn layers_from_elsewhere_and_what_is_no_layer_are_unknown(
        #[values(
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+xz",
            "application/octet-stream",
            ""
        )]
        media_type: &str,
    ) {
        assert_eq!(LayerKind::of(media_type), None);
    }

    #[rstest]
    #[case("application/vnd.oci.image.layer.v1.tar", false, Compression::None)]
    #[case("application/vnd.docker.image.rootfs.diff.tar.gzip", false, Compression::Gzip)]
    #[case("application/vnd.oci.image.layer.v1.tar+zstd+encrypted", true, Compression::Zstd)]
    fn layers_are_known_by_their_media_type(
        #[case] media_type: &str,
        #[case] encrypted: bool,
        #[case] compression: Compression,
    ) {
        assert_eq!(LayerKind::of(media_type), Some(LayerKind { encrypted, compression }));
    }
}
