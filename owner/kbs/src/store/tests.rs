//! What every store does, whichever it is.

use std::sync::Arc;
use std::time::Duration;

use rstest::rstest;
use sealpod_evidence::tpm::RequestParams;
use sealpod_evidence::{HashAlgorithm, Tee};
use sealpod_kbs_protocol::Secret;
use sealpod_kbs_protocol::ear::Ear;
use sealpod_kbs_protocol::jwe::TeeKeyPair;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::database::Database;
use super::{Class, Kind, Store, open};
use crate::config;
use crate::session::{AnswerError, Attested, Challenge, Sessions};

/// Where a store is.
pub(super) enum Place {
    Folder(TempDir),
    Database(Database),
}

impl Place {
    fn folder() -> Self {
        Self::Folder(tempfile::tempdir().unwrap())
    }

    pub(super) fn database() -> Self {
        Self::Database(Database::start())
    }

    pub(super) async fn open(&self) -> (Arc<dyn Store>, Arc<dyn Sessions>) {
        let store = match self {
            Self::Folder(folder) => config::Store::Embedded(folder.path().join("s.redb")),
            Self::Database(database) => config::Store::Postgres(config::Database {
                kind: config::DatabaseKind::Postgres,
                url_file: database.url_file(),
            }),
        };
        open(&store).await.unwrap()
    }
}

pub(super) fn challenge() -> Challenge {
    Challenge { tee: Tee::Sample, nonce: "n".into(), hash: HashAlgorithm::Sha384, credential: None }
}

fn entry(name: &str, value: &[u8]) -> (String, Secret) {
    (name.to_owned(), Secret::new(value.to_vec()))
}

/// What an entry has, for comparison.
async fn value(store: &dyn Store, kind: Kind, name: &str) -> Option<Vec<u8>> {
    store.get(kind, name).await.unwrap().map(|value| value.as_bytes().to_vec())
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn the_oldest_of_a_class_go_and_the_others_stay(#[case] place: fn() -> Place) {
    let place = place();
    let (store, _) = place.open().await;
    store.append_audit(Class::Guest, 2, "grant", b"granted".into()).await.unwrap();
    for number in 0..20 {
        let (id, entry) = (format!("r{number}"), format!("refusal {number}"));
        store.append_audit(Class::Anybody, 3, &id, entry.into()).await.unwrap();
    }
    let texts = async || -> Vec<String> {
        let entries = store.latest_audit(100).await.unwrap();
        entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
    };
    assert_eq!(texts().await, ["granted", "refusal 17", "refusal 18", "refusal 19"]);
    assert_eq!(store.audit_entry("r16").await.unwrap(), None);
    assert_eq!(store.audit_entry("r17").await.unwrap().unwrap(), b"refusal 17");
    store.append_audit(Class::Guest, 2, "b", b"second".into()).await.unwrap();
    store.append_audit(Class::Guest, 2, "c", b"third".into()).await.unwrap();
    assert_eq!(texts().await, ["refusal 17", "refusal 18", "refusal 19", "second", "third"]);
    // What administrators do is apart from both.
    store.append_audit(Class::Administrator, 1, "d", b"read".into()).await.unwrap();
    store.append_audit(Class::Administrator, 1, "e", b"set".into()).await.unwrap();
    assert_eq!(texts().await, ["refusal 17", "refusal 18", "refusal 19", "second", "third", "set"]);
    assert_eq!(store.audit_entry("d").await.unwrap(), None);
    // A log that was longer is cut by the next entry.
    store.append_audit(Class::Anybody, 1, "last", b"last".into()).await.unwrap();
    assert_eq!(texts().await, ["second", "third", "set", "last"]);
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn what_was_written_is_there_after_the_store_was_opened_again(#[case] place: fn() -> Place) {
    let place = place();
    let (store, sessions) = place.open().await;
    store.set(Kind::Resource, vec![entry("a/b/c", b"1"), entry("a/b/d", b"2")]).await.unwrap();
    store.append_audit(Class::Guest, 9, "one", b"first".into()).await.unwrap();
    store.append_audit(Class::Anybody, 9, "two", b"second".into()).await.unwrap();
    drop((store, sessions));
    let (store, _) = place.open().await;
    assert_eq!(value(store.as_ref(), Kind::Resource, "a/b/c").await.unwrap(), b"1");
    assert_eq!(value(store.as_ref(), Kind::Setting, "a/b/c").await, None);
    assert!(store.remove(Kind::Resource, "a/b/c").await.unwrap());
    assert!(!store.remove(Kind::Resource, "a/b/c").await.unwrap());
    assert_eq!(store.list(Kind::Resource).await.unwrap(), [("a/b/d".to_owned(), b"2".to_vec())]);
    assert_eq!(store.names(Kind::Resource).await.unwrap(), ["a/b/d"]);
    assert_eq!(store.audit_entry("two").await.unwrap().unwrap(), b"second");
    assert_eq!(store.latest_audit(1).await.unwrap(), [b"second"]);
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn names_may_be_any_text_and_are_in_the_order_of_their_bytes(#[case] place: fn() -> Place) {
    let place = place();
    let (store, _) = place.open().await;
    let names = ["", "\0", "B", "a", "a b", "a\0", "\u{e9}", "\u{1f511}"];
    let mut entries: Vec<_> = names.iter().map(|name| entry(name, name.as_bytes())).collect();
    entries.reverse();
    store.set(Kind::ReferenceValue, entries).await.unwrap();
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(store.names(Kind::ReferenceValue).await.unwrap(), sorted);
    for (name, value) in store.list(Kind::ReferenceValue).await.unwrap() {
        assert_eq!(name.as_bytes(), value);
    }
    // Of one name twice, the last counts.
    store.set(Kind::Setting, vec![entry("x", b"1"), entry("x", b"2")]).await.unwrap();
    assert_eq!(value(store.as_ref(), Kind::Setting, "x").await.unwrap(), b"2");
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_settle_an_entry_one_does_and_all_learn_of_it(#[case] place: fn() -> Place) {
    let place = place();
    let (store, _) = place.open().await;
    let mut tasks = JoinSet::new();
    for number in 0..16_u8 {
        let store = store.clone();
        let mine = Secret::new(vec![number]);
        tasks.spawn(async move { store.settle(Kind::Setting, "key", mine).await.unwrap() });
    }
    let settled = tasks.join_all().await;
    let there = value(store.as_ref(), Kind::Setting, "key").await.unwrap();
    assert!(settled.iter().all(|value| value.as_bytes() == there), "{there:?}");
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test(flavor = "multi_thread")]
async fn those_who_write_the_same_entries_in_another_order_do_not_stop_each_other(
    #[case] place: fn() -> Place,
) {
    let place = place();
    let (store, _) = place.open().await;
    let mut tasks = JoinSet::new();
    for writer in 0..8_u8 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let mut entries: Vec<_> = (0..50).map(|name| entry(&format!("{name}"), &[writer])).collect();
                if writer % 2 == 0 {
                    entries.reverse();
                }
                store.set(Kind::ReferenceValue, entries).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let list = store.list(Kind::ReferenceValue).await.unwrap();
    assert_eq!(list.len(), 50);
    assert!(list.iter().all(|(_, value)| *value == list[0].1), "one wrote all: {list:?}");
}

#[rstest]
#[case::embedded(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn every_change_of_what_decides_makes_another_revision(#[case] place: fn() -> Place) {
    let place = place();
    let (store, _) = place.open().await;
    let mut seen = vec![store.revision().await.unwrap()];
    for kind in [Kind::Setting, Kind::ReferenceValue] {
        store.set(kind, vec![entry("a", b"1")]).await.unwrap();
        seen.push(store.revision().await.unwrap());
        store.settle(kind, "b", Secret::new(b"1".into())).await.unwrap();
        seen.push(store.revision().await.unwrap());
        store.remove(kind, "a").await.unwrap();
        seen.push(store.revision().await.unwrap());
    }
    store.set(Kind::Resource, vec![entry("a", b"1")]).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), seen[6], "secrets do not decide");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 7);
}

#[rstest]
#[case::in_memory(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_answer_at_once_one_gets_the_challenge(#[case] place: fn() -> Place) {
    let place = place();
    let (_store, sessions) = place.open().await;
    for _ in 0..5 {
        let id = sessions.open(challenge()).await.unwrap();
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let (sessions, id) = (sessions.clone(), id.clone());
            tasks.spawn(async move { sessions.answer(&id).await.is_ok() });
        }
        let wins = tasks.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(wins, 1);
        assert!(matches!(sessions.answer(&id).await, Err(AnswerError::Answered)));
    }
    assert!(matches!(sessions.answer("other").await, Err(AnswerError::Unknown)));
    assert!(matches!(sessions.answer("").await, Err(AnswerError::Unknown)));
}

#[rstest]
#[case::in_memory(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn a_challenge_comes_back_as_it_was(#[case] place: fn() -> Place) {
    let place = place();
    let (_store, sessions) = place.open().await;
    let tpm = RequestParams { ek_certificate: vec![1], ek_public: vec![2; 300], ak_public: vec![3] };
    let asked = Challenge {
        tee: Tee::Tpm,
        nonce: "a nonce".into(),
        hash: HashAlgorithm::Sha256,
        credential: Some((tpm.clone(), Secret::new(vec![0, 255, 7]))),
    };
    let id = sessions.open(asked).await.unwrap();
    let back = sessions.answer(&id).await.unwrap();
    assert_eq!((back.tee, back.nonce.as_str(), back.hash), (Tee::Tpm, "a nonce", HashAlgorithm::Sha256));
    let (params, secret) = back.credential.unwrap();
    assert_eq!((params, secret.as_bytes()), (tpm, [0, 255, 7].as_slice()));
}

#[rstest]
#[case::in_memory(Place::folder)]
#[case::postgres(Place::database)]
#[tokio::test]
async fn an_attestation_is_found_by_its_session_for_as_long_as_it_is_good(#[case] place: fn() -> Place) {
    let place = place();
    let (_store, sessions) = place.open().await;
    let ear: Ear = serde_json::from_value(json!({
        "eat_profile": "p", "iat": 0, "exp": 1, "iss": "i",
        "ear.verifier-id": { "build": "b", "developer": "d" }, "submods": {},
    }))
    .unwrap();
    let key = TeeKeyPair::generate().unwrap().public_key().clone();
    let attested = Attested { ear, key };
    let id = sessions.open(challenge()).await.unwrap();
    assert!(sessions.find(&id).await.unwrap().is_none(), "not before it is");
    sessions.answer(&id).await.unwrap();
    assert!(sessions.find(&id).await.unwrap().is_none());
    sessions.attested(&id, attested.clone(), Duration::from_secs(60)).await.unwrap();
    let found = sessions.find(&id).await.unwrap().unwrap();
    assert_eq!((found.ear, found.key.thumbprint()), (attested.ear.clone(), attested.key.thumbprint()));
    assert!(matches!(sessions.answer(&id).await, Err(AnswerError::Answered)));
    assert!(sessions.find("other").await.unwrap().is_none());

    sessions.attested(&id, attested.clone(), Duration::ZERO).await.unwrap();
    assert!(sessions.find(&id).await.unwrap().is_none());
    // What has expired is not revived.
    sessions.attested(&id, attested, Duration::from_secs(60)).await.unwrap();
    assert!(sessions.find(&id).await.unwrap().is_none());
}
