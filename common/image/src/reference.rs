//! The names of images, as people write them and as registries know them.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME_LENGTH: usize = 255;
const MAX_TAG_LENGTH: usize = 128;
/// Of an image's identifier: SHA-256 in hexadecimal.
const IDENTIFIER_LENGTH: usize = 64;

/// An image's full name: `registry/repository[:tag][@digest]`, with a tag, a digest or both.
///
/// The grammar, and what is filled in where people leave it out (`docker.io`, `library/`, `:latest`), are
/// those of the distribution project, which every container tool follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference: `busybox` is `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    /// [`ReferenceError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (mut reference, digest) = Self::parse_parts(text)?;
        if reference.tag.is_none() && digest.is_none() {
            reference.tag = Some(DEFAULT_TAG.into());
        }
        reference.digest = digest;
        Ok(reference)
    }

    /// The name up to, and without, tag and digest: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The registry's host, with a port where one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository, under this tag only.
    ///
    /// # Errors
    /// [`ReferenceError::Tag`].
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag)?;
        Ok(Self { tag: Some(tag.into()), digest: None, ..self.clone() })
    }

    /// The same repository, under this digest only.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// As [`Self::parse`], but a name without tag and digest stays one: signatures may be made for those.
    pub(crate) fn parse_named(text: &str) -> Result<Self, ReferenceError> {
        let (reference, digest) = Self::parse_parts(text)?;
        Ok(Self { digest, ..reference })
    }

    /// Whether there is neither a tag nor a digest.
    pub(crate) fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    fn parse_parts(text: &str) -> Result<(Self, Option<Digest>), ReferenceError> {
        if text.len() == IDENTIFIER_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ReferenceError::Identifier);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        let (registry, repository) = normalise(registry, repository);
        check_registry(&registry)?;
        check_repository(&repository)?;
        if registry.len() + 1 + repository.len() > MAX_NAME_LENGTH {
            return Err(ReferenceError::TooLong { actual: registry.len() + 1 + repository.len() });
        }
        tag.map(check_tag).transpose()?;
        Ok((Self { registry, repository, tag: tag.map(Into::into), digest: None }, digest))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The registry is not a host name or address with an optional port.
    #[error("image reference: {actual:?} is no registry, expected HOST or HOST:PORT")]
    Registry {
        /// What stands there.
        actual: String,
    },
    /// The repository is empty or has characters that it must not have.
    #[error(
        "image reference: {actual:?} is no repository, expected lower-case letters, digits and single \
         separators (., _, __, -) in parts divided by /"
    )]
    Repository {
        /// What stands there.
        actual: String,
    },
    /// The tag is empty, too long or has characters that it must not have.
    #[error(
        "image reference: {actual:?} is no tag, expected 1 to {MAX_TAG_LENGTH} letters, digits, _, . and -, \
         not beginning with . or -"
    )]
    Tag {
        /// What stands there.
        actual: String,
    },
    /// What follows `@` is not a digest.
    #[error("image reference: {0}")]
    Digest(#[source] DigestError),
    /// An image's identifier, which names nothing in a registry.
    #[error("image reference: 64 hexadecimal digits are an identifier, expected a name")]
    Identifier,
    /// Registry and repository together are too long.
    #[error("image reference: the name has {actual} characters, at most {MAX_NAME_LENGTH} are allowed")]
    TooLong {
        /// In characters.
        actual: usize,
    },
}

/// The registry, if the first part of the path is one: it has a dot, a port or an upper-case letter, or is
/// `localhost`.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn normalise(registry: Option<&str>, repository: &str) -> (String, String) {
    let registry = match registry {
        None | Some("index.docker.io") => DEFAULT_REGISTRY,
        Some(registry) => registry,
    };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("{DEFAULT_NAMESPACE}/{repository}")
    } else {
        repository.into()
    };
    (registry.into(), repository)
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let refused = || ReferenceError::Registry { actual: registry.into() };
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(refused());
            }
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(refused)?) };
            (None, port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.is_some_and(|host| !host.split('.').all(is_label)) {
        return Err(refused());
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if port.is_some_and(|port| !is_port(port)) {
        return Err(refused());
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    let is_identifier = repository.len() == 64 && repository.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_identifier || !repository.split('/').all(is_path_component) {
        return Err(ReferenceError::Repository { actual: repository.into() });
    }
    Ok(())
}

/// Runs of letters and digits, with one of `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_are_words =
        bytes.first().is_some_and(|byte| is_word(*byte)) && bytes.last().is_some_and(|byte| is_word(*byte));
    let separators_are_known = component
        .split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit())
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'));
    ends_are_words && separators_are_known
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    let is_tag = tag.len() <= MAX_TAG_LENGTH
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
    if is_tag { Ok(()) } else { Err(ReferenceError::Tag { actual: tag.chars().take(200).collect() }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("busybox", "docker.io/library/busybox:latest")]
    #[case("busybox:1.36", "docker.io/library/busybox:1.36")]
    #[case("index.docker.io/busybox", "docker.io/library/busybox:latest")]
    #[case("docker.io/busybox", "docker.io/library/busybox:latest")]
    #[case("user/app", "docker.io/user/app:latest")]
    #[case("localhost/app", "localhost/app:latest")]
    #[case("10.0.2.2:5000/app:v1", "10.0.2.2:5000/app:v1")]
    #[case("[::1]:5000/app", "[::1]:5000/app:latest")]
    #[case("Host/app", "Host/app:latest")]
    #[case("ghcr.io/a/b__c/d---e.f", "ghcr.io/a/b__c/d---e.f:latest")]
    fn what_people_leave_out_is_filled_in(#[case] text: &str, #[case] full: &str) {
        assert_eq!(Reference::parse(text).unwrap().to_string(), full);
    }

    #[test]
    fn a_digest_needs_no_tag_and_may_have_one() {
        let digest_only = Reference::parse(&format!("busybox@sha256:{HEX}")).unwrap();
        assert_eq!(digest_only.to_string(), format!("docker.io/library/busybox@sha256:{HEX}"));
        let both = Reference::parse(&format!("a.b/c:t@sha256:{HEX}")).unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().hex().as_str()), (Some("t"), HEX));
    }

    #[rstest]
    fn what_is_no_reference_is_refused(
        #[values(
            "",
            ":tag",
            "@",
            "a b",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a.b/",
            "a.b//c",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a.b/c:",
            "a.b/c:.t",
            "a.b/c:t@",
            "a.b/c:t@sha256:00",
            "a.b/c@sha512:00",
            "a:b:c",
            "a.b:x/c",
            "a.b:99999/c",
            "a.b:/c",
            "-a.b/c",
            "a..b/c",
            "[::1/c",
            "[zz]/c",
            "[::1]5/c",
            "a.b/../c",
            "a.b/c?d",
            "a.b/c#d",
            "a.b/c%2f",
            "http://a.b/c",
            "a.b/c\n",
            "a.b/ü"
        )]
        text: &str,
    ) {
        assert!(Reference::parse(text).is_err(), "{:?}", Reference::parse(text));
    }

    #[test]
    fn what_is_too_long_is_refused() {
        assert!(Reference::parse(&"a".repeat(300)).is_err());
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert!(Reference::parse(HEX).is_err(), "64 hexadecimal digits are an identifier, no name");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_is_stable(text in ".{0,80}|[a-z0-9./:@_\\[\\]-]{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
