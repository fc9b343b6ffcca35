//! Images that are not the guests': an overlay snapshotter like another.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use prost_types::FieldMask;
use sealpod_snapshotter::api::snapshots::{CleanupRequest, Info, UpdateSnapshotRequest};
use tonic::Code;

use crate::support::{Client, Mounted, Snapshotter, folder, labels, needs_root};

/// A layer that does something with the files of those below.
async fn layer(client: &Client, name: &str, parent: &str, change: impl FnOnce(&Mounted)) {
    let mounts = client.prepare("writing", parent).await.unwrap();
    change(&Mounted::of(&mounts));
    client.commit(name, "writing").await.unwrap();
}

#[tokio::test]
async fn a_container_sees_its_layers_merged_and_writes_to_none_of_them() {
    needs_root();
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    layer(&client, "one", "", |root| {
        fs::set_permissions(root.join(""), fs::Permissions::from_mode(0o750)).unwrap();
        fs::create_dir(root.join("folder")).unwrap();
        for name in ["kept", "changed", "removed", "folder/inside"] {
            fs::write(root.join(name), "of one").unwrap();
        }
    })
    .await;
    layer(&client, "two", "one", |root| {
        fs::write(root.join("changed"), "of two").unwrap();
        fs::remove_file(root.join("removed")).unwrap();
    })
    .await;
    layer(&client, "three", "two", |root| {
        fs::remove_dir_all(root.join("folder")).unwrap();
        fs::create_dir(root.join("folder")).unwrap();
        fs::write(root.join("folder/new"), "of three").unwrap();
    })
    .await;
    // What was removed is marked in the layer.
    let two = folder.path().join("root/snapshots/2/fs/removed");
    assert!(fs::symlink_metadata(&two).unwrap().file_type().is_char_device(), "{}", two.display());

    let look = |root: &Mounted| {
        let names = ["kept", "changed", "removed", "folder/inside", "folder/new"];
        names.map(|name| root.text(name).unwrap_or_default())
    };
    let expected = ["of one", "of two", "", "", "of three"];
    let view = client.view("view", "three").await.unwrap();
    assert!(!view[0].options.iter().any(|option| option.starts_with("upperdir=")));
    let viewed = Mounted::of(&view);
    assert_eq!(look(&viewed), expected);
    assert!(fs::write(viewed.join("file"), "").is_err());

    let root = Mounted::of(&client.prepare("container", "three").await.unwrap());
    assert_eq!(look(&root), expected);
    assert_eq!(fs::metadata(root.join("")).unwrap().mode() & 0o777, 0o750, "the root is as its parent's");
    fs::write(root.join("kept"), "of the container").unwrap();
    fs::remove_file(root.join("changed")).unwrap();
    drop(root);
    assert_eq!(look(&viewed), expected, "the layers are as they were");
    // Mounted again, the container's changes are there.
    let root = Mounted::of(&client.mounts("container").await.unwrap());
    assert_eq!(look(&root), ["of the container", "", "", "", "of three"]);
    // Another container of the image has its own.
    let other = Mounted::of(&client.prepare("other", "three").await.unwrap());
    assert_eq!(look(&other), expected);

    // A view of one layer is that layer, a view of none is empty.
    let single = Mounted::of(&client.view("single", "one").await.unwrap());
    assert_eq!(single.text("removed").unwrap(), "of one");
    assert!(fs::write(single.join("file"), "").is_err());
    let none = Mounted::of(&client.view("none", "").await.unwrap());
    assert_eq!(fs::read_dir(none.join("")).unwrap().count(), 0);
    assert!(fs::write(none.join("file"), "").is_err());
}

#[tokio::test]
async fn usage_is_of_the_snapshot_alone_and_counts_a_file_once() {
    needs_root();
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    layer(&client, "one", "", |root| {
        fs::write(root.join("large"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("large"), root.join("again")).unwrap();
    })
    .await;
    let (bytes, inodes) = client.usage("one").await.unwrap();
    assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    assert_eq!(inodes, 2, "the root and the file");
    let root = Mounted::of(&client.prepare("container", "one").await.unwrap());
    let (before, _) = client.usage("container").await.unwrap();
    fs::write(root.join("more"), vec![1; 1 << 16]).unwrap();
    let (after, _) = client.usage("container").await.unwrap();
    assert!((1 << 16..1 << 20).contains(&(after - before)), "{before} {after}");
    assert_eq!(client.usage("one").await.unwrap(), (bytes, inodes));
}

#[tokio::test]
async fn a_list_is_filtered_and_has_as_many_entries_as_there_are() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    for number in 0..250 {
        let labels = labels(&[("parity", if number % 2 == 0 { "even" } else { "odd" })]);
        client.prepare_with(&format!("{number:03}"), "", labels).await.unwrap();
    }
    client.commit("base", "000").await.unwrap();
    client.view("view", "base").await.unwrap();
    assert_eq!(client.names(&[]).await.len(), 251);
    assert_eq!(client.names(&["labels.\"parity\"==odd"]).await.len(), 125);
    assert_eq!(client.names(&["labels.parity==even,kind==active"]).await.len(), 124);
    assert_eq!(client.names(&["kind==committed"]).await, ["base"]);
    assert_eq!(client.names(&["parent==\"base\""]).await, ["view"]);
    assert_eq!(client.names(&["name==001", "kind==view"]).await, ["001", "view"]);
    for filter in ["size>3", "name~=0.*", "name==\"open", "kind"] {
        let answer = client.list(&[filter]).await;
        match filter {
            "kind" => assert_eq!(answer.unwrap().len(), 251),
            _ => assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument, "{filter}"),
        }
    }
}

#[tokio::test]
async fn labels_are_changed_as_the_mask_says_and_nothing_else_is() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    client.prepare_with("container", "", labels(&[("a", "1"), ("b", "2")])).await.unwrap();
    let before = client.stat("container").await.unwrap();
    let update = async |name: &str, pairs: &[(&str, &str)], paths: &[&str]| {
        let info =
            Info { name: name.into(), labels: labels(pairs), parent: "x".into(), ..Default::default() };
        let update_mask = Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
        let request = UpdateSnapshotRequest { snapshotter: String::new(), info: Some(info), update_mask };
        client.api().update(request).await.map(|answer| answer.into_inner().info.unwrap())
    };
    let changed = update("container", &[("a", "3"), ("c", "4")], &["labels.a"]).await.unwrap();
    assert_eq!(changed.labels, labels(&[("a", "3"), ("b", "2")]));
    let changed = update("container", &[], &["labels.b"]).await.unwrap();
    assert_eq!(changed.labels, labels(&[("a", "3")]));
    assert_eq!(
        (&changed.parent, changed.kind, changed.created_at),
        (&before.parent, before.kind, before.created_at)
    );
    assert!(update("container", &[], &["labels"]).await.unwrap().labels.is_empty());
    for (name, path, code) in
        [("container", "parent", Code::InvalidArgument), ("nothing", "labels.a", Code::NotFound)]
    {
        assert_eq!(update(name, &[], &[path]).await.unwrap_err().code(), code);
    }
    let nothing = UpdateSnapshotRequest::default();
    assert_eq!(client.api().update(nothing).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn folders_that_no_record_knows_are_removed_when_containerd_asks() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    client.prepare("container", "").await.unwrap();
    let snapshots = folder.path().join("root/snapshots");
    fs::create_dir_all(snapshots.join("4711/fs/deep")).unwrap();
    fs::create_dir_all(snapshots.join("9.gone")).unwrap();
    fs::write(snapshots.join("file"), "").unwrap();
    std::os::unix::fs::symlink("/etc", snapshots.join("link")).unwrap();
    client.api().cleanup(CleanupRequest { snapshotter: String::new() }).await.unwrap();
    assert_eq!(snapshotter.folders(), ["1"]);
    assert!(fs::exists("/etc/passwd").unwrap());
}
