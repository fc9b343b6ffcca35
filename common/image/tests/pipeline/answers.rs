//! Registries that do not serve what they are asked for.

use std::time::Duration;

use rstest::rstest;
use sealpod_image::policy::Policy;
use sealpod_image::pull::PullError;
use sealpod_image::registry::RegistryError;

use crate::support::Guest;
use crate::support::archive::{Archive, Member};
use crate::support::image::Image;
use crate::support::registry::Registry;
use crate::support::served::{Answer, REPOSITORY, Served};

fn image() -> Image {
    Image::of_archives([Archive::of([Member::file("a", vec![1; 100_000])])])
}

fn status(status: u16) -> Answer {
    Answer::Status { status, headers: Vec::new(), body: String::new() }
}

/// With the words of a registry, as the distribution specification has them.
fn said(status: u16, message: &str) -> Answer {
    let body = format!(r#"{{"errors":[{{"code":"X","message":"{message}"}}]}}"#);
    Answer::Status { status, headers: Vec::new(), body }
}

fn challenge(text: &str) -> Answer {
    Answer::Status { status: 401, headers: vec![("www-authenticate", text.into())], body: String::new() }
}

fn redirect(to: &str) -> Answer {
    Answer::Status { status: 307, headers: vec![("location", to.into())], body: String::new() }
}

fn unreachable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable { .. })
}

fn unauthorized(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unauthorized { .. })
}

fn not_found(error: &RegistryError) -> bool {
    matches!(error, RegistryError::NotFound { .. })
}

fn protocol(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Protocol { .. })
}

type Kind = fn(&RegistryError) -> bool;

/// What each failure is, and what its message must tell.
#[rstest]
#[case::not_found(status(404), not_found, "has no ")]
#[case::forbidden(said(403, "not for you"), unauthorized, "403 Forbidden (not for you)")]
#[case::who_are_you(challenge("Basic realm=\"x\""), unauthorized, "it asks for a name and password")]
#[case::without_a_challenge(status(401), protocol, "expected Basic or Bearer")]
#[case::an_unknown_challenge(challenge("Negotiate"), protocol, "expected Basic or Bearer")]
#[case::a_realm_that_is_none(challenge("Bearer realm=\"nowhere\""), protocol, "the token realm \"nowhere\"")]
#[case::too_many_requests(said(429, "slow down"), unreachable, "429 Too Many Requests (slow down)")]
#[case::broken(status(500), unreachable, "500 Internal Server Error")]
#[case::away(status(503), unreachable, "503 Service Unavailable")]
#[case::a_teapot(status(418), protocol, "418")]
#[case::a_redirect_to_itself(redirect("manifests-in-a-circle"), unreachable, "")]
#[case::closed(Answer::Closed, unreachable, "")]
#[case::silent(Answer::Silent, unreachable, "timed out")]
#[tokio::test]
async fn a_registry_that_does_not_serve_gives_one_clear_error(
    #[values("manifest", "configuration", "layer", "signature")] of: &str,
    #[case] answer: Answer,
    #[case] kind: Kind,
    #[case] words: &str,
) {
    let image = image();
    let served = Served::with(&image).await;
    // The redirect leads here, from wherever it comes.
    for folder in ["manifests", "blobs"] {
        served.answer(&format!("/v2/{REPOSITORY}/{folder}/manifests-in-a-circle"), answer.clone());
    }
    let mut guest = Guest::new(served.options());
    guest.client.idle_timeout = Duration::from_millis(100);
    match of {
        "manifest" => served.answer_manifest("1", answer),
        "configuration" => {
            served.answer_blob(image.manifest["config"]["digest"].as_str().unwrap().parse().unwrap(), answer);
        }
        "layer" => served.answer_blob(image.layers[0].digest(), answer),
        _ => {
            guest.policy = signed_by_somebody();
            served.answer_manifest(&format!("sha256-{}.sig", image.digest().hex()), answer);
        }
    }
    let error = guest.refused(&served.reference()).await;
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
    match error {
        // Where there is no signature, the policy says so.
        PullError::Refused(_) => assert!(of == "signature" && words == "has no ", "{text}"),
        PullError::Registry(error) => {
            assert!(kind(&error), "{error:?}");
            assert!(text.contains(words), "{text}");
            assert!(text.contains(&served.address().to_string()), "{text}");
        }
        error => panic!("{error}"),
    }
}

fn signed_by_somebody() -> Policy {
    use base64::Engine as _;
    let key = sealpod_image::author::SigningKey::generate().unwrap();
    let key = sealpod_image::author::SigningKey::from_pem(key.as_bytes()).unwrap().public_pem().unwrap();
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    Policy::parse(&format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}"}}]}}"#)).unwrap()
}

#[tokio::test]
async fn a_registry_that_nobody_runs_is_unreachable() {
    let registry = Registry::plain();
    let (reference, options) = (registry.reference("app:1"), registry.options());
    drop(registry);
    let error = Guest::new(options).refused(&reference).await;
    assert!(matches!(&error, PullError::Registry(error) if unreachable(error)), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn what_a_genuine_registry_does_not_have_is_not_found() {
    let registry = Registry::plain();
    image().push(&registry.client(), &registry.reference("app:1")).await;
    let guest = Guest::new(registry.options());
    for rest in ["other:1", "app:2", &format!("app@{}", Image::of([]).digest())] {
        let reference = registry.reference(rest);
        let error = guest.refused(&reference).await;
        assert_eq!(error.to_string(), format!("the registry {} has no {reference}", registry.address()));
    }
}

#[tokio::test]
async fn a_registry_that_falls_silent_within_a_layer_is_given_up() {
    let image = image();
    let served = Served::with(&image).await;
    let layer = &image.layers[0];
    served.answer_blob(layer.digest(), Answer::Held { bytes: layer.blob.clone(), after: 50_000 });
    let mut guest = Guest::new(served.options());
    guest.client.idle_timeout = Duration::from_millis(100);
    let error = guest.refused(&served.reference()).await;
    assert!(matches!(&error, PullError::Registry(_)), "{error}");
}

/// Guards the manifest of an image.
async fn guarded(authorization: &str, challenge: &str) -> Served {
    let image = image();
    let served = Served::with(&image).await;
    served.answer_manifest(
        "1",
        Answer::Guarded {
            authorization: authorization.into(),
            challenge: challenge.replace("{address}", &served.address().to_string()),
            bytes: image.manifest_bytes(),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        },
    );
    served
}

#[rstest]
#[case("secret", true)]
#[case("another", false)]
#[tokio::test]
async fn a_name_and_password_open_a_registry(#[case] password: &str, #[case] right: bool) {
    // "owner:secret"
    let served = guarded("Basic b3duZXI6c2VjcmV0", "Basic realm=\"x\"").await;
    let mut guest = Guest::new(served.options());
    guest.client.credentials.insert(&served.address().to_string(), "owner", password);
    if right {
        assert!(guest.pull(&served.reference()).await.is_ok());
    } else {
        let error = guest.refused(&served.reference()).await;
        assert!(matches!(&error, PullError::Registry(error) if unauthorized(error)), "{error}");
        assert!(!error.to_string().contains(password), "{error}");
    }
}

#[rstest]
#[case(r#"{"token":"t0ken"}"#, true)]
#[case(r#"{"access_token":"t0ken","expires_in":60}"#, true)]
#[case(r#"{"token":"another"}"#, false)]
#[case(r"{}", false)]
#[case(r"no JSON", false)]
#[tokio::test]
async fn a_token_opens_a_registry(#[case] answer: &str, #[case] right: bool) {
    let challenge = "Bearer realm=\"http://{address}/token\",service=\"s\"";
    let served = guarded("Bearer t0ken", challenge).await;
    let token = Answer::Content { media_type: "application/json".into(), bytes: answer.into() };
    served.answer(&format!("/token?service=s&scope=repository%3A{REPOSITORY}%3Apull"), token);
    let guest = Guest::new(served.options());
    if right {
        assert!(guest.pull(&served.reference()).await.is_ok());
    } else {
        let error = guest.refused(&served.reference()).await;
        assert!(matches!(error, PullError::Registry(_)), "{error}");
    }
}

#[tokio::test]
async fn a_blob_behind_a_redirect_is_fetched() {
    let image = image();
    let served = Served::with(&image).await;
    let layer = &image.layers[0];
    served.answer("/elsewhere", Answer::Content { media_type: String::new(), bytes: layer.blob.clone() });
    served.answer_blob(layer.digest(), redirect("/elsewhere"));
    let guest = Guest::new(served.options());
    assert!(guest.pull(&served.reference()).await.is_ok());
}
