//! The endorsement key, its certificate and the chain to an anchor.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    PKCS_RSA_SHA384, SignatureAlgorithm, date_time_ymd,
};
use rstest::rstest;
use sealpod_evidence::tpm::{RequestParams, attributes};
use serde_json::json;

use crate::authority::{Authority, VALID_FROM, VALID_TO};
use crate::event_log::sha256;
use crate::keys::{AttestationKey, EndorsementKey, SHA1, SHA384, ecc_public};
use crate::support::Guest;

/// ecdsa-with-SHA256.
const ECDSA_SHA256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// What a point of the curve P-256 begins with in SubjectPublicKeyInfo, its own first byte included.
const P256_POINT: [u8; 4] = [0x03, 0x42, 0, 4];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// The guest under another root, which the owner trusts.
fn under(root: Authority) -> Guest {
    let mut guest = Guest::new();
    guest.request_mut().ek_certificate = root.endorse(&guest.endorsement, |_| ());
    guest.anchors.tpm_ek_roots = vec![root.certificate.clone()];
    guest.root = root;
    guest
}

/// The guest under the last of some authorities, each of which the one before it vouches for; all are trusted.
fn under_chain(intermediates: usize, change: fn(&mut CertificateParams)) -> Guest {
    let mut guest = under(Authority::root(change));
    let mut issuer = Authority::root(change);
    let mut anchors = vec![issuer.certificate.clone()];
    for index in 0..intermediates {
        issuer = issuer.intermediate(&format!("An authority {index}"), |_| ());
        anchors.push(issuer.certificate.clone());
    }
    guest.request_mut().ek_certificate = issuer.endorse(&guest.endorsement, |_| ());
    guest.anchors.tpm_ek_roots = anchors;
    guest
}

#[track_caller]
fn assert_refused_twice(guest: &Guest, claim: &str, actual: &str) {
    let refusal = guest.refused_twice();
    assert_eq!(refusal.claim, claim, "{refusal}");
    assert!(refusal.actual.contains(actual), "{refusal}");
}

#[rstest]
#[case(&PKCS_ECDSA_P256_SHA256)]
#[case(&PKCS_ECDSA_P384_SHA384)]
#[case(&PKCS_RSA_SHA256)]
#[case(&PKCS_RSA_SHA384)]
fn a_root_with_any_supported_key_is_taken(#[case] kind: &'static SignatureAlgorithm) {
    under(Authority::root_with(KeyPair::generate_for(kind).unwrap(), |_| ())).verify().unwrap();
}

#[test]
fn a_root_with_an_unsupported_key_is_refused() {
    let root = Authority::root_with(KeyPair::generate_for(&PKCS_ED25519).unwrap(), |_| ());
    assert_refused_twice(&under(root), "ek_certificate", "one that CN=A TPM maker's root issued");
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    let mut guest = Guest::new();
    guest.anchors.tpm_ek_roots.clear();
    assert_refused_twice(&guest, "ek_certificate", "one that CN=A TPM maker's root issued");
    // The same name, another key.
    guest.anchors.tpm_ek_roots = vec![Authority::root(|_| ()).certificate];
    assert_refused_twice(&guest, "ek_certificate", "one that CN=A TPM maker's root issued");
    // The same key, another name.
    let key = KeyPair::try_from(guest.root.key.serialized_der()).unwrap();
    let renamed = Authority::root_with(key, |params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "Another name");
    });
    guest.anchors.tpm_ek_roots = vec![renamed.certificate];
    assert_refused_twice(&guest, "ek_certificate", "one that CN=A TPM maker's root issued");
}

#[test]
fn an_anchor_that_is_no_certificate_vouches_for_nothing() {
    let mut guest = Guest::new();
    guest.anchors.tpm_ek_roots = vec![b"-----BEGIN CERTIFICATE-----".to_vec(), vec![], vec![0x30, 0x82]];
    assert_refused_twice(&guest, "ek_certificate", "one that");
}

#[rstest]
#[case::empty(vec![])]
#[case::text(b"certificate".to_vec())]
#[case::shorter_than_it_says(vec![0x30, 0x82, 0xff, 0xff, 0])]
#[case::another_sequence(vec![0x30, 0x81, 2, 5, 0])]
fn what_is_no_certificate_is_refused(#[case] certificate: Vec<u8>) {
    let mut guest = Guest::new();
    guest.request_mut().ek_certificate = certificate;
    assert_refused_twice(&guest, "ek_certificate", "no X.509 certificate");
}

#[test]
fn an_altered_certificate_is_refused() {
    let mut guest = Guest::new();
    let certificate = &mut guest.request_mut().ek_certificate;
    // Within the serial number.
    certificate[20] ^= 1;
    assert_refused_twice(&guest, "ek_certificate", "one that CN=A TPM maker's root issued");
}

#[test]
fn a_certificate_whose_signed_part_names_another_algorithm_is_refused() {
    let mut guest = Guest::new();
    let certificate = guest.request_mut().ek_certificate.clone();
    guest.request_mut().ek_certificate = guest.root.sign_altered(&certificate, |_| ());
    guest.verify().unwrap();
    guest.request_mut().ek_certificate = guest.root.sign_altered(&certificate, |signed| {
        let place = signed.windows(ECDSA_SHA256.len()).position(|window| window == ECDSA_SHA256).unwrap();
        signed[place + ECDSA_SHA256.len() - 1] = 3;
    });
    assert_refused_twice(&guest, "ek_certificate", "one that CN=A TPM maker's root issued");
}

#[test]
fn a_key_on_p_384_may_sign_with_sha_256() {
    let certificate = include_bytes!("../data/p384-sha256-ek.der");
    let mut guest = Guest::new();
    guest.anchors.tpm_ek_roots = vec![include_bytes!("../data/p384-sha256-root.der").to_vec()];
    let place = certificate.windows(P256_POINT.len()).position(|window| window == P256_POINT).unwrap();
    let point = &certificate[place + P256_POINT.len() - 1..][..65];
    let ek_public = ecc_public(0x0003, point, &guest.endorsement.area());
    *guest.request_mut() =
        RequestParams { ek_certificate: certificate.to_vec(), ek_public, ..guest.request_mut().clone() };
    guest.verify().unwrap();
}

#[test]
fn what_fills_the_memory_after_a_certificate_is_not_part_of_it() {
    let mut guest = Guest::new();
    let digest = hex::encode(sha256(&guest.request_mut().ek_certificate));
    guest.request_mut().ek_certificate.extend([0xff; 100]);
    assert_eq!(guest.verify().unwrap().0["tpm"]["ek_certificate"], json!(digest));
}

#[rstest]
#[case(VALID_FROM - 1, false)]
#[case(VALID_FROM, true)]
#[case(VALID_TO, true)]
#[case(VALID_TO + 1, false)]
fn a_certificate_counts_while_it_is_valid(#[case] now: u64, #[case] good: bool) {
    let mut guest = under(Authority::root(|params| {
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2049, 1, 1));
    }));
    guest.now = now;
    if good {
        guest.verify().unwrap();
    } else {
        assert_refused_twice(&guest, "ek_certificate", &format!("valid from {VALID_FROM} to {VALID_TO}"));
        assert!(guest.refused_twice().expected.contains(&format!("CN=A TPM valid at {now}")));
    }
}

#[rstest]
#[case::expired(|params: &mut CertificateParams| params.not_after = date_time_ymd(2021, 1, 1))]
#[case::not_yet_valid(|params: &mut CertificateParams| params.not_before = date_time_ymd(2039, 1, 1))]
fn an_authority_counts_while_it_is_valid(
    #[case] change: fn(&mut CertificateParams),
    #[values(0, 1)] intermediates: usize,
) {
    let guest = under_chain(intermediates, change);
    assert_refused_twice(&guest, "ek_certificate", "valid from");
    assert!(guest.refused_twice().expected.contains("A TPM maker's root"));
}

#[rstest]
#[case::by_silence(IsCa::NoCa)]
#[case::by_word(IsCa::ExplicitNoCa)]
fn an_issuer_that_is_no_authority_is_refused(#[case] is_ca: IsCa, #[values(0, 1)] intermediates: usize) {
    let change = match is_ca {
        IsCa::NoCa => |params: &mut CertificateParams| params.is_ca = IsCa::NoCa,
        _ => |params: &mut CertificateParams| params.is_ca = IsCa::ExplicitNoCa,
    };
    let guest = under_chain(intermediates, change);
    assert_refused_twice(&guest, "ek_certificate", "a certificate of no authority");
}

#[test]
fn an_authority_whose_key_may_not_sign_certificates_is_refused() {
    let root = Authority::root(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_refused_twice(&under(root), "ek_certificate", "a key that may not sign certificates");
}

#[test]
fn an_authority_with_a_malformed_key_usage_is_refused() {
    let root = Authority::root(|params| {
        params.key_usages.clear();
        params.custom_extensions = vec![CustomExtension::from_oid_content(KEY_USAGE, vec![5, 0])];
    });
    assert_refused_twice(&under(root), "ek_certificate", "a malformed key usage");
}

#[test]
fn a_chain_may_be_as_long_as_its_authorities_allow() {
    fn constrained(params: &mut CertificateParams) {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    }
    under_chain(0, constrained).verify().unwrap();
    under_chain(1, constrained).verify().unwrap();
    assert_refused_twice(&under_chain(2, constrained), "ek_certificate", "a chain longer than it allows");
    under_chain(5, |_| ()).verify().unwrap();
    assert_refused_twice(&under_chain(6, |_| ()), "ek_certificate", "a chain that is too long");
}

#[test]
fn an_intermediate_is_trusted_by_itself() {
    let mut guest = under_chain(2, |_| ());
    guest.anchors.tpm_ek_roots.remove(0);
    guest.verify().unwrap();
    // What the certificate's own issuer is trusted by does not help where that issuer is not trusted.
    guest.anchors.tpm_ek_roots.pop();
    assert_refused_twice(&guest, "ek_certificate", "one that CN=An authority 1 issued");
}

#[test]
fn a_certificate_for_another_use_is_refused() {
    Guest::endorsed(|params| params.extended_key_usages.clear()).verify().unwrap();
    // tcg-kp-PlatformAttributeCertificate.
    let platform = ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 2]);
    let guest = Guest::endorsed(|params| params.extended_key_usages = vec![platform]);
    assert_refused_twice(&guest, "ek_certificate", "one for another use of the key");
    let guest = Guest::endorsed(|params| {
        params.extended_key_usages.clear();
        params.custom_extensions = vec![CustomExtension::from_oid_content(EXTENDED_KEY_USAGE, vec![5, 0])];
    });
    assert_refused_twice(&guest, "ek_certificate", "a malformed extended key usage");
}

#[test]
fn a_certificate_of_another_key_is_refused() {
    let mut guest = Guest::new();
    guest.request_mut().ek_certificate = guest.root.endorse(&EndorsementKey::p256(), |_| ());
    assert_refused_twice(&guest, "ek", "another key");
}

#[rstest]
#[case::leaves_its_tpm(attributes::FIXED_TPM, 0)]
#[case::gets_another_parent(attributes::FIXED_PARENT, 0)]
#[case::was_made_elsewhere(attributes::SENSITIVE_DATA_ORIGIN, 0)]
#[case::decrypts_anything(attributes::RESTRICTED, 0)]
#[case::does_not_decrypt(attributes::DECRYPT, 0)]
#[case::signs(0, attributes::SIGN)]
fn a_key_that_is_not_a_restricted_decryption_key_is_refused(#[case] without: u32, #[case] with: u32) {
    let mut guest = Guest::new();
    let mut area = guest.endorsement.area();
    area.attributes = area.attributes & !without | with;
    guest.request_mut().ek_public = guest.endorsement.public(&area);
    assert_refused_twice(&guest, "ek", &format!("attributes {:#010x}", area.attributes));
}

#[test]
fn an_endorsement_key_without_a_cipher_is_refused() {
    let mut guest = Guest::new();
    let mut area = guest.endorsement.area();
    area.symmetric = None;
    guest.request_mut().ek_public = guest.endorsement.public(&area);
    assert_refused_twice(&guest, "ek", "attributes");
}

#[test]
fn a_malformed_endorsement_key_is_refused() {
    let mut guest = Guest::new();
    guest.request_mut().ek_public.truncate(20);
    assert_refused_twice(&guest, "ek", "the public area ends early");
}

#[rstest]
#[case(EndorsementKey::p256, SHA1)]
#[case(EndorsementKey::rsa, SHA1)]
#[case(EndorsementKey::rsa, SHA384)]
fn no_credential_is_made_for_names_of_an_unsupported_hash(
    #[case] key: fn() -> EndorsementKey,
    #[case] hash: u16,
) {
    let mut guest = Guest::with_keys(key(), AttestationKey::p256());
    let mut area = guest.endorsement.area();
    area.name_algorithm = hash;
    guest.request_mut().ek_public = guest.endorsement.public(&area);
    assert_eq!(guest.make_credential(b"secret").unwrap_err().claim, "ek");
}

#[test]
fn no_credential_is_made_for_a_point_off_the_curve() {
    let mut guest = Guest::new();
    let mut point = guest.endorsement.key_bytes();
    let ek_public = &mut guest.request_mut().ek_public;
    *ek_public.last_mut().unwrap() ^= 1;
    *point.last_mut().unwrap() ^= 1;
    let certificate = guest.root.endorse_bytes(&point, guest.endorsement.kind(), |_| ());
    guest.request_mut().ek_certificate = certificate;
    let refusal = guest.make_credential(b"secret").unwrap_err();
    assert_eq!((refusal.claim.as_str(), refusal.expected.as_str()), ("ek", "a point of the curve"));
}

#[test]
fn no_credential_is_made_for_an_rsa_key_that_cannot_encrypt() {
    let mut guest = Guest::with_keys(EndorsementKey::rsa(), AttestationKey::p256());
    let mut key = guest.endorsement.key_bytes();
    // An even modulus: it stands before the exponent in a certificate, and at the end of a public area.
    let end = key.len() - 5;
    key[end - 1] ^= 1;
    *guest.request_mut().ek_public.last_mut().unwrap() ^= 1;
    let certificate = guest.root.endorse_bytes(&key, guest.endorsement.kind(), |_| ());
    guest.request_mut().ek_certificate = certificate;
    let refusal = guest.make_credential(b"secret").unwrap_err();
    assert_eq!((refusal.claim.as_str(), refusal.expected.as_str()), ("ek", "an RSA key that can encrypt"));
}
