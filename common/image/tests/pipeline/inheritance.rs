//! Folders that a layer has but does not describe.

use std::path::PathBuf;

use rstest::rstest;

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::overlay::Merged;
use crate::support::served::Served;
use crate::support::tree::{Node, snapshot};

fn shared(path: &str) -> Member {
    Member::directory(path).mode(0o1777).owner(70, 80).mtime(77).xattr("user.note", "below")
}

fn file(path: &str) -> Member {
    Member::file(path, "")
}

async fn pull(guest: &Guest, served: &Served, layers: Vec<Vec<Member>>) -> Vec<PathBuf> {
    let image = Image::of_archives(layers.into_iter().map(Archive::of));
    served.add(&image);
    guest.pull(&served.named(&format!("@{}", image.digest()))).await.unwrap().layers
}

/// How a container sees a folder of an image of these layers.
async fn seen(path: &str, layers: Vec<Vec<Member>>) -> Node {
    let served = Served::start().await;
    let guest = Guest::new(served.options());
    let layers = pull(&guest, &served, layers).await;
    snapshot(&Merged::of(&layers).path())[path].clone()
}

#[rstest]
#[case::a_file_in_it("tmp", vec![vec![shared("tmp/")], vec![file("tmp/x")]])]
#[case::a_whiteout_in_it("tmp", vec![vec![shared("tmp/"), file("tmp/x")], vec![file("tmp/.wh.x")]])]
#[case::opaque("tmp", vec![vec![shared("tmp/"), file("tmp/x")], vec![file("tmp/.wh..wh..opq")]])]
#[case::deep("a/b/c", vec![vec![shared("a/b/c/")], vec![file("a/b/c/d/e")]])]
#[case::above_one_that_is_described("a", vec![vec![shared("a/")], vec![Member::directory("a/b/"), file("a/b/c")]])]
#[case::over_several_layers(
    "tmp", vec![vec![shared("tmp/")], vec![file("other")], vec![file("tmp/x")], vec![file("tmp/y")]]
)]
#[case::the_uppermost_word_counts(
    "tmp", vec![vec![Member::directory("tmp/").mode(0o700)], vec![shared("tmp/")], vec![file("tmp/x")]]
)]
#[case::described_after_what_is_in_it("tmp", vec![vec![], vec![file("tmp/x"), shared("tmp/")]])]
#[case::made_again_below("tmp", vec![
    vec![Member::directory("tmp/")], vec![file(".wh.tmp")], vec![shared("tmp/")], vec![file("tmp/x")],
])]
#[tokio::test]
async fn a_folder_that_a_layer_does_not_describe_is_as_the_layers_below_have_it(
    #[case] path: &str,
    #[case] layers: Vec<Vec<Member>>,
) {
    let node = seen(path, layers).await;
    assert_eq!((node.mode, node.owner, node.mtime), (0o1777, (70, 80), (77, 0)));
    assert_eq!(node.xattrs["user.note"], b"below");
}

#[rstest]
#[case::nothing_below("tmp", vec![vec![file("x")], vec![file("tmp/x")]])]
#[case::hidden_below("tmp", vec![vec![shared("tmp/")], vec![file(".wh.tmp")], vec![file("tmp/x")]])]
#[case::hidden_in_the_same_layer("tmp", vec![vec![shared("tmp/")], vec![file(".wh.tmp"), file("tmp/x")]])]
#[case::hidden_in_the_same_layer_later("tmp", vec![vec![shared("tmp/")], vec![file("tmp/x"), file(".wh.tmp")]])]
#[case::under_an_opaque_folder("a/b", vec![vec![shared("a/b/")], vec![file("a/.wh..wh..opq"), file("a/b/x")]])]
#[case::under_a_folder_that_was_opaque_below(
    "a/b", vec![vec![shared("a/b/")], vec![file("a/.wh..wh..opq")], vec![file("a/b/x")]]
)]
#[case::under_an_opaque_root("tmp", vec![vec![shared("tmp/")], vec![file(".wh..wh..opq")], vec![file("tmp/x")]])]
#[case::a_file_below("tmp", vec![vec![file("tmp")], vec![file("tmp/x")]])]
#[case::a_file_in_between("tmp", vec![vec![shared("tmp/")], vec![file("tmp")], vec![file("tmp/x")]])]
#[case::a_link_below(
    "tmp", vec![vec![shared("var/"), Member::symlink("tmp", "var")], vec![file("tmp/x")]]
)]
#[tokio::test]
async fn a_folder_that_nothing_describes_is_for_all_to_read(
    #[case] path: &str,
    #[case] layers: Vec<Vec<Member>>,
) {
    let node = seen(path, layers).await;
    assert_eq!((node.mode, node.owner, node.mtime), (0o755, (0, 0), (0, 0)));
    assert!(!node.xattrs.contains_key("user.note"));
}

#[tokio::test]
async fn the_word_of_an_upper_layer_counts_where_it_has_one() {
    let layers = vec![vec![shared("tmp/")], vec![Member::directory("tmp/").mode(0o711).mtime(5)]];
    let node = seen("tmp", layers).await;
    assert_eq!((node.mode, node.owner, node.mtime), (0o711, (0, 0), (5, 0)));
    assert!(node.xattrs.is_empty());
}

#[tokio::test]
async fn the_root_is_as_the_last_layer_with_a_word_about_it_has_it() {
    let served = Served::start().await;
    let guest = Guest::new(served.options());
    let layers =
        pull(&guest, &served, vec![vec![shared("./")], vec![file("x")], vec![file("y"), file(".wh.x")]])
            .await;
    for layer in &layers {
        assert_eq!(snapshot(layer)["."].mode, 0o1777);
    }
}

#[tokio::test]
async fn the_same_layer_over_other_layers_is_as_those_have_it() {
    let served = Served::start().await;
    let guest = Guest::new(served.options());
    let upper = || vec![file("tmp/x")];
    let over_shared = pull(&guest, &served, vec![vec![shared("tmp/")], upper()]).await;
    let over_nothing = pull(&guest, &served, vec![vec![file("x")], upper()]).await;
    let alone = pull(&guest, &served, vec![upper()]).await;
    let mode = |layers: &[PathBuf]| snapshot(&Merged::of(layers).path())["tmp"].mode;
    assert_eq!([mode(&over_shared), mode(&over_nothing), mode(&alone)], [0o1777, 0o755, 0o755]);
}

#[tokio::test]
async fn layers_that_are_here_already_are_looked_at_too() {
    let served = Served::start().await;
    let guest = Guest::new(served.options());
    pull(&guest, &served, vec![vec![shared("tmp/")]]).await;
    let layers = pull(&guest, &served, vec![vec![shared("tmp/")], vec![file("tmp/x")]]).await;
    assert_eq!(snapshot(&layers[1])["tmp"].mode, 0o1777);
}
