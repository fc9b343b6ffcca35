//! Layers that would write somewhere else, or be something that layers must not be.

use std::fs;

use rstest::rstest;
use sealpod_image::UnpackError;
use sealpod_image::pull::PullError;

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::overlay::Merged;
use crate::support::served::Served;
use crate::support::tree::{Kind, Snapshot, names, snapshot};

/// A guest with a folder beside its store that no layer may touch.
struct Target {
    guest: Guest,
    before: Snapshot,
}

impl Target {
    fn new(served: &Served) -> Self {
        let guest = Guest::new(served.options());
        let outside = guest.folder().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "untouched").unwrap();
        let before = snapshot(&outside);
        Self { guest, before }
    }

    fn assert_untouched(&self) {
        assert_eq!(snapshot(&self.guest.folder().join("outside")), self.before);
        let mut beside: Vec<_> =
            fs::read_dir(self.guest.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
        beside.sort();
        assert_eq!(beside, ["outside", "store"]);
        let mut in_store: Vec<_> = fs::read_dir(self.guest.folder().join("store"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        in_store.sort();
        assert_eq!(in_store, ["layers", "lock", "staging"]);
        assert!(!fs::exists("/escaped").unwrap());
    }
}

/// Where the outside is from a layer's root, by as many ways up as there can be.
const UP: &str = "../../../../../../../../../../../../../../../..";

/// `{outside}` stands for the absolute path of the folder beside the store.
#[rstest]
#[case::up(&[("file", "../escaped", "")])]
#[case::up_behind_a_folder(&[("file", "a/../../escaped", "")])]
#[case::up_within(&[("file", "a/b/../escaped", "")])]
#[case::up_as_a_folder(&[("directory", "..", "")])]
#[case::absolute(&[("file", "/escaped", "")])]
#[case::absolute_outside(&[("file", "{outside}/secret", "")])]
#[case::absolute_folder(&[("directory", "{outside}/folder", "")])]
#[case::through_an_absolute_link(&[("symlink", "a", "{outside}"), ("file", "a/secret", "")])]
#[case::through_a_link_up(&[("symlink", "a", "{up}{outside}"), ("file", "a/secret", "")])]
#[case::through_two_links(
    &[("symlink", "a", "{outside}"), ("symlink", "b", "a"), ("file", "b/secret", "")]
)]
#[case::a_folder_through_a_link(&[("symlink", "a", "{outside}"), ("directory", "a/folder", "")])]
#[case::a_device_through_a_link(&[("symlink", "a", "{outside}"), ("device", "a/null", "")])]
#[case::a_whiteout_through_a_link(&[("symlink", "a", "{outside}"), ("file", "a/.wh.secret", "")])]
#[case::an_opaque_mark_through_a_link(&[("symlink", "a", "{outside}"), ("file", "a/.wh..wh..opq", "")])]
#[case::below_a_file(&[("file", "a", ""), ("file", "a/b", "")])]
#[case::below_a_loop(&[("symlink", "a", "b"), ("symlink", "b", "a"), ("file", "a/c", "")])]
#[case::a_hard_link_up(&[("hard link", "a", "{up}{outside}/secret")])]
#[case::a_hard_link_to_an_absolute_path(&[("hard link", "a", "{outside}/secret")])]
#[case::a_hard_link_through_a_link(&[("symlink", "a", "{outside}"), ("hard link", "b", "a/secret")])]
#[case::a_hard_link_to_the_systems_own(&[("hard link", "a", "/etc/passwd")])]
#[case::a_hard_link_to_the_root(&[("hard link", "a", "/")])]
#[case::a_hard_link_to_itself(&[("hard link", "a", "a")])]
#[case::a_hard_link_to_a_whiteout(&[("file", ".wh.a", ""), ("hard link", "b", "a")])]
#[case::a_whiteout_of_the_folder_above(&[("file", ".wh...", "")])]
#[case::a_whiteout_of_the_folder(&[("file", ".wh..", "")])]
#[case::below_a_whiteout(&[("file", ".wh.a/b", "")])]
#[case::a_device_that_is_a_whiteout(&[("whiteout device", "a", "")])]
#[case::overlayfs_own_attribute(&[("trusted", "a", "")])]
#[case::overlayfs_own_attribute_of_users(&[("user overlay", "a", "")])]
#[case::overlayfs_own_attribute_of_a_folder(&[("trusted directory", "a", "")])]
#[case::the_root_as_a_link(&[("symlink", "./", "{outside}")])]
#[case::the_root_as_a_file(&[("file", ".", "")])]
#[case::an_unknown_kind(&[("socket", "a", "")])]
#[tokio::test]
async fn what_leads_outside_or_must_not_be_in_a_layer_is_refused(#[case] members: &[(&str, &str, &str)]) {
    let served = Served::start().await;
    let target = Target::new(&served);
    let outside = target.guest.folder().join("outside").display().to_string();
    let archive = Archive::of(members.iter().map(|(kind, path, link)| {
        let [path, link] = [path, link].map(|text| text.replace("{outside}", &outside).replace("{up}", UP));
        match *kind {
            "file" => Member::file(path, "overwritten"),
            "directory" => Member::directory(path).mode(0o777),
            "symlink" => Member::symlink(path, link),
            "hard link" => Member::hard_link(path, link),
            "device" => Member::character_device(&path, 1, 3),
            "whiteout device" => Member::character_device(&path, 0, 0),
            "trusted" => Member::file(path, "").xattr("trusted.overlay.metacopy", ""),
            "trusted directory" => Member::directory(path).xattr("trusted.overlay.redirect", "/etc"),
            "user overlay" => Member::file(path, "").xattr("user.overlay.opaque", "y"),
            "socket" => Member::of_kind(&path, b's'),
            other => panic!("{other}"),
        }
    }));
    let image = Image::of_archives([archive]);
    served.add(&image);

    let error = target.guest.refused(&served.named(&format!("@{}", image.digest()))).await;

    let refused = matches!(&error, PullError::Unpack { source: UnpackError::Refused { .. }, .. });
    assert!(refused, "{error}");
    target.assert_untouched();
}

#[tokio::test]
async fn a_file_in_place_of_a_link_replaces_the_link_and_not_its_target() {
    let served = Served::start().await;
    let target = Target::new(&served);
    let secret = target.guest.folder().join("outside/secret").display().to_string();
    let image = Image::of_archives([Archive::of([
        Member::symlink("a", &secret),
        Member::file("a", "mine"),
        Member::symlink("b", &secret),
        Member::hard_link("c", "b"),
        Member::file("c", "also mine").mode(0o777),
    ])]);
    served.add(&image);
    let pulled = target.guest.pull(&served.named(&format!("@{}", image.digest()))).await.unwrap();
    target.assert_untouched();
    let tree = snapshot(&pulled.layers[0]);
    assert_eq!(tree["b"].kind, Kind::Symlink(secret.into_bytes()));
    assert!(matches!(tree["a"].kind, Kind::File { size: 4, .. }));
}

#[tokio::test]
async fn a_link_that_goes_up_leads_to_the_layers_own_root_at_most() {
    let served = Served::start().await;
    let target = Target::new(&served);
    let image = Image::of_archives([Archive::of([
        Member::directory("etc/"),
        Member::directory("a/"),
        Member::symlink("a/up", format!("{UP}/etc")),
        Member::symlink("absolute", "/etc"),
        Member::file("a/up/one", ""),
        Member::file("absolute/two", ""),
        Member::directory("a/up/folder").mode(0o700),
    ])]);
    served.add(&image);
    let pulled = target.guest.pull(&served.named(&format!("@{}", image.digest()))).await.unwrap();
    target.assert_untouched();
    let inside = ["a", "a/up", "absolute", "etc", "etc/folder", "etc/one", "etc/two"];
    assert_eq!(names(&pulled.layers[0]), inside);
    assert_eq!(snapshot(&pulled.layers[0])["etc/folder"].mode, 0o700);
}

#[tokio::test]
async fn a_link_of_an_earlier_layer_is_hidden_and_not_followed() {
    let served = Served::start().await;
    let target = Target::new(&served);
    let outside = target.guest.folder().join("outside");
    let image = Image::of_archives([
        Archive::of([Member::symlink("a", outside.display().to_string())]),
        Archive::of([Member::file("a/secret", "overwritten")]),
    ]);
    served.add(&image);
    let pulled = target.guest.pull(&served.named(&format!("@{}", image.digest()))).await.unwrap();
    let merged = Merged::of(&pulled.layers);
    assert_eq!(fs::read_to_string(merged.join("a/secret")).unwrap(), "overwritten");
    assert!(merged.join("a").symlink_metadata().unwrap().is_dir());
    target.assert_untouched();
}

#[tokio::test]
async fn a_hard_link_of_a_later_layer_to_an_earlier_layers_file_is_refused() {
    let image = Image::of_archives([
        Archive::of([Member::file("a", "below")]),
        Archive::of([Member::hard_link("b", "a")]),
    ]);
    let served = Served::with(&image).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    let text = error.to_string();
    assert!(text.contains(r#"it holds "b", a hard link to something that is not in the layer"#), "{text}");
}

#[rstest]
#[case("a\0b")]
#[case("x/".repeat(2100))]
#[case("n".repeat(256))]
#[tokio::test]
async fn names_that_linux_does_not_take_are_refused(#[case] name: String) {
    let archive = Archive::of([Member::file("short", "").record("path", &name)]);
    let served = Served::with(&Image::of_archives([archive])).await;
    let error = Guest::new(served.options()).refused(&served.reference()).await;
    assert!(matches!(error, PullError::Unpack { .. }), "{error}");
}
