//! As what an image must have been signed.

use serde::Deserialize;

use crate::reference::{Reference, ReferenceError};

/// How the identity in a signature relates to what was asked for (`signedIdentity`).
#[derive(Clone, Debug)]
pub(super) enum Identity {
    /// The same reference.
    MatchExact,
    /// The same reference; where a digest was asked for, the same repository.
    MatchRepositoryDigestOrExact,
    /// The same repository.
    MatchRepository,
    /// This reference, whatever was asked for.
    ExactReference(Reference),
    /// This repository, whatever was asked for.
    ExactRepository(Reference),
    /// As [`Self::MatchRepositoryDigestOrExact`] after one prefix was put in another's place.
    Remap { prefix: String, signed_prefix: String },
}

/// `signedIdentity` as it stands in a policy.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(super) enum IdentityDocument {
    MatchExact {},
    MatchRepoDigestOrExact {},
    MatchRepository {},
    ExactReference { docker_reference: String },
    ExactRepository { docker_repository: String },
    RemapIdentity { prefix: String, signed_prefix: String },
}

/// The identity in a signature is not the one that the policy asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// What the signature names is no reference.
    #[error("it names {actual:?}: {source}")]
    Malformed {
        /// What it names.
        actual: String,
        /// Why that is no reference.
        source: ReferenceError,
    },
    /// The signature is for another image.
    #[error("it is for {actual}, expected {expected} ({rule})")]
    Mismatch {
        /// The rule in the policy.
        rule: &'static str,
        /// What the rule asks for.
        expected: String,
        /// What the signature names.
        actual: String,
    },
}

impl Identity {
    /// From the policy's words; the default is the one that the format has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(document: Option<IdentityDocument>) -> Result<Self, String> {
        Ok(match document {
            None | Some(IdentityDocument::MatchRepoDigestOrExact {}) => Self::MatchRepositoryDigestOrExact,
            Some(IdentityDocument::MatchExact {}) => Self::MatchExact,
            Some(IdentityDocument::MatchRepository {}) => Self::MatchRepository,
            Some(IdentityDocument::ExactReference { docker_reference }) => {
                let reference = named(&docker_reference)?;
                if reference.is_name_only() {
                    return Err(format!("dockerReference {docker_reference:?} has no tag and no digest"));
                }
                Self::ExactReference(reference)
            }
            Some(IdentityDocument::ExactRepository { docker_repository }) => {
                Self::ExactRepository(named(&docker_repository)?)
            }
            Some(IdentityDocument::RemapIdentity { prefix, signed_prefix }) => {
                check_prefix(&prefix)?;
                check_prefix(&signed_prefix)?;
                Self::Remap { prefix, signed_prefix }
            }
        })
    }

    /// Whether a signature for `signed` is one for what was asked for.
    pub(super) fn check(&self, asked: &Reference, signed: &str) -> Result<(), IdentityError> {
        let signature = Reference::parse_named(signed)
            .map_err(|source| IdentityError::Malformed { actual: signed.into(), source })?;
        let (rule, expected, matches) = match self {
            Self::MatchExact => {
                ("matchExact", asked.to_string(), asked.tag().is_some() && exactly(asked, &signature))
            }
            Self::MatchRepositoryDigestOrExact => {
                ("matchRepoDigestOrExact", asked.to_string(), digest_or_exact(asked, &signature))
            }
            Self::MatchRepository => ("matchRepository", asked.name(), asked.name() == signature.name()),
            Self::ExactReference(wanted) => {
                ("exactReference", wanted.to_string(), wanted.to_string() == signature.to_string())
            }
            Self::ExactRepository(wanted) => {
                ("exactRepository", wanted.name(), wanted.name() == signature.name())
            }
            Self::Remap { prefix, signed_prefix } => match remap(asked, prefix, signed_prefix) {
                Some(wanted) => ("remapIdentity", wanted.to_string(), digest_or_exact(&wanted, &signature)),
                None => ("remapIdentity", format!("a name under {signed_prefix}"), false),
            },
        };
        if matches {
            return Ok(());
        }
        Err(IdentityError::Mismatch { rule, expected, actual: signature.to_string() })
    }
}

/// The same name and tag. A digest that was asked for beside the tag does not count: that it is the
/// manifest's was checked already.
fn exactly(asked: &Reference, signature: &Reference) -> bool {
    asked.name() == signature.name() && asked.tag() == signature.tag() && signature.digest().is_none()
}

fn digest_or_exact(asked: &Reference, signature: &Reference) -> bool {
    if signature.is_name_only() {
        return false;
    }
    match asked.tag() {
        Some(_) => exactly(asked, signature),
        None => asked.name() == signature.name(),
    }
}

/// Puts one prefix in another's place; a name that does not begin with the prefix stays as it is.
/// `None` where the result is no name.
fn remap(asked: &Reference, prefix: &str, signed_prefix: &str) -> Option<Reference> {
    let name = asked.name();
    let Some(rest) = name.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return Some(asked.clone());
    };
    let full = asked.to_string();
    let suffix = full.get(name.len()..)?;
    Reference::parse_named(&format!("{signed_prefix}{rest}{suffix}")).ok()
}

fn named(text: &str) -> Result<Reference, String> {
    Reference::parse_named(text).map_err(|error| error.to_string())
}

/// A registry, or a full name without tag and digest.
fn check_prefix(prefix: &str) -> Result<(), String> {
    let is_name =
        Reference::parse_named(prefix).is_ok_and(|name| name.is_name_only() && name.to_string() == prefix);
    let is_registry = !prefix.contains('/') && Reference::parse_named(&format!("{prefix}/x")).is_ok();
    if is_name || is_registry {
        return Ok(());
    }
    Err(format!("{prefix:?} is neither a registry nor a full name such as docker.io/library/busybox"))
}
