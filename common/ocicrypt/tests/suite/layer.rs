//! The layer cipher.

use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use proptest::prelude::*;
use rstest::rstest;
use sealpod_ocicrypt::layer::{Decryptor, Encryptor, LayerError, PrivateOptions, PublicOptions};

use crate::support::{encrypted, private_json, public_json, sha256};

const KEY: [u8; 32] = [7; 32];
const NONCE: [u8; 16] = [9; 16];

fn decrypt(private: &PrivateOptions, public: &PublicOptions, data: &[u8]) -> Result<Vec<u8>, LayerError> {
    let mut data = data.to_vec();
    let mut decryptor = Decryptor::new(private, public)?;
    decryptor.update(&mut data)?;
    decryptor.finish()?;
    Ok(data)
}

/// Decrypts what somebody encrypted under this key and nonce.
fn decrypt_under(
    key: &[u8],
    nonce: &[u8],
    ciphertext: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, LayerError> {
    let private = PrivateOptions::parse(private_json(key, nonce, &sha256(plaintext)).as_bytes())?;
    let public = PublicOptions::parse(public_json(key, ciphertext).as_bytes())?;
    decrypt(&private, &public, ciphertext)
}

#[rstest]
#[case::empty(0)]
#[case::one_byte(1)]
#[case::a_block(16)]
#[case::several_chunks(100_000)]
fn an_encrypted_layer_decrypts_to_itself(#[case] length: usize) {
    let plaintext: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
    let (private, public, ciphertext) = encrypted(&plaintext);
    assert_eq!(ciphertext.len(), plaintext.len());
    assert!(length == 0 || ciphertext != plaintext);
    assert_eq!(private.digest(), sha256(&plaintext));
    assert_eq!(decrypt(&private, &public, &ciphertext).unwrap(), plaintext);
}

#[test]
fn options_survive_their_json() {
    let (private, public, ciphertext) = encrypted(b"layer");
    let private = PrivateOptions::parse(private.to_json().as_bytes()).unwrap();
    let reread = PublicOptions::parse(public.to_json().as_bytes()).unwrap();
    assert_eq!(reread, public);
    assert_eq!(decrypt(&private, &reread, &ciphertext).unwrap(), b"layer");
}

#[test]
fn each_layer_has_a_key_and_nonce_of_its_own() {
    let [one, other] = [encrypted(b"same"), encrypted(b"same")].map(|(private, ..)| private.to_json());
    assert_ne!(one.as_bytes(), other.as_bytes());
    assert_ne!(encrypted(&[0; 64]).2, encrypted(&[0; 64]).2);
}

/// NIST SP 800-38A, F.5.5.
#[test]
fn the_vector_of_nist_holds() {
    let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
    let nonce = hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap();
    let plaintext = hex::decode(concat!(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    ))
    .unwrap();
    let ciphertext = hex::decode(concat!(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5",
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    ))
    .unwrap();
    assert_eq!(decrypt_under(&key, &nonce, &ciphertext, &plaintext).unwrap(), plaintext);
}

/// Existing tools count in all 128 bits, most significant byte first.
#[test]
fn the_counter_runs_over_all_its_bytes() {
    let mut keystream = [[0xff; 16], [0; 16]].concat();
    let key = UnboundCipherKey::new(&AES_256, &KEY).unwrap();
    EncryptingKey::ecb(key).unwrap().encrypt(&mut keystream).unwrap();
    assert_eq!(decrypt_under(&KEY, &[0xff; 16], &keystream, &[0; 32]).unwrap(), [0; 32]);
}

#[test]
fn an_altered_ciphertext_is_refused() {
    let (private, public, ciphertext) = encrypted(b"some layer");
    for index in 0..ciphertext.len() {
        let mut altered = ciphertext.clone();
        altered[index] ^= 0x80;
        assert_eq!(decrypt(&private, &public, &altered), Err(LayerError::HmacMismatch));
    }
}

#[rstest]
#[case::cut(b"some laye")]
#[case::extended(b"some layer\0")]
#[case::empty(b"")]
fn a_ciphertext_of_another_length_is_refused(#[case] delivered: &[u8]) {
    let (private, public, mut ciphertext) = encrypted(b"some layer");
    ciphertext.resize(delivered.len(), 0);
    assert_eq!(decrypt(&private, &public, &ciphertext), Err(LayerError::HmacMismatch));
}

#[test]
fn a_layer_under_another_key_is_refused() {
    let (private, ..) = encrypted(b"one");
    let (_, public, ciphertext) = encrypted(b"other");
    assert_eq!(decrypt(&private, &public, &ciphertext), Err(LayerError::HmacMismatch));
}

#[test]
fn an_altered_hmac_is_refused() {
    let (private, public, ciphertext) = encrypted(b"layer");
    let mut other = *public.hmac();
    other[31] ^= 1;
    let json = public.to_json().replace(&encode(public.hmac()), &encode(&other));
    let public = PublicOptions::parse(json.as_bytes()).unwrap();
    assert_eq!(decrypt(&private, &public, &ciphertext), Err(LayerError::HmacMismatch));
}

#[test]
fn a_plaintext_of_another_digest_is_refused() {
    let refused = decrypt_under(&KEY, &NONCE, b"any ciphertext", b"not its plaintext").unwrap_err();
    let LayerError::DigestMismatch { expected, actual } = refused else { panic!("{refused}") };
    assert_eq!(expected, sha256(b"not its plaintext"));
    assert_ne!(actual, expected);
}

#[rstest]
#[case::lower_case("aes_256_ctr_hmac_sha256")]
#[case::another("AES_256_GCM")]
#[case::longer("AES_256_CTR_HMAC_SHA256 ")]
#[case::none("")]
fn another_cipher_is_refused(#[case] cipher: &str) {
    let json = public_json(&KEY, b"").replace("AES_256_CTR_HMAC_SHA256", cipher);
    assert_eq!(PublicOptions::parse(json.as_bytes()), Err(LayerError::Cipher { actual: cipher.into() }));
}

#[rstest]
#[case::short(31)]
#[case::aes_128(16)]
#[case::long(33)]
#[case::empty(0)]
fn a_key_of_another_length_is_refused(#[case] actual: usize) {
    let json = private_json(&vec![1; actual], &NONCE, &sha256(b""));
    let refused = PrivateOptions::parse(json.as_bytes()).unwrap_err();
    assert_eq!(refused, LayerError::Length { field: "key", expected: 32, actual });
}

#[rstest]
#[case::gcm_like(12)]
#[case::long(17)]
#[case::empty(0)]
fn a_nonce_of_another_length_is_refused(#[case] actual: usize) {
    let json = private_json(&KEY, &vec![1; actual], &sha256(b""));
    let refused = PrivateOptions::parse(json.as_bytes()).unwrap_err();
    assert_eq!(refused, LayerError::Length { field: "nonce", expected: 16, actual });
    let json = public_with_nonce(&vec![1; actual]);
    let refused = PublicOptions::parse(json.as_bytes()).unwrap_err();
    assert_eq!(refused, LayerError::Length { field: "nonce", expected: 16, actual });
}

#[test]
fn an_hmac_of_another_length_is_refused() {
    let json = format!(r#"{{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"{}"}}"#, encode(&[1; 31]));
    let refused = PublicOptions::parse(json.as_bytes()).unwrap_err();
    assert_eq!(refused, LayerError::Length { field: "HMAC", expected: 32, actual: 31 });
}

#[rstest]
#[case::empty_options(r#","cipheroptions":{}"#)]
#[case::null_nonce(r#","cipheroptions":{"nonce":null}"#)]
#[case::null_options(r#","cipheroptions":null"#)]
#[case::no_options("")]
fn a_nonce_that_is_only_public_is_refused(#[case] options: &str) {
    // Whatever the public options say: the private ones alone are refused already.
    let json = format!(r#"{{"symkey":"{}","digest":"{}"{options}}}"#, encode(&KEY), sha256(b""));
    assert_eq!(PrivateOptions::parse(json.as_bytes()).unwrap_err(), LayerError::NonceNotAuthenticated);
}

#[test]
fn a_nonce_in_both_places_must_be_the_same() {
    let private = PrivateOptions::parse(private_json(&KEY, &NONCE, &sha256(b"")).as_bytes()).unwrap();
    let public = |nonce: &[u8]| PublicOptions::parse(public_with_nonce(nonce).as_bytes()).unwrap();
    assert_eq!(decrypt(&private, &public(&NONCE), b"").unwrap(), b"");
    let mut other = NONCE;
    other[15] ^= 1;
    let refused = decrypt(&private, &public(&other), b"").unwrap_err();
    assert!(matches!(refused, LayerError::NonceMismatch { .. }), "{refused}");
}

#[rstest]
#[case::another_algorithm(&format!("sha512:{}", "0".repeat(128)))]
#[case::no_algorithm(&"0".repeat(64))]
#[case::upper_case(&format!("sha256:{}", "A".repeat(64)))]
#[case::short(&format!("sha256:{}", "0".repeat(62)))]
#[case::long(&format!("sha256:{}", "0".repeat(66)))]
#[case::not_hexadecimal(&format!("sha256:{}", "g".repeat(64)))]
#[case::empty("")]
fn a_digest_of_another_form_is_refused(#[case] digest: &str) {
    let refused = PrivateOptions::parse(private_json(&KEY, &NONCE, digest).as_bytes()).unwrap_err();
    assert!(matches!(refused, LayerError::DigestForm { .. }), "{refused}");
}

#[rstest]
#[case::unknown_field(r#""extra":1,"symkey""#)]
#[case::twice(r#""symkey":"AAAA","symkey""#)]
#[case::wrong_name(r#""key""#)]
fn malformed_private_options_are_refused(#[case] instead_of_symkey: &str) {
    let json = private_json(&KEY, &NONCE, &sha256(b"")).replace(r#""symkey""#, instead_of_symkey);
    let refused = PrivateOptions::parse(json.as_bytes()).unwrap_err();
    assert!(matches!(refused, LayerError::Malformed { which: "private", .. }), "{refused}");
}

#[test]
fn unknown_cipher_options_are_refused() {
    let json = private_json(&KEY, &NONCE, &sha256(b"")).replace(r#"{"nonce""#, r#"{"rounds":"AQ==","nonce""#);
    assert!(matches!(PrivateOptions::parse(json.as_bytes()), Err(LayerError::Malformed { .. })));
    let json = public_json(&KEY, b"").replace("{}", r#"{"rounds":"AQ=="}"#);
    assert!(matches!(PublicOptions::parse(json.as_bytes()), Err(LayerError::Malformed { .. })));
}

#[test]
fn a_refusal_of_private_options_does_not_tell_them() {
    let json =
        private_json(b"hunter2hunter2hunter2hunter2hunter2", &NONCE, "x").replace("\"digest\":\"x\"", "7");
    let refused = PrivateOptions::parse(json.as_bytes()).unwrap_err();
    assert!(!format!("{refused} {refused:?}").contains(&encode(b"hunter2")[..8]));
}

#[test]
fn private_options_do_not_print_their_key() {
    let private = PrivateOptions::parse(private_json(&KEY, &NONCE, &sha256(b"")).as_bytes()).unwrap();
    let printed = format!("{private:?}");
    assert_eq!(printed, format!("PrivateOptions {{ digest: {:?}, .. }}", sha256(b"")));
}

#[test]
fn options_with_integer_arrays_are_read() {
    let (private, public, ciphertext) = encrypted(b"layer");
    let mut json: serde_json::Value = serde_json::from_slice(private.to_json().as_bytes()).unwrap();
    json["symkey"] = decode(&json["symkey"]).into();
    json["cipheroptions"]["nonce"] = decode(&json["cipheroptions"]["nonce"]).into();
    let private = PrivateOptions::parse(json.to_string().as_bytes()).unwrap();
    assert_eq!(decrypt(&private, &public, &ciphertext).unwrap(), b"layer");
}

proptest! {
    #[test]
    fn the_sizes_of_chunks_do_not_matter(
        plaintext in prop::collection::vec(any::<u8>(), 0..70_000),
        encrypt_in in prop::collection::vec(1usize..40_000, 1..20),
        decrypt_in in prop::collection::vec(1usize..40_000, 1..20),
    ) {
        let mut data = plaintext.clone();
        let mut encryptor = Encryptor::new().unwrap();
        in_chunks(&mut data, &encrypt_in, |chunk| encryptor.update(chunk).unwrap());
        let (private, public) = encryptor.finish();
        prop_assert_eq!(&decrypt(&private, &public, &data).unwrap(), &plaintext);
        let mut decryptor = Decryptor::new(&private, &public).unwrap();
        in_chunks(&mut data, &decrypt_in, |chunk| decryptor.update(chunk).unwrap());
        prop_assert_eq!(decryptor.finish(), Ok(()));
        prop_assert_eq!(data, plaintext);
    }
}

fn in_chunks(mut data: &mut [u8], sizes: &[usize], mut update: impl FnMut(&mut [u8])) {
    for size in sizes.iter().cycle() {
        if data.is_empty() {
            return;
        }
        let (chunk, rest) = data.split_at_mut((*size).min(data.len()));
        update(chunk);
        data = rest;
    }
}

fn public_with_nonce(nonce: &[u8]) -> String {
    public_json(&KEY, b"").replace("{}", &format!(r#"{{"nonce":"{}"}}"#, encode(nonce)))
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn decode(text: &serde_json::Value) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap()
}
