//! Keys and options that several tests need.

use std::path::Path;
use std::process::Command;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_ocicrypt::layer::{Encryptor, PrivateOptions, PublicOptions};

/// Runs a program that the tests cannot do without, in a folder, and gives its standard output.
pub(crate) fn run(folder: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test and does not start: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {errors}");
    output.stdout
}

/// A private key in PKCS#8 PEM, made by OpenSSL: `RSA`, or a curve as OpenSSL names it.
pub(crate) fn private_pem(kind: &str) -> String {
    let option = match kind {
        "RSA" => "rsa_keygen_bits:2048".to_owned(),
        curve => format!("ec_paramgen_curve:{curve}"),
    };
    let algorithm = if kind == "RSA" { "RSA" } else { "EC" };
    openssl(&["genpkey", "-algorithm", algorithm, "-pkeyopt", &option], b"")
}

/// The public half of a private key, as a SubjectPublicKeyInfo in PEM.
pub(crate) fn public_pem(private: &str) -> String {
    openssl(&["pkey", "-pubout"], private.as_bytes())
}

/// Runs OpenSSL over its standard input.
pub(crate) fn openssl(arguments: &[&str], input: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), input).unwrap();
    let mut arguments = arguments.to_vec();
    if !input.is_empty() {
        arguments.extend(["-in", "in"]);
    }
    String::from_utf8(run(folder.path(), "openssl", &arguments)).unwrap()
}

/// The options of a layer that was encrypted just now, and its ciphertext.
pub(crate) fn encrypted(plaintext: &[u8]) -> (PrivateOptions, PublicOptions, Vec<u8>) {
    let mut encryptor = Encryptor::new().unwrap();
    let mut data = plaintext.to_vec();
    encryptor.update(&mut data).unwrap();
    let (private, public) = encryptor.finish();
    (private, public, data)
}

/// The wrapped JSON of options, field by field.
pub(crate) fn private_json(key: &[u8], nonce: &[u8], digest: &str) -> String {
    let [key, nonce] = [key, nonce].map(|bytes| STANDARD.encode(bytes));
    format!(r#"{{"symkey":"{key}","digest":"{digest}","cipheroptions":{{"nonce":"{nonce}"}}}}"#)
}

/// The public JSON for a ciphertext under a key.
pub(crate) fn public_json(key: &[u8], ciphertext: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), ciphertext);
    let tag = STANDARD.encode(tag.as_ref());
    format!(r#"{{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"{tag}","cipheroptions":{{}}}}"#)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    format!("sha256:{}", hex::encode(digest.as_ref()))
}
