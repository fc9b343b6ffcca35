//! The broker's configuration: one TOML file, read once. Paths are relative to its folder.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The whole configuration. Unknown fields are errors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What keeps everything.
    pub store: Store,
    /// Public keys (Ed25519, PEM files) whose owners administrate.
    pub admin_keys: Vec<PathBuf>,
    /// Certificate and key for HTTPS; plain HTTP without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Whom to trust to vouch for TPMs.
    #[serde(default)]
    pub tpm: Tpm,
    /// Whether evidence that proves nothing is taken. For tests.
    #[serde(default)]
    pub allow_sample: bool,
    /// How long an attestation is good for, in seconds: 1 to 86400, 300 where nothing is said.
    #[serde(default = "default_lifetime")]
    pub token_lifetime_seconds: u64,
    /// How much the audit log keeps.
    #[serde(default)]
    pub audit: Audit,
}

/// What keeps everything: a path, or a table that describes a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Store {
    /// The embedded store's file. One broker uses it.
    Embedded(PathBuf),
    /// A database. Several brokers may share it.
    Postgres(Database),
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Which.
    pub kind: DatabaseKind,
    /// The file with its URL, which is a secret and therefore stands nowhere else.
    pub url_file: PathBuf,
}

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseKind {
    /// PostgreSQL.
    Postgres,
}

impl Store {
    /// The file that says where it is, or is it.
    pub fn file(&self) -> &Path {
        match self {
            Self::Embedded(path) => path,
            Self::Postgres(database) => &database.url_file,
        }
    }

    fn file_mut(&mut self) -> &mut PathBuf {
        match self {
            Self::Embedded(path) => path,
            Self::Postgres(database) => &mut database.url_file,
        }
    }
}

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StoreVisitor)
    }
}

struct StoreVisitor;

impl<'de> Visitor<'de> for StoreVisitor {
    type Value = Store;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a path, or a table with kind and url_file")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Store, E> {
        if text.contains("://") {
            return Err(E::custom(
                "store is a URL, expected a path; write a database's URL, which is a secret, to a file of its own and \
                 name that: [store], kind = \"postgres\", url_file = \"…\"",
            ));
        }
        Ok(Store::Embedded(text.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Store, A::Error> {
        let database = Database::deserialize(MapAccessDeserializer::new(map))?;
        if database.url_file.to_string_lossy().contains("://") {
            return Err(de::Error::custom(
                "url_file is a URL, expected the path of a file with it: a database's URL is a secret",
            ));
        }
        Ok(Store::Postgres(database))
    }
}

/// The bounds of the audit log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// So many of the newest entries about attested guests are kept: all grants, and what such guests were refused.
    /// Beside them, as many about what administrators did.
    pub keep: u64,
    /// So many of the newest refusals that anybody can cause are kept, beside the others.
    pub keep_refusals: u64,
    /// No more refusals that anybody can cause are noted within a minute; whoever causes more is told to wait.
    pub refusals_per_minute: u32,
}

impl Default for Audit {
    fn default() -> Self {
        Self { keep: 1_000_000, keep_refusals: 10_000, refusals_per_minute: 600 }
    }
}

/// HTTPS.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Trust in TPMs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tpm {
    /// Certificates (PEM files, each may hold several) to which endorsement key certificates chain.
    #[serde(default)]
    pub ek_roots: Vec<PathBuf>,
    /// Attestation keys that need no endorsement: SHA-256 of their SubjectPublicKeyInfo, hexadecimal.
    #[serde(default)]
    pub enrolled_aks: Vec<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    #[error("{path} is not a key broker's configuration: {place}{message}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Which line, and what it sets.
        place: String,
        /// Why.
        message: String,
    },
    /// An attestation would be good for no time, or for too long.
    #[error("token_lifetime_seconds is {0}, expected 1 to {MAX_LIFETIME}")]
    Lifetime(u64),
    /// A log that keeps nothing is none.
    #[error("audit.{0} is 0, expected 1 or more")]
    Audit(&'static str),
}

/// No attestation is good for longer, in seconds.
const MAX_LIFETIME: u64 = 86_400;

fn default_lifetime() -> u64 {
    300
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`]: it cannot be read, is not understood, or has a value that is not allowed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let mut config: Self =
            toml::from_str(&text).map_err(|error| ConfigError::malformed(path, &text, &error))?;
        if !(1..=MAX_LIFETIME).contains(&config.token_lifetime_seconds) {
            return Err(ConfigError::Lifetime(config.token_lifetime_seconds));
        }
        config.audit.check()?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let resolve = |path: &mut PathBuf| *path = folder.join(&*path);
        resolve(config.store.file_mut());
        config.admin_keys.iter_mut().for_each(resolve);
        config.tpm.ek_roots.iter_mut().for_each(resolve);
        if let Some(tls) = &mut config.tls {
            resolve(&mut tls.certificate);
            resolve(&mut tls.key);
        }
        Ok(config)
    }
}

impl ConfigError {
    /// Names the line but does not quote it: somebody may have written a secret there.
    fn malformed(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let place = before.map_or_else(String::new, |before| {
            let number = before.matches('\n').count() + 1;
            let line = text.lines().nth(number - 1).unwrap_or_default();
            let name = line.split_once('=').map_or("", |(name, _)| name.trim());
            format!("line {number}, {name}: ")
        });
        Self::Malformed { path: path.to_owned(), place, message: error.message().to_owned() }
    }
}

impl Audit {
    fn check(&self) -> Result<(), ConfigError> {
        let Self { keep, keep_refusals, refusals_per_minute } = *self;
        let limits = [
            ("keep", keep),
            ("keep_refusals", keep_refusals),
            ("refusals_per_minute", refusals_per_minute.into()),
        ];
        match limits.iter().find(|(_, limit)| *limit == 0) {
            Some((name, _)) => Err(ConfigError::Audit(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kbs.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    const MINIMAL: &str = "listen = \"127.0.0.1:0\"\nstore = \"s.redb\"\nadmin_keys = [\"admin.pub\"]\n";

    #[test]
    fn paths_are_relative_to_the_file_and_sample_is_off() {
        let config = read(MINIMAL).unwrap();
        let store = config.store.file();
        assert!(store.is_absolute() && store.ends_with("s.redb"));
        assert!(!config.allow_sample && config.tls.is_none());
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let error = read(&format!("{MINIMAL}allow_samples = true\n")).unwrap_err().to_string();
        assert!(error.contains("allow_samples"), "{error}");
    }

    const DATABASE: &str = "listen = \"127.0.0.1:0\"\nadmin_keys = [\"admin.pub\"]\n[store]\n";

    #[test]
    fn a_store_may_be_a_database_whose_url_is_in_a_file() {
        let config = read(&format!("{DATABASE}kind = \"postgres\"\nurl_file = \"secret/url\"\n")).unwrap();
        let Store::Postgres(database) = config.store else { panic!("{:?}", config.store) };
        assert!(database.url_file.is_absolute() && database.url_file.ends_with("secret/url"));
    }

    #[test]
    fn a_store_that_is_neither_a_path_nor_a_database_is_refused_without_its_secret() {
        let with_path = |store: &str| MINIMAL.replace("\"s.redb\"", store);
        for (text, named) in [
            (with_path("\"postgresql://u:hunter2@h/d\""), "url_file"),
            (
                format!("{DATABASE}kind = \"postgres\"\nurl_file = \"postgresql://u:hunter2@h/d\"\n"),
                "url_file is a URL",
            ),
            (with_path("7"), "a path, or a table with kind and url_file"),
            (with_path("[]"), "a path, or a table with kind and url_file"),
            (format!("{DATABASE}kind = \"postgres\"\n"), "url_file"),
            (format!("{DATABASE}url_file = \"url\"\n"), "kind"),
            (format!("{DATABASE}kind = \"mysql\"\nurl_file = \"url\"\n"), "`mysql`"),
            (
                format!("{DATABASE}kind = \"postgres\"\nurl = \"postgresql://u:hunter2@h/d\"\n"),
                "line 5, url: ",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_audit_log_that_keeps_nothing_is_refused() {
        for limit in ["keep", "keep_refusals", "refusals_per_minute"] {
            let error = read(&format!("{MINIMAL}[audit]\n{limit} = 0\n")).unwrap_err().to_string();
            assert!(error.contains(limit), "{error}");
            let config = read(&format!("{MINIMAL}[audit]\n{limit} = 1\n")).unwrap();
            let Audit { keep, keep_refusals, refusals_per_minute } = config.audit;
            assert!([keep, keep_refusals, refusals_per_minute.into()].contains(&1));
        }
    }

    #[test]
    fn a_lifetime_of_nothing_or_of_for_ever_is_refused() {
        for wrong in [0, MAX_LIFETIME + 1] {
            assert!(read(&format!("{MINIMAL}token_lifetime_seconds = {wrong}\n")).is_err());
        }
        assert!(read(&format!("{MINIMAL}token_lifetime_seconds = {MAX_LIFETIME}\n")).is_ok());
    }
}
