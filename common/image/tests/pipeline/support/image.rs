//! Images, made in memory.

use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use sealpod_image::digest::Digest;
use sealpod_image::manifest::{OCI_CONFIG, OCI_MANIFEST};
use sealpod_image::platform::Platform;
use sealpod_image::reference::Reference;
use sealpod_image::registry::Client;
use sealpod_ocicrypt::annotations::encrypted_media_type;
use sealpod_ocicrypt::layer::Encryptor;
use sealpod_ocicrypt::{Recipient, wrap};
use serde_json::{Value, json};

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer as a registry has it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Layer {
    pub(crate) fn plain(archive: Vec<u8>) -> Self {
        let diff_id = Digest::of(&archive);
        Self { media_type: TAR.into(), blob: archive, diff_id, annotations: BTreeMap::new() }
    }

    pub(crate) fn gzip(archive: &[u8]) -> Self {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(archive).unwrap();
        Self { blob: gzip.finish().unwrap(), media_type: TAR_GZIP.into(), ..Self::plain(archive.to_vec()) }
    }

    pub(crate) fn zstd(archive: &[u8]) -> Self {
        let blob = zstd::stream::encode_all(archive, 3).unwrap();
        Self { blob, media_type: TAR_ZSTD.into(), ..Self::plain(archive.to_vec()) }
    }

    pub(crate) fn of_type(self, media_type: &str) -> Self {
        Self { media_type: media_type.into(), ..self }
    }

    pub(crate) fn encrypted(mut self, recipients: &[Recipient]) -> Self {
        let mut encryptor = Encryptor::new().unwrap();
        encryptor.update(&mut self.blob).unwrap();
        let (private, public) = encryptor.finish();
        self.annotations.extend(wrap(recipients, &private, &public).unwrap());
        self.media_type = encrypted_media_type(&self.media_type).unwrap();
        self
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }
}

/// An image of one platform. The manifest and the configuration may be altered before it goes anywhere.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Value,
    pub(crate) manifest: Value,
    pub(crate) layers: Vec<Layer>,
}

impl Image {
    pub(crate) fn of(layers: impl IntoIterator<Item = Layer>) -> Self {
        let layers: Vec<_> = layers.into_iter().collect();
        let platform = Platform::host();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({
            "architecture": platform.architecture, "os": platform.os, "config": {"Cmd": ["/run"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len(),
                    "annotations": layer.annotations,
                })
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": descriptors});
        Self { config: Value::Null, manifest, layers }.configured(config)
    }

    /// An image of one layer of these archives each, as they are.
    pub(crate) fn of_archives(archives: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::of(archives.into_iter().map(Layer::plain))
    }

    /// The same with another configuration.
    pub(crate) fn configured(mut self, config: Value) -> Self {
        let bytes = config.to_string();
        self.manifest["config"] =
            json!({"mediaType": OCI_CONFIG, "digest": Digest::of(bytes.as_bytes()), "size": bytes.len()});
        self.config = config;
        self
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes())
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    pub(crate) async fn push(&self, client: &Client, reference: &Reference) {
        let layers = self.layers.iter().map(|layer| layer.blob.clone());
        for blob in layers.chain([self.config_bytes()]) {
            client.push_bytes(reference, blob).await.unwrap();
        }
        client.push_manifest(reference, OCI_MANIFEST, self.manifest_bytes()).await.unwrap();
    }
}
