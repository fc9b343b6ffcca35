//! Names and passwords for registries, as tools keep them in `auth.json` (containers-auth.json(5)).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_ocicrypt::Secret;
use serde::Deserialize;

use crate::json;
use crate::reference::Reference;

/// Names and passwords, by registry or by repository.
#[derive(Clone, Default)]
pub struct Credentials {
    /// By registry, namespace or repository: `name:password`.
    entries: BTreeMap<String, Secret>,
}

impl Credentials {
    /// Reads an `auth.json`.
    ///
    /// # Errors
    /// [`CredentialsError`]. Keys that have nothing to do with passwords are passed over; credentials that
    /// would have to be asked of a helper program are not to be had here.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        let document: Document = json::from_str(text)
            .map_err(|error| CredentialsError::Malformed { line: error.line(), column: error.column() })?;
        let mut credentials = Self::default();
        for (registry, entry) in document.auths {
            let Some(auth) = entry.auth else {
                return Err(CredentialsError::NoAuth { registry });
            };
            let pair = STANDARD.decode(auth.trim()).map(Secret::new);
            match pair {
                Ok(pair) if pair.as_bytes().contains(&b':') => {
                    credentials.entries.insert(key(&registry), pair)
                }
                _ => return Err(CredentialsError::BadAuth { registry }),
            };
        }
        Ok(credentials)
    }

    /// Adds a name and password for a registry, namespace or repository.
    pub fn insert(&mut self, registry: &str, name: &str, password: &str) {
        let pair = Secret::new(format!("{name}:{password}").into_bytes());
        self.entries.insert(key(registry), pair);
    }

    /// The pair `name:password` of the most specific entry for this image.
    pub(super) fn find(&self, reference: &Reference) -> Option<&Secret> {
        let name = reference.name();
        let mut scope = name.as_str();
        loop {
            if let Some(pair) = self.entries.get(scope) {
                return Some(pair);
            }
            scope = scope.rsplit_once('/')?.0;
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// Why an `auth.json` is refused. What stands in it is not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not the JSON it should be.
    #[error("the registry credentials are malformed (line {line}, column {column})")]
    Malformed {
        /// Where the parser stopped.
        line: usize,
        /// Where the parser stopped.
        column: usize,
    },
    /// No password in it.
    #[error(
        "the registry credentials for {registry} have no \"auth\": helpers and identity tokens are not supported"
    )]
    NoAuth {
        /// For which.
        registry: String,
    },
    /// The password is not in the form that it must have.
    #[error("the registry credentials for {registry}: expected base64 of NAME:PASSWORD")]
    BadAuth {
        /// For which.
        registry: String,
    },
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
}

/// Docker wrote URLs, others write names.
fn key(registry: &str) -> String {
    let host = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    match host {
        "index.docker.io/v1" | "index.docker.io" => "docker.io".into(),
        host => host.trim_end_matches("/v1").trim_end_matches("/v2").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(json: &str, image: &str) -> Option<Vec<u8>> {
        let credentials = Credentials::parse(json).unwrap();
        credentials.find(&Reference::parse(image).unwrap()).map(|pair| pair.as_bytes().to_vec())
    }

    #[test]
    fn the_most_specific_entry_counts() {
        let json = r#"{"auths":{"a.b":{"auth":"aDpo"},"a.b/n":{"auth":"bjpu"},"a.b/n/r":{"auth":"cjpy"},
            "https://index.docker.io/v1/":{"auth":"ZDpk"}},"credsStore":"x"}"#;
        assert_eq!(find(json, "a.b/n/r").unwrap(), b"r:r");
        assert_eq!(find(json, "a.b/n/x").unwrap(), b"n:n");
        assert_eq!(find(json, "a.b/nx").unwrap(), b"h:h");
        assert_eq!(find(json, "busybox").unwrap(), b"d:d");
        assert_eq!(find(json, "a.bc/x"), None);
    }

    #[test]
    fn what_holds_no_password_is_refused() {
        for json in [
            "",
            "{",
            r#"{"auths":{"a":{}}}"#,
            r#"{"auths":{"a":{"auth":"??"}}}"#,
            r#"{"auths":{"a":{"auth":"YQ=="}}}"#,
        ] {
            assert!(Credentials::parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn passwords_do_not_print() {
        let mut credentials = Credentials::default();
        credentials.insert("a.b", "name", "hunter2");
        assert_eq!(format!("{credentials:?}"), r#"{"a.b"}"#);
        let error = Credentials::parse(r#"{"auths":{"a":{"auth":{"hunter2":1}}}}"#).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
