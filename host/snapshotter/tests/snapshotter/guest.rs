//! Images that are left to the guest.

use tonic::Code;

use crate::support::{Mounted, Snapshotter, TARGET, folder, labels, needs_root};

#[tokio::test]
async fn a_guests_layer_exists_already_and_is_found_as_containerd_looks_for_it() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    for (chain, parent) in [("sha256:1", ""), ("sha256:2", "sha256:1"), ("sha256:3", "sha256:2")] {
        let answer = client.prepare_layer(chain, parent, "registry/app").await.unwrap_err();
        assert_eq!(answer.code(), Code::AlreadyExists, "{answer:?}");
        let filter = format!("labels.\"{TARGET}\"=={chain},parent==\"{parent}\"");
        let found = client.list(&[&filter]).await.unwrap();
        let [info] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), (chain, parent, 3));
        assert_eq!(info.labels[TARGET], chain);
    }
    assert!(snapshotter.folders().is_empty(), "nothing is stored but the records");
    assert_eq!(client.usage("sha256:3").await.unwrap(), (0, 0));
    // Another image of these layers.
    let again = client.prepare_layer("sha256:3", "sha256:2", "registry/other").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert_eq!(client.names(&[]).await, ["sha256:1", "sha256:2", "sha256:3"]);
}

#[tokio::test]
async fn a_containers_root_is_an_almost_empty_folder_that_nobody_can_write_to() {
    needs_root();
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    client.prepare_layer("sha256:1", "", "registry/app").await.unwrap_err();
    let mounts = client.prepare("k8s.io/2/container", "sha256:1").await.unwrap();
    assert_eq!(mounts[0].options, ["rbind", "ro"]);
    assert_eq!(client.mounts("k8s.io/2/container").await.unwrap(), mounts);
    let view = client.view("k8s.io/3/view", "sha256:1").await.unwrap();
    assert_ne!(view, mounts, "each has a folder of its own");
    let root = Mounted::of(&mounts);
    assert_eq!(root.text("etc/passwd").unwrap(), "root:x:0:0::/:\n");
    let refused = std::fs::write(root.join("file"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(root);
    // containerd could not be asked for the images' users: that is in the log, and no more.
    assert!(snapshotter.log().contains("which users the images name is not known"), "{}", snapshotter.log());
    let refused = client.commit("k8s.io/4/done", "k8s.io/2/container").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    client.remove("k8s.io/2/container").await.unwrap();
    client.remove("k8s.io/3/view").await.unwrap();
    client.remove("sha256:1").await.unwrap();
    assert!(snapshotter.folders().is_empty());
}

#[tokio::test]
async fn other_images_than_the_patterns_name_are_unpacked() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), Some("images = [\"registry/guest/*\"]"));
    let client = snapshotter.client();
    let mounts = client.prepare_layer("sha256:1", "", "registry/host/app").await.unwrap();
    assert_eq!((mounts[0].r#type.as_str(), mounts[0].options[1].as_str()), ("bind", "rw"));
    client.commit("k8s.io/2/sha256:1", "k8s.io/1/extract-1-ab sha256:1").await.unwrap();
    // A layer that lies here is as good for the guests' images: they look into neither.
    for (chain, parent) in [("k8s.io/2/sha256:1", ""), ("sha256:2", "k8s.io/2/sha256:1")] {
        let left = client.prepare_layer(chain, parent, "registry/guest/app").await.unwrap_err();
        assert_eq!(left.code(), Code::AlreadyExists);
    }
    let guests = client.prepare_layer("sha256:3", "", "registry/guest/app").await.unwrap_err();
    assert_eq!(guests.code(), Code::AlreadyExists);
    let refused = client.prepare_layer("sha256:4", "sha256:3", "registry/host/app").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("left to guests"), "{}", refused.message());
    // Without labels, as where another snapshotter had pulled: a place to unpack in.
    let mounts = client.prepare_with("k8s.io/5/extract-2-cd sha256:5", "", labels(&[])).await.unwrap();
    assert_eq!((mounts[0].r#type.as_str(), mounts[0].options[1].as_str()), ("bind", "rw"));
}
