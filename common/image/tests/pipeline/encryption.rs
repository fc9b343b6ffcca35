//! Layers that only their recipients can read.

use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use rstest::rstest;
use sealpod_image::author::{self, BuildOptions, Layout};
use sealpod_image::pull::PullError;
use sealpod_ocicrypt::annotations::is_encrypted;
use sealpod_ocicrypt::{KeyError, KeyResolver, Recipient, Secret, Unwrapper};
use serde_json::json;

use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer, TAR};
use crate::support::keys::{key_pair, recipient, unwrapper};
use crate::support::registry::Registry;
use crate::support::served::Served;
use crate::support::tree::{names, snapshot};
use crate::support::{Guest, run};

const KID: &str = "kbs:///default/key/1";

fn archive() -> Vec<u8> {
    let content: Vec<u8> =
        (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Archive::of([Member::file("content", content), Member::file("run", "").mode(0o755)])
}

/// An image in a layout, and the folder that it was built from.
fn built(folder: &Path) -> Layout {
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/motd"), vec![9; 500_000]).unwrap();
    author::build(&BuildOptions { root, config: json!({}), output: folder.join("plain") }).unwrap()
}

fn assert_same(layer: &Path, root: &Path) {
    let content = |folder| snapshot(folder).into_iter().map(|(name, node)| (name, node.kind, node.mode));
    let without_root = |folder| content(folder).filter(|(name, ..)| name != ".").collect::<Vec<_>>();
    assert_eq!(without_root(layer), without_root(root));
}

/// Skopeo between a layout and a registry without TLS.
fn skopeo(folder: &Path, options: &[&str], from: &str, to: &str) {
    let mut arguments =
        vec!["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    arguments.extend(options);
    arguments.extend([from, to]);
    run(folder, "skopeo", &arguments);
}

#[rstest]
#[case::plain(Layer::plain(archive()))]
#[case::gzip(Layer::gzip(&archive()))]
#[case::zstd(Layer::zstd(&archive()))]
#[tokio::test]
async fn an_encrypted_layer_is_opened_with_its_key(
    #[case] layer: Layer,
    #[values("RSA", "P-256", "P-521")] kind: &str,
) {
    let keys = key_pair(kind);
    let served = Served::with(&Image::of([layer.encrypted(&[recipient(&keys)])])).await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    let image = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(&image.layers[0]), ["content", "run"]);
}

#[tokio::test]
async fn each_of_several_recipients_opens_a_layer() {
    let keys = [key_pair("P-256"), key_pair("RSA"), key_pair("P-384")];
    let image = Image::of([Layer::gzip(&archive()).encrypted(&keys.each_ref().map(recipient))]);
    let served = Served::with(&image).await;
    for keys in &keys {
        let mut guest = Guest::new(served.options());
        guest.keys = unwrapper(keys);
        assert!(guest.pull(&served.reference()).await.is_ok());
    }
}

#[rstest]
#[case::no_key(Unwrapper::default())]
#[case::the_wrong_key(unwrapper(&key_pair("P-256")))]
#[case::a_key_of_another_kind(unwrapper(&key_pair("RSA")))]
#[tokio::test]
async fn a_layer_stays_closed_without_its_key(#[case] keys: Unwrapper) {
    let image = Image::of([
        Layer::gzip(&Archive::of([Member::file("not encrypted", "")])),
        Layer::gzip(&archive()).encrypted(&[recipient(&key_pair("P-256"))]),
    ]);
    let served = Served::with(&image).await;
    let mut guest = Guest::new(served.options());
    guest.keys = keys;
    match guest.refused(&served.reference()).await {
        PullError::Key { layer, .. } => assert_eq!(layer, image.layers[1].digest()),
        error => panic!("{error}"),
    }
    // What cannot be opened is not fetched.
    assert_eq!(served.requests_for(image.layers[1].digest()), 0);
}

/// The owner's key broker, as far as a puller sees it.
struct Broker(Option<[u8; 32]>);

impl KeyResolver for Broker {
    fn key<'a>(&'a self, kid: &'a str) -> BoxFuture<'a, Result<Secret, KeyError>> {
        assert_eq!(kid, KID);
        let key = self.0.map(|key| Secret::new(key.to_vec()));
        Box::pin(async move { key.ok_or(KeyError::Denied { denial: Some("4711".into()) }) })
    }
}

#[rstest]
#[case(Some([7; 32]), None)]
#[case(Some([8; 32]), Some("no key at hand opens the encrypted layer"))]
#[case(None, Some("denial 4711"))]
#[tokio::test]
async fn a_key_brokers_key_opens_a_layer(#[case] key: Option<[u8; 32]>, #[case] refusal: Option<&str>) {
    let recipient = Recipient::KeyProvider {
        kid: KID.into(),
        key: [7; 32].into(),
        wrap_type: Default::default(),
        version: Default::default(),
    };
    let served = Served::with(&Image::of([Layer::gzip(&archive()).encrypted(&[recipient])])).await;
    let mut guest = Guest::new(served.options());
    guest.keys = Unwrapper::new(Vec::new(), Some(Arc::new(Broker(key))));
    match refusal {
        None => assert!(guest.pull(&served.reference()).await.is_ok()),
        Some(words) => {
            let error = guest.refused(&served.reference()).await;
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

/// Whoever may write to the registry can alter ciphertext and every digest on the way to it.
#[tokio::test]
async fn an_altered_ciphertext_under_right_digests_is_refused() {
    let keys = key_pair("P-256");
    let mut layer = Layer::plain(archive()).encrypted(&[recipient(&keys)]);
    // In the content of a file: the archive is still one.
    layer.blob[100_000] ^= 1;
    let served = Served::with(&Image::of([layer])).await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(error, PullError::Decrypt { .. }), "{error}");
}

#[tokio::test]
async fn the_annotations_of_another_layer_do_not_open_this_one() {
    let keys = key_pair("P-256");
    let mut layer = Layer::plain(archive()).encrypted(&[recipient(&keys)]);
    layer.annotations = Layer::plain(archive()).encrypted(&[recipient(&keys)]).annotations;
    let served = Served::with(&Image::of([layer])).await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    guest.refused(&served.reference()).await;
}

#[tokio::test]
async fn an_encrypted_layer_that_says_it_is_plain_is_refused() {
    let layer = Layer::plain(archive()).encrypted(&[recipient(&key_pair("P-256"))]).of_type(TAR);
    let served = Served::with(&Image::of([layer])).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Unpack { .. }), "{error}");
}

#[rstest]
#[case("RSA")]
#[case("P-256")]
#[tokio::test]
async fn what_skopeo_encrypts_is_pulled(#[case] kind: &str) {
    let (registry, keys) = (Registry::plain(), key_pair(kind));
    let folder = tempfile::tempdir().unwrap();
    built(folder.path());
    let public = format!("jwe:{}", keys.path().join("public.pem").display());
    let reference = registry.reference("app:1");
    skopeo(folder.path(), &["--encryption-key", &public], "oci:plain", &format!("docker://{reference}"));

    let mut guest = Guest::new(registry.options());
    assert!(matches!(guest.refused(&reference).await, PullError::Key { .. }));
    guest.keys = unwrapper(&keys);
    let image = guest.pull(&reference).await.unwrap();
    assert_same(&image.layers[0], &folder.path().join("root"));
}

#[rstest]
#[case("RSA")]
#[case("P-256")]
#[tokio::test]
async fn what_we_encrypt_is_pulled_and_is_decrypted_by_skopeo(#[case] kind: &str) {
    let (registry, keys) = (Registry::plain(), key_pair(kind));
    let folder = tempfile::tempdir().unwrap();
    let plain = built(folder.path());
    let sealed = author::encrypt(&plain, &folder.path().join("sealed"), &[recipient(&keys)]).unwrap();
    assert!(sealed.manifest.layers.iter().all(|layer| is_encrypted(&layer.media_type)));
    let reference = registry.reference("app:1");
    author::push(&registry.client(), &sealed, &reference, |_| ()).await.unwrap();

    let mut guest = Guest::new(registry.options());
    guest.keys = unwrapper(&keys);
    let image = guest.pull(&reference).await.unwrap();
    assert_same(&image.layers[0], &folder.path().join("root"));

    let private = keys.path().join("private.pem").display().to_string();
    skopeo(folder.path(), &["--decryption-key", &private], &format!("docker://{reference}"), "oci:opened");
    let opened = Layout::open(&folder.path().join("opened")).unwrap();
    let layers =
        |layout: &Layout| layout.manifest.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>();
    assert_eq!(layers(&opened), layers(&plain));
}

#[tokio::test]
async fn what_is_encrypted_shows_for_whom_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let recipients = [
        recipient(&key_pair("P-256")),
        Recipient::KeyProvider {
            kid: KID.into(),
            key: [7; 32].into(),
            wrap_type: Default::default(),
            version: Default::default(),
        },
    ];
    let sealed = author::encrypt(&built(folder.path()), &folder.path().join("sealed"), &recipients).unwrap();
    let seen = author::inspect_layout(&sealed).unwrap();
    assert!(seen.layers[0].encrypted);
    assert_eq!(seen.layers[0].recipients, ["jwe", KID]);
    // What is encrypted already stays as it is.
    let again = author::encrypt(&sealed, &folder.path().join("again"), &recipients).unwrap();
    assert_eq!(again.manifest.layers, sealed.manifest.layers);
}
