//! Interoperation with Debian's skopeo, both ways, over real OCI layouts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use rstest::rstest;
use sealpod_ocicrypt::annotations::{
    EncryptionAnnotations, decrypted_media_type, encrypted_media_type, is_encrypted,
};
use sealpod_ocicrypt::jwe::{Algorithm, PrivateKey, PublicKey};
use sealpod_ocicrypt::layer::Decryptor;
use sealpod_ocicrypt::{Recipient, Unwrapper, wrap};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{encrypted, private_pem, public_pem, run, sha256};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A gzip stream that is no small one, and the digest of what is in it.
fn layer() -> (Vec<u8>, String) {
    let content: Vec<u8> =
        (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&content).unwrap();
    (gzip.finish().unwrap(), sha256(&content))
}

/// Writes an image of one layer, `tag` `test`, as an OCI layout.
fn write_layout(layout: &Path, layer: &[u8], diff_id: &str, mut descriptor: Value) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let store = |blob: &[u8]| {
        let digest = sha256(blob);
        std::fs::write(blobs.join(&digest["sha256:".len()..]), blob).unwrap();
        digest
    };
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "test"}],
    });
    let config = config.to_string();
    descriptor["digest"] = store(layer).into();
    descriptor["size"] = layer.len().into();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": store(config.as_bytes()), "size": config.len(),
        },
        "layers": [descriptor],
    });
    let manifest = manifest.to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": store(manifest.as_bytes()), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "test"},
        }],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// The descriptor and the blob of the only layer of a layout's only image.
fn read_layer(layout: &Path) -> (Value, Vec<u8>) {
    let blob = |digest: &Value| {
        let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        std::fs::read(layout.join("blobs/sha256").join(digest)).unwrap()
    };
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
    let descriptor = manifest["layers"][0].clone();
    let layer = blob(&descriptor["digest"]);
    (descriptor, layer)
}

fn copy(folder: &TempDir, options: &[&str], from: &str, to: &str) {
    let (from, to) = (format!("oci:{from}:test"), format!("oci:{to}:test"));
    let arguments = [&["--insecure-policy", "copy"], options, &[&from, &to]].concat();
    run(folder.path(), "skopeo", &arguments);
}

/// Encrypts an image with skopeo for these keys; gives the layer's descriptor and blob.
fn encrypt_with_skopeo(public_keys: &[String]) -> (Value, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (layer, diff_id) = layer();
    write_layout(&folder.path().join("in"), &layer, &diff_id, json!({"mediaType": LAYER_TYPE}));
    let mut options = Vec::new();
    for (index, key) in public_keys.iter().enumerate() {
        let file = format!("public{index}.pem");
        std::fs::write(folder.path().join(&file), key).unwrap();
        options.extend(["--encryption-key".to_owned(), format!("jwe:{file}")]);
    }
    copy(&folder, &options.iter().map(String::as_str).collect::<Vec<_>>(), "in", "out");
    read_layer(&folder.path().join("out"))
}

async fn open(descriptor: &Value, mut blob: Vec<u8>, private_key: &str) -> Vec<u8> {
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(descriptor["annotations"].clone()).unwrap();
    let unwrapper = Unwrapper::new(vec![PrivateKey::parse(private_key.as_bytes()).unwrap()], None);
    let private = unwrapper.unwrap(&annotations).await.unwrap();
    let public = EncryptionAnnotations::parse(&annotations).unwrap().public_options;
    let mut decryptor = Decryptor::new(&private, &public).unwrap();
    blob.chunks_mut(12_345).for_each(|chunk| decryptor.update(chunk).unwrap());
    decryptor.finish().unwrap();
    blob
}

#[rstest]
#[case::rsa("RSA")]
#[case::p256("P-256")]
#[case::p384("P-384")]
#[case::p521("P-521")]
#[tokio::test]
async fn what_skopeo_encrypts_is_decrypted(#[case] kind: &str) {
    let key = private_pem(kind);
    let (descriptor, blob) = encrypt_with_skopeo(&[public_pem(&key)]);
    let media_type = descriptor["mediaType"].as_str().unwrap();
    assert!(is_encrypted(media_type));
    assert_eq!(decrypted_media_type(media_type), Some(LAYER_TYPE));
    assert_ne!(blob, layer().0);
    assert_eq!(open(&descriptor, blob, &key).await, layer().0);
}

#[tokio::test]
async fn each_of_skopeos_recipients_decrypts() {
    let keys = ["RSA", "P-256", "P-521"].map(private_pem);
    let (descriptor, blob) = encrypt_with_skopeo(&keys.clone().map(|key| public_pem(&key)));
    for key in keys {
        assert_eq!(open(&descriptor, blob.clone(), &key).await, layer().0);
    }
}

#[tokio::test]
async fn what_skopeo_encrypts_for_others_stays_closed() {
    let (descriptor, _) = encrypt_with_skopeo(&[public_pem(&private_pem("P-256"))]);
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(descriptor["annotations"].clone()).unwrap();
    let mine = PrivateKey::parse(private_pem("P-256").as_bytes()).unwrap();
    let refused = Unwrapper::new(vec![mine], None).unwrap(&annotations).await.unwrap_err().to_string();
    assert!(refused.contains("ECDH-ES+A256KW") && refused.contains("EC P-256"), "{refused}");
}

#[rstest]
#[case::rsa_oaep("RSA", Algorithm::RsaOaep)]
#[case::rsa_oaep_256("RSA", Algorithm::RsaOaep256)]
#[case::p256("P-256", Algorithm::EcdhEsA256Kw)]
#[case::p256_128("P-256", Algorithm::EcdhEsA128Kw)]
#[case::p384_192("P-384", Algorithm::EcdhEsA192Kw)]
#[case::p521("P-521", Algorithm::EcdhEsA256Kw)]
fn skopeo_decrypts_what_is_encrypted_here(#[case] kind: &str, #[case] algorithm: Algorithm) {
    let key = private_pem(kind);
    let recipient = PublicKey::parse(public_pem(&key).as_bytes()).unwrap().with_algorithm(algorithm).unwrap();
    decrypt_with_skopeo(&key, &[Recipient::Jwe(recipient)]);
}

#[test]
fn skopeo_decrypts_as_one_recipient_of_several() {
    let key = private_pem("P-256");
    let jwe = |key: &str| Recipient::Jwe(PublicKey::parse(public_pem(key).as_bytes()).unwrap());
    let broker = Recipient::KeyProvider {
        kid: "kbs:///default/key/1".into(),
        key: [1; 32].into(),
        wrap_type: Default::default(),
        version: Default::default(),
    };
    decrypt_with_skopeo(&key, &[broker, jwe(&private_pem("RSA")), jwe(&key), jwe(&private_pem("P-384"))]);
}

fn decrypt_with_skopeo(private_key: &str, recipients: &[Recipient]) {
    let (layer, diff_id) = layer();
    let (private, public, ciphertext) = encrypted(&layer);
    let annotations = wrap(recipients, &private, &public).unwrap();
    let descriptor =
        json!({"mediaType": encrypted_media_type(LAYER_TYPE).unwrap(), "annotations": annotations});
    let folder = tempfile::tempdir().unwrap();
    write_layout(&folder.path().join("ours"), &ciphertext, &diff_id, descriptor);
    std::fs::write(folder.path().join("private.pem"), private_key).unwrap();
    copy(&folder, &["--decryption-key", "private.pem"], "ours", "plain");
    let (descriptor, decrypted) = read_layer(&folder.path().join("plain"));
    assert_eq!(descriptor["mediaType"], LAYER_TYPE);
    assert_eq!(descriptor["digest"], sha256(&layer));
    assert_eq!(decrypted, layer);
}
