//! What makes no sense, and what is hostile.

use tonic::Code;

use crate::support::{Snapshotter, TARGET, folder, labels};

#[tokio::test]
async fn calls_that_make_no_sense_have_the_codes_that_containerd_expects() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    client.prepare("writing", "").await.unwrap();
    client.commit("one", "writing").await.unwrap();
    client.prepare("container", "one").await.unwrap();
    client.view("view", "one").await.unwrap();
    let before = (client.list(&[]).await.unwrap(), snapshotter.folders());

    let code = |answer: Result<(), tonic::Status>| answer.unwrap_err().code();
    assert_eq!(code(client.prepare("container", "one").await.map(drop)), Code::AlreadyExists);
    assert_eq!(code(client.view("container", "one").await.map(drop)), Code::AlreadyExists);
    assert_eq!(code(client.prepare("new", "nothing").await.map(drop)), Code::NotFound);
    assert_eq!(code(client.prepare("new", "container").await.map(drop)), Code::InvalidArgument);
    assert_eq!(code(client.prepare("", "one").await.map(drop)), Code::InvalidArgument);
    assert_eq!(code(client.mounts("nothing").await.map(drop)), Code::NotFound);
    assert_eq!(code(client.mounts("one").await.map(drop)), Code::FailedPrecondition);
    assert_eq!(code(client.commit("new", "nothing").await), Code::NotFound);
    assert_eq!(code(client.commit("new", "view").await), Code::FailedPrecondition);
    assert_eq!(code(client.commit("new", "one").await), Code::FailedPrecondition);
    assert_eq!(code(client.commit("one", "container").await), Code::AlreadyExists);
    assert_eq!(code(client.commit("", "container").await), Code::InvalidArgument);
    assert_eq!(code(client.remove("one").await), Code::FailedPrecondition);
    assert_eq!(code(client.remove("nothing").await), Code::NotFound);
    assert_eq!(code(client.stat("nothing").await.map(drop)), Code::NotFound);
    assert_eq!(code(client.usage("nothing").await.map(drop)), Code::NotFound);
    assert_eq!((client.list(&[]).await.unwrap(), snapshotter.folders()), before, "nothing has changed");
    // A name of a guest's layer that is another snapshot's.
    let taken = client.prepare_layer("view", "", "registry/app").await.unwrap_err();
    assert_eq!(taken.code(), Code::FailedPrecondition, "{taken:?}");
    let nameless = client.prepare_with("new", "", labels(&[(TARGET, "")])).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn hostile_names_and_labels_are_but_text() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    let long = "x".repeat(1 << 20);
    let hostile = [
        "../../../etc/passwd",
        "/etc",
        "a\0b",
        "a\nb",
        "lowerdir=/etc,upperdir=/",
        "é\u{202e}",
        "1",
        "..",
        &long,
    ];
    for name in hostile {
        let mounts = client.prepare_with(name, "", labels(&[(name, name)])).await.unwrap();
        assert!(mounts[0].source.starts_with(folder.path().to_str().unwrap()), "{mounts:?}");
        assert!(!mounts[0].source.contains(".."), "{mounts:?}");
        let committed = format!("{name}/committed");
        client.commit(&committed, name).await.unwrap();
        client.prepare(name, &committed).await.unwrap();
        assert_eq!(client.stat(name).await.unwrap().parent, committed);
    }
    for name in hostile {
        // Again as a layer of a guest's, whose parts of names reach containerd's filters.
        let chain = format!("{name}\"==x,");
        client.prepare_layer(&chain, "", name).await.unwrap_err();
        client.prepare(&format!("root {name}"), &chain).await.unwrap();
    }
    assert!(
        snapshotter.folders().iter().all(|name| name.parse::<u64>().is_ok()),
        "{:?}",
        snapshotter.folders()
    );
    assert_eq!(std::fs::read_dir(folder.path().join("root")).unwrap().count(), 2, "snapshots and records");
    let too_long = "x".repeat(5 << 20);
    assert!(client.prepare(&too_long, "").await.is_err());
    assert!(client.list(&[]).await.is_ok());
}
