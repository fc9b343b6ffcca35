//! Who may run what.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rstest::rstest;
use sealpod_image::author::{SigningKey, sign};
use sealpod_image::digest::Digest;
use sealpod_image::manifest::{OCI_INDEX, OCI_MANIFEST};
use sealpod_image::policy::{Policy, Reason, SignatureRefusal};
use sealpod_image::pull::PullError;
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, RegistryError};
use sealpod_image::signature::{PAYLOAD_TYPE, SIGNATURE_ANNOTATION, signature_tag};
use serde_json::{Value, json};

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::registry::Registry;
use crate::support::served::Served;

const LIMIT: usize = 1 << 20;

fn key() -> SigningKey {
    SigningKey::from_pem(SigningKey::generate().unwrap().as_bytes()).unwrap()
}

/// The policy that images are signed by this key.
fn by(key: &SigningKey) -> Value {
    json!({"type": "sigstoreSigned", "keyData": STANDARD.encode(key.public_pem().unwrap())})
}

fn policy(requirements: Value) -> Policy {
    Policy::parse(&json!({"default": requirements}).to_string()).unwrap()
}

fn image(name: &str) -> Image {
    Image::of_archives([Archive::of([Member::file(name, name)])])
}

/// A registry with an image, an owner's key, and a guest that wants that key's signature.
struct Signed {
    registry: Registry,
    client: Client,
    reference: Reference,
    image: Image,
    key: SigningKey,
    guest: Guest,
}

impl Signed {
    async fn new() -> Self {
        let registry = Registry::plain();
        let (client, reference) = (registry.client(), registry.reference("team/app:1"));
        let image = image("app");
        image.push(&client, &reference).await;
        let key = key();
        let mut guest = Guest::new(registry.options());
        guest.policy = policy(json!([by(&key)]));
        Self { registry, client, reference, image, key, guest }
    }

    async fn sign(&self, reference: &Reference, identity: &str, key: &SigningKey) {
        sign(&self.client, reference, identity, key).await.unwrap();
    }

    /// Signs the image as what it is asked for.
    async fn sign_well(&self) {
        self.sign(&self.reference, &self.reference.to_string(), &self.key).await;
    }

    fn signatures_of(&self, digest: Digest) -> Reference {
        self.reference.with_tag(&signature_tag(digest)).unwrap()
    }

    /// Why the image is refused.
    async fn refusals(&self, reference: &Reference) -> Vec<SignatureRefusal> {
        match self.guest.refused(reference).await {
            PullError::Refused(refused) => match refused.reason {
                Reason::NotSigned { refusals, .. } => refusals,
                reason => panic!("{reason}"),
            },
            error => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_signed_image_is_pulled_by_tag_and_by_digest() {
    let signed = Signed::new().await;
    signed.sign_well().await;
    for rest in ["team/app:1", &format!("team/app@{}", signed.image.digest())] {
        let pulled = signed.guest.pull(&signed.registry.reference(rest)).await.unwrap();
        assert_eq!(pulled.digest, signed.image.digest());
    }
}

#[tokio::test]
async fn one_good_signature_of_several_is_enough() {
    let signed = Signed::new().await;
    signed.sign(&signed.reference, &signed.reference.to_string(), &key()).await;
    signed.sign(&signed.reference, "another.example/app:1", &signed.key).await;
    signed.sign_well().await;
    assert!(signed.guest.pull(&signed.reference).await.is_ok());
}

#[tokio::test]
async fn an_unsigned_image_is_refused() {
    let signed = Signed::new().await;
    assert!(signed.refusals(&signed.reference).await.is_empty());
    let text = signed.guest.refused(&signed.reference).await.to_string();
    assert!(text.contains("the image has no signature"), "{text}");
}

#[tokio::test]
async fn nothing_but_manifests_is_fetched_of_an_image_that_is_not_signed() {
    let served = Served::with(&image("app")).await;
    let mut guest = Guest::new(served.options());
    guest.policy = policy(json!([by(&key())]));
    assert!(matches!(guest.refused(&served.reference()).await, PullError::Refused(_)));
    assert!(served.requests().iter().all(|request| request.contains("/manifests/")));
}

#[tokio::test]
async fn an_image_signed_by_another_key_is_refused() {
    let signed = Signed::new().await;
    signed.sign(&signed.reference, &signed.reference.to_string(), &key()).await;
    assert!(matches!(signed.refusals(&signed.reference).await[..], [SignatureRefusal::Key]));
}

#[tokio::test]
async fn the_signature_of_another_image_is_refused() {
    let signed = Signed::new().await;
    let other = image("other");
    let other_reference = signed.registry.reference("team/app:2");
    other.push(&signed.client, &other_reference).await;
    // For the very name under which the image is asked for, but for the other's manifest.
    signed.sign(&other_reference, &signed.reference.to_string(), &signed.key).await;
    let signatures = signed.client.manifest(&signed.signatures_of(other.digest()), LIMIT).await.unwrap();
    let tagged = signed.signatures_of(signed.image.digest());
    signed.client.push_manifest(&tagged, OCI_MANIFEST, signatures.bytes).await.unwrap();

    match &signed.refusals(&signed.reference).await[..] {
        [SignatureRefusal::Digest { expected, actual }] => {
            assert_eq!((*expected, *actual), (signed.image.digest(), other.digest()));
        }
        refusals => panic!("{refusals:?}"),
    }
}

#[rstest]
#[case::another_repository("{registry}/team/other:1")]
#[case::another_registry("registry.example/team/app:1")]
#[case::another_tag("{registry}/team/app:2")]
#[case::no_tag("{registry}/team/app")]
#[case::no_reference("what is this")]
#[tokio::test]
async fn a_signature_for_another_reference_is_refused(#[case] identity: &str) {
    let signed = Signed::new().await;
    let identity = identity.replace("{registry}", &signed.registry.address().to_string());
    signed.sign(&signed.reference, &identity, &signed.key).await;
    let refusals = signed.refusals(&signed.reference).await;
    assert!(matches!(refusals[..], [SignatureRefusal::Identity { .. }]), "{refusals:?}");
}

#[rstest]
#[case::the_signature(|layer: &mut Value, _: &mut Vec<u8>| {
    let signature = layer["annotations"][SIGNATURE_ANNOTATION].as_str().unwrap();
    let mut signature = STANDARD.decode(signature).unwrap();
    *signature.last_mut().unwrap() ^= 1;
    layer["annotations"][SIGNATURE_ANNOTATION] = json!(STANDARD.encode(signature));
})]
#[case::the_document(|_: &mut Value, payload: &mut Vec<u8>| payload.push(b' '))]
#[tokio::test]
async fn an_altered_signature_is_refused(#[case] alter: fn(&mut Value, &mut Vec<u8>)) {
    let signed = Signed::new().await;
    signed.sign_well().await;
    let tagged = signed.signatures_of(signed.image.digest());
    let mut manifest: Value =
        serde_json::from_slice(&signed.client.manifest(&tagged, LIMIT).await.unwrap().bytes).unwrap();
    let descriptor = serde_json::from_value(manifest["layers"][0].clone()).unwrap();
    let mut payload = signed.client.small_blob(&tagged, &descriptor, LIMIT).await.unwrap();
    alter(&mut manifest["layers"][0], &mut payload);
    manifest["layers"][0]["digest"] = json!(Digest::of(&payload));
    manifest["layers"][0]["size"] = json!(payload.len());
    signed.client.push_bytes(&tagged, payload).await.unwrap();
    signed.client.push_manifest(&tagged, OCI_MANIFEST, manifest.to_string().into_bytes()).await.unwrap();
    assert!(matches!(signed.refusals(&signed.reference).await[..], [SignatureRefusal::Key]));
}

#[rstest]
#[case::no_base64(json!({SIGNATURE_ANNOTATION: "??"}), PAYLOAD_TYPE)]
#[case::no_annotation(json!({}), PAYLOAD_TYPE)]
#[case::another_type(json!({SIGNATURE_ANNOTATION: "AAAA"}), "text/plain")]
#[tokio::test]
async fn what_is_no_signature_is_none(#[case] annotations: Value, #[case] media_type: &str) {
    let image = image("app");
    let served = Served::with(&image).await;
    let mut signatures = Image::of([]);
    signatures.manifest["layers"] = json!([
        {"mediaType": media_type, "digest": Digest::of(b"x"), "size": 1, "annotations": annotations}
    ]);
    served.tag(&signature_tag(image.digest()), OCI_MANIFEST, signatures.manifest_bytes());
    served.blob(Digest::of(b"x"), b"x".to_vec());
    let mut guest = Guest::new(served.options());
    guest.policy = policy(json!([by(&key())]));
    let error = guest.refused(&served.reference()).await;
    assert!(error.to_string().contains("the image has no signature"), "{error}");
}

#[tokio::test]
async fn an_index_is_signed_as_a_whole() {
    let signed = Signed::new().await;
    let platform = json!({"os": "linux", "architecture": signed.image.config["architecture"]});
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": signed.image.digest(),
        "size": signed.image.manifest_bytes().len(), "platform": platform,
    }]});
    let reference = signed.registry.reference("team/app:many");
    let index = index.to_string().into_bytes();
    let digest = signed.client.push_manifest(&reference, OCI_INDEX, index).await.unwrap();
    // The image in the index has a signature; the index has none.
    let inner = signed.registry.reference(&format!("team/app@{}", signed.image.digest()));
    signed.sign(&inner, &reference.to_string(), &signed.key).await;
    assert!(signed.refusals(&reference).await.is_empty());
    signed.sign(&reference, &reference.to_string(), &signed.key).await;
    assert_eq!(signed.guest.pull(&reference).await.unwrap().digest, digest);
}

#[rstest]
#[case::reject(json!([{"type": "reject"}]))]
#[case::reject_beside_what_accepts(json!([{"type": "insecureAcceptAnything"}, {"type": "reject"}]))]
#[case::what_cannot_be_checked(json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]))]
#[case::a_key_that_is_not_there(json!([{"type": "sigstoreSigned", "keyPath": "kbs:///default/key/1"}]))]
#[tokio::test]
async fn a_registry_is_not_even_asked_for_what_can_never_be_accepted(#[case] requirements: Value) {
    let served = Served::with(&image("app")).await;
    let mut guest = Guest::new(served.options());
    guest.policy = policy(requirements);
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(error, PullError::Refused(_)), "{error}");
    assert!(served.requests().is_empty());
}

#[tokio::test]
async fn every_requirement_must_be_met() {
    let mut signed = Signed::new().await;
    let second = key();
    signed.guest.policy = policy(json!([by(&signed.key), by(&second)]));
    signed.sign_well().await;
    let error = signed.guest.refused(&signed.reference).await;
    assert!(matches!(&error, PullError::Refused(refused) if refused.requirement == 2), "{error}");
    signed.sign(&signed.reference, &signed.reference.to_string(), &second).await;
    assert!(signed.guest.pull(&signed.reference).await.is_ok());
}

#[rstest]
#[case("{registry}/team/app:1", true)]
#[case("{registry}/team/app", true)]
#[case("{registry}/team", true)]
#[case("{registry}", true)]
#[case("", true)]
#[case("{registry}/team/ap", false)]
#[case("{registry}/team/app:2", false)]
#[case("registry.example", false)]
#[tokio::test]
async fn what_the_default_rejects_may_be_accepted_under_a_name(#[case] scope: &str, #[case] accepted: bool) {
    let registry = Registry::plain();
    let reference = registry.reference("team/app:1");
    image("app").push(&registry.client(), &reference).await;
    let scope = scope.replace("{registry}", &registry.address().to_string());
    let policy = json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {scope: [{"type": "insecureAcceptAnything"}]}},
    });
    let mut guest = Guest::new(registry.options());
    guest.policy = Policy::parse(&policy.to_string()).unwrap();
    assert_eq!(guest.pull(&reference).await.is_ok(), accepted);
}

#[tokio::test]
async fn a_layer_that_is_here_is_of_no_use_to_an_image_that_is_refused() {
    let mut signed = Signed::new().await;
    signed.sign_well().await;
    signed.guest.pull(&signed.reference).await.unwrap();
    signed.guest.policy = policy(json!([by(&key())]));
    assert!(matches!(signed.guest.pull(&signed.reference).await, Err(PullError::Refused(_))));
}

/// The image that cosign signed, and the policy that it is to meet.
async fn cosign_image(folder: PathBuf, identity: Value, key: &str) -> PullError {
    const MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let manifest = read("cosign/dir-img-cosign-valid/manifest.json");
    let signature = read("cosign/dir-img-cosign-valid/signature-1");
    let signature: Value =
        serde_json::from_slice(signature.splitn(2, |b| *b == b'\n').nth(1).unwrap()).unwrap();
    let payload = STANDARD.decode(signature["payload"].as_str().unwrap()).unwrap();
    let mut signatures = Image::of([]);
    signatures.manifest["layers"] = json!([{
        "mediaType": signature["mimeType"], "digest": Digest::of(&payload), "size": payload.len(),
        "annotations": signature["annotations"],
    }]);
    let served = Served::start().await;
    served.tag(&signature_tag(Digest::of(&manifest)), OCI_MANIFEST, signatures.manifest_bytes());
    served.blob(Digest::of(&payload), payload);
    served.tag("1", MEDIA_TYPE, manifest);
    let mut guest = Guest::new(served.options());
    let policy =
        json!({"default": [{"type": "sigstoreSigned", "keyPath": "cosign.pub", "signedIdentity": identity}]});
    guest.policy = Policy::parse(&policy.to_string()).unwrap();
    guest.policy.load_key("cosign.pub", &read(key)).unwrap();
    guest.refused(&served.reference()).await
}

fn fixtures() -> PathBuf {
    let folder = std::env::var_os("SEALPOD_FIXTURES").expect("SEALPOD_FIXTURES names the genuine vectors");
    PathBuf::from(folder).join("signature")
}

const COSIGN_REPOSITORY: &str = "192.168.64.2:5000/cosign-signed-single-sample";

#[tokio::test]
#[ignore = "on genuine vectors, which SEALPOD_FIXTURES names"]
async fn what_cosign_signed_is_accepted() {
    let folder = fixtures();
    let identity = json!({"type": "exactRepository", "dockerRepository": COSIGN_REPOSITORY});
    // The signature is good; of the image itself only the manifest is here.
    match cosign_image(folder, identity, "cosign/cosign.pub").await {
        PullError::Registry(RegistryError::NotFound { what, .. }) => {
            assert!(
                what.contains("961769676411f082461f9ef46626dd7a2d1e2b2a38e6a44364bcbecf51e66dd4"),
                "{what}"
            );
        }
        error => panic!("{error}"),
    }
}

#[rstest]
#[case::another_key(
    json!({"type": "exactRepository", "dockerRepository": COSIGN_REPOSITORY}), "policy/cosign/cosign1.pub"
)]
#[case::another_name(json!({"type": "matchRepository"}), "cosign/cosign.pub")]
#[case::another_repository(
    json!({"type": "exactRepository", "dockerRepository": "192.168.64.2:5000/cosign"}), "cosign/cosign.pub"
)]
#[tokio::test]
#[ignore = "on genuine vectors, which SEALPOD_FIXTURES names"]
async fn what_cosign_signed_otherwise_is_refused(#[case] identity: Value, #[case] key: &str) {
    let error = cosign_image(fixtures(), identity, key).await;
    assert!(matches!(error, PullError::Refused(_)), "{error}");
}
