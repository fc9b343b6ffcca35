//! Whatever a guest sends, the verifier gives claims or a refusal: it does not panic, and takes nothing altered.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sealpod_evidence::event_log::{Event, kind};
use serde_json::{Value, json};

use crate::event_log::{encode, event, event_with, extend, genuine, genuine_events};
use crate::support::Guest;

/// Its attestation key is enrolled, so that what the key signs is looked at.
static ENROLLED: LazyLock<Guest> = LazyLock::new(|| {
    let mut guest = Guest::new();
    guest.enrol();
    guest
});

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..600)
}

/// Bytes to overwrite, and how much of the end to leave out.
fn mutations() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (vec((any::<Index>(), any::<u8>()), 0..4), any::<Option<Index>>())
}

fn mutate(original: &[u8], (changes, cut): &(Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for (place, byte) in changes {
        *place.get_mut(&mut bytes) = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

/// A value of JSON, as deep as evidence is.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        "[A-Za-z0-9+/=]{0,40}".prop_map(Value::from)
    ];
    const NAMES: [&str; 8] =
        ["tpm_quote", "ak_public", "event_log", "signature", "message", "pcrs", "svn", "report_data"];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((select(&NAMES[..]), inner), 0..6).prop_map(|members| {
                Value::Object(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
            }),
        ]
    })
}

/// An event such as a log has, of any register.
fn events() -> impl Strategy<Value = Vec<Event>> {
    const KINDS: [u32; 7] = [
        kind::NO_ACTION,
        kind::SEPARATOR,
        kind::EVENT_TAG,
        kind::EFI_VARIABLE_DRIVER_CONFIG,
        kind::EFI_BOOT_SERVICES_APPLICATION,
        kind::EFI_ACTION,
        kind::EFI_PLATFORM_FIRMWARE_BLOB,
    ];
    let one = (0..10u32, select(&KINDS[..]), vec(any::<u8>(), 0..40), any::<bool>()).prop_map(
        |(pcr, kind, data, honest)| {
            if honest { event(pcr, kind, &data) } else { event_with(pcr, kind, &[7; 32], &data) }
        },
    );
    vec(one, 0..4)
}

proptest! {
    #[test]
    fn arbitrary_json_is_refused(value in value()) {
        prop_assert!(ENROLLED.verify_value(&value).is_err());
    }

    #[test]
    fn an_arbitrary_signature_is_refused(signature in bytes()) {
        prop_assert!(ENROLLED.verify_altered(|evidence| evidence.tpm_quote.signature = signature).is_err());
    }

    #[test]
    fn an_arbitrary_attestation_that_the_key_signed_is_refused(message in bytes(), generated: bool) {
        let message = if generated { [&[0xff, 0x54, 0x43, 0x47, 0x80, 0x18], &message[..]].concat() } else { message };
        let result = ENROLLED.verify_altered(|evidence| {
            evidence.tpm_quote.signature = ENROLLED.attestation.sign(&message);
            evidence.tpm_quote.message = message;
        });
        prop_assert!(result.is_err());
    }

    #[test]
    fn an_altered_attestation_that_the_key_signed_does_not_panic(mutations in mutations()) {
        let message = mutate(&ENROLLED.message(), &mutations);
        _ = ENROLLED.verify_altered(|evidence| {
            evidence.tpm_quote.signature = ENROLLED.attestation.sign(&message);
            evidence.tpm_quote.message = message;
        });
    }

    #[test]
    fn arbitrary_registers_are_refused(pcrs in vec(".{0,70}", 0..12)) {
        prop_assert!(ENROLLED.verify_altered(|evidence| evidence.tpm_quote.pcrs = pcrs).is_err());
    }

    #[test]
    fn an_arbitrary_log_is_refused(log in bytes()) {
        prop_assert!(ENROLLED.verify_altered(|evidence| evidence.event_log = Some(log)).is_err());
    }

    #[test]
    fn an_altered_log_does_not_panic(mutations in mutations()) {
        let log = mutate(&genuine(), &mutations);
        _ = ENROLLED.verify_altered(|evidence| evidence.event_log = Some(log));
    }

    #[test]
    fn a_log_with_events_more_or_less_gives_the_claims_of_its_own_events(
        place: Index, removed in 0..3usize, inserted in events()
    ) {
        let mut events = genuine_events();
        let place = place.index(events.len());
        let end = (place + removed).min(events.len());
        events.splice(place..end, inserted);
        let mut guest = Guest::new();
        (guest.registers, guest.event_log) = (extend(&events), Some(encode(&events)));
        if let Ok(claims) = guest.verify() {
            let explained = |claim: &str| {
                events.iter().flat_map(|event| event.digests.values()).any(|digest| {
                    claims.0[claim] == json!(hex::encode(digest))
                })
            };
            for claim in ["firmware", "kernel", "initrd", "cmdline"] {
                prop_assert!(explained(claim));
            }
        }
    }

    #[test]
    fn an_arbitrary_certificate_is_refused(certificate in bytes(), mutations in mutations()) {
        let mut guest = Guest::new();
        let good = guest.request_mut().ek_certificate.clone();
        for certificate in [certificate, mutate(&good, &mutations)] {
            guest.request_mut().ek_certificate = certificate.clone();
            prop_assert!(guest.verify().is_err() || certificate.starts_with(&good));
            guest.anchors.tpm_ek_roots = vec![certificate];
            prop_assert!(guest.verify().is_err());
            guest.anchors.tpm_ek_roots = vec![guest.root.certificate.clone()];
        }
    }

    #[test]
    fn arbitrary_public_areas_do_not_panic(ek in bytes(), ak in bytes(), mutations in mutations()) {
        let mut guest = Guest::new();
        let good = guest.request.clone().unwrap();
        guest.request_mut().ek_public = ek;
        prop_assert!(guest.make_credential(b"secret").is_err());
        guest.request_mut().ek_public = mutate(&good.ek_public, &mutations);
        _ = guest.make_credential(b"secret");
        guest.request_mut().ek_public = good.ek_public;
        guest.request_mut().ak_public = ak;
        prop_assert!(guest.make_credential(b"secret").is_err());
        guest.request_mut().ak_public = mutate(&good.ak_public, &mutations);
        _ = guest.make_credential(b"secret");
    }

    #[test]
    fn an_arbitrary_key_that_is_enrolled_does_not_panic(key in bytes(), mutations in mutations()) {
        let guest = Guest::new();
        for key in [key, mutate(&guest.ak_public(), &mutations)] {
            let mut guest = Guest { anchors: guest.anchors.clone(), ..Guest::new() };
            let digest = crate::event_log::sha256(&key);
            guest.anchors.tpm_enrolled_aks = vec![digest.try_into().unwrap()];
            _ = guest.verify_altered(|evidence| evidence.ak_public = key);
        }
    }
}
