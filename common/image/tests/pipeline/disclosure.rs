//! What a refused encrypted layer says of what it holds. Who serves it reads the error, and can alter what it decrypts to.

use std::fs;
use std::time::Duration;

use rstest::rstest;
use sealpod_image::UnpackError;
use sealpod_image::pull::{Limits, PullError};
use sealpod_image::registry::RegistryError;
use sealpod_ocicrypt::layer::LayerError;

use crate::support::archive::{Archive, Member};
use crate::support::image::{Image, Layer};
use crate::support::keys::{key_pair, recipient, unwrapper};
use crate::support::served::{Answer, Served};
use crate::support::{Guest, until};

const SECRET: &str = "hunter2";
const LIMIT: u64 = 1 << 20;

/// A member, and enough behind it that the transfer is not at its end when the member is read.
fn archive(member: Member) -> Vec<u8> {
    let content: Vec<u8> =
        (0..50_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    Archive::of([member, Member::file("content", content)])
}

fn with_record(key: &str, value: &str) -> Layer {
    Layer::plain(archive(Member::file("a", "").record(key, value)))
}

fn hole(length: &str) -> Layer {
    let member = Member::file("hole", "").record("GNU.sparse.size", length).record("GNU.sparse.map", "0,0");
    Layer::plain(archive(member))
}

/// A layer whose plaintext an attacker who cannot read it changes where he knows or guesses it.
struct Alteration {
    layer: Layer,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Alteration {
    fn new(layer: Layer, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        Self { layer, from: from.as_ref().to_vec(), to: to.as_ref().to_vec() }
    }

    /// The layer, encrypted, and its blob after the change.
    fn encrypted(self, keys: &tempfile::TempDir) -> (Layer, Vec<u8>) {
        let Self { layer, from, to } = self;
        let start = layer.blob.windows(from.len()).position(|window| window == from).unwrap();
        let layer = layer.encrypted(&[recipient(keys)]);
        let mut blob = layer.blob.clone();
        for ((byte, from), to) in blob[start..].iter_mut().zip(&from).zip(&to) {
            *byte ^= from ^ to;
        }
        (layer, blob)
    }
}

/// What shows that a layer was altered.
#[derive(Clone, Copy)]
enum Proof {
    Length,
    Digest,
    Hmac,
}

#[rstest]
#[case::a_headers_checksum(Alteration::new(with_record("comment", SECRET), "ustar", "UsTaR"))]
#[case::a_record(Alteration::new(with_record("sizf", SECRET), "sizf=", "size="))]
#[case::a_record_of_unknown_meaning(Alteration::new(
    with_record("GNU_sparse.x", SECRET),
    "GNU_sparse",
    "GNU.sparse"
))]
#[case::a_name(Alteration::new(with_record("path", &format!("{SECRET}/aa")), "/aa\n", "/..\n"))]
#[case::a_size(Alteration::new(hole("0000001"), "=0000001", "=9000000"))]
#[case::a_gzip_header(Alteration::new(Layer::gzip(&archive(Member::file(SECRET, ""))), [0x1f, 0x8b], [0, 0]))]
#[case::a_gzip_method(Alteration::new(Layer::gzip(&archive(Member::file(SECRET, ""))), [0x8b, 8], [0x8b, 7]))]
#[case::a_zstandard_frame(Alteration::new(Layer::zstd(&archive(Member::file(SECRET, ""))), [0x28, 0xb5], [0, 0]))]
#[tokio::test]
async fn an_altered_encrypted_layer_says_only_that_it_was_altered(
    #[case] alteration: Alteration,
    #[values(Proof::Length, Proof::Digest, Proof::Hmac)] proof: Proof,
) {
    let keys = key_pair("P-256");
    let (mut layer, mut bytes) = alteration.encrypted(&keys);
    if !matches!(proof, Proof::Digest) {
        layer.blob.clone_from(&bytes);
    }
    if matches!(proof, Proof::Length) {
        bytes.push(0);
    }
    let digest = layer.digest();
    let served = Served::with(&Image::of([layer])).await;
    let after = bytes.len() / 2;
    served.answer_blob(digest, Answer::Held { bytes, after });
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    guest.limits = Limits { unpacked_bytes: LIMIT, ..Limits::default() };
    let (puller, reference) = (guest.puller(), served.reference());
    let pull = tokio::spawn(async move { puller.pull(&reference).await });

    served.until_held(1).await;
    until("unpacking has failed", || guest.staged().is_empty()).await;
    assert!(!pull.is_finished());
    served.let_go();

    let error = pull.await.unwrap().unwrap_err();
    assert!(guest.visible().is_empty());
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    match (proof, error) {
        (Proof::Length, PullError::Registry(RegistryError::Length { .. }))
        | (Proof::Digest, PullError::Registry(RegistryError::Digest { what: "blob", .. })) => {}
        (Proof::Hmac, PullError::Decrypt { layer, source: LayerError::HmacMismatch }) => {
            assert_eq!(layer, digest);
        }
        (_, error) => panic!("{error}"),
    }
}

#[rstest]
#[case::gzip(Layer::gzip(&archive(Member::file(SECRET, ""))))]
#[case::zstd(Layer::zstd(&archive(Member::file(SECRET, ""))))]
#[case::plain(Layer::plain(archive(Member::file(SECRET, ""))))]
#[tokio::test]
async fn a_cut_encrypted_layer_says_only_that_it_was_altered(
    #[case] layer: Layer,
    #[values(0, 300, 50_000)] length: usize,
) {
    let keys = key_pair("P-256");
    let mut layer = layer.encrypted(&[recipient(&keys)]);
    layer.blob.truncate(length);
    let served = Served::with(&Image::of([layer])).await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(error, PullError::Decrypt { source: LayerError::HmacMismatch, .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_falls_silent_after_unpacking_has_failed_is_given_up() {
    let keys = key_pair("P-256");
    let (mut layer, bytes) = Alteration::new(with_record("sizf", SECRET), "sizf=", "size=").encrypted(&keys);
    layer.blob.clone_from(&bytes);
    let served = Served::with(&Image::of([layer.clone()])).await;
    served.answer_blob(layer.digest(), Answer::Held { after: bytes.len() / 2, bytes });
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    guest.client.idle_timeout = Duration::from_millis(100);
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(error, PullError::Registry(_)), "{error}");
}

/// What a layer takes of the image's limit shows in the others.
#[tokio::test]
async fn an_altered_encrypted_layer_does_not_speak_by_another_layers_error() {
    let keys = key_pair("P-256");
    let (mut layer, bytes) = Alteration::new(hole("0000001"), "=0000001", "=0700000").encrypted(&keys);
    layer.blob.clone_from(&bytes);
    let below = Layer::plain(Archive::of([Member::file("below", vec![1; 600_000])]));
    let image = Image::of([below, layer]);
    let served = Served::with(&image).await;
    for layer in &image.layers {
        served.answer_blob(layer.digest(), Answer::Held { bytes: layer.blob.clone(), after: 10_000 });
    }
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    guest.limits = Limits { unpacked_bytes: LIMIT, ..Limits::default() };
    let (puller, reference) = (guest.puller(), served.reference());
    let pull = tokio::spawn(async move { puller.pull(&reference).await });

    served.until_held(2).await;
    let taken = || {
        let lengths = guest.staged().into_iter().map(|staged| fs::metadata(staged.join("hole")));
        lengths.flatten().any(|hole| hole.len() == 700_000)
    };
    until("the altered layer has taken its part", taken).await;
    served.let_go();

    match pull.await.unwrap().unwrap_err() {
        PullError::Decrypt { layer, source: LayerError::HmacMismatch } => {
            assert_eq!(layer, image.layers[1].digest());
        }
        error => panic!("{error}"),
    }
}

#[rstest]
#[case::refused(
    Member::file(format!("../{SECRET}"), ""),
    r#"it holds "(withheld, as the layer is encrypted)", which must not be in a layer"#
)]
#[case::of_an_unknown_type(
    Member::of_kind(SECRET, b'~'),
    r#"it holds "(withheld, as the layer is encrypted)", which must not be in a layer"#
)]
#[case::malformed(
    Member::file("a", "").record("size", SECRET),
    "its tar archive is malformed: (withheld, as the layer is encrypted)"
)]
#[case::not_to_be_written(
    Member::file(SECRET, "").xattr("security.large", vec![b'x'; 70_000]),
    r#""(withheld, as the layer is encrypted)" cannot be written: argument list too long"#
)]
#[tokio::test]
async fn only_a_plain_layers_error_says_what_the_layer_holds(#[case] member: Member, #[case] words: &str) {
    let keys = key_pair("P-256");
    let plain = Layer::plain(archive(member));
    let encrypted = plain.clone().encrypted(&[recipient(&keys)]);
    let served = Served::start().await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);

    let of_plain = refusal(&served, &guest, plain).await;
    assert!(of_plain.to_string().contains(SECRET), "{of_plain}");

    let digest = encrypted.digest();
    let of_encrypted = refusal(&served, &guest, encrypted).await;
    assert!(!format!("{of_encrypted:?}").contains(SECRET), "{of_encrypted:?}");
    assert_eq!(of_encrypted.to_string(), format!("the layer {digest}: {words}"));
}

#[tokio::test]
async fn an_encrypted_layer_that_unpacks_to_too_much_says_so() {
    let keys = key_pair("P-256");
    let served = Served::start().await;
    let mut guest = Guest::new(served.options());
    guest.keys = unwrapper(&keys);
    guest.limits = Limits { unpacked_bytes: LIMIT, ..Limits::default() };
    let layer = Layer::gzip(&archive(Member::file(SECRET, vec![0; 2 << 20])));
    let error = refusal(&served, &guest, layer.encrypted(&[recipient(&keys)])).await;
    let too_large = |source: &UnpackError| matches!(source, UnpackError::TooLarge { limit: LIMIT, .. });
    assert!(matches!(&error, PullError::Unpack { source, .. } if too_large(source)), "{error}");
}

/// Why an image of this layer alone is refused.
async fn refusal(served: &Served, guest: &Guest, layer: Layer) -> PullError {
    let image = Image::of([layer]);
    served.add(&image);
    guest.refused(&served.named(&format!("@{}", image.digest()))).await
}
