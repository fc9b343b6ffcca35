//! How the program starts, ends, and is killed.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::support::{Snapshotter, folder, labels};

/// The message with which the program refuses to start.
fn refusal(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    message.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{message}")).to_owned()
}

#[tokio::test]
async fn all_is_there_after_an_orderly_end_and_a_new_start() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    client.prepare_with("writing", "", labels(&[("a", "1")])).await.unwrap();
    client.commit("one", "writing").await.unwrap();
    let mounts = client.prepare("container", "one").await.unwrap();
    client.prepare_layer("sha256:1", "", "registry/app").await.unwrap_err();
    let before = (client.list(&[]).await.unwrap(), snapshotter.folders());
    // The client's connection stays open, and nobody serves it while this thread waits.
    assert!(snapshotter.process.end(Signal::TERM).success());
    assert!(!folder.path().join("snapshotter.sock").exists(), "the socket is removed");

    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    assert_eq!((client.list(&[]).await.unwrap(), snapshotter.folders()), before);
    assert_eq!(client.mounts("container").await.unwrap(), mounts);
    assert!(snapshotter.process.end(Signal::INT).success());
}

#[tokio::test]
async fn killed_at_any_moment_it_keeps_what_it_answered_and_nothing_half_done() {
    let folder = folder();
    let mut answered = HashSet::new();
    for round in 0..5u64 {
        let snapshotter = Snapshotter::start(folder.path(), None);
        let client = snapshotter.client();
        let names: HashSet<_> = client.names(&[]).await.into_iter().collect();
        assert!(answered.is_subset(&names), "lost: {:?}", answered.difference(&names));
        for name in names.iter().filter(|name| name.starts_with("container")) {
            let mounts = client.mounts(name).await.unwrap();
            let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
            assert!(Path::new(upper).is_dir(), "{name}: {mounts:?}");
        }
        // Each folder is a snapshot's, and each snapshot but the guests' has one.
        let with_folder = names.iter().filter(|name| !name.starts_with("sha256")).count();
        assert_eq!(snapshotter.folders().len(), with_folder);

        let mut workers = JoinSet::new();
        for worker in 0..4 {
            let client = client.clone();
            workers.spawn(async move {
                let mut answered = Vec::new();
                for number in 0.. {
                    let id = format!("{round}-{worker}-{number}");
                    let (writing, layer) = (format!("writing {id}"), format!("layer {id}"));
                    if client.prepare(&writing, "").await.is_err() {
                        break;
                    }
                    if client.commit(&layer, &writing).await.is_err() {
                        break;
                    }
                    answered.push(layer.clone());
                    if client.prepare(&format!("container {id}"), &layer).await.is_err() {
                        break;
                    }
                    answered.push(format!("container {id}"));
                    let chain = format!("sha256:{id}");
                    let noted = client.prepare_layer(&chain, "", "registry/app").await.unwrap_err();
                    if noted.code() != tonic::Code::AlreadyExists {
                        break;
                    }
                    answered.push(chain);
                }
                answered
            });
        }
        // Another moment in each round.
        tokio::time::sleep(Duration::from_millis(60 + 37 * round)).await;
        drop(snapshotter);
        for worker in workers.join_all().await {
            answered.extend(worker);
        }
    }
    assert!(answered.len() > 20, "{}", answered.len());
}

#[tokio::test]
async fn a_second_one_is_refused_in_words_and_the_first_goes_on() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    // Its folder, at another socket.
    let other = crate::support::folder();
    std::os::unix::fs::symlink(folder.path().join("root"), other.path().join("root")).unwrap();
    let message = refusal(&mut Snapshotter::command(other.path()));
    assert!(message.contains("root: another process uses this folder"), "{message}");
    // Its socket, with another folder.
    let third = crate::support::folder();
    std::os::unix::fs::symlink(folder.path().join("snapshotter.sock"), third.path().join("snapshotter.sock"))
        .unwrap();
    let message = refusal(&mut Snapshotter::command(third.path()));
    assert!(message.contains("is there already"), "{message}");
    snapshotter.client().list(&[]).await.unwrap();
}

#[tokio::test]
async fn a_socket_is_replaced_only_where_nobody_listens() {
    let folder = folder();
    let socket = folder.path().join("snapshotter.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let message = refusal(&mut Snapshotter::command(folder.path()));
    assert!(message.contains("the socket of another process is there already"), "{message}");
    drop(listener);
    let snapshotter = Snapshotter::start(folder.path(), None);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    snapshotter.client().list(&[]).await.unwrap();
    drop(snapshotter);

    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "precious").unwrap();
    let message = refusal(&mut Snapshotter::command(folder.path()));
    assert!(message.contains("something that is no socket"), "{message}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_configuration_that_is_not_understood_is_refused() {
    let folder = folder();
    for (config, expected) in [("image = []", "unknown field"), ("images = \"*\"", "sequence")] {
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let mut command = Snapshotter::command(folder.path());
        let message = command.arg("--config").arg(folder.path().join("config.toml")).output().unwrap();
        let message = String::from_utf8(message.stderr).unwrap();
        assert!(message.contains("config.toml") && message.contains(expected), "{message}");
    }
    assert!(!folder.path().join("root").exists(), "nothing was begun");
}

#[tokio::test]
async fn a_relative_folder_is_made_absolute_for_containerd() {
    let folder = folder();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sealpod-snapshotter"));
    command.current_dir(folder.path()).args(["--root", "root", "--address", "snapshotter.sock"]);
    let snapshotter = Snapshotter::run(command, folder.path());
    let mounts = snapshotter.client().prepare("container", "").await.unwrap();
    assert!(Path::new(&mounts[0].source).is_absolute(), "{mounts:?}");
    assert!(Path::new(&mounts[0].source).is_dir(), "{mounts:?}");
}

#[tokio::test]
async fn the_service_manager_hears_when_the_socket_is_ready() {
    let folder = folder();
    let notices = UnixDatagram::bind(folder.path().join("notify.sock")).unwrap();
    notices.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Snapshotter::command(folder.path());
    command.env("NOTIFY_SOCKET", folder.path().join("notify.sock"));
    let snapshotter = Snapshotter::run(command, folder.path());
    let mut notice = [0; 64];
    let length = notices.recv(&mut notice).unwrap();
    assert_eq!(&notice[..length], b"READY=1");
    snapshotter.client().list(&[]).await.unwrap();
}

#[tokio::test]
async fn a_node_full_of_snapshots_takes_no_more_than_twenty_megabytes() {
    let folder = folder();
    let snapshotter = Snapshotter::start(folder.path(), None);
    let client = snapshotter.client();
    // As CRI's labels are.
    let labels = labels(&[
        ("containerd.io/snapshot/cri.image-layers", &"sha256:0123456789abcdef,".repeat(60)),
        ("containerd.io/snapshot/cri.image-ref", "registry.example/some/where/app:1"),
    ]);
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        let (client, labels) = (client.clone(), labels.clone());
        workers.spawn(async move {
            for number in 0..125 {
                client.prepare_with(&format!("{worker}-{number}"), "", labels.clone()).await.unwrap();
            }
            assert!(client.list(&[]).await.unwrap().len() >= 125);
        });
    }
    workers.join_all().await;
    for number in 0..100 {
        client.remove(&format!("0-{number}")).await.unwrap();
    }
    assert_eq!(client.list(&[]).await.unwrap().len(), 900);
    let status = fs::read_to_string(format!("/proc/{}/status", snapshotter.process.id())).unwrap();
    let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = highest.trim().trim_end_matches(" kB").parse().unwrap();
    println!("at most {kilobytes} kB");
    assert!(kilobytes <= 20_000, "{kilobytes} kB");
}
