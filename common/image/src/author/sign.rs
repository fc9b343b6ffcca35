//! Signing an image as cosign does, with a key of one's own.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

use super::AuthorError;
use crate::digest::Digest;
use crate::manifest::{Descriptor, ImageManifest, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::reference::Reference;
use crate::registry::{Client, RegistryError};
use crate::signature::{PAYLOAD_TYPE, Payload, SIGNATURE_ANNOTATION, signature_tag};

const MAX_MANIFEST: usize = 4 << 20;

/// An ECDSA key on P-256.
pub struct SigningKey {
    pair: EcdsaKeyPair,
}

impl SigningKey {
    /// A new private key, PKCS#8 PEM.
    ///
    /// # Errors
    /// [`AuthorError::Key`], where the system has no random numbers.
    pub fn generate() -> Result<String, AuthorError> {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        let key = key.map_err(|_| AuthorError::Key("it cannot be made".into()))?;
        Ok(pem("PRIVATE KEY", key.as_ref()))
    }

    /// Reads a private key, PKCS#8 PEM.
    ///
    /// # Errors
    /// [`AuthorError::Key`], where it is another kind of key, or encrypted.
    pub fn from_pem(text: &[u8]) -> Result<Self, AuthorError> {
        let wrong = || {
            AuthorError::Key(
                "expected an unencrypted P-256 key in PKCS#8 PEM, as `image keygen` makes".into(),
            )
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_| wrong())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der())
            .map_err(|_| wrong())?;
        Ok(Self { pair })
    }

    /// The public key, SubjectPublicKeyInfo PEM, as policies name it.
    ///
    /// # Errors
    /// [`AuthorError::Key`].
    pub fn public_pem(&self) -> Result<String, AuthorError> {
        let der: PublicKeyX509Der<'_> = self
            .pair
            .public_key()
            .as_der()
            .map_err(|_| AuthorError::Key("its public half is missing".into()))?;
        Ok(pem("PUBLIC KEY", der.as_ref()))
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorError> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| AuthorError::Key("it does not sign".into()))
    }
}

/// Signs the image that a reference leads to, as `identity`, and pushes the signature beside those that are there.
///
/// # Errors
/// [`AuthorError`]: the registry does not give the image or does not take the signature, or the key does not sign.
pub async fn sign(
    client: &Client,
    reference: &Reference,
    identity: &str,
    key: &SigningKey,
) -> Result<Digest, AuthorError> {
    let digest = client.manifest(reference, MAX_MANIFEST).await?.digest;
    let tagged = reference.with_tag(&signature_tag(digest))?;
    let payload = serde_json::to_vec(&Payload::new(digest, identity))
        .map_err(|error| AuthorError::Configuration(error.to_string()))?;
    let mut layer = Descriptor::of(PAYLOAD_TYPE, &payload);
    layer.annotations.insert(SIGNATURE_ANNOTATION.into(), STANDARD.encode(key.sign(&payload)?));
    client.push_bytes(&tagged, payload).await?;

    let mut layers = existing(client, &tagged).await?;
    layers.push(layer);
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    let config = serde_json::json!({
        "architecture": "", "os": "", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = config.to_string().into_bytes();
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor::of(OCI_CONFIG, &config),
        layers,
        annotations: Default::default(),
    };
    client.push_bytes(&tagged, config).await?;
    let bytes =
        serde_json::to_vec(&manifest).map_err(|error| AuthorError::Configuration(error.to_string()))?;
    client.push_manifest(&tagged, OCI_MANIFEST, bytes).await?;
    Ok(digest)
}

/// The signatures that the image has already.
async fn existing(client: &Client, tagged: &Reference) -> Result<Vec<Descriptor>, AuthorError> {
    match client.manifest(tagged, MAX_MANIFEST).await {
        Ok(served) => match Manifest::parse(&served.bytes, &served.media_type)? {
            Manifest::Image(manifest) => Ok(manifest.layers),
            Manifest::Index(_) => Ok(Vec::new()),
        },
        Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
