//! Image policies: which images may run, by whom they must be signed, and as what.
//!
//! The format and its meaning are those of `containers-policy.json(5)`. Only the `docker` transport counts
//! here; the others are checked for form.

mod document;
mod identity;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::signature::{KeyError, Payload, PayloadError, Signature, VerifyingKey};
use identity::{Identity, IdentityError};

/// A policy, read and checked. Nothing is accepted that it does not say is accepted.
#[derive(Clone, Debug)]
pub struct Policy {
    default: Vec<Requirement>,
    scopes: BTreeMap<String, Vec<Requirement>>,
    keys: BTreeMap<String, VerifyingKey>,
}

/// What must be so before an image may run. All of a scope's must be.
#[derive(Clone, Debug)]
enum Requirement {
    InsecureAcceptAnything,
    Reject,
    SigstoreSigned { keys: Vec<KeySource>, identity: Identity },
    Unsupported { kind: &'static str, detail: String },
}

#[derive(Clone, Debug)]
enum KeySource {
    Inline(VerifyingKey),
    Path(String),
}

/// What a policy says of a reference before anything is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Every image under this name is accepted.
    Unconditional,
    /// The manifest's signatures decide: see [`Policy::evaluate`].
    BySignatures,
}

impl Policy {
    /// Reads a `policy.json`.
    ///
    /// # Errors
    /// [`PolicyError`]: a duplicate or unknown key, an empty list of requirements, no default, a key that is
    /// no key. A policy is taken whole or not at all.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        document::parse(json)
    }

    /// The keys that the policy names by path or URI and that are not loaded yet. An image whose policy needs
    /// one of them is refused.
    pub fn missing_keys(&self) -> BTreeSet<&str> {
        let requirements = self.scopes.values().flatten().chain(&self.default);
        requirements
            .filter_map(|requirement| match requirement {
                Requirement::SigstoreSigned { keys, .. } => Some(keys),
                _ => None,
            })
            .flatten()
            .filter_map(|key| match key {
                KeySource::Path(path) if !self.keys.contains_key(path) => Some(path.as_str()),
                _ => None,
            })
            .collect()
    }

    /// Gives the key (in PEM) that the policy names by this path.
    ///
    /// # Errors
    /// [`PolicyError::Key`].
    pub fn load_key(&mut self, path: &str, pem: &[u8]) -> Result<(), PolicyError> {
        let key =
            VerifyingKey::from_pem(pem).map_err(|source| PolicyError::Key { name: path.into(), source })?;
        self.keys.insert(path.into(), key);
        Ok(())
    }

    /// What can be said before anything is fetched.
    ///
    /// # Errors
    /// [`Refused`] where no signature could make the image acceptable.
    pub fn admission(&self, reference: &Reference) -> Result<Admission, Refused> {
        let (scope, requirements) = self.requirements(reference);
        let mut admission = Admission::Unconditional;
        for (index, requirement) in requirements.iter().enumerate() {
            let reason = match requirement {
                Requirement::InsecureAcceptAnything => continue,
                Requirement::SigstoreSigned { keys, .. } => match self.resolve(keys) {
                    Ok(_) => {
                        admission = Admission::BySignatures;
                        continue;
                    }
                    Err(reason) => reason,
                },
                Requirement::Reject => Reason::Reject,
                Requirement::Unsupported { kind, detail } => {
                    Reason::Unsupported { kind, detail: detail.clone() }
                }
            };
            return Err(Refused::new(reference, None, scope, index, reason));
        }
        Ok(admission)
    }

    /// Whether the image that was asked for under this reference, and whose manifest (or index) has this
    /// digest, may run, given these signatures.
    ///
    /// # Errors
    /// [`Refused`] says which requirement is not met, and why each signature does not meet it.
    pub fn evaluate(
        &self,
        reference: &Reference,
        manifest: Digest,
        signatures: &[Signature],
    ) -> Result<(), Refused> {
        self.admission(reference)?;
        let (scope, requirements) = self.requirements(reference);
        for (index, requirement) in requirements.iter().enumerate() {
            let Requirement::SigstoreSigned { keys, identity } = requirement else { continue };
            self.resolve(keys)
                .and_then(|keys| check_signatures(&keys, identity, reference, manifest, signatures))
                .map_err(|reason| Refused::new(reference, Some(manifest), scope.clone(), index, reason))?;
        }
        Ok(())
    }

    /// The requirements of the most specific scope, and that scope.
    fn requirements(&self, reference: &Reference) -> (Scope, &[Requirement]) {
        scopes(reference)
            .into_iter()
            .find_map(|scope| {
                let requirements = self.scopes.get(&scope)?;
                Some((Scope::Named(scope), requirements.as_slice()))
            })
            .unwrap_or((Scope::Default, &self.default))
    }

    fn resolve<'a>(&'a self, keys: &'a [KeySource]) -> Result<Vec<&'a VerifyingKey>, Reason> {
        keys.iter()
            .map(|key| match key {
                KeySource::Inline(key) => Ok(key),
                KeySource::Path(path) => {
                    self.keys.get(path).ok_or_else(|| Reason::KeyNotLoaded { path: path.clone() })
                }
            })
            .collect()
    }
}

/// The scopes that a reference may fall under, most specific first.
fn scopes(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let mut scopes = Vec::new();
    scopes.extend(reference.digest().map(|digest| format!("{name}@{digest}")));
    scopes.extend(reference.tag().map(|tag| format!("{name}:{tag}")));
    let mut parent = name.as_str();
    scopes.push(parent.to_owned());
    while let Some((shorter, _)) = parent.rsplit_once('/') {
        scopes.push(shorter.to_owned());
        parent = shorter;
    }
    let host = reference.registry();
    let mut domain = host.split_once(':').map_or(host, |(host, _)| host);
    while let Some((_, shorter)) = domain.split_once('.') {
        scopes.push(format!("*.{shorter}"));
        domain = shorter;
    }
    scopes.push(String::new());
    scopes
}

fn check_signatures(
    keys: &[&VerifyingKey],
    identity: &Identity,
    reference: &Reference,
    manifest: Digest,
    signatures: &[Signature],
) -> Result<(), Reason> {
    let mut refusals = Vec::new();
    for signature in signatures {
        match check_signature(keys, identity, reference, manifest, signature) {
            Ok(()) => return Ok(()),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let keys = keys.iter().map(|key| key.fingerprint()).collect();
    Err(Reason::NotSigned { keys, refusals })
}

fn check_signature(
    keys: &[&VerifyingKey],
    identity: &Identity,
    reference: &Reference,
    manifest: Digest,
    signature: &Signature,
) -> Result<(), SignatureRefusal> {
    // Nothing of the document is looked at before its signature is verified.
    if !keys.iter().any(|key| key.verifies(signature)) {
        return Err(SignatureRefusal::Key);
    }
    let critical = Payload::parse(&signature.payload).map_err(SignatureRefusal::Payload)?.critical;
    let signed = critical.image.docker_manifest_digest;
    if signed != manifest {
        return Err(SignatureRefusal::Digest { expected: manifest, actual: signed });
    }
    identity
        .check(reference, &critical.identity.docker_reference)
        .map_err(|source| SignatureRefusal::Identity { source })
}

/// Why a policy is not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not the JSON it should be: an unknown or duplicate key among other things.
    #[error("the image policy is malformed: {0}")]
    Malformed(#[source] serde_json::Error),
    /// An empty list would accept everything or nothing, depending on who reads it.
    #[error("the image policy has no requirements for {scope}: write one, such as {{\"type\":\"reject\"}}")]
    NoRequirements {
        /// Which list is empty.
        scope: String,
    },
    /// A requirement that makes no sense.
    #[error("the image policy's requirement {requirement} for {scope}: {detail}")]
    Requirement {
        /// Counted from 1.
        requirement: usize,
        /// Which list.
        scope: String,
        /// What is wrong, and what was expected.
        detail: String,
    },
    /// A key that is no key.
    #[error("the image policy's key {name}: {source}")]
    Key {
        /// Its path, or where it stands.
        name: String,
        /// Why.
        source: KeyError,
    },
}

/// The policy does not allow the image.
#[derive(Debug, thiserror::Error)]
#[error(
    "the image policy refuses {reference}{}: requirement {requirement} of {scope}: {reason}",
    digest.map(|digest| format!(" ({digest})")).unwrap_or_default()
)]
pub struct Refused {
    /// What was asked for.
    pub reference: String,
    /// The manifest's, once it was fetched.
    pub digest: Option<Digest>,
    /// Whose requirements apply.
    pub scope: Scope,
    /// Which of them is not met, counted from 1.
    pub requirement: usize,
    /// Why it is not.
    pub reason: Reason,
}

impl Refused {
    fn new(
        reference: &Reference,
        digest: Option<Digest>,
        scope: Scope,
        index: usize,
        reason: Reason,
    ) -> Self {
        Self { reference: reference.to_string(), digest, scope, requirement: index + 1, reason }
    }
}

/// Where in a policy a list of requirements stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Under this name in the `docker` transport.
    Named(String),
    /// The policy's default.
    Default,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "scope {name:?}"),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// Why a requirement is not met.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The policy says so.
    #[error("reject")]
    Reject,
    /// A kind of requirement that is not supported: what cannot be checked is not met.
    #[error("{kind}: {detail} is not supported")]
    Unsupported {
        /// The requirement's type.
        kind: &'static str,
        /// What of it.
        detail: String,
    },
    /// A key that the policy names could not be had.
    #[error("sigstoreSigned: the key {path} is not loaded")]
    KeyNotLoaded {
        /// As the policy has it.
        path: String,
    },
    /// There is no signature that meets it.
    #[error("sigstoreSigned by {}: {}", Keys(keys), Refusals(refusals))]
    NotSigned {
        /// Fingerprints of the keys that the policy accepts.
        keys: Vec<Digest>,
        /// Why each signature does not meet it; empty where there is none.
        refusals: Vec<SignatureRefusal>,
    },
}

/// Why one signature does not meet a requirement.
#[derive(Debug, thiserror::Error)]
pub enum SignatureRefusal {
    /// No key that the policy accepts made it.
    #[error("it was not made by an accepted key")]
    Key,
    /// What is signed is not a statement about an image.
    #[error(transparent)]
    Payload(PayloadError),
    /// It is about another image.
    #[error("it signs {actual}, expected {expected}")]
    Digest {
        /// The manifest's digest.
        expected: Digest,
        /// What is signed.
        actual: Digest,
    },
    /// It is about this image under another name.
    #[error("{source}")]
    Identity {
        /// What was expected and what came.
        source: IdentityError,
    },
}

struct Keys<'a>(&'a [Digest]);

impl fmt::Display for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            write!(f, "{}key {key}", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

struct Refusals<'a>(&'a [SignatureRefusal]);

impl fmt::Display for Refusals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the image has no signature");
        }
        for (index, refusal) in self.0.iter().enumerate() {
            write!(f, "{}signature {}: {refusal}", if index == 0 { "" } else { "; " }, index + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_the_reference_to_its_parents_and_domains() {
        let reference = Reference::parse("a.example.com:8443/b/c:t").unwrap();
        assert_eq!(
            scopes(&reference),
            [
                "a.example.com:8443/b/c:t",
                "a.example.com:8443/b/c",
                "a.example.com:8443/b",
                "a.example.com:8443",
                "*.example.com",
                "*.com",
                ""
            ]
        );
    }

    #[test]
    fn a_tag_beside_a_digest_does_not_escape_the_tags_scope() {
        let digest = Digest::of(b"");
        let reference = Reference::parse(&format!("localhost/c:t@{digest}")).unwrap();
        let expected = [&format!("localhost/c@{digest}"), "localhost/c:t", "localhost/c", "localhost", ""];
        assert_eq!(scopes(&reference), expected);
    }
}
