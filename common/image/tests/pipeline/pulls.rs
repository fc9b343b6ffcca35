//! Images that are what they should be.

use std::path::Path;

use rstest::rstest;
use sealpod_image::author::{self, BuildOptions};
use sealpod_image::digest::Digest;
use sealpod_image::manifest::{DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use sealpod_image::pull::PullError;
use sealpod_image::registry::{Client, RegistryError};
use serde_json::{Value, json};

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer, TAR, TAR_GZIP, TAR_ZSTD};
use crate::support::registry::{Registry, certificate};
use crate::support::served::Served;
use crate::support::tree::{names, snapshot};

/// A root folder such as an owner has.
fn root_folder(folder: &Path) {
    std::fs::create_dir_all(folder.join("usr/bin")).unwrap();
    std::fs::write(folder.join("usr/bin/run"), vec![7; 300_000]).unwrap();
    std::fs::write(folder.join(format!("usr/{}", "n".repeat(200))), "long").unwrap();
    std::fs::create_dir(folder.join("tmp")).unwrap();
    for (path, mode) in [("usr/bin/run", 0o4755), ("tmp", 0o1777), ("usr", 0o750)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(folder.join(path), mode).unwrap();
    }
    std::os::unix::fs::symlink("/usr/bin", folder.join("bin")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), folder.join("dangling")).unwrap();
    std::os::unix::fs::lchown(folder.join("tmp"), Some(7), Some(70_000)).unwrap();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (path, name, value) in
        [("usr/bin/run", "security.capability", &capability[..]), ("tmp", "user.note", b"\0\n")]
    {
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(folder.join(path), name, value, none).unwrap();
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

fn build(folder: &Path) -> author::Layout {
    let root = folder.join("root");
    std::fs::create_dir(&root).unwrap();
    root_folder(&root);
    let config = json!({"Entrypoint": ["/usr/bin/run"], "Env": ["A=b"]});
    author::build(&BuildOptions { root, config, output: folder.join("image") }).unwrap()
}

#[rstest]
#[case::http(Registry::plain())]
#[case::https_under_an_authority_of_its_own(Registry::secure())]
#[tokio::test]
async fn an_image_is_pulled_as_it_was_built(#[case] registry: Registry) {
    let folder = tempfile::tempdir().unwrap();
    let layout = build(folder.path());
    let reference = registry.reference("team/app:1");
    let pushed = author::push(&registry.client(), &layout, &reference, |_| ()).await.unwrap();

    let guest = Guest::new(registry.options());
    let image = guest.pull(&reference).await.unwrap();

    assert_eq!(image.digest, pushed);
    assert_eq!(image.reference, reference);
    assert_eq!(image.bytes, layout.manifest.layers[0].size);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_deref(), Some(&["/usr/bin/run".to_owned()][..]));
    let mut built = snapshot(&folder.path().join("root"));
    // An image has no times, and no word of its root.
    built.values_mut().for_each(|node| node.mtime = (0, 0));
    built.remove(".");
    let mut pulled = snapshot(&image.layers[0]);
    pulled.remove(".");
    assert_eq!(pulled, built);
    let by_digest = registry.reference(&format!("team/app@{pushed}"));
    assert_eq!(guest.pull(&by_digest).await.unwrap().layers, image.layers);
}

#[tokio::test]
async fn the_same_folder_gives_the_same_image() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, other] = folders.each_ref().map(|folder| build(folder.path()).digest);
    assert_eq!(one, other);
}

#[tokio::test]
async fn an_image_that_was_pushed_is_inspected() {
    let registry = Registry::plain();
    let folder = tempfile::tempdir().unwrap();
    let layout = build(folder.path());
    let (client, reference) = (registry.client(), registry.reference("app:1"));
    let digest = author::push(&client, &layout, &reference, |_| ()).await.unwrap();
    let key = author::SigningKey::from_pem(author::SigningKey::generate().unwrap().as_bytes()).unwrap();
    assert_eq!(author::inspect_reference(&client, &reference).await.unwrap().signatures, Some(0));
    author::sign(&client, &reference, &reference.to_string(), &key).await.unwrap();

    let seen = author::inspect_reference(&client, &reference).await.unwrap();

    assert_eq!((seen.digest, seen.signatures), (digest, Some(1)));
    assert_eq!(seen.config["config"]["Env"], json!(["A=b"]));
    let [layer] = seen.layers.as_slice() else { panic!("{seen:?}") };
    assert!(!layer.encrypted && layer.recipients.is_empty());
    assert_eq!((layer.digest, layer.media_type.as_str()), (layout.manifest.layers[0].digest, TAR_GZIP));
    let offline =
        author::inspect_layout(&author::Layout::open(&folder.path().join("image")).unwrap()).unwrap();
    assert_eq!((offline.digest, offline.signatures), (digest, None));
}

#[tokio::test]
async fn a_registry_under_another_authority_is_not_spoken_to() {
    let registry = Registry::secure();
    let mut guest = Guest::new(registry.options());
    guest.client.extra_root_certificates = vec![certificate().0];
    let error = guest.refused(&registry.reference("app:1")).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Unreachable { .. })), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_registry_without_tls_is_spoken_to_only_where_that_is_allowed() {
    let image = Image::of_archives([Archive::of([])]);
    let served = Served::with(&image).await;
    let mut guest = Guest::new(served.options());
    guest.client.plain_http.clear();
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(error, PullError::Registry(RegistryError::Unreachable { .. })), "{error}");
    assert_eq!(served.requests(), Vec::<String>::new());
}

#[rstest]
#[case(TAR, Layer::plain(archive()))]
#[case(TAR_GZIP, Layer::gzip(&archive()))]
#[case(TAR_ZSTD, Layer::zstd(&archive()))]
#[case("application/vnd.docker.image.rootfs.diff.tar", Layer::plain(archive()))]
#[case("application/vnd.docker.image.rootfs.diff.tar.gzip", Layer::gzip(&archive()))]
#[case("application/vnd.docker.image.rootfs.diff.tar.zstd", Layer::zstd(&archive()))]
#[case(TAR_GZIP, several_streams(Layer::gzip))]
#[case(TAR_ZSTD, several_streams(Layer::zstd))]
#[tokio::test]
async fn layers_of_every_form_unpack_to_the_same(#[case] media_type: &str, #[case] layer: Layer) {
    let served = Served::with(&Image::of([layer.of_type(media_type)])).await;
    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(&image.layers[0]), ["etc", "etc/motd", "run"]);
    assert_eq!(std::fs::read(image.layers[0].join("etc/motd")).unwrap(), motd());
}

fn motd() -> Vec<u8> {
    (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn archive() -> Vec<u8> {
    Archive::of([Member::directory("etc/"), Member::file("etc/motd", motd()), Member::file("run", "")])
}

/// A layer whose compressed streams follow one another, as parallel compressors write them.
fn several_streams(compress: fn(&[u8]) -> Layer) -> Layer {
    let archive = archive();
    let blob = archive.chunks(10_000).flat_map(|part| compress(part).blob).collect();
    Layer { blob, ..Layer::plain(archive) }
}

#[tokio::test]
async fn an_image_without_layers_is_pulled() {
    let served = Served::with(&Image::of([])).await;
    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap();
    assert!(image.layers.is_empty());
}

#[tokio::test]
async fn layers_come_lowest_first() {
    let archives: Vec<_> =
        (0..7).map(|n| Archive::of([Member::file(format!("layer-{n}"), vec![n; 100_000])])).collect();
    let served = Served::with(&Image::of_archives(archives)).await;
    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap();
    let names: Vec<_> = image.layers.iter().flat_map(|layer| names(layer)).collect();
    assert_eq!(names, (0..7).map(|n| format!("layer-{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_docker_image_is_pulled() {
    let mut image = Image::of_archives([archive()]);
    image.manifest["mediaType"] = json!(DOCKER_MANIFEST);
    image.manifest["config"]["mediaType"] = json!(DOCKER_CONFIG);
    let served = Served::start().await;
    served.add(&image);
    served.tag("1", DOCKER_MANIFEST, image.manifest_bytes());
    assert!(Guest::new(served.options()).pull(&served.reference()).await.is_ok());
}

fn offer(image: &Image, platform: Value) -> Value {
    let size = image.manifest_bytes().len();
    json!({"mediaType": OCI_MANIFEST, "digest": image.digest(), "size": size, "platform": platform})
}

#[rstest]
#[case(OCI_INDEX)]
#[case(DOCKER_LIST)]
#[tokio::test]
async fn an_index_gives_the_image_for_this_platform(#[case] media_type: &str) {
    let image = |name: &str| Image::of_archives([Archive::of([Member::file(name, "")])]);
    let (ours, other, attestation) = (image("ours"), image("other"), image("attestation"));
    let served = Served::start().await;
    let host = json!({"os": "linux", "architecture": ours.config["architecture"]});
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [
        offer(&attestation, json!({"os": "unknown", "architecture": "unknown"})),
        offer(&other, json!({"os": "linux", "architecture": "s390x"})),
        offer(&ours, host),
    ]});
    for image in [&ours, &other, &attestation] {
        served.add(image);
    }
    let index = index.to_string().into_bytes();
    served.tag("1", media_type, index.clone());

    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();

    assert_eq!(names(&pulled.layers[0]), ["ours"]);
    // What was signed, or is to be pinned, is the index.
    assert_eq!(pulled.digest, Digest::of(&index));
}

#[tokio::test]
async fn an_index_without_this_platform_tells_which_there_are() {
    let image = Image::of([]);
    let served = Served::start().await;
    served.add(&image);
    served.index(&json!({"schemaVersion": 2, "manifests": [
        offer(&image, json!({"os": "linux", "architecture": "s390x"})),
        offer(&image, json!({"os": "windows", "architecture": "amd64"})),
        offer(&image, json!({"os": "unknown", "architecture": "unknown"})),
    ]}));
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(error.to_string().ends_with("but for linux/s390x, windows/amd64"), "{error}");
}

#[tokio::test]
async fn a_client_without_any_authority_reaches_no_registry() {
    let registry = Registry::secure();
    let mut options = registry.options();
    options.extra_root_certificates.clear();
    // Either there is no such client, or it trusts nobody.
    if let Ok(client) = Client::new(options) {
        let error = client.manifest(&registry.reference("app:1"), 1000).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    }
}
