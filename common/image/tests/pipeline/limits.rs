//! Layers that are more than anybody should hold.

use std::io::Write;

use rstest::rstest;
use sealpod_image::UnpackError;
use sealpod_image::manifest::{OCI_CONFIG, OCI_MANIFEST};
use sealpod_image::pull::{Limits, PullError};
use sealpod_image::registry::RegistryError;
use serde_json::json;
use zstd::zstd_safe::CParameter;

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer, TAR_ZSTD};
use crate::support::served::Served;

const MEBIBYTE: u64 = 1 << 20;

fn zeros() -> Vec<u8> {
    Archive::of([Member::file("zeros", vec![0; 64 << 20])])
}

/// A file of a hole, in the ways of GNU tar's PAX archives.
fn hole(length: u64) -> Vec<u8> {
    let length = length.to_string();
    Archive::of([Member::file("hole", "").record("GNU.sparse.size", &length).record("GNU.sparse.map", "0,0")])
}

fn limited(served: &Served, unpacked_bytes: u64, files: u64) -> Guest {
    let mut guest = Guest::new(served.options());
    guest.limits = Limits { unpacked_bytes, files };
    guest
}

#[rstest]
#[case::plain(Layer::plain(zeros()))]
#[case::gzip(Layer::gzip(&zeros()))]
#[case::zstd(Layer::zstd(&zeros()))]
#[case::sparse(Layer::plain(hole(64 * MEBIBYTE)))]
#[case::sparse_beyond_all_disks(Layer::plain(hole(i64::MAX as u64)))]
#[case::after_the_archive(Layer::gzip(&Archive::default().raw(&vec![0; 64 << 20]).finish()))]
#[tokio::test]
async fn a_layer_that_unpacks_to_too_much_is_given_up(#[case] layer: Layer) {
    let served = Served::with(&Image::of([layer])).await;
    let error = limited(&served, MEBIBYTE, 100).refused(&served.reference()).await;
    let too_large =
        |source: &UnpackError| matches!(source, UnpackError::TooLarge { limit: MEBIBYTE, unit: "bytes" });
    assert!(matches!(&error, PullError::Unpack { source, .. } if too_large(source)), "{error}");
}

#[tokio::test]
async fn the_layers_of_an_image_have_one_limit_together() {
    let layer = |name: &str| Layer::plain(Archive::of([Member::file(name, vec![1; 600_000])]));
    let served = Served::with(&Image::of([layer("a"), layer("b")])).await;
    assert!(limited(&served, 2 * MEBIBYTE, 100).pull(&served.reference()).await.is_ok());
    let error = limited(&served, MEBIBYTE, 100).refused(&served.reference()).await;
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
}

#[rstest]
#[case::files((0..11).map(|n| Member::file(format!("{n}"), "")).collect())]
#[case::the_same_again(vec![Member::file("same", ""); 11])]
#[case::whiteouts((0..11).map(|n| Member::file(format!(".wh.{n}"), "")).collect())]
#[case::folders_that_are_not_described(vec![Member::file("a/b/c/d/e/f/g/h/i/j/k", "")])]
#[tokio::test]
async fn a_layer_of_too_many_files_is_given_up(#[case] members: Vec<Member>) {
    let served = Served::with(&Image::of_archives([Archive::of(members)])).await;
    let error = limited(&served, 64 * MEBIBYTE, 10).refused(&served.reference()).await;
    assert!(error.to_string().contains("more than 10 files"), "{error}");
    assert!(limited(&served, 64 * MEBIBYTE, 11).pull(&served.reference()).await.is_ok());
}

#[rstest]
#[case(25, true)]
#[case(27, false)]
#[tokio::test]
async fn a_zstandard_window_of_too_much_memory_is_refused(#[case] window_log: u32, #[case] accepted: bool) {
    let archive = Archive::of([Member::file("a", "")]);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
    encoder.write_all(&archive).unwrap();
    let blob = encoder.finish().unwrap();
    let layer = Layer { blob, ..Layer::plain(archive) };
    let served = Served::with(&Image::of([layer.of_type(TAR_ZSTD)])).await;
    let guest = Guest::new(served.options());
    if accepted {
        assert!(guest.pull(&served.reference()).await.is_ok());
    } else {
        let error = guest.refused(&served.reference()).await;
        assert!(matches!(error, PullError::Unpack { source: UnpackError::Decompress(_), .. }), "{error}");
    }
}

#[tokio::test]
async fn an_extension_header_that_would_fill_the_memory_is_refused() {
    let member = Member::file("a", "").record("comment", vec![b'x'; 2 << 20]);
    let served = Served::with(&Image::of([Layer::gzip(&Archive::of([member]))])).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(error.to_string().contains("at most 1048576 are read"), "{error}");
}

#[tokio::test]
async fn an_attribute_that_no_file_system_takes_is_refused_at_once() {
    let member = Member::directory("a/").xattr("security.large", vec![b'x'; 70_000]);
    let served = Served::with(&Image::of_archives([Archive::of([member])])).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Unpack { source: UnpackError::Io { .. }, .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_that_is_too_long_is_not_read() {
    let served = Served::start().await;
    served.tag("1", OCI_MANIFEST, vec![b' '; 5 << 20]);
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error}");
}

#[tokio::test]
async fn a_configuration_that_is_too_long_is_not_fetched() {
    let mut image = Image::of([]);
    let digest = image.manifest["config"]["digest"].clone();
    image.manifest["config"] = json!({"mediaType": OCI_CONFIG, "digest": digest, "size": 5 << 20});
    let served = Served::with(&image).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error}");
    assert!(!served.requests().iter().any(|request| request.contains("/blobs/")));
}

#[tokio::test]
async fn more_layers_than_overlayfs_takes_are_refused() {
    let layer = Layer::plain(Archive::of([]));
    let served = Served::with(&Image::of(vec![layer; 501])).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Malformed(_)), "{error}");
    assert!(error.to_string().contains("501 layers"), "{error}");
}
