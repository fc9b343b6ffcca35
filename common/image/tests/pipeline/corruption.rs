//! Images that are not what they say.

use std::fs;

use rstest::rstest;
use sealpod_image::digest::Digest;
use sealpod_image::manifest::{OCI_INDEX, OCI_MANIFEST};
use sealpod_image::pull::PullError;
use sealpod_image::registry::RegistryError;
use serde_json::{Value, json};

use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer};
use crate::support::registry::Registry;
use crate::support::served::{Answer, Served};
use crate::support::tree::names;
use crate::support::{Guest, until};

const LENGTH: usize = 1 << 20;

/// Content that does not compress.
fn content() -> Vec<u8> {
    (0..LENGTH as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).rotate_left(7).to_le_bytes()).collect()
}

fn archive() -> Vec<u8> {
    Archive::of([Member::file("first", ""), Member::file("content", content()), Member::file("last", "")])
}

fn image() -> Image {
    Image::of_archives([archive()])
}

/// Serves an image whose only layer is answered otherwise.
async fn answering(image: &Image, answer: impl FnOnce(Vec<u8>) -> Answer) -> Served {
    let served = Served::with(image).await;
    let layer = &image.layers[0];
    served.answer_blob(layer.digest(), answer(layer.blob.clone()));
    served
}

fn bytes(bytes: Vec<u8>) -> Answer {
    Answer::Content { media_type: "application/octet-stream".into(), bytes }
}

async fn refused(served: &Served) -> PullError {
    Guest::new(served.options()).refused(&served.reference()).await
}

#[tokio::test]
async fn an_altered_layer_is_refused() {
    let image = image();
    let served = answering(&image, |mut blob| {
        blob[LENGTH / 2] ^= 1;
        bytes(blob)
    })
    .await;
    match refused(&served).await {
        PullError::Registry(RegistryError::Digest { what: "blob", expected, actual }) => {
            assert_eq!(expected, image.layers[0].digest());
            assert_ne!(expected, actual);
        }
        error => panic!("{error}"),
    }
}

#[rstest]
#[case(Layer::gzip(&archive()))]
#[case(Layer::zstd(&archive()))]
#[tokio::test]
async fn an_altered_compressed_layer_is_refused(#[case] layer: Layer) {
    let image = Image::of([layer]);
    for position in [0, 20, LENGTH / 2, image.layers[0].blob.len() - 1] {
        let served = answering(&image, |mut blob| {
            blob[position] ^= 0x55;
            bytes(blob)
        })
        .await;
        refused(&served).await;
    }
}

#[tokio::test]
async fn a_layer_that_was_altered_in_a_genuine_registrys_storage_is_refused() {
    let registry = Registry::plain();
    let (image, reference) = (image(), registry.reference("app:1"));
    image.push(&registry.client(), &reference).await;
    let file = registry.blob(image.layers[0].digest());
    let mut blob = fs::read(&file).unwrap();
    blob[LENGTH / 2] ^= 1;
    fs::write(&file, blob).unwrap();
    let error = Guest::new(registry.options()).refused(&reference).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Digest { .. })), "{error}");
}

#[rstest]
#[case::shorter(LENGTH / 2)]
#[case::a_byte_shorter(archive().len() - 1)]
#[case::empty(0)]
#[case::a_byte_longer(archive().len() + 1)]
#[case::much_longer(4 * LENGTH)]
#[tokio::test]
async fn a_layer_of_another_length_is_refused(#[case] length: usize) {
    let image = image();
    let served = answering(&image, |mut blob| {
        blob.resize(length, 0);
        bytes(blob)
    })
    .await;
    match refused(&served).await {
        PullError::Registry(RegistryError::Length { expected, actual, .. }) => {
            assert_eq!(expected, image.layers[0].blob.len() as u64);
            assert_ne!(expected, actual);
        }
        error => panic!("{error}"),
    }
}

#[rstest]
#[case(0)]
#[case(1000)]
#[case(archive().len() as u64 + 1)]
#[case(u64::MAX)]
#[tokio::test]
async fn a_manifest_with_the_wrong_length_of_a_layer_is_refused(#[case] length: u64) {
    // Twice, so that their sum is out of range as well.
    let other = Layer::plain(Archive::of([Member::file("other", "")]));
    let mut image = Image::of([Layer::plain(archive()), other]);
    for layer in 0..2 {
        image.manifest["layers"][layer]["size"] = json!(length);
    }
    let served = Served::with(&image).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Length { .. })), "{error}");
}

#[tokio::test]
async fn a_transfer_that_breaks_is_gone_on_with() {
    let image = image();
    let part = image.layers[0].blob.len() / 3;
    let served = answering(&image, |bytes| Answer::Broken { bytes, at_most: part }).await;
    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(fs::read(pulled.layers[0].join("content")).unwrap(), content());
    assert!(served.requests_for(image.layers[0].digest()) > 1);
}

#[tokio::test]
async fn a_transfer_that_breaks_too_often_is_given_up() {
    let served = answering(&image(), |bytes| Answer::Broken { bytes, at_most: 1000 }).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Unreachable { .. })), "{error}");
    assert_eq!(served.requests_for(image().layers[0].digest()), 4);
}

#[tokio::test]
async fn a_registry_that_begins_again_after_a_break_is_refused() {
    let served = answering(&image(), |mut bytes| {
        bytes.truncate(LENGTH / 2);
        Answer::Unfinished { bytes }
    })
    .await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Protocol { .. })), "{error}");
    assert!(error.to_string().contains("expected the blob's bytes from"), "{error}");
}

#[tokio::test]
async fn a_transfer_that_breaks_after_its_last_byte_is_whole() {
    let served = answering(&image(), |bytes| Answer::Unfinished { bytes }).await;
    let guest = Guest::new(served.options());
    assert!(guest.pull(&served.reference()).await.is_ok());
}

#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    let other = Digest::of(b"other");
    let mut config = image().config;
    config["rootfs"]["diff_ids"] = json!([other]);
    let served = Served::with(&image().configured(config)).await;
    match refused(&served).await {
        PullError::DiffId { expected, actual, .. } => {
            assert_eq!((expected, actual), (other, Digest::of(&archive())));
        }
        error => panic!("{error}"),
    }
}

#[rstest]
#[case::gzip(Layer::gzip(&archive()))]
#[case::zstd(Layer::zstd(&archive()))]
#[tokio::test]
async fn bytes_after_a_layers_archive_count(#[case] mut layer: Layer) {
    let tail = if layer.media_type.ends_with("gzip") { Layer::gzip(b"more") } else { Layer::zstd(b"more") };
    layer.blob.extend(tail.blob);
    let served = Served::with(&Image::of([layer])).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::DiffId { .. }), "{error}");
}

#[rstest]
#[case::cut_in_a_file(&archive()[..LENGTH / 2])]
#[case::cut_in_a_header(&archive()[..300])]
#[case::no_archive(
    b"no archive, but long enough to be taken for one: 512 bytes are a block of a tar archive"
)]
#[case::a_dangling_extension(&Archive::default().with(Member::of_kind("x", b'x')).finish())]
#[case::a_bad_checksum(&Archive::default().raw(&[b'a'; 512]).finish())]
#[tokio::test]
async fn a_layer_that_is_no_archive_is_refused(#[case] archive: &[u8]) {
    let served = Served::with(&Image::of([Layer::gzip(archive)])).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Unpack { .. }), "{error}");
}

#[rstest]
#[case::gzip_as_plain(Layer::gzip(&archive()).of_type("application/vnd.oci.image.layer.v1.tar"))]
#[case::plain_as_gzip(Layer::plain(archive()).of_type("application/vnd.oci.image.layer.v1.tar+gzip"))]
#[case::gzip_as_zstd(Layer::gzip(&archive()).of_type("application/vnd.oci.image.layer.v1.tar+zstd"))]
#[tokio::test]
async fn a_layer_of_another_form_than_it_says_is_refused(#[case] layer: Layer) {
    let served = Served::with(&Image::of([layer])).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Unpack { .. }), "{error}");
}

#[rstest]
#[case("application/vnd.oci.image.layer.nondistributable.v1.tar")]
#[case("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]
#[case("application/octet-stream")]
#[tokio::test]
async fn a_layer_of_an_unknown_kind_is_refused_before_any_is_fetched(#[case] media_type: &str) {
    let image = Image::of([Layer::plain(archive()), Layer::plain(vec![0; 1024]).of_type(media_type)]);
    let served = Served::with(&image).await;
    let error = refused(&served).await;
    assert!(error.to_string().contains(media_type), "{error}");
    assert_eq!(served.requests_for(image.layers[0].digest()), 0);
}

#[tokio::test]
async fn a_manifest_that_is_not_the_one_asked_for_is_refused() {
    let (asked, other) = (image(), Image::of([]));
    let served = Served::with(&other).await;
    served.tag(&asked.digest().to_string(), OCI_MANIFEST, other.manifest_bytes());
    let guest = Guest::new(served.options());
    for reference in [format!("@{}", asked.digest()), format!(":1@{}", asked.digest())] {
        match guest.refused(&served.named(&reference)).await {
            PullError::Registry(RegistryError::Digest { what: "manifest", expected, actual }) => {
                assert_eq!((expected, actual), (asked.digest(), other.digest()));
            }
            error => panic!("{error}"),
        }
    }
}

#[rstest]
#[case::altered(|bytes: &mut Vec<u8>| bytes[20] ^= 1)]
#[case::shorter(|bytes: &mut Vec<u8>| bytes.truncate(20))]
#[case::longer(|bytes: &mut Vec<u8>| bytes.push(b' '))]
#[tokio::test]
async fn an_altered_configuration_is_refused(#[case] alter: fn(&mut Vec<u8>)) {
    let image = image();
    let served = Served::with(&image).await;
    let mut config = image.config_bytes();
    let digest = Digest::of(&config);
    alter(&mut config);
    served.blob(digest, config);
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Registry(_)), "{error}");
    assert_eq!(served.requests_for(image.layers[0].digest()), 0);
}

#[rstest]
#[case::no_diff_ids(json!([]))]
#[case::too_many_diff_ids(json!([Digest::of(&archive()), Digest::of(b"")]))]
#[case::no_digest(json!(["sha256:00"]))]
#[case::another_hash(json!([format!("sha512:{}", "0".repeat(128))]))]
#[tokio::test]
async fn a_configuration_whose_diff_ids_do_not_fit_the_layers_is_refused(#[case] diff_ids: Value) {
    let mut config = image().config;
    config["rootfs"]["diff_ids"] = diff_ids;
    let served = Served::with(&image().configured(config)).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Malformed(_)), "{error}");
}

#[rstest]
#[case("os", "windows")]
#[case("architecture", "s390x")]
#[tokio::test]
async fn an_image_for_other_machines_is_refused(#[case] field: &str, #[case] value: &str) {
    let mut config = image().config;
    config[field] = json!(value);
    let served = Served::with(&image().configured(config)).await;
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Platform { .. }), "{error}");
    assert!(error.to_string().contains(value), "{error}");
    assert_eq!(served.requests_for(image().layers[0].digest()), 0);
}

/// An index of one image for this machine.
fn index(digest: Digest, media_type: &str) -> Value {
    let platform = json!({"os": "linux", "architecture": image().config["architecture"]});
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": media_type, "digest": digest, "size": 1, "platform": platform}
    ]})
}

#[tokio::test]
async fn an_index_that_leads_to_another_manifest_than_it_says_is_refused() {
    let (said, other) = (image(), Image::of([]));
    let served = Served::with(&other).await;
    served.index(&index(said.digest(), OCI_MANIFEST));
    served.tag(&said.digest().to_string(), OCI_MANIFEST, other.manifest_bytes());
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Digest { what: "manifest", .. })), "{error}");
}

#[tokio::test]
async fn an_index_of_indexes_is_refused() {
    let inner = index(image().digest(), OCI_MANIFEST).to_string().into_bytes();
    let served = Served::with(&image()).await;
    served.tag(&Digest::of(&inner).to_string(), OCI_INDEX, inner.clone());
    served.index(&index(Digest::of(&inner), OCI_INDEX));
    let error = refused(&served).await;
    assert_eq!(error.to_string(), "the image is malformed: an index leads to another index");
}

#[rstest]
#[case::schema_1(json!({"schemaVersion": 1, "fsLayers": []}))]
#[case::both_kinds(json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": [], "layers": []}))]
#[case::neither_kind(json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST}))]
#[case::another_type(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}))]
#[case::no_object(json!("manifest"))]
#[tokio::test]
async fn what_is_no_manifest_is_refused(#[case] document: Value) {
    let served = Served::start().await;
    served.tag("1", OCI_MANIFEST, document.to_string().into_bytes());
    let error = refused(&served).await;
    assert!(matches!(error, PullError::Manifest(_)), "{error}");
}

#[rstest]
#[case::right(false)]
#[case::wrong_in_the_last_byte(true)]
#[tokio::test]
async fn nothing_is_visible_before_it_is_verified(#[case] alter: bool) {
    let image = image();
    let layer = &image.layers[0];
    let served = answering(&image, |mut bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= u8::from(alter);
        Answer::Held { bytes, after: last }
    })
    .await;
    let guest = Guest::new(served.options());
    let (puller, reference) = (guest.puller(), served.reference());
    let pull = tokio::spawn(async move { puller.pull(&reference).await });
    served.until_held(1).await;
    // All of the archive is unpacked but the padding after its end.
    let unpacked = || guest.staged().first().is_some_and(|staged| staged.join("last").exists());
    until("the last file is unpacked", unpacked).await;

    assert!(guest.visible().is_empty());
    assert_eq!(guest.store.layer(layer.diff_id), None);

    served.let_go();
    let pulled = pull.await.unwrap();
    assert_eq!(pulled.is_err(), alter);
    assert_eq!(guest.store.layer(layer.diff_id).is_none(), alter);
    until("nothing is being unpacked", || guest.staged().is_empty()).await;
}

#[tokio::test]
async fn a_layer_is_not_visible_before_the_layers_above_it_are_verified() {
    let above = Layer::plain(Archive::of([Member::file("above", "")]));
    let image = Image::of([Layer::plain(archive()), above]);
    let served = Served::with(&image).await;
    let above = &image.layers[1];
    served.answer_blob(above.digest(), Answer::Held { bytes: above.blob.clone(), after: 600 });
    let guest = Guest::new(served.options());
    let (puller, reference) = (guest.puller(), served.reference());
    let pull = tokio::spawn(async move { puller.pull(&reference).await });
    served.until_held(1).await;
    let unpacked = || {
        let staged = guest.staged();
        staged.len() == 2 && staged.iter().any(|staged| staged.join("last").exists())
    };
    until("the lower layer is unpacked", unpacked).await;

    assert!(guest.visible().is_empty());

    served.let_go();
    let pulled = pull.await.unwrap().unwrap();
    assert_eq!(pulled.layers.iter().map(|layer| names(layer).len()).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(guest.visible().len(), 2);
}
