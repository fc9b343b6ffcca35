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
        PullError::Platform { .. } | PullError::Reference(_) => failure(FailureKind::Invalid, message),
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
        RegistryError::NotFound { .. } => failure(FailureKind::NotFound, message),
        RegistryError::Unauthorized { .. } => failure(FailureKind::Unreachable, message)
            .hint("give credentials by authenticated_registry_credentials_uri of cdh.toml"),
        RegistryError::Configuration(_) => failure(FailureKind::Invalid, message),
        RegistryError::Protocol { .. } => failure(FailureKind::Unreachable, message),
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
        Some(KeyError::Unavailable(_)) => failure(FailureKind::Unreachable, message),
        Some(KeyError::NotFound) => failure(FailureKind::NotFound, message)
            .hint("the key broker's owner adds the key with `sealpod kbs resource set`"),
        None => failure(FailureKind::ImageCorrupt, message)
            .hint("the image is encrypted for somebody else, or its key in the key broker is another one"),
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_silent_registry_is_unreachable() {
        let error = RegistryError::Unreachable { registry: "r".into(), detail: "timed out".into() };
        let failure = of_pull(&PullError::Registry(error));
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.message.contains("timed out"));
    }
}
