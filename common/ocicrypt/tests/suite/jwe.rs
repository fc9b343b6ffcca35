//! JSON Web Encryption and the key files for it.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rstest::rstest;
use sealpod_ocicrypt::jwe::{
    Algorithm, JweError, KeyFormatError, MAX_LENGTH, MAX_RECIPIENTS, PrivateKey, PublicKey, unwrap, wrap,
};
use serde_json::{Value, json};

use crate::support::{openssl, private_pem, public_pem};

/// RFC 7516 appendix A.1: the recipient's key.
const RFC_KEY: &str = concat!(
    r#"{"kty":"RSA","n":"oahUIoWw0K0usKNuOR6H4wkf4oBUXHTxRvgb48E-BVvxkeDNjbC4he8rUWcJoZmds2h7M70imEVhRU5djI"#,
    "NXtqllXI4DFqcI1DgjT9LewND8MW2Krf3Spsk_ZkoFnilakGygTwpZ3uesH-PFABNIUYpOiN15dsQRkgr0vEhxN92i2asbOenSZe",
    "yaxziK72UwxrrKoExv6kc5twXTq4h-QChLOln0_mtUZwfsRaMStPs6mS6XrgxnxbWhojf663tuEQueGC-FCMfra36C9knDFGzKsNa",
    r#"7LZK2djYgyD3JR_MB_4NUJW_TqOQtwHYbxevoJArm-L5StowjzGy-_bq6Gw","e":"AQAB","#,
    r#""d":"kLdtIj6GbDks_ApCSTYQtelcNttlKiOyPzMrXHeI-yk1F7-kpDxY4-WY5NWV5KntaEeXS1j82E375xxhWMHXyvjYecPT9f"#,
    "pwR_M9gV8n9Hrh2anTpTD93Dt62ypW3yDsJzBnTnrYu1iwWRgBKrEYY46qAZIrA2xAwnm2X7uGR1hghkqDp0Vqj3kbSCz1XyfCs6",
    "_LehBwtxHIyh8Ripy40p24moOAbgxVw3rxT_vlt3UVe4WO3JkJOzlpUf-KTVI2Ptgm-dARxTEtE-id-4OJr0h-K-VFs3VSndVTIzn",
    r#"Sxfyrj8ILL6MG_Uv8YAu7VILSB3lOW085-4qE3DzgrTjgyQ","#,
    r#""p":"1r52Xk46c-LsfB5P442p7atdPUrxQSy4mti_tZI3Mgf2EuFVbUoDBvaRQ-SWxkbkmoEzL7JXroSBjSrK3YIQgYdMgyAEPT"#,
    r#"PjXv_hI2_1eTSPVZfzL0lffNn03IXqWF5MDFuoUYE0hzb2vhrlN_rKrbfDIwUbTrjjgieRbwC6Cl0","#,
    r#""q":"wLb35x7hmQWZsWJmB_vle87ihgZ19S8lBEROLIsZG4ayZVe9Hi9gDVCOBmUDdaDYVTSNx_8Fyw1YYa9XGrGnDew00J28cR"#,
    r#"UoeBB_jKI1oma0Orv1T9aXIWxKwd4gvxFImOWr3QRL9KEBRzk2RatUBnmDZJTIAfwTs0g68UZHvtc","#,
    r#""dp":"ZK-YwE7diUh0qR1tR7w8WHtolDx3MZ_OTowiFvgfeQ3SiresXjm9gZ5KLhMXvo-uz-KUJWDxS5pFQ_M0evdo1dKiRTjVw_"#,
    r#"x4NyqyXPM5nULPkcpU827rnpZzAJKpdhWAgqrXGKAECQH0Xt4taznjnd_zVpAmZZq60WPMBMfKcuE","#,
    r#""dq":"Dq0gfgJ1DdFGXiLvQEZnuKEN0UUmsJBxkjydc3j4ZYdBiMRAy86x0vHCjywcMlYYg4yoC4YZa9hNVcsjqA3FeiL19rk8g6"#,
    r#"Qn29Tt0cj8qqyFpz9vNDBUfCAiJVeESOjJDZPYHdHY8v1b-o-Z2X5tvLx-TCekf7oxyeKDUqKWjis","#,
    r#""qi":"VIMpMYbPf47dT1w_zDUXfPimsSegnMOA1zTaX7aGk_8urY6R8-ZW1FxU7AlWAyLWybqq6t16VFd7hQd0y6flUK4SlOydB6"#,
    r#"1gwanOsXGOAOv82cHq0E3eL4HrtZkUuKvnPrMnsUUFlfUdybVzxyjz9JF_XyaY14ardLSjf4L_FNY"}"#,
);
const RFC_PROTECTED: &str = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ";
const RFC_ENCRYPTED_KEY: &str = concat!(
    "OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9kiMT03JGeipsEdY3mx_etLbbWSrFr05kLzcSr4qKAq7YN",
    "7e9jwQRb23nfa6c9d-StnImGyFDbSv04uVuxIp5Zms1gNxKKK2Da14B8S4rzVRltdYwam_lDp5XnZAYpQdb76FdIKLaVmqgfwX7X",
    "WRxv2322i-vDxRfqNzo_tETKzpVLzfiwQyeyPGLBIO56YJ7eObdv0je81860ppamavo35UgoRdbYaBcoh9QcfylQr66oc6vFWXRc",
    "Z_ZT2LawVCWTIy3brGPi6UklfCpIMfIjf7iGdXKHzg"
);
const RFC_CONTENT_KEY: [u8; 32] = [
    177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7, 110, 91, 112, 46, 34,
    105, 47, 130, 203, 46, 122, 234, 64, 252,
];

/// RFC 7516 appendix A.1 in the flattened serialisation.
fn rfc_message() -> Value {
    json!({
        "protected": RFC_PROTECTED,
        "encrypted_key": RFC_ENCRYPTED_KEY,
        "iv": "48V1_ALb6US04U3b",
        "ciphertext":
            "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A",
        "tag": "XFBoMYUZodetZdvTiFvSkQ",
    })
}

/// Another content for the recipient of RFC 7516 appendix A.1, with these headers.
fn message_for_rfc_key(protected: Option<Value>, mut rest: Value, aad: Option<&str>) -> Value {
    let protected = protected.map(|header| URL_SAFE_NO_PAD.encode(header.to_string()));
    let additional = match aad {
        Some(aad) => format!("{}.{aad}", protected.as_deref().unwrap_or_default()),
        None => protected.clone().unwrap_or_default(),
    };
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &RFC_CONTENT_KEY).unwrap());
    let mut ciphertext = b"plaintext".to_vec();
    let nonce = Nonce::assume_unique_for_key([1; 12]);
    let tag =
        key.seal_in_place_separate_tag(nonce, Aad::from(additional.as_bytes()), &mut ciphertext).unwrap();
    let members = rest.as_object_mut().unwrap();
    members.extend([
        ("iv".to_owned(), URL_SAFE_NO_PAD.encode([1; 12]).into()),
        ("ciphertext".to_owned(), URL_SAFE_NO_PAD.encode(ciphertext).into()),
        ("tag".to_owned(), URL_SAFE_NO_PAD.encode(tag.as_ref()).into()),
    ]);
    members.extend(protected.map(|protected| ("protected".to_owned(), protected.into())));
    members.extend(aad.map(|aad| ("aad".to_owned(), aad.into())));
    rest
}

fn open(key: &str, message: &Value) -> Result<Vec<u8>, JweError> {
    let keys = [PrivateKey::parse(key.as_bytes()).unwrap()];
    Ok(unwrap(&keys, message.to_string().as_bytes())?.as_bytes().to_vec())
}

fn public(key: &str) -> PublicKey {
    PublicKey::parse(key.as_bytes()).unwrap()
}

/// The curve's name, and a key on it as a JWK.
fn ec_jwk(private: bool) -> Value {
    let mut key = json!({
        "kty": "EC", "crv": "P-256", "kid": "bob",
        "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
        "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
    });
    if private {
        key["d"] = "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw".into();
    }
    key
}

#[test]
fn the_example_of_rfc_7516_appendix_a_1_opens() {
    let plaintext = b"The true sign of intelligence is not knowledge but imagination.";
    assert_eq!(open(RFC_KEY, &rfc_message()).unwrap(), plaintext);
}

#[test]
fn the_example_opens_in_the_general_serialisation() {
    let mut message = rfc_message();
    let key = message.as_object_mut().unwrap().remove("encrypted_key").unwrap();
    message["recipients"] = json!([{"encrypted_key": "AAAA"}, {"encrypted_key": key}]);
    assert!(open(RFC_KEY, &message).is_ok());
}

#[rstest]
#[case::all_protected(Some(json!({"alg": "RSA-OAEP", "enc": "A256GCM"})), json!({}))]
#[case::all_shared(None, json!({"unprotected": {"alg": "RSA-OAEP", "enc": "A256GCM"}}))]
#[case::one_each(Some(json!({"enc": "A256GCM"})), json!({"header": {"alg": "RSA-OAEP"}}))]
#[case::unknown_parameters(Some(json!({"enc": "A256GCM", "x": 1})), json!({"header": {"alg": "RSA-OAEP", "y": 1}}))]
#[case::unknown_members(Some(json!({"alg": "RSA-OAEP", "enc": "A256GCM"})), json!({"comment": "passed over"}))]
fn the_header_may_be_spread(#[case] protected: Option<Value>, #[case] mut rest: Value) {
    rest["encrypted_key"] = RFC_ENCRYPTED_KEY.into();
    let message = message_for_rfc_key(protected, rest, None);
    assert_eq!(open(RFC_KEY, &message).unwrap(), b"plaintext");
}

#[test]
fn additional_data_are_authenticated() {
    let header = json!({"alg": "RSA-OAEP", "enc": "A256GCM"});
    let mut message =
        message_for_rfc_key(Some(header), json!({"encrypted_key": RFC_ENCRYPTED_KEY}), Some("YWFk"));
    assert_eq!(open(RFC_KEY, &message).unwrap(), b"plaintext");
    message["aad"] = "YWFl".into();
    assert!(matches!(open(RFC_KEY, &message), Err(JweError::NotOpened { .. })));
    message.as_object_mut().unwrap().remove("aad");
    assert!(matches!(open(RFC_KEY, &message), Err(JweError::NotOpened { .. })));
}

#[rstest]
#[case::critical_extension(json!({"alg": "RSA-OAEP", "enc": "A256GCM", "crit": ["x"], "x": 1}))]
#[case::compression(json!({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF"}))]
#[case::another_content_encryption(json!({"alg": "RSA-OAEP", "enc": "A256CBC-HS512"}))]
#[case::no_content_encryption(json!({"alg": "RSA-OAEP"}))]
#[case::pkcs_1_padding(json!({"alg": "RSA1_5", "enc": "A256GCM"}))]
#[case::no_key_encryption(json!({"alg": "dir", "enc": "A256GCM"}))]
#[case::no_algorithm(json!({"enc": "A256GCM"}))]
#[case::algorithm_in_lower_case(json!({"alg": "rsa-oaep", "enc": "A256GCM"}))]
fn a_header_that_is_not_understood_opens_nothing(#[case] header: Value) {
    let message = message_for_rfc_key(Some(header), json!({"encrypted_key": RFC_ENCRYPTED_KEY}), None);
    let refused = open(RFC_KEY, &message).unwrap_err();
    assert!(refused.to_string().contains("an unsupported algorithm"), "{refused}");
}

#[test]
fn a_header_parameter_in_two_places_is_refused() {
    let header = json!({"alg": "RSA-OAEP", "enc": "A256GCM"});
    for place in ["header", "unprotected"] {
        let rest = json!({"encrypted_key": RFC_ENCRYPTED_KEY, place: {"alg": "RSA-OAEP"}});
        let message = message_for_rfc_key(Some(header.clone()), rest, None);
        assert!(matches!(open(RFC_KEY, &message), Err(JweError::Malformed(_))));
    }
}

#[test]
fn a_recipient_outside_of_the_list_is_refused() {
    let list = json!([{"encrypted_key": RFC_ENCRYPTED_KEY}]);
    let with = |name: &str, value: Value| {
        let mut message = rfc_message();
        message["recipients"] = list.clone();
        message[name] = value;
        open(RFC_KEY, &message)
    };
    assert!(matches!(with("encrypted_key", "AAAA".into()), Err(JweError::Malformed(_))));
    assert!(matches!(with("header", json!({"kid": "x"})), Err(JweError::Malformed(_))));
    // As go-jose writes it.
    assert!(with("encrypted_key", RFC_ENCRYPTED_KEY.into()).is_ok());
}

#[rstest]
#[case("protected", "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifSA")]
#[case("iv", "48V1_ALb6US04U3c")]
#[case("ciphertext", "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_B")]
#[case("ciphertext", "")]
#[case("tag", "XFBoMYUZodetZdvTiFvSkA")]
#[case("encrypted_key", "AAAA")]
#[case("encrypted_key", "")]
fn an_altered_message_does_not_open(#[case] member: &str, #[case] value: &str) {
    let mut message = rfc_message();
    message[member] = value.into();
    assert!(matches!(open(RFC_KEY, &message), Err(JweError::NotOpened { .. })));
}

#[rstest]
#[case("iv", "48V1_ALb6US04Q", "IV", 12, 10)]
#[case("tag", "XFBoMYUZodetZdvTiFs", "tag", 16, 14)]
#[case("tag", "", "tag", 16, 0)]
fn an_iv_or_tag_of_another_length_is_refused(
    #[case] member: &str,
    #[case] value: &str,
    #[case] field: &'static str,
    #[case] expected: usize,
    #[case] actual: usize,
) {
    let mut message = rfc_message();
    message[member] = value.into();
    assert_eq!(open(RFC_KEY, &message), Err(JweError::Length { field, expected, actual }));
}

#[rstest]
#[case::not_json(b"{".as_slice())]
#[case::not_a_message(b"{}")]
#[case::compact(b"a.b.c.d.e")]
#[case::padded(br#"{"iv":"AA==","ciphertext":"","tag":""}"#)]
#[case::protected_is_not_base64(br#"{"iv":"AA","ciphertext":"","tag":"","protected":"*"}"#)]
#[case::protected_is_not_json(br#"{"iv":"AA","ciphertext":"","tag":"","protected":"AA"}"#)]
#[case::nested(&[b'['; 10_000])]
fn a_malformed_message_is_refused(#[case] message: &[u8]) {
    let key = PrivateKey::parse(RFC_KEY.as_bytes()).unwrap();
    assert!(matches!(unwrap(&[key], message), Err(JweError::Malformed(_))));
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    let mut message = rfc_message();
    message["ciphertext"] = "A".repeat(MAX_LENGTH).into();
    assert!(matches!(open(RFC_KEY, &message), Err(JweError::TooLong { .. })));
}

#[test]
fn no_recipients_or_too_many_are_refused() {
    for actual in [0, MAX_RECIPIENTS + 1] {
        let mut message = rfc_message();
        message.as_object_mut().unwrap().remove("encrypted_key");
        message["recipients"] = vec![json!({"encrypted_key": "AAAA"}); actual].into();
        assert_eq!(open(RFC_KEY, &message), Err(JweError::Recipients { actual }));
        let recipients = vec![public(&ec_jwk(false).to_string()); actual];
        assert_eq!(wrap(&recipients, b"x"), Err(JweError::Recipients { actual }));
    }
}

#[rstest]
#[case("RSA", Algorithm::RsaOaep)]
#[case("RSA", Algorithm::RsaOaep256)]
#[case("P-256", Algorithm::EcdhEsA128Kw)]
#[case("P-256", Algorithm::EcdhEsA192Kw)]
#[case("P-256", Algorithm::EcdhEsA256Kw)]
#[case("P-384", Algorithm::EcdhEsA192Kw)]
#[case("P-384", Algorithm::EcdhEsA256Kw)]
#[case("P-521", Algorithm::EcdhEsA128Kw)]
#[case("P-521", Algorithm::EcdhEsA256Kw)]
fn what_is_wrapped_opens_with_the_recipients_key_only(#[case] kind: &str, #[case] algorithm: Algorithm) {
    let key = private_pem(kind);
    let recipient = public(&public_pem(&key)).with_algorithm(algorithm).unwrap();
    let message: Value = serde_json::from_str(&wrap(&[recipient], b"options").unwrap()).unwrap();
    assert_eq!(message["recipients"][0]["header"]["alg"], algorithm.to_string());
    assert_eq!(open(&key, &message).unwrap(), b"options");
    for other in ["RSA", "P-256", "P-384", "P-521"] {
        let refused = open(&private_pem(other), &message).unwrap_err();
        assert!(refused.to_string().contains(&algorithm.to_string()), "{refused}");
    }
}

#[test]
fn every_recipient_opens() {
    let keys = ["P-521", "RSA", "P-256"].map(private_pem);
    let recipients = keys.clone().map(|key| public(&public_pem(&key)));
    let message = serde_json::from_str(&wrap(&recipients, b"options").unwrap()).unwrap();
    for key in &keys {
        assert_eq!(open(key, &message).unwrap(), b"options");
    }
    let others = ["RSA", "P-256"].map(|kind| PrivateKey::parse(private_pem(kind).as_bytes()).unwrap());
    assert!(unwrap(&others, message.to_string().as_bytes()).is_err());
    let one_of_several = [private_pem("RSA"), keys[2].clone()];
    let one_of_several = one_of_several.map(|key| PrivateKey::parse(key.as_bytes()).unwrap());
    assert!(unwrap(&one_of_several, message.to_string().as_bytes()).is_ok());
}

#[rstest]
#[case::not_on_the_curve("y", "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOycg")]
#[case::short("x", "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_P")]
#[case::another_curve("crv", "P-384")]
#[case::an_unknown_curve("crv", "secp256k1")]
#[case::another_type("kty", "OKP")]
fn an_ephemeral_key_that_is_none_opens_nothing(#[case] member: &str, #[case] value: &str) {
    let message = wrap(&[public(&ec_jwk(false).to_string())], b"options").unwrap();
    let mut message: Value = serde_json::from_str(&message).unwrap();
    assert_eq!(open(&ec_jwk(true).to_string(), &message).unwrap(), b"options");
    message["recipients"][0]["header"]["epk"][member] = value.into();
    assert!(matches!(open(&ec_jwk(true).to_string(), &message), Err(JweError::NotOpened { .. })));
}

#[test]
fn the_party_information_takes_part_in_the_agreement() {
    let message = wrap(&[public(&ec_jwk(false).to_string())], b"options").unwrap();
    let mut message: Value = serde_json::from_str(&message).unwrap();
    message["recipients"][0]["header"]["apu"] = "QWxpY2U".into();
    assert!(matches!(open(&ec_jwk(true).to_string(), &message), Err(JweError::NotOpened { .. })));
}

#[test]
fn a_key_id_is_passed_on() {
    let message: Value =
        serde_json::from_str(&wrap(&[public(&ec_jwk(false).to_string())], b"x").unwrap()).unwrap();
    assert_eq!(message["recipients"][0]["header"]["kid"], "bob");
}

#[rstest]
#[case::rsa_pkcs_8("RSA", &["pkey"], &["pkey", "-pubout"])]
#[case::rsa_pkcs_1("RSA", &["rsa", "-traditional"], &["rsa", "-RSAPublicKey_out"])]
#[case::ec_pkcs_8("P-256", &["pkey"], &["pkey", "-pubout"])]
#[case::ec_sec_1("P-256", &["ec"], &["ec", "-pubout"])]
#[case::p384_sec_1("P-384", &["ec"], &["ec", "-pubout"])]
#[case::p521_sec_1("P-521", &["ec"], &["ec", "-pubout"])]
fn keys_are_read_in_every_pem_form(
    #[case] kind: &str,
    #[case] private: &[&str],
    #[case] public_form: &[&str],
) {
    let key = private_pem(kind);
    let [private, recipient] = [private, public_form].map(|form| openssl(form, key.as_bytes()));
    let message = wrap(&[public(&recipient)], b"options").unwrap();
    let private = PrivateKey::parse(private.as_bytes()).unwrap();
    assert_eq!(unwrap(&[private], message.as_bytes()).unwrap().as_bytes(), b"options");
}

#[rstest]
#[case("RSA")]
#[case("P-384")]
fn a_certificate_names_a_recipient(#[case] kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let key = private_pem(kind);
    std::fs::write(folder.path().join("key.pem"), &key).unwrap();
    let arguments = ["req", "-x509", "-new", "-key", "key.pem", "-subj", "/CN=owner", "-days", "1"];
    let certificate = crate::support::run(folder.path(), "openssl", &arguments);
    let message = wrap(&[PublicKey::parse(&certificate).unwrap()], b"options").unwrap();
    assert_eq!(open(&key, &serde_json::from_str(&message).unwrap()).unwrap(), b"options");
}

#[test]
fn curve_parameters_before_the_key_are_passed_over() {
    let key = openssl(&["ecparam", "-name", "prime256v1", "-genkey"], b"");
    assert!(key.starts_with("-----BEGIN EC PARAMETERS-----"));
    assert!(PrivateKey::parse(key.as_bytes()).is_ok());
}

#[test]
fn an_rsa_key_is_read_from_its_public_jwk() {
    let jwk: Value = serde_json::from_str(RFC_KEY).unwrap();
    let recipient = json!({"kty": "RSA", "n": jwk["n"], "e": jwk["e"], "alg": "RSA-OAEP-256", "use": "enc"});
    let message: Value =
        serde_json::from_str(&wrap(&[public(&recipient.to_string())], b"x").unwrap()).unwrap();
    assert_eq!(message["recipients"][0]["header"]["alg"], "RSA-OAEP-256");
    assert_eq!(open(RFC_KEY, &message).unwrap(), b"x");
}

#[rstest]
#[case::another_keys_half(json!({"x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0", "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps"}))]
#[case::short_scalar(json!({"d": "AQ"}))]
#[case::zero_scalar(json!({"d": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}))]
#[case::no_y(json!({"y": null}))]
fn an_inconsistent_private_jwk_is_refused(#[case] changes: Value) {
    let mut key = ec_jwk(true);
    key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let refused = PrivateKey::parse(key.to_string().as_bytes()).unwrap_err();
    assert!(matches!(refused, KeyFormatError::Malformed(_)), "{refused}");
}

#[test]
fn a_public_key_off_its_curve_is_refused() {
    let mut key = ec_jwk(false);
    key["y"] = "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOycg".into();
    let refused = PublicKey::parse(key.to_string().as_bytes()).unwrap_err();
    assert!(matches!(refused, KeyFormatError::Malformed(_)), "{refused}");
}

#[test]
fn an_inconsistent_rsa_jwk_is_refused() {
    for member in ["d", "p", "dq", "qi"] {
        let mut key: Value = serde_json::from_str(RFC_KEY).unwrap();
        key[member] = key["dp"].clone();
        assert!(PrivateKey::parse(key.to_string().as_bytes()).is_err(), "{member}");
    }
}

#[test]
fn the_wrong_half_of_a_key_is_told() {
    for kind in ["RSA", "P-256"] {
        let key = private_pem(kind);
        let public = public_pem(&key);
        assert_eq!(PublicKey::parse(key.as_bytes()).unwrap_err(), KeyFormatError::Private);
        assert_eq!(PrivateKey::parse(public.as_bytes()).unwrap_err(), KeyFormatError::Public);
    }
    let [private, public] = [true, false].map(|private| ec_jwk(private).to_string());
    assert_eq!(PublicKey::parse(private.as_bytes()).unwrap_err(), KeyFormatError::Private);
    assert_eq!(PrivateKey::parse(public.as_bytes()).unwrap_err(), KeyFormatError::Public);
}

#[test]
fn a_key_under_a_passphrase_is_told() {
    let key = openssl(&["pkey", "-aes256", "-passout", "pass:secret"], private_pem("P-256").as_bytes());
    assert_eq!(PrivateKey::parse(key.as_bytes()).unwrap_err(), KeyFormatError::UnderPassphrase);
}

#[rstest]
#[case::small_rsa(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])]
#[case::another_curve(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"])]
#[case::signing_only(&["genpkey", "-algorithm", "ED25519"])]
fn a_key_of_an_unsuitable_kind_is_refused(#[case] generate: &[&str]) {
    let key = openssl(generate, b"");
    let refused = PrivateKey::parse(key.as_bytes()).unwrap_err();
    assert!(matches!(refused, KeyFormatError::Kind { .. }), "{refused}");
    let refused = PublicKey::parse(public_pem(&key).as_bytes()).unwrap_err();
    assert!(matches!(refused, KeyFormatError::Kind { .. }), "{refused}");
}

#[rstest]
#[case::empty("")]
#[case::text("ssh-ed25519 AAAA")]
#[case::no_end("-----BEGIN PUBLIC KEY-----\nAAAA\n")]
#[case::another_end("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PRIVATE KEY-----")]
fn what_is_no_key_file_is_refused(#[case] file: &str) {
    assert_eq!(PublicKey::parse(file.as_bytes()).unwrap_err(), KeyFormatError::Unrecognised);
    assert_eq!(PrivateKey::parse(file.as_bytes()).unwrap_err(), KeyFormatError::Unrecognised);
}

#[rstest]
#[case("CERTIFICATE REQUEST")]
#[case("OPENSSH PRIVATE KEY")]
fn pem_of_something_else_is_refused(#[case] label: &str) {
    let file = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    assert!(matches!(PublicKey::parse(file.as_bytes()), Err(KeyFormatError::Label { .. })));
    assert!(matches!(PrivateKey::parse(file.as_bytes()), Err(KeyFormatError::Label { .. })));
}

#[test]
fn an_algorithm_must_suit_the_key() {
    let key = public(&ec_jwk(false).to_string());
    let refused = key.with_algorithm(Algorithm::RsaOaep).unwrap_err();
    assert_eq!(refused, KeyFormatError::Algorithm { actual: "RSA-OAEP".into() });
    for (member, value) in [("alg", "RSA-OAEP"), ("alg", "ES256"), ("use", "sig")] {
        let mut key = ec_jwk(false);
        key[member] = value.into();
        let refused = PublicKey::parse(key.to_string().as_bytes()).unwrap_err();
        assert!(matches!(refused, KeyFormatError::Algorithm { .. }), "{refused}");
    }
}

#[test]
fn a_private_key_does_not_print() {
    let key = PrivateKey::parse(ec_jwk(true).to_string().as_bytes()).unwrap();
    assert_eq!(format!("{key:?}"), "PrivateKey(EC P-256)");
}
