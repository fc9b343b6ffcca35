//! What was acknowledged outlasts the process, however that ends.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::{Broker, Guest, Home, program, send};

const WRITERS: usize = 8;

/// Writes until the broker is gone, and gives what it acknowledged.
async fn write(broker: &Broker, prefix: String, acknowledged: &AtomicUsize) -> Vec<(String, Vec<u8>)> {
    let mut kept = Vec::new();
    for number in 0.. {
        let path = format!("{prefix}/{number}");
        let secret = format!("secret of {path}").repeat(1 + number % 50).into_bytes();
        let request = broker.admin(Method::POST, &format!("resource/{path}")).body(secret.clone());
        match request.send().await {
            Ok(response) if response.status() == StatusCode::OK => kept.push((path, secret)),
            Ok(response) => panic!("{}", response.status()),
            Err(_) => break,
        }
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_is_there_after_a_kill() {
    let home = Home::sample();
    let mut kept = Vec::new();
    for round in 0..4 {
        let mut broker = home.start();
        let pid = broker.pid();
        let acknowledged = AtomicUsize::new(0);
        let writers =
            join_all((0..WRITERS).map(|writer| write(&broker, format!("r{round}/w{writer}"), &acknowledged)));
        let killer = async {
            while acknowledged.load(Ordering::SeqCst) < 60 + 7 * round {
                tokio::task::yield_now().await;
            }
            // Not through the handle, which the writers share.
            let mut kill = tokio::process::Command::new("kill");
            assert!(kill.args(["-s", "KILL"]).arg(pid.to_string()).status().await.unwrap().success());
        };
        let (written, ()) = futures::future::join(writers, killer).await;
        kept.extend(written.into_iter().flatten());
        broker.kill();
    }
    assert!(kept.len() > 4 * 60);

    let broker = home.start();
    for (path, secret) in kept {
        let found = send(broker.admin(Method::GET, &format!("resource/{path}"))).await;
        assert_eq!(found.expect(StatusCode::OK).body, secret, "{path}");
    }
}

#[tokio::test]
async fn policies_values_audit_log_and_tokens_outlast_a_kill() {
    let home = Home::sample();
    let mut broker = home.start();
    broker.set_resource("default/key/web", b"a secret").await;
    broker.set_reference_values(json!({ "kernel": ["a"] })).await.expect(StatusCode::OK);
    let policy = "package policy\nimport rego.v1\nallow if data.plugin == \"resource\"\n";
    broker.set_policy("resource-policy", policy).await.expect(StatusCode::OK);
    let guest = Guest::new();
    let (token, _) = guest.attest(&broker).await;
    let (log, before) = (broker.audit().await, send(broker.admin(Method::GET, "resource-policy")).await);
    broker.kill();

    let broker = home.start();
    assert_eq!(broker.audit().await, log);
    assert_eq!(send(broker.admin(Method::GET, "resource-policy")).await.json(), before.json());
    let values = send(broker.admin(Method::GET, "reference-value")).await;
    assert_eq!(values.json(), json!({ "kernel": ["a"] }));
    let request = broker.request(Method::GET, "resource/default/key/web").bearer_auth(&token);
    assert_eq!(guest.open(&send(request).await), b"a secret");
}

#[tokio::test]
async fn a_second_broker_on_the_same_store_does_not_start() {
    let home = Home::sample();
    let broker = home.start();
    let output = program().args(["serve", "--config"]).arg(home.path("kbs.toml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("cannot open the store") && words.contains("store.redb"), "{words}");
    broker.text("/healthz").await;
}

/// A file system of its own with little room, in a namespace of its own: no privilege is needed.
struct SmallDisk {
    holder: Child,
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path, size: &str) -> Self {
        std::fs::create_dir(folder).unwrap();
        let script = "mount -t tmpfs -o size=$2 tmpfs \"$1\" && echo && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(folder)
            .arg(size)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        holder.stdout.take().unwrap().read_exact(&mut line).expect("it is mounted");
        Self { holder, folder: folder.to_owned() }
    }

    /// Makes room.
    fn enlarge(&self, size: &str) {
        let mut mount = self.command(&Command::new("mount"));
        mount.args(["-o", &format!("remount,size={size}")]).arg(&self.folder);
        assert!(mount.status().unwrap().success());
    }

    /// What runs a program that sees the disk.
    fn command(&self, program: &Command) -> Command {
        let mut command = Command::new("nsenter");
        let holder = self.holder.id().to_string();
        command.args(["--user", "--mount", "--preserve-credentials", "--target", &holder]);
        command.arg(program.get_program());
        command
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let home = Home::sample();
    let disk = SmallDisk::mount(&home.path("disk"), "4m");
    home.configure("store = \"store.redb\"", "store = \"disk/store.redb\"");
    let mut broker = home.start_as(disk.command(&program()));
    let secret = |number: usize| vec![u8::try_from(number % 251).unwrap(); 100_000];
    let set = async |broker: &Broker, number: usize| {
        let request = broker.admin(Method::POST, &format!("resource/default/large/{number}"));
        send(request.body(secret(number))).await
    };
    let mut kept = 0;
    let refused = loop {
        let answer = set(&broker, kept).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        kept += 1;
    };
    let detail = refused.error(StatusCode::INSUFFICIENT_STORAGE, "StorageFull");
    assert!(detail.contains("make room"), "{detail}");
    assert!(kept > 5, "{kept}");

    // Nothing is given that cannot be noted.
    let read = send(broker.admin(Method::GET, "resource/default/large/0")).await;
    read.error(StatusCode::INSUFFICIENT_STORAGE, "StorageFull");
    // But room can be made.
    kept -= 1;
    let last = format!("resource/default/large/{kept}");
    send(broker.admin(Method::DELETE, &last)).await.expect(StatusCode::OK);
    disk.enlarge("8m");
    // What was acknowledged is there, at once and after a restart; what was refused is not.
    for round in 0..2 {
        for number in 0..kept {
            let answer = send(broker.admin(Method::GET, &format!("resource/default/large/{number}"))).await;
            assert!(answer.expect(StatusCode::OK).body == secret(number), "{number} in round {round}");
        }
        let answer = send(broker.admin(Method::GET, &format!("resource/default/large/{kept}"))).await;
        answer.expect(StatusCode::NOT_FOUND);
        broker.kill();
        broker = home.start_as(disk.command(&program()));
    }
    // With room again, all is as before.
    for number in 0..kept {
        let answer = send(broker.admin(Method::DELETE, &format!("resource/default/large/{number}"))).await;
        answer.expect(StatusCode::OK);
    }
    Guest::new().attest(&broker).await;
    set(&broker, 0).await.expect(StatusCode::OK);
}
