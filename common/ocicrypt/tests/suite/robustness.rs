//! Whatever a registry serves, nothing panics, and nothing altered passes for the original.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;
use sealpod_ocicrypt::annotations::EncryptionAnnotations;
use sealpod_ocicrypt::jwe::{self, PrivateKey, PublicKey};
use sealpod_ocicrypt::keyprovider::{
    AnnotationPacket, KeyProviderInput, KeyProviderOutput, PacketVersion, Parameters, WrapType,
};
use sealpod_ocicrypt::layer::{PrivateOptions, PublicOptions};
use sealpod_ocicrypt::{Recipient, Secret, wrap};

use crate::support::{encrypted, private_pem, public_pem};

const PLAINTEXT: &[u8] = b"private options";

/// A private key, and a JWE that it opens.
static JWE: LazyLock<(PrivateKey, String)> = LazyLock::new(|| {
    let [holder, other] = ["P-256", "RSA"].map(private_pem);
    let recipients = [&other, &holder].map(|key| PublicKey::parse(public_pem(key).as_bytes()).unwrap());
    (PrivateKey::parse(holder.as_bytes()).unwrap(), jwe::wrap(&recipients, PLAINTEXT).unwrap())
});

/// One change to a text: bytes overwritten, taken out or put in.
#[derive(Debug, Clone)]
struct Mutation {
    at: prop::sample::Index,
    remove: usize,
    insert: Vec<u8>,
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    // Bytes that mean something to the parsers are likelier than others.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]":,.-_=/+0189AZaznull"#.to_vec())];
    let mutation = (any::<prop::sample::Index>(), 0usize..8, prop::collection::vec(byte, 0..8))
        .prop_map(|(at, remove, insert)| Mutation { at, remove, insert });
    prop::collection::vec(mutation, 1..5)
}

fn mutate(original: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for Mutation { at, remove, insert } in mutations {
        let at = at.index(bytes.len() + 1);
        let end = (at + remove).min(bytes.len());
        bytes.splice(at..end, insert.iter().copied());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_mutated_jwe_opens_to_its_plaintext_or_not_at_all(mutations in mutations()) {
        let (key, message) = &*JWE;
        let mutated = mutate(message.as_bytes(), &mutations);
        if let Ok(opened) = jwe::unwrap(std::slice::from_ref(key), &mutated) {
            prop_assert_eq!(opened.as_bytes(), PLAINTEXT);
        }
    }

    #[test]
    fn a_mutated_packet_opens_to_its_plaintext_or_not_at_all(mutations in mutations(), v2: bool) {
        let version = if v2 { PacketVersion::V2 } else { PacketVersion::V1 };
        let packet = AnnotationPacket::seal(version, "kbs:///a/b/c", &[1; 32], WrapType::A256Gcm, PLAINTEXT).unwrap();
        let mutated = AnnotationPacket::parse(&mutate(packet.to_json().as_bytes(), &mutations));
        if let Ok(Ok(opened)) = mutated.map(|packet| packet.open(&Secret::new(vec![1; 32]))) {
            // The wrap type is not covered by the tag, but A256CTR would need a longer IV as well.
            prop_assert_eq!(opened.as_bytes(), PLAINTEXT);
        }
    }

    #[test]
    fn mutated_options_do_not_panic(mutations in mutations()) {
        let (private, public, _) = encrypted(b"layer");
        _ = PrivateOptions::parse(&mutate(private.to_json().as_bytes(), &mutations));
        _ = PublicOptions::parse(&mutate(public.to_json().as_bytes(), &mutations));
    }

    #[test]
    fn mutated_annotations_do_not_panic(mutations in mutations(), which: prop::sample::Index) {
        let (private, public, _) = encrypted(b"layer");
        let recipient = Recipient::KeyProvider {
            kid: "kbs:///a/b/c".into(),
            key: [1; 32].into(),
            wrap_type: WrapType::A256Gcm,
            version: PacketVersion::V1,
        };
        let mut annotations = wrap(&[recipient.clone(), recipient], &private, &public).unwrap();
        let index = which.index(annotations.len());
        let value = annotations.values_mut().nth(index).unwrap();
        *value = String::from_utf8_lossy(&mutate(value.as_bytes(), &mutations)).into_owned();
        _ = EncryptionAnnotations::parse(&annotations);
    }

    #[test]
    fn arbitrary_input_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text: String) {
        _ = jwe::unwrap(std::slice::from_ref(&JWE.0), &bytes);
        _ = AnnotationPacket::parse(&bytes);
        _ = PrivateOptions::parse(&bytes);
        _ = KeyProviderInput::parse(&bytes);
        _ = KeyProviderOutput::parse(&bytes);
        _ = PublicKey::parse(&bytes);
        _ = PrivateKey::parse(&bytes);
        _ = Parameters::parse(&text);
        let pubopts = "org.opencontainers.image.enc.pubopts".to_owned();
        _ = EncryptionAnnotations::parse(&BTreeMap::from([(pubopts, text)]));
    }
}

proptest! {
    #[test]
    fn a_mutated_key_file_does_not_panic(mutations in mutations()) {
        static KEYS: LazyLock<[String; 4]> = LazyLock::new(|| {
            let [rsa, ec] = ["RSA", "P-521"].map(private_pem);
            let [rsa_public, ec_public] = [public_pem(&rsa), public_pem(&ec)];
            [rsa, ec, rsa_public, ec_public]
        });
        for key in KEYS.iter() {
            let mutated = mutate(key.as_bytes(), &mutations);
            _ = PublicKey::parse(&mutated);
            _ = PrivateKey::parse(&mutated);
        }
    }

    #[test]
    fn mutated_messages_do_not_panic(mutations in mutations()) {
        let request = br#"{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"a":["eA=="]}},"annotation":"e30="}}"#;
        _ = KeyProviderInput::parse(&mutate(request, &mutations));
        _ = KeyProviderOutput::parse(&mutate(br#"{"keyunwrapresults":{"optsdata":[1,2]}}"#, &mutations));
    }
}
