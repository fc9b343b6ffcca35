//! The database is killed, away, wrong or slow: what was acknowledged is there, and nothing of its URL is told.

use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join, join_all};
use reqwest::{Method, StatusCode};
use rstest::rstest;

use crate::database::{Database, ENCODED_PASSWORD, PASSWORD};
use crate::support::{Broker, Guest, Home, attest, challenge, fetch, program, send, until};

const SECRET: &str = "default/key/web";

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn tells_no_password(text: &str) {
    for secret in [PASSWORD, ENCODED_PASSWORD, "hunter2"] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn serve(home: &Home) -> Output {
    let mut serve = program();
    serve.args(["serve", "--config"]).arg(home.path("kbs.toml")).env("RUST_LOG", "trace").output().unwrap()
}

/// Writes until told to stop, and gives what was acknowledged. While the database is away, the broker says so.
async fn write(
    broker: &Broker,
    prefix: String,
    goal: usize,
    acknowledged: &AtomicUsize,
) -> Vec<(String, Vec<u8>)> {
    let mut kept = Vec::new();
    for number in 0.. {
        if acknowledged.load(Ordering::SeqCst) >= goal {
            break;
        }
        let path = format!("{prefix}/{number}");
        let secret = format!("secret of {path}").repeat(1 + number % 50).into_bytes();
        let answer = send(broker.admin(Method::POST, &format!("resource/{path}")).body(secret.clone())).await;
        match answer.status {
            StatusCode::OK => {
                acknowledged.fetch_add(1, Ordering::SeqCst);
                kept.push((path, secret));
            }
            _ => drop(answer.error(StatusCode::SERVICE_UNAVAILABLE, "Unavailable")),
        }
    }
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_is_there_after_the_database_was_killed() {
    let mut database = Database::start();
    let home = Home::sharing(&database);
    let brokers = [home.start(), home.start()];
    let acknowledged = AtomicUsize::new(0);
    let goal = 600;
    let writers = join_all(
        (0..8).map(|writer| write(&brokers[writer % 2], format!("default/w{writer}"), goal, &acknowledged)),
    );
    let killer = async {
        for round in 1..=3 {
            until(async || {
                tokio::task::yield_now().await;
                acknowledged.load(Ordering::SeqCst) >= round * 150
            })
            .await;
            tokio::task::block_in_place(|| {
                database.kill();
                database.restart();
            });
        }
    };
    let (written, ()) = join(writers, killer).await;
    for (path, secret) in written.into_iter().flatten() {
        let found = send(brokers[0].admin(Method::GET, &format!("resource/{path}"))).await;
        assert_eq!(found.expect(StatusCode::OK).body, secret, "{path}");
    }
}

#[tokio::test]
async fn while_the_database_is_away_nothing_is_given_and_then_all_is_as_before() {
    let mut database = Database::start();
    let home = Home::sharing(&database);
    let broker = home.start();
    broker.set_resource(SECRET, b"a secret").await;
    let guest = Guest::new();
    let (token, cookie) = guest.attest(&broker).await;
    let session = challenge(&broker, "sample").await;
    let answer = guest.attestation(&session.nonce);
    database.kill();

    let route = format!("resource/{SECRET}");
    let by_token = broker.request(Method::GET, &route).bearer_auth(&token);
    let policy = broker.set_policy("resource-policy", "package policy\nallow := true\n").await;
    for refused in [
        fetch(&broker, &cookie, SECRET).await,
        send(by_token).await,
        attest(&broker, &session.cookie, &answer).await,
        send(broker.admin(Method::GET, &route)).await,
        send(broker.admin(Method::GET, "audit")).await,
        send(broker.admin(Method::GET, "reference-value")).await,
        policy,
    ] {
        let detail = refused.error(StatusCode::SERVICE_UNAVAILABLE, "Unavailable");
        assert_eq!(detail, "the key broker does not reach its store; try again");
    }
    broker.text("/healthz").await;
    assert!(broker.log().contains("cannot connect to the database 127.0.0.1:"), "{}", broker.log());

    database.restart();
    until(async || send(broker.admin(Method::GET, &route)).await.status == StatusCode::OK).await;
    // The challenge was not used up, and the session is as it was.
    attest(&broker, &session.cookie, &answer).await.expect(StatusCode::OK);
    assert_eq!(guest.open(&fetch(&broker, &cookie, SECRET).await), b"a secret");
}

#[tokio::test]
async fn a_full_database_is_said_and_changes_nothing() {
    let database = Database::start();
    let home = Home::sharing(&database);
    let broker = home.start();
    database.ask(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$; \
         CREATE TRIGGER full_disk BEFORE INSERT ON sealpod.entry FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let set = broker.admin(Method::POST, &format!("resource/{SECRET}")).body("x");
    let detail = send(set).await.error(StatusCode::INSUFFICIENT_STORAGE, "StorageFull");
    assert!(detail.contains("make room"), "{detail}");
    database.ask("DROP TRIGGER full_disk ON sealpod.entry");
    broker.set_resource(SECRET, b"a secret").await;
}

#[test]
fn a_database_out_of_reach_at_the_start_is_said_without_its_password() {
    let database = Database::start();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = |address: &str| format!("postgresql://u:{ENCODED_PASSWORD}@{address}/d?sslmode=disable");
    let wrong_password = database.url().replace("hunter2", "hunter2hunter2");
    for (url, named) in [
        (at(&free.to_string()), format!("{free}: error connecting to server: Connection refused")),
        (at("name.invalid:1"), "cannot connect to the database name.invalid:1".into()),
        (at(&silent.local_addr().unwrap().to_string()), "it does not answer".into()),
        (wrong_password, "password authentication failed for user \"broker\" (28P01)".into()),
        (database.url().replace("/postgres?", "/nothing?"), "database \"nothing\" does not exist".into()),
    ] {
        let home = Home::sharing(&database);
        std::fs::write(home.path("database-url"), &url).unwrap();
        let output = serve(&home);
        let words = words(&output);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("cannot open the store") && words.contains(&named), "{words}");
        tells_no_password(&words);
    }
}

#[rstest]
#[case::no_file(None, "cannot read")]
#[case::no_url(Some("hunter2"), "postgresql://USER:PASSWORD@HOST/DATABASE")]
#[case::a_password_that_is_not_encoded(Some("postgresql://u:hun@ter2@h/d"), "%40 stands for an @")]
#[case::an_unknown_option(Some("postgresql://u:hunter2@h/d?ssl=true"), "none of sslmode")]
#[case::nobody_to_trust(Some("postgresql://u:hunter2@h/d"), "sslrootcert=FILE")]
fn a_wrong_url_is_refused_before_the_database_is_asked(#[case] url: Option<&str>, #[case] named: &str) {
    let home = Home::sample();
    home.share("postgresql://u:p@h/d");
    let file = home.path("database-url");
    match url {
        Some(url) => std::fs::write(file, url).unwrap(),
        None => std::fs::remove_file(file).unwrap(),
    }
    let check = program().args(["check", "--config"]).arg(home.path("kbs.toml")).output().unwrap();
    for output in [check, serve(&home)] {
        let words = words(&output);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("database-url") && words.contains(named), "{words}");
        tells_no_password(&words);
        assert!(!words.contains("ter2"), "{words}");
    }
}

#[test]
fn checking_leaves_the_database_alone() {
    let home = Home::sample();
    home.share("postgresql://u:p@name.invalid/d?sslmode=disable");
    let check = program().args(["check", "--config"]).arg(home.path("kbs.toml")).output().unwrap();
    assert!(check.status.success(), "{}", words(&check));
}

#[tokio::test]
async fn neither_the_log_nor_the_command_line_has_the_password_or_a_secret() {
    let database = Database::start();
    let home = Home::sharing(&database);
    let mut command = Command::new(program().get_program());
    command.env("RUST_LOG", "trace");
    let mut broker = home.start_as(command);
    broker.set_resource(SECRET, b"a well-kept secret").await;
    let guest = Guest::new();
    let (_, cookie) = guest.attest(&broker).await;
    guest.open(&fetch(&broker, &cookie, SECRET).await);
    database.ask("ALTER TABLE sealpod.entry ADD CHECK (length(value) < 5) NOT VALID");
    let set = broker.admin(Method::POST, &format!("resource/{SECRET}")).body("a well-kept secret");
    send(set).await.error(StatusCode::INTERNAL_SERVER_ERROR, "Internal");
    let process = |name: &str| std::fs::read(format!("/proc/{}/{name}", broker.pid())).unwrap();
    let seen = [process("cmdline"), process("environ")].concat();
    tells_no_password(&String::from_utf8_lossy(&seen));
    broker.end_with("TERM");
    let log = broker.log();
    assert!(log.contains("check constraint"), "{log}");
    tells_no_password(&log);
    assert!(!log.contains("well-kept") && !log.contains(&hex::encode("a well-kept secret")), "{log}");
}
