//! Messages of other implementations, and the RFCs' own examples.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

/// A key and what jwcrypto 1.5 (Python) encrypted to it.
struct Vector {
    curve: &'static str,
    d: &'static str,
    x: &'static str,
    y: &'static str,
    protected: &'static str,
    encrypted_key: &'static str,
    iv: &'static str,
    ciphertext: &'static str,
    tag: &'static str,
}

const P256: Vector = Vector {
    curve: "P-256",
    d: "MHlqzpoZLw3yaWyGdj_4UAot1qSsteYisqnV5-J15Pc",
    x: "_nObeQePOjUcNv0JSbx_fHjIbHTDj0OIFTzLqWLUKi0",
    y: "QUZZNDhYAE2IgChYzDvA00u-7FOJzohMxbzy628xczI",
    protected: concat!(
        "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHki",
        "OiJFQyIsIngiOiJpekVVSS1CWjJqMjJKbUxqeTd2bm1YVW5HX1pUMkdwZnktai1zVW92WUo4IiwieSI6ImVxTngx",
        "N2xiTTlzcUJUUmUtazlxNXNGMjhPbS1QMkhfekxRanc4UmQ4QzQifX0",
    ),
    encrypted_key: "F6x0HT4jo-aEJDJzsnR6CK3OFOEEaNgOD6RQwe89G3rYEfRNgRKCWA",
    iv: "qYYDGq2Q-q3qNfGU",
    ciphertext: "RZGDwD4JxUl3EryBK0okjQ",
    tag: "GYNTo6cybDeBq9aj3ulyYw",
};

const P521: Vector = Vector {
    curve: "P-521",
    d: "AeOA1Ar6ZNHrrCe5zZN-diOkVxFVuRL7T3gpeBkuMrCCUhWugaz0vV7WEk5zVNkv_BSKWnre0jLMexz4V5uDpeIJ",
    x: "ADEMOpMnJzaWA6Ch0vR-cohJOsklYlkK4wm8sWfl6-6JEfJv4Ixvu3-IK4MSM3xc27gD0mlUnlfvyrFHM-NCna3L",
    y: "AMmcA8cvR4jxe4h2iYwwblfMVVdUYSRsXzZ4Wr_mL_vpt7cM-0t6DuxQaYgslHmjgqVruDpGHoXOreBq0S2AGQ8Q",
    protected: concat!(
        "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC01MjEiLCJrdHki",
        "OiJFQyIsIngiOiJBWUVlbHZpeWNXM1dJTEdpbk5HOHUwVV96WUdmRnNSM1BDYkpRM0RjcGV0VFdHZThtZy01SEJV",
        "LXFiVVJhVVdWRlFIS1Bfa0pZZjA4a2h2b21fWWRoSTRsIiwieSI6IkFiMU4zU0dramQzTThQOXpXLU1hQ2FnMXNo",
        "M0RvRzNpU25lZmF1U1o0NnVVODhsY0FfZDhmdkgwVUxlbXlqajJYOEdoazdVRkVRSk1pYk53d3BEZWtOcEsifX0",
    ),
    encrypted_key: "huu758uO8uF8OmwTZ_CjdgDLjoH558WP4WOawQGDnAjs5vLsBMUDpg",
    iv: "9ScY_emvp0bZLh_j",
    ciphertext: "q20pGebvjSjv2lfjkPcaYA",
    tag: "jCXzgE3-B71an3l11ACgOA",
};

fn bytes(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

#[test]
fn what_another_implementation_encrypted_opens() {
    for vector in [P256, P521] {
        let public = TeePublicKey::EC {
            alg: "ECDH-ES+A256KW".into(),
            crv: vector.curve.into(),
            x: vector.x.into(),
            y: vector.y.into(),
        };
        let keys = TeeKeyPair::from_scalar(public, &bytes(vector.d));
        let jwe = Jwe {
            protected: vector.protected.into(),
            encrypted_key: vector.encrypted_key.into(),
            iv: vector.iv.into(),
            ciphertext: vector.ciphertext.into(),
            tag: vector.tag.into(),
        };
        assert_eq!(keys.open(&jwe).unwrap().as_bytes(), b"sealed elsewhere", "{}", vector.curve);
        let sealed = Jwe::seal(keys.public_key(), b"sealed here").unwrap();
        assert_eq!(keys.open(&sealed).unwrap().as_bytes(), b"sealed here", "{}", vector.curve);
    }
}

#[test]
fn the_content_of_rfc_7516_appendix_a_1_is_encrypted_alike() {
    let key = [
        177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7, 110, 91, 112, 46,
        34, 105, 47, 130, 203, 46, 122, 234, 64, 252,
    ];
    let iv: [u8; NONCE_LEN] = bytes("48V1_ALb6US04U3b").try_into().unwrap();
    let mut content = b"The true sign of intelligence is not knowledge but imagination.".to_vec();
    let aad = Aad::from("eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ");
    let tag = gcm(&key)
        .unwrap()
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut content)
        .unwrap();
    let expected = "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A";
    assert_eq!(URL_SAFE_NO_PAD.encode(content), expected);
    assert_eq!(URL_SAFE_NO_PAD.encode(tag.as_ref()), "XFBoMYUZodetZdvTiFvSkQ");
}

#[test]
fn the_holder_of_an_rsa_key_opens_what_is_sealed_to_it() {
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let pair = KeyPair::from_pkcs8(der.as_ref()).unwrap();
    let modulus = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let exponent = pair.public_key().exponent().big_endian_without_leading_zero().to_vec();
    let public = TeePublicKey::RSA {
        alg: "RSA-OAEP-256".into(),
        n: URL_SAFE_NO_PAD.encode(modulus),
        e: URL_SAFE_NO_PAD.encode(exponent),
    };
    let jwe = Jwe::seal(&public, b"a secret").unwrap();
    assert_eq!(bytes(&jwe.protected), br#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#);

    let private = OaepPrivateDecryptingKey::new(private).unwrap();
    let mut room = vec![0; private.min_output_size()];
    let key = private.decrypt(&OAEP_SHA256_MGF1SHA256, &bytes(&jwe.encrypted_key), &mut room, None).unwrap();
    let mut content = [bytes(&jwe.ciphertext), bytes(&jwe.tag)].concat();
    let iv: [u8; NONCE_LEN] = bytes(&jwe.iv).try_into().unwrap();
    let key: [u8; KEY_LENGTH] = (&*key).try_into().unwrap();
    let opened = gcm(&key)
        .unwrap()
        .open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(jwe.protected.as_bytes()), &mut content)
        .unwrap();
    assert_eq!(opened, b"a secret");
}
