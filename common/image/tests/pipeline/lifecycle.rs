//! Pulls that end early, and pulls at the same time.

use std::fs;

use rstest::rstest;
use sealpod_image::policy::Policy;
use sealpod_image::pull::PullError;
use sealpod_image::store::{Store, StoreError};

use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer};
use crate::support::served::{Answer, Served};
use crate::support::{Guest, until};

fn layer(name: &str) -> Layer {
    Layer::gzip(&Archive::of([Member::file(name, name), Member::file("common", "")]))
}

/// Many files: unpacking is still at work when the last bytes have come.
fn large_layer() -> Layer {
    Layer::plain(Archive::of((0..20_000).map(|n| Member::file(format!("{}/{n}", n % 50), "content"))))
}

fn hold(served: &Served, layer: &Layer, after: usize) {
    served.answer_blob(layer.digest(), Answer::Held { bytes: layer.blob.clone(), after });
}

#[rstest]
#[case::at_its_beginning(layer("a"), 0)]
#[case::in_the_middle(layer("a"), 40)]
#[case::while_much_is_being_unpacked(large_layer(), 15_000_000)]
#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing(#[case] upper: Layer, #[case] after: usize) {
    let image = Image::of([layer("below"), upper]);
    let served = Served::with(&image).await;
    hold(&served, &image.layers[1], after);
    let guest = Guest::new(served.options());
    let (puller, reference) = (guest.puller(), served.reference());
    let pull = tokio::spawn(async move { puller.pull(&reference).await });
    served.until_held(1).await;
    until("both layers are being unpacked", || guest.staged().len() == 2).await;

    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());

    until("nothing is being unpacked", || guest.staged().is_empty()).await;
    assert!(guest.visible().is_empty());
    // What was given up is pulled as if nothing had been.
    served.let_go();
    assert_eq!(guest.pull(&served.reference()).await.unwrap().layers.len(), 2);
}

#[tokio::test]
async fn a_pull_that_fails_leaves_nothing_not_even_layers_that_were_right() {
    let image = Image::of([layer("a"), layer("b"), layer("c")]);
    let served = Served::with(&image).await;
    let mut blob = image.layers[2].blob.clone();
    blob[30] ^= 1;
    served.blob(image.layers[2].digest(), blob);
    Guest::new(served.options()).refused(&served.reference()).await;
}

#[tokio::test]
async fn a_pull_that_fails_leaves_what_was_there_before() {
    let (first, mut second) = (Image::of([layer("a")]), Image::of([layer("a"), layer("b")]));
    second.layers[1].blob.clear();
    let served = Served::with(&first).await;
    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();
    served.tag(
        &second.digest().to_string(),
        "application/vnd.oci.image.manifest.v1+json",
        second.manifest_bytes(),
    );
    let config = second.config_bytes();
    served.blob(sealpod_image::digest::Digest::of(&config), config);
    assert!(guest.pull(&served.named(&format!("@{}", second.digest()))).await.is_err());
    assert_eq!(guest.visible(), pulled.layers);
}

#[tokio::test]
async fn two_pulls_of_the_same_image_at_once_fetch_it_once() {
    let image = Image::of([layer("a"), large_layer(), layer("c"), layer("d")]);
    let served = Served::with(&image).await;
    let guest = Guest::new(served.options());
    let reference = served.reference();
    let pulls = (0..4).map(|_| guest.pull(&reference));
    let pulled = futures::future::try_join_all(pulls).await.unwrap();
    assert!(pulled.iter().all(|image| image.layers == pulled[0].layers));
    for layer in &image.layers {
        assert_eq!(served.requests_for(layer.digest()), 1);
    }
    assert_eq!(guest.visible().len(), 4);
    assert!(guest.staged().is_empty());
}

#[tokio::test]
async fn images_with_common_layers_share_them_at_once_and_later() {
    let common = [layer("a"), layer("b")];
    let images = ["x", "y"].map(|name| Image::of([common[0].clone(), common[1].clone(), layer(name)]));
    let served = Served::with(&images[0]).await;
    served.add(&images[1]);
    for layer in &common {
        hold(&served, layer, 10);
    }
    let guest = Guest::new(served.options());
    let references = images.each_ref().map(|image| served.named(&format!("@{}", image.digest())));
    let let_go = async {
        served.until_held(2).await;
        served.let_go();
    };
    let (one, other, ()) = tokio::join!(guest.pull(&references[0]), guest.pull(&references[1]), let_go);
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.layers[..2], other.layers[..2]);
    assert_ne!(one.layers[2], other.layers[2]);
    for layer in &common {
        assert_eq!(served.requests_for(layer.digest()), 1);
    }
}

#[tokio::test]
async fn an_image_may_have_the_same_layer_twice() {
    let served = Served::with(&Image::of([layer("a"), layer("b"), layer("a"), layer("a")])).await;
    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();
    let first: Vec<_> = pulled.layers.iter().map(|layer| layer.join("a").exists()).collect();
    assert_eq!(first, [true, false, true, true]);
}

#[tokio::test]
async fn one_of_two_pulls_that_is_dropped_lets_the_other_go_on() {
    let image = Image::of([layer("a")]);
    let served = Served::with(&image).await;
    hold(&served, &image.layers[0], 10);
    let guest = Guest::new(served.options());
    let (puller, reference) = (guest.puller(), served.reference());
    let first = tokio::spawn(async move { puller.pull(&reference).await });
    served.until_held(1).await;
    let (puller, reference) = (guest.puller(), served.reference());
    let second = tokio::spawn(async move { puller.pull(&reference).await });
    first.abort();
    served.until_held(2).await;
    served.let_go();
    assert!(second.await.unwrap().is_ok());
}

#[tokio::test]
async fn what_is_in_the_store_is_not_fetched_again_but_the_policy_is_asked_again() {
    let image = Image::of([layer("a")]);
    let served = Served::with(&image).await;
    let mut guest = Guest::new(served.options());
    let layers = guest.pull(&served.reference()).await.unwrap().layers;
    assert_eq!(guest.pull(&served.reference()).await.unwrap().layers, layers);
    assert_eq!(served.requests_for(image.layers[0].digest()), 1);
    guest.policy = Policy::parse(r#"{"default":[{"type":"reject"}]}"#).unwrap();
    let error = guest.pull(&served.reference()).await.unwrap_err();
    assert!(matches!(error, PullError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_store_is_taken_over_with_its_layers_and_without_what_was_left_half_done() {
    let image = Image::of([layer("a")]);
    let served = Served::with(&image).await;
    let guest = Guest::new(served.options());
    let layers = guest.pull(&served.reference()).await.unwrap().layers;
    let root = guest.folder().join("store");
    assert!(matches!(Store::new(&root), Err(StoreError::InUse(_))));
    fs::create_dir_all(root.join("staging/9/half")).unwrap();
    let guest = guest.with_store_again();
    assert!(guest.staged().is_empty());
    assert_eq!(guest.pull(&served.reference()).await.unwrap().layers, layers);
    assert_eq!(served.requests_for(image.layers[0].digest()), 1);
}
