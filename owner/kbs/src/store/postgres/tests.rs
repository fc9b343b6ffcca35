//! What is special about a database: others use it, too, and it may be away.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rstest::rstest;

use super::*;
use crate::session::{AnswerError, Sessions};
use crate::store::database::{Database, ENCODED_PASSWORD};
use crate::store::tests::challenge;

async fn open(database: &Database) -> PostgresStore {
    PostgresStore::open(&database.url_file()).await.unwrap()
}

/// Opens a store by a URL, which stands in a file of the folder.
async fn open_by(folder: &Path, url: &str) -> Result<PostgresStore, PostgresError> {
    let file = folder.join("url");
    std::fs::write(&file, url).unwrap();
    PostgresStore::open(&file).await
}

/// Asks until the database answers again.
async fn until_it_answers(store: &PostgresStore) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = store.revision().await {
        assert!(error.is_temporary() && std::time::Instant::now() < end, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_start_together_make_the_tables_once() {
    let database = Database::start();
    let file = database.url_file();
    let stores = join_all((0..8).map(|_| PostgresStore::open(&file))).await;
    assert!(stores.iter().all(Result::is_ok));
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.version"), "1");
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.revision"), "1");
}

#[tokio::test]
async fn tables_of_a_later_version_are_left_alone() {
    let database = Database::start();
    open(&database).await;
    database.ask("UPDATE sealpod.version SET number = 3");
    let error = PostgresStore::open(&database.url_file()).await.err().unwrap();
    assert!(matches!(error, PostgresError::Newer { found: 3, known: 2 }), "{error}");
    assert_eq!(database.ask("SELECT number FROM sealpod.version"), "3");
}

#[tokio::test]
async fn tables_of_an_earlier_version_are_brought_up_to_date() {
    let database = Database::start();
    let store = open(&database).await;
    store.append_audit(Class::Guest, 9, "a", b"granted".into()).await.unwrap();
    database.ask(
        "UPDATE sealpod.version SET number = 1; DELETE FROM sealpod.audit_class WHERE class = 'administrator'",
    );
    // A broker of the version before goes on meanwhile.
    let updated = open(&database).await;
    store.append_audit(Class::Guest, 9, "b", b"granted, too".into()).await.unwrap();
    updated.append_audit(Class::Administrator, 9, "c", b"set".into()).await.unwrap();
    let entries: [&[u8]; 3] = [b"granted", b"granted, too", b"set"];
    assert_eq!(updated.latest_audit(9).await.unwrap(), entries);
    assert_eq!(database.ask("SELECT number FROM sealpod.version"), "2");
}

#[tokio::test]
async fn entries_are_set_all_or_none() {
    let database = Database::start();
    let store = open(&database).await;
    let before = store.revision().await.unwrap();
    // No name is as long as this in an index, not even compressed.
    let long: String =
        (0..6000_u32).map(|number| char::from_u32(0x4e00 + number * 7 % 9973).unwrap()).collect();
    let entries = vec![("a".to_owned(), Secret::new(b"1".to_vec())), (long, Secret::new(b"2".to_vec()))];
    let error = store.set(Kind::Setting, entries).await.unwrap_err();
    assert!(!error.is_temporary() && !error.is_full(), "{error}");
    assert_eq!(store.names(Kind::Setting).await.unwrap(), [""; 0]);
    assert_eq!(store.revision().await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_log_to_which_many_append_has_no_gaps_and_the_bound_holds() {
    let database = Database::start();
    let (one, other) = (open(&database).await, open(&database).await);
    let append = async |store: &PostgresStore, number: usize| {
        let id = format!("{number}");
        store.append_audit(Class::Guest, 10, &id, id.clone().into_bytes()).await.unwrap();
    };
    join_all((0..60).map(|number| append(if number % 2 == 0 { &one } else { &other }, number))).await;
    append(&one, 60).await;
    let positions = "SELECT min(position), max(position), count(*) FROM sealpod.audit";
    assert_eq!(database.ask(positions), "52|61|10");
    assert_eq!(one.latest_audit(1).await.unwrap(), [b"60"]);
}

#[tokio::test]
async fn the_number_of_sessions_is_bounded_and_nobody_is_locked_out() {
    let database = Database::start();
    let store = open(&database).await;
    // The first three would end first, but two of them attested; of one the answer was denied.
    database.ask(
        "INSERT INTO sealpod.session (id, challenge, expires, answered, attested) \
         SELECT number::text::bytea, '', now() + interval '1 minute' + number * interval '1 millisecond', \
             number <= 3, CASE WHEN number <= 2 THEN ''::bytea END FROM generate_series(1, 20000) AS number",
    );
    let there = |ids: &str| {
        database.ask(&format!(
            "SELECT string_agg(encode(id, 'escape'), ' ' ORDER BY encode(id, 'escape')) FROM sealpod.session \
             WHERE id IN ({ids})"
        ))
    };
    let id = Sessions::open(&store, challenge()).await.unwrap();
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.session"), "20000");
    assert_eq!(there("'1', '2', '3', '4', '5'"), "1 2 4 5");
    Sessions::open(&store, challenge()).await.unwrap();
    assert_eq!(there("'1', '2', '3', '4', '5'"), "1 2 5");
    store.answer(&id).await.unwrap();
    // What has expired makes room, too.
    database.ask("UPDATE sealpod.session SET expires = now() WHERE id IN ('1', '7')");
    assert!(matches!(store.answer("7").await, Err(AnswerError::Unknown)));
    Sessions::open(&store, challenge()).await.unwrap();
    assert_eq!(there("'1', '2', '5', '6', '7', '8'"), "2 5 6 8");
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.session"), "19999");
    // Where all attested, the one that ends first goes.
    database.ask(
        "UPDATE sealpod.session SET attested = ''; INSERT INTO sealpod.session (id, challenge, expires, attested) \
         VALUES ('first', '', now() + interval '1 second', '')",
    );
    Sessions::open(&store, challenge()).await.unwrap();
    assert_eq!(there("'first', '2'"), "2");
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.session"), "20000");
    database.ask("UPDATE sealpod.session SET expires = now()");
    for _ in 0..400 {
        Sessions::open(&store, challenge()).await.unwrap();
    }
    assert_eq!(database.ask("SELECT count(*) FROM sealpod.session WHERE expires <= now()"), "0");
}

#[tokio::test]
async fn a_challenge_expires_by_the_databases_clock() {
    let database = Database::start();
    let store = open(&database).await;
    let id = Sessions::open(&store, challenge()).await.unwrap();
    let left =
        database.ask("SELECT extract(epoch FROM expires - now()) BETWEEN 100 AND 120 FROM sealpod.session");
    assert_eq!(left, "t");
    database.ask("UPDATE sealpod.session SET expires = now()");
    assert!(matches!(store.answer(&id).await, Err(AnswerError::Unknown)));
}

#[tokio::test]
async fn a_full_disk_is_told_from_other_failures() {
    let database = Database::start();
    let store = open(&database).await;
    database.ask(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full', DETAIL = 'a detail'; END $$; \
         CREATE TRIGGER full_disk BEFORE INSERT ON sealpod.entry FOR EACH ROW EXECUTE FUNCTION full_disk()",
    );
    let error = store.set(Kind::Resource, vec![("a".into(), Secret::new(b"1".into()))]).await.unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(error.to_string(), "the database failed: could not extend file (53100)");
    database.ask("DROP TABLE sealpod.entry");
    let error = store.get(Kind::Resource, "a").await.unwrap_err();
    assert!(!error.is_full() && !error.is_temporary(), "{error}");
}

#[tokio::test]
async fn a_database_that_was_away_is_found_again() {
    let mut database = Database::start();
    let store = open(&database).await;
    store.set(Kind::Resource, vec![("a".into(), Secret::new(b"1".into()))]).await.unwrap();
    database.kill();
    let error = store.get(Kind::Resource, "a").await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    database.restart();
    until_it_answers(&store).await;
    assert_eq!(store.get(Kind::Resource, "a").await.unwrap().unwrap().as_bytes(), b"1");
}

#[tokio::test]
async fn a_statement_that_waits_for_another_is_given_up_and_its_connection_too() {
    let database = Database::start();
    let store = open(&database).await;
    let pool = Pool::new(&database.url_file());
    let blocker = pool.connect().await.unwrap();
    blocker.batch_execute("BEGIN; LOCK TABLE sealpod.entry").await.unwrap();
    let gets = (0..20).map(|_| store.get(Kind::Resource, "a"));
    let errors = join_all(gets).await;
    assert!(errors.iter().all(|result| result.as_ref().is_err_and(StoreError::is_temporary)), "{errors:?}");
    drop(blocker);
    until_it_answers(&store).await;
    assert!(store.get(Kind::Resource, "a").await.unwrap().is_none());
    let mine = "SELECT count(*) <= 16 FROM pg_stat_activity WHERE application_name = 'sealpod-kbs'";
    assert_eq!(database.ask(mine), "t");
}

#[tokio::test]
async fn a_new_password_is_taken_up_without_a_new_start() {
    let database = Database::start();
    let file = database.url_file();
    let store = open(&database).await;
    database.ask(
        "ALTER ROLE broker PASSWORD 'another'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'sealpod-kbs'",
    );
    let url = database.url().replace(ENCODED_PASSWORD, "another");
    std::fs::write(file, url).unwrap();
    until_it_answers(&store).await;
}

#[tokio::test]
async fn sockets_of_this_machine_need_no_tls() {
    let database = Database::start();
    let folder = tempfile::tempdir().unwrap();
    let sockets = database.url_file();
    let host = sockets.parent().unwrap().display().to_string().replace('/', "%2F");
    open_by(folder.path(), &database.url_at(&host, "")).await.unwrap();
}

#[tokio::test]
async fn a_database_that_says_nothing_is_not_waited_for_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("postgresql://u:p@{}/d?sslmode=disable", listener.local_addr().unwrap());
    let start = std::time::Instant::now();
    let error = open_by(folder.path(), &url).await.err().unwrap();
    assert!(matches!(error, PostgresError::Silent { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A database with a certificate for `localhost`, and a folder with the certificates of its authority and of another.
fn database_with_tls() -> (Database, tempfile::TempDir) {
    let authority = |name: &str| {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, other) = (authority("ours"), authority("other"));
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &ours).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ours.crt"), ours.pem()).unwrap();
    std::fs::write(folder.path().join("other.crt"), other.pem()).unwrap();
    let database = Database::prepare(|data| {
        std::fs::write(data.join("server.crt"), certificate.pem()).unwrap();
        std::fs::write(data.join("server.key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(data.join("server.key"), Permissions::from_mode(0o600)).unwrap();
        let path = data.join("postgresql.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, format!("{text}\nssl = on\n")).unwrap();
        std::fs::write(data.join("pg_hba.conf"), "local all all trust\nhostssl all all all scram-sha-256\n")
            .unwrap();
    });
    (database, folder)
}

#[tokio::test]
async fn certificates_are_checked_as_sslmode_says() {
    let (database, folder) = database_with_tls();
    for (host, options, good) in [
        ("localhost", "sslmode=verify-full&sslrootcert=ours.crt", true),
        ("localhost", "sslrootcert=ours.crt", true),
        ("127.0.0.1", "sslmode=verify-full&sslrootcert=ours.crt", false),
        ("127.0.0.1", "sslrootcert=ours.crt", false),
        ("localhost", "sslmode=verify-full&sslrootcert=other.crt", false),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert=ours.crt", true),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert=other.crt", false),
        ("127.0.0.1", "sslmode=require&sslrootcert=ours.crt", true),
        ("127.0.0.1", "sslmode=require&sslrootcert=other.crt", false),
        ("127.0.0.1", "sslmode=require", true),
        ("127.0.0.1", "sslmode=prefer", true),
        ("127.0.0.1", "sslmode=disable", false),
    ] {
        let opened = open_by(folder.path(), &database.url_at(host, options)).await;
        assert_eq!(opened.is_ok(), good, "{host} {options}: {:?}", opened.err());
    }
    let store = open_by(folder.path(), &database.url_at("localhost", "sslrootcert=ours.crt")).await.unwrap();
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE application_name = 'sealpod-kbs'";
    store.revision().await.unwrap();
    assert_eq!(database.ask(encrypted), "t");
}

#[rstest]
#[case::by_default("sslrootcert=ours.crt")]
#[case::when_it_is_required("sslmode=require")]
#[tokio::test]
async fn a_database_without_tls_is_refused(#[case] options: &str) {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.path().join("ours.crt"), certificate.pem()).unwrap();
    let database = Database::start();
    let error = open_by(folder.path(), &database.url_at("127.0.0.1", options)).await.err().unwrap();
    assert!(error.to_string().contains("does not support TLS"), "{error}");
}
