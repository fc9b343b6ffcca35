//! The program itself: its configuration, its listener, its start and its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use rstest::rstest;

use crate::support::{Guest, Home, fetch, initialise, program, send};

fn check(home: &Home) -> Output {
    program().args(["check", "--config"]).arg(home.path("kbs.toml")).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn https_is_served_under_the_certificate_of_init() {
    let home = Home::secure();
    let broker = home.start();
    broker.text("/healthz").await;
    broker.set_resource("a/b/c", b"a secret").await;
    let listed = send(broker.admin(Method::GET, "resource")).await;
    assert_eq!(listed.json(), serde_json::json!(["a/b/c"]));

    let stranger = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |scheme: &str| format!("{scheme}://{}/healthz", broker.address);
    assert!(stranger.get(url("https")).send().await.is_err(), "nobody else vouches for it");
    assert!(stranger.get(url("http")).send().await.is_err(), "there is no plain HTTP beside it");
}

#[tokio::test]
async fn a_guest_attests_over_https() {
    let home = Home::secure();
    home.configure("allow_sample = false", "allow_sample = true");
    let broker = home.start();
    broker.set_resource("a/b/c", b"a secret").await;
    let guest = Guest::new();
    let (_, cookie) = guest.attest(&broker).await;
    assert_eq!(guest.open(&fetch(&broker, &cookie, "a/b/c").await), b"a secret");
}

#[test]
fn init_keeps_its_keys_private_and_overwrites_nothing() {
    let home = Home::secure();
    for name in ["admin.key", "tls.key"] {
        assert_eq!(mode(&home.path(name)), 0o600, "{name}");
    }
    let key = std::fs::read(home.path("admin.key")).unwrap();
    let again = initialise(home.path("kbs.toml").parent().unwrap(), &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("exists already"));
    assert_eq!(std::fs::read(home.path("admin.key")).unwrap(), key);

    let folder = tempfile::tempdir().unwrap();
    let failed = initialise(&folder.path().join("kbs"), &["--host", "b\u{e9}"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(!folder.path().join("kbs").exists(), "nothing is left of a failed init");
}

#[test]
fn a_good_configuration_is_good_and_checking_makes_no_store() {
    let home = Home::secure();
    let output = check(&home);
    assert!(output.status.success(), "{output:?}");
    assert!(!home.path("store.redb").exists());
    let broker = home.start();
    assert!(check(&home).status.success(), "also while a broker runs");
    assert_eq!(mode(&home.path("store.redb")), 0o600);
    drop(broker);
}

#[rstest]
#[case::unknown_field("allow_sample", "allow_samples", "allow_samples")]
#[case::no_administrator("[\"admin.pub\"]", "[]", "admin_keys")]
#[case::missing_key("admin.pub", "other.pub", "other.pub")]
#[case::private_for_public("admin.pub", "admin.key", "admin.key is not an Ed25519 public key")]
#[case::certificate_for_key("tls.key", "tls.crt", "tls.crt is no private key")]
#[case::no_certificate("tls.crt", "admin.pub", "admin.pub")]
#[case::no_root("ek_roots = []", "ek_roots = [\"admin.pub\"]", "admin.pub is not a certificate")]
#[case::no_digest("enrolled_aks = []", "enrolled_aks = [\"ff\"]", "enrolled_aks")]
#[case::no_address("127.0.0.1:0", "nowhere", "listen")]
#[case::no_folder("store.redb", "nowhere/store.redb", "nowhere")]
#[case::no_lifetime("= 300", "= 0", "token_lifetime_seconds")]
fn a_wrong_configuration_is_refused(#[case] before: &str, #[case] after: &str, #[case] named: &str) {
    let home = Home::secure();
    home.configure(before, after);
    let serve = program().args(["serve", "--config"]).arg(home.path("kbs.toml")).output().unwrap();
    for output in [check(&home), serve] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(words.contains("error: ") && words.contains(named), "{words}");
    }
}

#[test]
fn help_has_examples_and_unknown_flags_are_refused() {
    let help = program().arg("--help").output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Examples:") && help.contains("sealpod-kbs serve --config"), "{help}");
    assert!(help.contains("url_file = \"database-url\""), "{help}");
    assert_eq!(program().args(["serve", "--unknown"]).output().unwrap().status.code(), Some(2));
}

#[rstest]
#[case::by_sigterm("TERM")]
#[case::by_sigint("INT")]
#[tokio::test]
async fn it_ends_in_order_although_a_client_stays(#[case] signal: &str) {
    let home = Home::sample();
    let mut broker = home.start();
    // The client keeps its connection for the next request.
    broker.text("/healthz").await;
    let silent = TcpStream::connect(&broker.address).unwrap();
    let start = Instant::now();
    assert!(broker.end_with(signal).success());
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    drop(silent);
}

#[test]
fn it_dumps_no_core() {
    let home = Home::sample();
    let broker = home.start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", broker.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn a_client_that_does_not_finish_its_header_is_dropped() {
    let home = Home::sample();
    let broker = home.start();
    let mut socket = TcpStream::connect(&broker.address).unwrap();
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the broker closes the connection by itself");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_client_that_does_not_begin_its_tls_handshake_is_dropped() {
    let home = Home::secure();
    let broker = home.start();
    let mut socket = TcpStream::connect(&broker.address).unwrap();
    socket.write_all(&[0x16]).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.read_to_end(&mut Vec::new()).expect("the broker closes the connection by itself");
}

#[rstest]
#[case::for_a_challenge("auth", 65 << 10)]
#[case::of_evidence("attest", (1 << 20) + 1)]
#[case::of_a_secret("resource/a/b/c", (4 << 20) + 1)]
#[tokio::test]
async fn a_request_that_is_too_large_is_refused(#[case] route: &str, #[case] length: usize) {
    let home = Home::sample();
    let broker = home.start();
    let request = broker.admin(Method::POST, route).body(vec![b' '; length]);
    send(request).await.error(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge");
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_the_same_form() {
    let home = Home::sample();
    let broker = home.start();
    send(broker.request(Method::GET, "nothing")).await.error(StatusCode::NOT_FOUND, "NotFound");
    let wrong = send(broker.request(Method::DELETE, "auth")).await;
    wrong.error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed");
}
