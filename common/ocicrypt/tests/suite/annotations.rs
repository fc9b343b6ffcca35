//! Annotations and media types.

use std::collections::{BTreeMap, HashMap};

use rstest::rstest;
use sealpod_ocicrypt::annotations::{
    AnnotationError, EncryptionAnnotations, MAX_ANNOTATION_LENGTH, MAX_WRAPPED_KEYS, PUBLIC_OPTIONS, Scheme,
    WrappedKey, decrypted_media_type, encrypted_media_type, is_encrypted,
};
use sealpod_ocicrypt::layer::LayerError;

use crate::support::encrypted;

const JWE: &str = "org.opencontainers.image.enc.keys.jwe";

fn sample() -> EncryptionAnnotations {
    let wrapped = |scheme, wrapping: &[u8]| WrappedKey { scheme, wrapping: wrapping.to_vec() };
    EncryptionAnnotations {
        wrapped_keys: vec![
            wrapped(Scheme::Jwe, b"one"),
            wrapped(Scheme::Jwe, b"two"),
            wrapped(Scheme::Pgp, b"three"),
            wrapped(Scheme::Provider("attestation-agent".into()), b"four"),
        ],
        public_options: encrypted(b"layer").1,
    }
}

#[rstest]
#[case("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar")]
#[case("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+gzip")]
#[case("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd")]
#[case(
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
)]
#[case("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar")]
#[case("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip")]
#[case(
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
)]
fn a_layer_type_is_encrypted_and_decrypted(#[case] plain: &str, #[case] decrypted: &str) {
    let encrypted = encrypted_media_type(plain).unwrap();
    assert_eq!(encrypted, format!("{decrypted}+encrypted"));
    assert_eq!(decrypted_media_type(&encrypted), Some(decrypted));
    assert!(is_encrypted(&encrypted));
    assert!(!is_encrypted(plain));
    assert_eq!(encrypted_media_type(&encrypted), None);
}

#[rstest]
#[case("application/vnd.oci.image.config.v1+json")]
#[case("application/vnd.oci.image.config.v1+json+encrypted")]
#[case("text/plain+encrypted")]
#[case("+encrypted")]
#[case("")]
fn what_is_no_layer_is_not_an_encrypted_one(#[case] media_type: &str) {
    assert!(!is_encrypted(media_type));
    assert_eq!(encrypted_media_type(media_type), None);
}

#[test]
fn annotations_are_read_as_they_were_written() {
    let annotations = sample().emit();
    assert_eq!(annotations[JWE], "b25l,dHdv");
    assert_eq!(annotations["org.opencontainers.image.enc.keys.provider.attestation-agent"], "Zm91cg==");
    assert_eq!(EncryptionAnnotations::parse(&annotations).unwrap(), sample_like(&annotations));
    let unordered: HashMap<_, _> = annotations.clone().into_iter().collect();
    assert_eq!(EncryptionAnnotations::parse(&unordered).unwrap(), sample_like(&annotations));
}

/// The sample with the public options of the given annotations, which are new each time.
fn sample_like(annotations: &BTreeMap<String, String>) -> EncryptionAnnotations {
    let public_options = EncryptionAnnotations::parse(annotations).unwrap().public_options;
    EncryptionAnnotations { public_options, ..sample() }
}

#[test]
fn other_annotations_are_passed_over() {
    let mut annotations = sample().emit();
    annotations.insert("org.opencontainers.image.title".into(), "x".repeat(MAX_ANNOTATION_LENGTH + 1));
    assert_eq!(EncryptionAnnotations::parse(&annotations).unwrap().wrapped_keys, sample().wrapped_keys);
}

#[test]
fn a_layer_without_public_options_is_refused() {
    let mut annotations = sample().emit();
    annotations.remove(PUBLIC_OPTIONS);
    assert_eq!(EncryptionAnnotations::parse(&annotations), Err(AnnotationError::NoPublicOptions));
}

#[test]
fn a_layer_without_wrapped_keys_is_refused() {
    let mut annotations = sample().emit();
    annotations.retain(|name, _| name == PUBLIC_OPTIONS);
    assert_eq!(EncryptionAnnotations::parse(&annotations), Err(AnnotationError::NoWrappedKeys));
}

#[test]
fn an_annotation_that_is_too_long_is_refused() {
    for name in [JWE, PUBLIC_OPTIONS] {
        let mut annotations = sample().emit();
        annotations.insert(name.into(), "A".repeat(MAX_ANNOTATION_LENGTH + 4));
        let refused = AnnotationError::TooLong { name: name.into(), actual: MAX_ANNOTATION_LENGTH + 4 };
        assert_eq!(EncryptionAnnotations::parse(&annotations), Err(refused));
    }
}

#[test]
fn too_many_wrapped_keys_are_refused() {
    let mut annotations = sample().emit();
    annotations.insert(JWE.into(), vec!["AAAA"; MAX_WRAPPED_KEYS - 1].join(","));
    let actual = MAX_WRAPPED_KEYS + 1;
    assert_eq!(EncryptionAnnotations::parse(&annotations), Err(AnnotationError::TooMany { actual }));
    annotations.insert(JWE.into(), vec!["AAAA"; MAX_WRAPPED_KEYS - 2].join(","));
    assert!(EncryptionAnnotations::parse(&annotations).is_ok());
}

#[rstest]
#[case::wrapped_key(JWE)]
#[case::public_options(PUBLIC_OPTIONS)]
fn what_is_not_base64_is_refused(#[case] name: &str) {
    let mut annotations = sample().emit();
    annotations.insert(name.into(), "AAAA*".into());
    let refused = AnnotationError::NotBase64 { name: name.into() };
    assert_eq!(EncryptionAnnotations::parse(&annotations), Err(refused));
}

#[test]
fn refused_public_options_refuse_the_annotations() {
    let mut annotations = sample().emit();
    annotations.insert(PUBLIC_OPTIONS.into(), "e30=".into());
    let refused = EncryptionAnnotations::parse(&annotations).unwrap_err();
    assert!(matches!(refused, AnnotationError::PublicOptions(LayerError::Malformed { .. })), "{refused}");
}

#[rstest]
#[case("pkcs7", Scheme::Pkcs7)]
#[case("pkcs11", Scheme::Pkcs11)]
#[case("pgp", Scheme::Pgp)]
#[case("provider.other", Scheme::Provider("other".into()))]
#[case("unheard-of", Scheme::Other("unheard-of".into()))]
fn every_scheme_has_its_annotation(#[case] name: &str, #[case] scheme: Scheme) {
    let annotation = format!("org.opencontainers.image.enc.keys.{name}");
    assert_eq!(scheme.annotation(), annotation);
    assert_eq!(Scheme::of_annotation(&annotation), Some(scheme));
    assert_eq!(Scheme::of_annotation(name), None);
}
