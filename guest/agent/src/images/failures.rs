//! What a failed pull means to the host.

use sealpod_agent_protocol::{Failure, FailureKind};
use sealpod_image::UnpackError;
use sealpod_image::pull::PullError;
use sealpod_image::registry::RegistryError;
use sealpod_ocicrypt::{AttemptError, KeyError, UnwrapError};

use crate::failure::{Hint, chain, failure};

/// The failure of a pull.
pub(super) fn of_pull(error: &PullError) -> Failure {
    let message = chain(error);
    if error.is_exhausted() {
        return failure(FailureKind::Exhausted, message)
            .hint("give the pod more memory, or an ephemeral disk");
    }
    match error {
        PullError::Refused(_) => failure(FailureKind::ImageRefused, message)
            .hint("sign the image with a key that the pod's image policy names, or have its owner change the policy"),
        PullError::Registry(error) => of_registry(error, message),
        PullError::Unpack { source: UnpackError::TooLarge { .. }, .. } => {
            failure(FailureKind::Exhausted, message).hint("make the image smaller: no pod takes more")
        }
        PullError::Key { source, .. } => of_key(source, message),
        PullError::Platform { wanted, .. } => failure(FailureKind::Invalid, message)
            .hint(format!("build the image for {wanted}, or name a tag that has it")),
        PullError::Reference(_) => failure(FailureKind::Invalid, message)
            .hint("correct the image's name, or the locations that the image policy gives for its signatures"),
        PullError::Manifest(_)
        | PullError::Malformed(_)
        | PullError::Decrypt { .. }
        | PullError::Unpack { .. }
        | PullError::DiffId { .. } => failure(FailureKind::ImageCorrupt, message)
            .hint("push the image again; if that does not help, somebody between its author and the pod alters it"),
        PullError::Store(_) | PullError::Internal => failure(FailureKind::Internal, message),
    }
}

fn of_registry(error: &RegistryError, message: String) -> Failure {
    match error {
        RegistryError::Unreachable { .. } => failure(FailureKind::Unreachable, message).hint(
            "check the registry's address; one without TLS must stand in plain_http_registries of cdh.toml, the \
             certificate of a private one in extra_root_certificates",
        ),
        RegistryError::NotFound { .. } => failure(FailureKind::NotFound, message)
            .hint("check the image's name and tag, and that all of it was pushed"),
        RegistryError::Unauthorized { .. } => failure(FailureKind::Unreachable, message)
            .hint("give credentials by authenticated_registry_credentials_uri of cdh.toml"),
        RegistryError::Configuration(_) => failure(FailureKind::Invalid, message).hint(
            "correct plain_http_registries, extra_root_certificates and the registry's credentials, which \
             cdh.toml of the init data names",
        ),
        RegistryError::Protocol { .. } => failure(FailureKind::Unreachable, message)
            .hint("check that the address is a registry's (OCI distribution): something else may answer in its place"),
        _ => failure(FailureKind::ImageCorrupt, message)
            .hint("push the image again; if that does not help, the registry or somebody on the way alters it"),
    }
}

/// A key that was refused or could not be asked for is the reason; otherwise there simply is no fitting one.
fn of_key(error: &UnwrapError, message: String) -> Failure {
    let attempts = match error {
        UnwrapError::NoneOpened(attempts) => attempts.as_slice(),
        UnwrapError::Annotations(_) => &[],
    };
    let keys = attempts.iter().filter_map(|attempt| match &attempt.error {
        AttemptError::Key { source, .. } => Some(source),
        _ => None,
    });
    // A layer has a key for each recipient: the most telling of what went wrong is reported.
    let telling = |error: &&KeyError| match error {
        KeyError::Denied { .. } => 0,
        KeyError::Unavailable(_) => 1,
        KeyError::NotFound => 2,
    };
    match keys.min_by_key(telling) {
        Some(KeyError::Denied { denial }) => {
            let mut failure = failure(FailureKind::DeniedByKeyBroker, message)
                .hint("the key broker's owner finds the reason in its audit log, under the denial's id");
            failure.denial.clone_from(denial);
            failure
        }
        Some(KeyError::Unavailable(_)) => failure(FailureKind::Unreachable, message)
            .hint("check that the key broker runs and is named in aa.toml, and the key's id in the image's annotation"),
        Some(KeyError::NotFound) => failure(FailureKind::NotFound, message)
            .hint("the key broker's owner adds the key with `sealpod kbs resource set`"),
        None => failure(FailureKind::ImageCorrupt, message)
            .hint("the image is encrypted for somebody else, or its key in the key broker is another one"),
    }
}

#[cfg(test)]
mod tests {
    use sealpod_image::platform::Platform;
    use sealpod_image::reference::Reference;
    use sealpod_ocicrypt::Attempt;
    use sealpod_ocicrypt::annotations::Scheme;

    use super::*;

    fn of_attempt(error: AttemptError) -> Failure {
        let attempts = vec![Attempt { scheme: Scheme::Jwe, error }];
        of_key(&UnwrapError::NoneOpened(attempts), "layer".into())
    }

    #[test]
    fn a_refused_key_is_the_key_brokers_denial() {
        let source = KeyError::Denied { denial: Some("4711".into()) };
        let failure = of_attempt(AttemptError::Key { kid: "kbs:///a/b/c".into(), source });
        assert_eq!(failure.kind, FailureKind::DeniedByKeyBroker);
        assert_eq!(failure.denial.as_deref(), Some("4711"));
    }

    #[test]
    fn a_missing_key_is_not_found() {
        let failure = of_attempt(AttemptError::Key { kid: "k".into(), source: KeyError::NotFound });
        assert_eq!(failure.kind, FailureKind::NotFound);
    }

    #[test]
    fn an_image_for_others_is_not_a_denial() {
        assert_eq!(of_attempt(AttemptError::NoKey).kind, FailureKind::ImageCorrupt);
    }

    /// A failure of this kind whose hint has this word.
    #[track_caller]
    fn assert_hint(failure: &Failure, kind: FailureKind, word: &str) {
        assert_eq!(failure.kind, kind, "{failure}");
        let hint = failure.hint.as_deref().unwrap_or_default();
        assert!(hint.contains(word), "{word} is missing in {hint:?}");
    }

    #[test]
    fn a_key_that_could_not_be_asked_for_leads_to_the_key_broker() {
        let source = KeyError::Unavailable("no route to host".into());
        let failure = of_attempt(AttemptError::Key { kid: "k".into(), source });
        assert_hint(&failure, FailureKind::Unreachable, "aa.toml");
    }

    #[test]
    fn the_most_telling_of_several_keys_is_reported() {
        let attempt =
            |source| Attempt { scheme: Scheme::Jwe, error: AttemptError::Key { kid: "k".into(), source } };
        let unavailable = || KeyError::Unavailable("no route to host".into());
        let of = |attempts| of_key(&UnwrapError::NoneOpened(attempts), "layer".into()).kind;
        let denied = attempt(KeyError::Denied { denial: None });
        assert_eq!(of(vec![attempt(unavailable()), denied]), FailureKind::DeniedByKeyBroker);
        let missing = attempt(KeyError::NotFound);
        assert_eq!(of(vec![missing, attempt(unavailable())]), FailureKind::Unreachable);
    }

    #[test]
    fn an_image_for_other_machines_says_for_which_it_must_be() {
        let wanted = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let offered = vec![Platform { architecture: "riscv64".into(), ..wanted.clone() }];
        let failure = of_pull(&PullError::Platform { wanted, offered });
        assert_hint(&failure, FailureKind::Invalid, "linux/amd64");
        assert!(failure.message.contains("riscv64"), "{failure}");
    }

    #[test]
    fn a_name_that_leads_to_none_is_to_be_corrected() {
        let error = Reference::parse("registry.example/UPPER:1").unwrap_err();
        assert_hint(&of_pull(&PullError::Reference(error)), FailureKind::Invalid, "correct");
    }

    #[test]
    fn what_registries_do_has_a_kind_and_a_hint() {
        let (registry, what, detail) = (String::from("r:5000"), String::from("tag 1"), String::from("why"));
        for (error, kind, word) in [
            (
                RegistryError::Unreachable { registry: registry.clone(), detail: detail.clone() },
                FailureKind::Unreachable,
                "plain_http_registries",
            ),
            (
                RegistryError::NotFound { registry: registry.clone(), what: what.clone() },
                FailureKind::NotFound,
                "tag",
            ),
            (
                RegistryError::Unauthorized { registry: registry.clone(), what, detail: detail.clone() },
                FailureKind::Unreachable,
                "authenticated_registry_credentials_uri",
            ),
            (
                RegistryError::Protocol { registry, detail: detail.clone() },
                FailureKind::Unreachable,
                "OCI distribution",
            ),
            (RegistryError::Configuration(detail), FailureKind::Invalid, "cdh.toml"),
            (RegistryError::TooLarge { limit: 1 }, FailureKind::ImageCorrupt, "push"),
        ] {
            let message = error.to_string();
            let failure = of_pull(&PullError::Registry(error));
            assert_hint(&failure, kind, word);
            assert_eq!(failure.message, message);
        }
    }
}
