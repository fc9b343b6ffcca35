//! Keys that layers are encrypted for.

use sealpod_ocicrypt::jwe::{PrivateKey, PublicKey};
use sealpod_ocicrypt::{Recipient, Unwrapper};
use tempfile::TempDir;

use super::run;

/// A key pair in a folder, made by OpenSSL: `private.pem` and `public.pem`.
pub(crate) fn key_pair(kind: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (algorithm, option) = match kind {
        "RSA" => ("RSA", "rsa_keygen_bits:2048".to_owned()),
        curve => ("EC", format!("ec_paramgen_curve:{curve}")),
    };
    let arguments = ["genpkey", "-algorithm", algorithm, "-pkeyopt", &option, "-out", "private.pem"];
    run(folder.path(), "openssl", &arguments);
    run(folder.path(), "openssl", &["pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"]);
    folder
}

pub(crate) fn recipient(keys: &TempDir) -> Recipient {
    let public = std::fs::read(keys.path().join("public.pem")).unwrap();
    Recipient::Jwe(PublicKey::parse(&public).unwrap())
}

pub(crate) fn unwrapper(keys: &TempDir) -> Unwrapper {
    let private = std::fs::read(keys.path().join("private.pem")).unwrap();
    Unwrapper::new(vec![PrivateKey::parse(&private).unwrap()], None)
}
