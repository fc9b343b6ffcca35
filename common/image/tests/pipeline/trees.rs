//! Layers that other tools wrote, with everything that a file system has.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rstest::rstest;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};

use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::served::Served;
use crate::support::tree::{Kind, names, snapshot};
use crate::support::{Guest, run};

/// Extended attributes and times of a fraction of a second are PAX's alone.
fn make_tree(root: &Path, pax: bool) {
    let deep = format!("deep/{}/{}/{}", "a".repeat(120), "b".repeat(120), "c".repeat(120));
    for folder in ["bin", "tmp", "closed", "dev", &deep] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("block"), [1; 512]).unwrap();
    fs::write(root.join("bin/odd"), vec![2; 1025]).unwrap();
    fs::write(root.join("bin/setuid"), "program").unwrap();
    fs::write(root.join(&deep).join("d".repeat(250)), "deep").unwrap();
    fs::write(root.join("größe \n=\t"), "name").unwrap();
    fs::hard_link(root.join("bin/odd"), root.join("tmp/linked")).unwrap();
    fs::hard_link(root.join("bin/odd"), root.join("zlinked")).unwrap();
    symlink("bin/odd", root.join("link")).unwrap();
    symlink("/".repeat(300), root.join("long link")).unwrap();
    symlink("/etc/shadow", root.join("out")).unwrap();
    for (name, kind, device) in [
        ("dev/null", FileType::CharacterDevice, makedev(1, 3)),
        ("dev/disk", FileType::BlockDevice, makedev(259, 1000)),
        ("dev/pipe", FileType::Fifo, 0),
    ] {
        mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    sparse(&root.join("sparse"), &[0, 1 << 20, 5 << 20], 8 << 20);
    sparse(&root.join("hole"), &[], 3 << 20);
    // More pieces than fit into one header.
    let pieces: Vec<_> = (0..60).map(|n| n << 16).collect();
    sparse(&root.join("many pieces"), &pieces, 4 << 20);
    for (path, user, group) in
        [("bin", 1000, 1000), ("link", 12, 13), ("dev/pipe", 5, 6), ("empty", 70_000, 3)]
    {
        lchown(root.join(path), Some(user), Some(group)).unwrap();
    }
    // Owners beyond what seven octal digits hold.
    lchown(root.join("block"), Some(3_000_000), Some(3_000_001)).unwrap();
    if pax {
        for (path, name, value) in [
            ("empty", "user.binary", &b"\0\n12 path=x\n\xff"[..]),
            ("empty", "user.second", b""),
            ("tmp", "user.directory", b"d"),
            ("bin/odd", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ] {
            setxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
        }
    }
    for (path, mode) in [("bin/setuid", 0o6755), ("tmp", 0o1777), ("closed", 0o000), ("bin/odd", 0o444)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    set_times(root, if pax { 123_456_789 } else { 0 });
}

fn sparse(path: &Path, offsets: &[u64], length: u64) {
    let mut file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    for offset in offsets {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(&[3; 5000]).unwrap();
    }
}

/// A time of its own for each file, folders after what is in them.
fn set_times(root: &Path, nanoseconds: i64) {
    let mut paths: Vec<_> = snapshot(root).into_keys().collect();
    paths.sort_by_key(|path| std::cmp::Reverse(path.matches('/').count() + usize::from(path != ".")));
    for (number, path) in paths.iter().enumerate() {
        let time = rustix::fs::Timespec {
            tv_sec: 1_200_000_000 + i64::try_from(number).unwrap(),
            tv_nsec: nanoseconds,
        };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, root.join(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

#[rstest]
#[case::gnu(false, &["--format=gnu"])]
#[case::gnu_sparse(false, &["--format=gnu", "--sparse"])]
#[case::pax(true, &["--format=pax", "--xattrs", "--xattrs-include=*"])]
#[case::pax_sparse_0_0(true, &["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"])]
#[case::pax_sparse_0_1(true, &["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"])]
#[case::pax_sparse_1_0(true, &["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"])]
#[tokio::test]
async fn what_gnu_tar_packs_is_unpacked_as_it_was(#[case] pax: bool, #[case] options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    make_tree(&root, pax);
    let mut arguments = vec!["--create", "--numeric-owner", "--directory=root", "--file=layer.tar"];
    arguments.extend(options);
    arguments.push(".");
    run(folder.path(), "tar", &arguments);
    let archive = fs::read(folder.path().join("layer.tar")).unwrap();
    let served = Served::with(&Image::of_archives([archive])).await;

    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap();

    let layer = &image.layers[0];
    let (mut expected, mut actual) = (snapshot(&root), snapshot(layer));
    // Access by name changes it; tar reads links.
    for name in expected.keys() {
        assert_eq!(actual.get(name), expected.get(name), "{name:?}");
    }
    actual.retain(|name, _| expected.remove(name).is_none());
    assert!(actual.is_empty(), "{actual:?}");
    if options.contains(&"--sparse") {
        for name in ["sparse", "hole", "many pieces"] {
            let metadata = layer.join(name).metadata().unwrap();
            assert!(metadata.blocks() * 512 < metadata.len(), "{name} is not sparse any more");
        }
    }
}

#[tokio::test]
async fn ustar_names_with_a_prefix_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let above = format!("{}/{}", "p".repeat(70), "q".repeat(70));
    let name = format!("{above}/{}", "n".repeat(90));
    fs::create_dir_all(folder.path().join("root").join(&above)).unwrap();
    fs::write(folder.path().join("root").join(&name), "x").unwrap();
    let arguments = ["--create", "--format=ustar", "--directory=root", "--file=layer.tar", "."];
    run(folder.path(), "tar", &arguments);
    let archive = fs::read(folder.path().join("layer.tar")).unwrap();
    let served = Served::with(&Image::of_archives([archive])).await;
    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap();
    assert_eq!(names(&image.layers[0]), ["p".repeat(70), above, name]);
}

async fn unpack(members: impl IntoIterator<Item = Member>) -> (Guest, std::path::PathBuf) {
    let served = Served::with(&Image::of_archives([Archive::of(members)])).await;
    let guest = Guest::new(served.options());
    let image = guest.pull(&served.reference()).await.unwrap_or_else(|error| panic!("{error}"));
    (guest, image.layers[0].clone())
}

#[tokio::test]
async fn a_later_member_replaces_an_earlier_one_of_its_name() {
    let (_guest, layer) = unpack([
        Member::file("a", "first"),
        Member::file("a", "second"),
        Member::directory("b/").mode(0o700),
        Member::file("b/inside", ""),
        Member::directory("b/c/").mode(0o700),
        Member::file("b", "no directory any more"),
        Member::symlink("c", "a"),
        Member::file("c", "no link any more"),
        Member::file("d", ""),
        Member::directory("d/"),
        Member::directory("e/").xattr("user.old", "x"),
        Member::file("e/kept", ""),
        Member::directory("e/").mode(0o711).xattr("user.new", "y"),
    ])
    .await;
    let tree = snapshot(&layer);
    assert_eq!(names(&layer), ["a", "b", "c", "d", "e", "e/kept"]);
    let read = |name| fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!([read("a"), read("b"), read("c")], ["second", "no directory any more", "no link any more"]);
    assert_eq!(tree["d"].kind, Kind::Directory);
    assert_eq!(tree["e"].mode, 0o711);
    assert_eq!(tree["e"].xattrs.keys().collect::<Vec<_>>(), ["user.new"]);
}

#[tokio::test]
async fn a_folder_that_came_back_is_like_the_last_word_about_it() {
    let (_guest, layer) = unpack([
        Member::directory("a/b/").mode(0o700).owner(7, 7),
        Member::file("a", "replaces the folder"),
        Member::file("a/../a".replace("/../a", ""), "again"),
        Member::directory("a/"),
        Member::file("a/b/c", ""),
    ])
    .await;
    let tree = snapshot(&layer);
    assert_eq!((tree["a/b"].mode, tree["a/b"].owner), (0o755, (0, 0)));
}

#[rstest]
#[case("usr/bin/sh", true)]
#[case("./usr//bin/sh", true)]
#[case("/usr/bin/sh", true)]
#[case("bin/sh", true)]
#[case("link", false)]
#[tokio::test]
async fn a_hard_link_is_to_what_the_layer_has(#[case] target: &str, #[case] is_file: bool) {
    let (_guest, layer) = unpack([
        Member::directory("usr/bin/"),
        Member::file("usr/bin/sh", "shell"),
        Member::symlink("bin", "/usr/bin"),
        Member::symlink("link", "usr/bin/sh"),
        Member::hard_link("hard", target),
    ])
    .await;
    let tree = snapshot(&layer);
    assert_eq!(matches!(tree["hard"].kind, Kind::File { .. }), is_file);
    assert_eq!(tree["hard"].linked_with.as_deref(), Some("hard"));
}

#[tokio::test]
async fn a_folder_behind_the_layers_own_symbolic_link_gets_its_attributes() {
    let (_guest, layer) = unpack([
        Member::directory("usr/lib/"),
        Member::symlink("lib", "usr/lib"),
        Member::directory("lib/private/").mode(0o700).owner(3, 4),
        Member::file("lib/implied/file", ""),
    ])
    .await;
    let tree = snapshot(&layer);
    let private = &tree["usr/lib/private"];
    assert_eq!((private.mode, private.owner, private.mtime), (0o700, (3, 4), (1_000_000_000, 0)));
    assert_eq!(tree["usr/lib/implied"].mode, 0o755);
    assert_eq!(tree["lib"].kind, Kind::Symlink(b"usr/lib".to_vec()));
}

#[tokio::test]
async fn what_a_layer_does_not_describe_is_the_same_each_time() {
    let members = || [Member::file("a/b/file", "")];
    let ((_one, first), (_other, second)) = (unpack(members()).await, unpack(members()).await);
    let tree = snapshot(&first);
    assert_eq!((tree["a/b"].mode, tree["a/b"].owner, tree["a/b"].mtime), (0o755, (0, 0), (0, 0)));
    assert_eq!(tree, snapshot(&second));
}
