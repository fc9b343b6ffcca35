//! Wrapping for recipients, and opening with the keys at hand.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rstest::rstest;
use sealpod_ocicrypt::annotations::{AnnotationError, EncryptionAnnotations, Scheme, WrappedKey};
use sealpod_ocicrypt::jwe::{JweError, PrivateKey, PublicKey};
use sealpod_ocicrypt::keyprovider::{PacketError, PacketVersion, ParameterError, WrapType};
use sealpod_ocicrypt::layer::{Decryptor, LayerError, PrivateOptions};
use sealpod_ocicrypt::{
    AttemptError, KeyError, KeyResolver, Recipient, RecipientError, Secret, UnwrapError, Unwrapper,
    WrapError, wrap,
};

use crate::support::{encrypted, private_pem, public_pem};

const KID: &str = "kbs:///default/key/1";

/// Keys by id, and which ids were asked for.
#[derive(Default)]
struct Keys {
    keys: HashMap<String, Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl Keys {
    fn with(kid: &str, key: [u8; 32]) -> Arc<Self> {
        Arc::new(Self { keys: [(kid.to_owned(), key.to_vec())].into(), asked: Mutex::default() })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl KeyResolver for Keys {
    fn key<'a>(&'a self, kid: &'a str) -> BoxFuture<'a, Result<Secret, KeyError>> {
        self.asked.lock().unwrap().push(kid.to_owned());
        let key = self.keys.get(kid).cloned().map(Secret::new);
        async move { key.ok_or(KeyError::Denied { denial: Some("d-17".into()) }) }.boxed()
    }
}

fn broker(kid: &str, key: [u8; 32], wrap_type: WrapType, version: PacketVersion) -> Recipient {
    Recipient::KeyProvider { kid: kid.into(), key: key.into(), wrap_type, version }
}

fn default_broker(kid: &str, key: [u8; 32]) -> Recipient {
    broker(kid, key, WrapType::default(), PacketVersion::default())
}

fn jwe(private: &str) -> Recipient {
    Recipient::Jwe(PublicKey::parse(public_pem(private).as_bytes()).unwrap())
}

fn private(key: &str) -> PrivateKey {
    PrivateKey::parse(key.as_bytes()).unwrap()
}

fn annotations_for(recipients: &[Recipient]) -> (PrivateOptions, BTreeMap<String, String>) {
    let (private, public, _) = encrypted(b"layer");
    let annotations = wrap(recipients, &private, &public).unwrap();
    (private, annotations)
}

fn attempts(error: UnwrapError) -> Vec<(Scheme, AttemptError)> {
    match error {
        UnwrapError::NoneOpened(attempts) => {
            attempts.into_iter().map(|attempt| (attempt.scheme, attempt.error)).collect()
        }
        other => panic!("{other}"),
    }
}

fn provider() -> Scheme {
    Scheme::Provider("attestation-agent".into())
}

#[rstest]
#[tokio::test]
async fn a_key_broker_opens_the_layer(
    #[values(PacketVersion::V1, PacketVersion::V2)] version: PacketVersion,
    #[values(WrapType::A256Gcm, WrapType::A256Ctr)] wrap_type: WrapType,
) {
    let (private, annotations) = annotations_for(&[broker(KID, [1; 32], wrap_type, version)]);
    assert!(annotations.contains_key("org.opencontainers.image.enc.keys.provider.attestation-agent"));
    let keys = Keys::with(KID, [1; 32]);
    let opened = Unwrapper::new(vec![], Some(keys.clone())).unwrap(&annotations).await.unwrap();
    assert_eq!(opened.to_json().as_bytes(), private.to_json().as_bytes());
    assert_eq!(keys.asked(), [KID]);
}

#[tokio::test]
async fn every_recipient_opens_the_layer() {
    let holders = ["RSA", "P-256"].map(private_pem);
    let recipients = [
        jwe(&holders[0]),
        default_broker("kbs:///a/b/c", [1; 32]),
        jwe(&holders[1]),
        default_broker(KID, [2; 32]),
    ];
    let (private_options, annotations) = annotations_for(&recipients);
    let unwrappers = [
        Unwrapper::new(vec![private(&holders[0])], None),
        Unwrapper::new(vec![private(&holders[1])], None),
        Unwrapper::new(vec![], Some(Keys::with("kbs:///a/b/c", [1; 32]))),
        Unwrapper::new(vec![], Some(Keys::with(KID, [2; 32]))),
    ];
    for unwrapper in unwrappers {
        let opened = unwrapper.unwrap(&annotations).await.unwrap();
        assert_eq!(opened.to_json().as_bytes(), private_options.to_json().as_bytes());
    }
}

#[tokio::test]
async fn an_unordered_map_of_annotations_serves_as_well() {
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    let annotations: HashMap<_, _> = annotations.into_iter().collect();
    assert!(Unwrapper::new(vec![], Some(Keys::with(KID, [1; 32]))).unwrap(&annotations).await.is_ok());
}

#[tokio::test]
async fn the_key_broker_is_not_asked_where_a_private_key_serves() {
    let holder = private_pem("P-256");
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32]), jwe(&holder)]);
    let keys = Keys::with(KID, [1; 32]);
    let unwrapper = Unwrapper::new(vec![private(&holder)], Some(keys.clone()));
    let mut annotations = EncryptionAnnotations::parse(&annotations).unwrap();
    for _ in 0..2 {
        annotations.wrapped_keys.reverse();
        assert!(unwrapper.open(annotations.clone()).await.is_ok());
    }
    assert!(keys.asked().is_empty());
}

#[tokio::test]
async fn the_key_broker_is_not_asked_about_packets_of_other_providers() {
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    let mut annotations = EncryptionAnnotations::parse(&annotations).unwrap();
    annotations.wrapped_keys[0].scheme = Scheme::Provider("other".into());
    let keys = Keys::with(KID, [1; 32]);
    let refused = Unwrapper::new(vec![], Some(keys.clone())).open(annotations).await.unwrap_err();
    assert!(matches!(attempts(refused)[0].1, AttemptError::NoKey));
    assert!(keys.asked().is_empty());
}

#[tokio::test]
async fn schemes_without_a_key_are_passed_over() {
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    let mut parsed = EncryptionAnnotations::parse(&annotations).unwrap();
    for scheme in [Scheme::Pgp, Scheme::Pkcs7, Scheme::Provider("other".into()), Scheme::Jwe] {
        parsed.wrapped_keys.insert(0, WrappedKey { scheme, wrapping: b"whatever".to_vec() });
    }
    let annotations = parsed.emit();
    assert!(Unwrapper::new(vec![], Some(Keys::with(KID, [1; 32]))).unwrap(&annotations).await.is_ok());
    let refused = attempts(Unwrapper::default().unwrap(&annotations).await.unwrap_err());
    assert_eq!(refused.len(), 5);
    assert!(refused.iter().all(|(_, error)| matches!(error, AttemptError::NoKey)));
}

#[tokio::test]
async fn a_wrapping_that_does_not_open_does_not_hide_the_next() {
    let (_, annotations) = annotations_for(&[
        default_broker("kbs:///not/granted/key", [9; 32]),
        default_broker(KID, [8; 32]),
        default_broker(KID, [1; 32]),
    ]);
    let mut parsed = EncryptionAnnotations::parse(&annotations).unwrap();
    parsed.wrapped_keys.insert(0, WrappedKey { scheme: provider(), wrapping: b"{}".to_vec() });
    let keys = Keys::with(KID, [1; 32]);
    let unwrapper = Unwrapper::new(vec![], Some(keys.clone()));
    assert!(unwrapper.unwrap(&parsed.emit()).await.is_ok());
    assert_eq!(keys.asked(), ["kbs:///not/granted/key", KID, KID]);
}

#[tokio::test]
async fn where_nothing_opens_every_attempt_is_told() {
    let (_, annotations) = annotations_for(&[
        jwe(&private_pem("RSA")),
        default_broker("kbs:///a/b/c", [1; 32]),
        default_broker(KID, [2; 32]),
    ]);
    let unwrapper = Unwrapper::new(vec![private(&private_pem("RSA"))], Some(Keys::with(KID, [3; 32])));
    let error = unwrapper.unwrap(&annotations).await.unwrap_err();
    let text = error.to_string();
    for part in ["RSA-OAEP", "RSA 2048", "kbs:///a/b/c", "denial d-17", KID] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let attempts = attempts(error);
    assert!(matches!(&attempts[0], (Scheme::Jwe, AttemptError::Jwe(JweError::NotOpened { .. }))));
    let AttemptError::Key { kid, source: KeyError::Denied { denial } } = &attempts[1].1 else {
        panic!("{text}")
    };
    assert_eq!((kid.as_str(), denial.as_deref()), ("kbs:///a/b/c", Some("d-17")));
    assert!(matches!(&attempts[2].1, AttemptError::Packet(PacketError::NotOpened { .. })));
}

#[tokio::test]
async fn an_unauthenticated_packet_under_another_key_is_refused() {
    let (_, annotations) = annotations_for(&[broker(KID, [1; 32], WrapType::A256Ctr, PacketVersion::V1)]);
    let unwrapper = Unwrapper::new(vec![], Some(Keys::with(KID, [2; 32])));
    let attempts = attempts(unwrapper.unwrap(&annotations).await.unwrap_err());
    assert!(matches!(attempts[0].1, AttemptError::Options(LayerError::Malformed { .. })));
}

#[tokio::test]
async fn refused_annotations_are_not_tried() {
    let keys = Keys::with(KID, [1; 32]);
    let unwrapper = Unwrapper::new(vec![], Some(keys.clone()));
    let (_, mut annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    annotations.remove("org.opencontainers.image.enc.pubopts");
    let refused = unwrapper.unwrap(&annotations).await.unwrap_err();
    assert!(matches!(refused, UnwrapError::Annotations(AnnotationError::NoPublicOptions)));
    assert!(keys.asked().is_empty());
}

#[tokio::test]
async fn options_of_another_layer_do_not_decrypt_this_one() {
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    let (_, public, mut ciphertext) = encrypted(b"layer");
    let unwrapper = Unwrapper::new(vec![], Some(Keys::with(KID, [1; 32])));
    let private = unwrapper.unwrap(&annotations).await.unwrap();
    let mut decryptor = Decryptor::new(&private, &public).unwrap();
    decryptor.update(&mut ciphertext).unwrap();
    assert_eq!(decryptor.finish(), Err(LayerError::HmacMismatch));
}

#[test]
fn opening_can_move_between_threads() {
    fn is_send(_: &impl Send) {}
    let (_, annotations) = annotations_for(&[default_broker(KID, [1; 32])]);
    is_send(&Unwrapper::default().unwrap(&annotations));
}

#[test]
fn a_layer_for_nobody_is_refused() {
    let (private, public, _) = encrypted(b"layer");
    assert!(matches!(wrap(&[], &private, &public), Err(WrapError::NoRecipients)));
}

#[test]
fn recipients_are_read_as_people_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let public = write("public.pem", public_pem(&private_pem("P-256")).as_bytes());
    assert!(matches!(Recipient::parse(&format!("jwe:{public}")).unwrap(), Recipient::Jwe(_)));
    let key = write("one.key", &[5; 32]);
    let text = format!("provider:attestation-agent:keyid={KID}::keypath={key}::algorithm=A256CTR");
    let recipient = Recipient::parse(&text).unwrap();
    assert!(!format!("{recipient:?}").contains("5, 5"), "a key must not print");
    let Recipient::KeyProvider { kid, key, wrap_type, version } = recipient else { panic!("{recipient:?}") };
    assert_eq!(
        (kid.as_str(), *key, wrap_type, version),
        (KID, [5; 32], WrapType::A256Ctr, PacketVersion::V1)
    );
}

#[test]
fn recipients_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.key");
    std::fs::write(&short, [1; 31]).unwrap();
    let short = short.display().to_string();
    let refused = |text: &str| Recipient::parse(text).unwrap_err();
    assert!(matches!(refused("pgp:someone"), RecipientError::Scheme { actual } if actual == "pgp"));
    assert!(matches!(refused(""), RecipientError::Scheme { .. }));
    assert!(
        matches!(refused("provider:other:keyid=x"), RecipientError::Provider { actual } if actual == "other")
    );
    assert!(matches!(refused("provider:attestation-agent"), RecipientError::Provider { .. }));
    assert!(matches!(refused("jwe:/nonexistent"), RecipientError::Read { .. }));
    assert!(matches!(refused(&format!("jwe:{short}")), RecipientError::Key { .. }));
    let missing = |text: &str| match refused(text) {
        RecipientError::Parameters(ParameterError::Missing { name }) => name,
        other => panic!("{other}"),
    };
    assert_eq!(missing(&format!("provider:attestation-agent:keypath={short}")), "keyid");
    assert_eq!(missing(&format!("provider:attestation-agent:keyid={KID}")), "keypath");
    let text = format!("provider:attestation-agent:keyid={KID}::keypath={short}");
    assert!(matches!(refused(&text), RecipientError::KeyLength { actual: 31, .. }));
}

#[test]
fn an_unwrapper_does_not_print_its_keys() {
    let unwrapper = Unwrapper::new(vec![private(&private_pem("P-256"))], None);
    assert_eq!(
        format!("{unwrapper:?}"),
        "Unwrapper { private_keys: [PrivateKey(EC P-256)], resolver: false }"
    );
}
