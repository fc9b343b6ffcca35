//! Good evidence is taken, and says what it says.

use rstest::rstest;
use serde_json::json;

use crate::event_log::sha256;
use crate::keys::{AttestationKey, EndorsementKey, name};
use crate::support::{Guest, SECRET};

#[rstest]
fn evidence_under_any_supported_keys_is_taken(
    #[values(EndorsementKey::p256, EndorsementKey::p384, EndorsementKey::rsa)]
    endorsement: fn() -> EndorsementKey,
    #[values(AttestationKey::p256, AttestationKey::p384, AttestationKey::rsa_pkcs1, AttestationKey::rsa_pss)]
    attestation: fn() -> AttestationKey,
) {
    let guest = Guest::with_keys(endorsement(), attestation());
    let challenge = guest.make_credential(&SECRET).unwrap();
    let area = guest.attestation.area();
    let object_name = name(area.name_algorithm, &guest.attestation.public(&area));
    assert_eq!(guest.endorsement.activate(&object_name, &challenge).unwrap(), SECRET);
    guest.verify().unwrap();
}

#[test]
fn the_claims_are_what_was_measured() {
    let guest = Guest::new();
    let pcrs: serde_json::Map<_, _> = guest
        .registers
        .iter()
        .enumerate()
        .map(|(register, value)| (register.to_string(), hex::encode(value).into()))
        .collect();
    let expected = json!({
        "firmware": "614b0bfb88626b36415706a5143619938a38542e732587e2fa05c481f2843d4d",
        "kernel": "c0963be26dc20f5fa142e193876fdaaaf68332f8184b6f9beb6ebf9e0fac56b8",
        "initrd": "927c6169b667438ce4318e144bc1ecd7ffd0fc3869fce9786ad0ca722996e099",
        "cmdline": "f710557af1cdaa0bd15630c310ee866386314fb6cd6b3324c5a8b2d1c67c9521",
        "secure_boot": false,
        "init_data": "",
        "tpm": {
            "pcrs": pcrs,
            "ak": hex::encode(sha256(&guest.ak_public())),
            "ek_certificate": hex::encode(sha256(&guest.request.as_ref().unwrap().ek_certificate)),
        },
    });
    assert_eq!(serde_json::to_value(guest.verify().unwrap()).unwrap(), expected);
}

#[test]
fn an_enrolled_key_needs_neither_certificate_nor_credential() {
    let mut guest = Guest::new();
    guest.enrol();
    guest.anchors.tpm_ek_roots.clear();
    (guest.request, guest.credential) = (None, None);
    assert_eq!(guest.verify().unwrap().0["tpm"]["ek_certificate"], json!(null));
}

#[test]
fn a_credential_opens_only_for_the_key_that_it_was_made_for() {
    for endorsement in [EndorsementKey::p256(), EndorsementKey::p384(), EndorsementKey::rsa()] {
        let guest = Guest::with_keys(endorsement, AttestationKey::p256());
        let challenge = guest.make_credential(&SECRET).unwrap();
        let other = AttestationKey::p256();
        let area = other.area();
        let object_name = name(area.name_algorithm, &other.public(&area));
        assert_eq!(guest.endorsement.activate(&object_name, &challenge), None);
    }
}
