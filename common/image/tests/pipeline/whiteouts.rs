//! What upper layers hide, as a container sees it.

use rstest::rstest;

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::overlay::Merged;
use crate::support::served::Served;
use crate::support::tree::names;

fn directory(path: &str) -> Member {
    Member::directory(path)
}

fn file(path: &str) -> Member {
    Member::file(path, path)
}

fn link(path: &str, target: &str) -> Member {
    Member::symlink(path, target)
}

/// `a/` with `a/b/` and the files `a/b/deep` and `a/low`; `f`; a link `l` to `a`.
fn below() -> Vec<Member> {
    vec![directory("a/"), directory("a/b/"), file("a/b/deep"), file("a/low"), file("f"), link("l", "a")]
}

#[rstest]
#[case::a_file(vec![file(".wh.f")], "a a/b a/b/deep a/low l")]
#[case::a_folder(vec![file(".wh.a")], "f l")]
#[case::a_link(vec![file(".wh.l")], "a a/b a/b/deep a/low f")]
#[case::inside(vec![file("a/.wh.low")], "a a/b a/b/deep f l")]
#[case::deep_inside(vec![file("a/b/.wh.deep")], "a a/b a/low f l")]
#[case::what_is_not_there(vec![file("a/.wh.nothing"), file(".wh.nothing")], "a a/b a/b/deep a/low f l")]
#[case::opaque(vec![directory("a/"), file("a/.wh..wh..opq"), file("a/new")], "a a/new f l")]
#[case::opaque_last(vec![directory("a/"), file("a/new"), file("a/.wh..wh..opq")], "a a/new f l")]
#[case::opaque_undescribed(vec![file("a/.wh..wh..opq")], "a f l")]
#[case::opaque_of_another_level(vec![file("a/b/.wh..wh..opq"), file("a/b/new")], "a a/b a/b/new a/low f l")]
#[case::opaque_root(vec![file(".wh..wh..opq"), file("new")], "new")]
#[case::opaque_root_last(vec![file("new"), file("./.wh..wh..opq")], "new")]
#[case::a_file_again(vec![file(".wh.f"), file("f")], "a a/b a/b/deep a/low f l")]
#[case::a_file_again_before(vec![file("f"), file(".wh.f")], "a a/b a/b/deep a/low f l")]
#[case::a_new_folder(vec![file(".wh.a"), directory("a/"), file("a/new")], "a a/new f l")]
#[case::a_new_folder_before(vec![directory("a/"), file("a/new"), file(".wh.a")], "a a/new f l")]
#[case::a_new_folder_undescribed(vec![file(".wh.a"), file("a/new")], "a a/new f l")]
#[case::a_new_folder_undescribed_before(vec![file("a/new"), file(".wh.a")], "a a/new f l")]
#[case::a_new_folder_undescribed_deep(vec![file("a/.wh.b"), file("a/b/c/new")], "a a/b a/b/c a/b/c/new a/low f l")]
#[case::a_folder_becomes_a_file(vec![file("a")], "a f l")]
#[case::a_file_becomes_a_folder(vec![directory("f/"), file("f/new")], "a a/b a/b/deep a/low f f/new l")]
#[case::a_link_becomes_a_folder(vec![directory("l/"), file("l/new")], "a a/b a/b/deep a/low f l l/new")]
#[case::merged(vec![file("a/new"), file("a/b/new")], "a a/b a/b/deep a/b/new a/low a/new f l")]
#[case::aufs_own(vec![file(".wh..wh.plnk"), file("a/.wh..wh.aufs")], "a a/b a/b/deep a/low f l")]
#[tokio::test]
async fn an_upper_layer_hides_what_it_says(#[case] upper: Vec<Member>, #[case] expected: &str) {
    let image = Image::of_archives([Archive::of(below()), Archive::of(upper)]);
    let served = Served::with(&image).await;
    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(Merged::of(&pulled.layers).path().as_path()).join(" "), expected);
}

#[tokio::test]
async fn what_was_hidden_stays_hidden_under_further_layers() {
    let image = Image::of_archives([
        Archive::of(below()),
        Archive::of([file("a/.wh..wh..opq"), file(".wh.f")]),
        Archive::of([file("a/b/new")]),
    ]);
    let served = Served::with(&image).await;
    let guest = Guest::new(served.options());
    let pulled = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(&Merged::of(&pulled.layers).path()).join(" "), "a a/b a/b/new l");
}

#[tokio::test]
async fn a_root_that_hides_all_hides_it_for_further_layers_too() {
    let image = Image::of_archives([
        Archive::of(below()),
        Archive::of([file(".wh..wh..opq"), file("a/new")]),
        Archive::of([file("top")]),
    ]);
    let served = Served::with(&image).await;
    let guest = Guest::new(served.options());
    let first = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(&Merged::of(&first.layers).path()).join(" "), "a a/new top");
    // From the store it is the same.
    assert_eq!(guest.pull(&served.reference()).await.unwrap().layers, first.layers);
}
