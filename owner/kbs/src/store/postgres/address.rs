//! Where the database is: a URL in libpq's form (PostgreSQL's documentation, 34.1.1.2), in a file of its own.
//!
//! Nothing of the URL is ever quoted: a password that was not encoded properly may be anywhere in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use zeroize::Zeroizing;

use super::tls::{Tls, Trust};

/// Besides `sslmode` and `sslrootcert`.
const OPTIONS: [&str; 15] = [
    "application_name",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "options",
    "password",
    "port",
    TARGET,
    "tcp_user_timeout",
    "user",
];
const TARGET: &str = "target_session_attrs";
/// No host is waited for longer, unless the URL says so: there may be others.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A connection over which nothing came for so long is tried.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How to connect.
pub(super) struct Address {
    pub(super) config: Config,
    pub(super) tls: Tls,
    /// Whether somebody between the broker and the database could pass for the database.
    pub(super) exposed: bool,
}

/// Why a file does not say where the database is.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It has no URL.
    #[error(
        "{path} has no URL of the form postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full&sslrootcert=FILE, in \
         which %40 stands for an @ of the password, and so on for other signs"
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
    },
    /// The URL has an option that would not be honoured.
    #[error("the URL in {path} has an option that is none of sslmode, sslrootcert, {}", OPTIONS.join(", "))]
    Option {
        /// Which file.
        path: PathBuf,
    },
    /// The mode is not one of libpq's that say whether there is TLS.
    #[error("sslmode of the URL in {path} is none of disable, prefer, require, verify-ca, verify-full")]
    Mode {
        /// Which file.
        path: PathBuf,
    },
    /// Nothing says whom to trust.
    #[error(
        "the URL in {path} has no sslrootcert=FILE, the certificates (PEM) to which the database's chains; it is needed \
         for sslmode=verify-full, which is meant where the URL has no sslmode"
    )]
    NoRoots {
        /// Which file.
        path: PathBuf,
    },
    /// Whom to trust is not said by a certificate.
    #[error("{path}, which is sslrootcert of the database's URL, is no certificate (PEM)")]
    Roots {
        /// Which file.
        path: PathBuf,
    },
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Address {
    /// Reads the file with the URL, and the certificates that it names relative to the file's folder.
    pub(super) fn read(path: &Path) -> Result<Self, AddressError> {
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|source| AddressError::Unreadable { path: path.to_owned(), source })?;
        let malformed = || AddressError::Malformed { path: path.to_owned() };
        let (location, query) = split(text.trim()).ok_or_else(malformed)?;
        let (mut mode, mut roots, mut target) = (None, None, false);
        let mut url = Zeroizing::new(format!("{location}?"));
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').ok_or_else(malformed)?;
            let value = || percent_decode_str(value).decode_utf8_lossy();
            match name {
                "sslmode" => {
                    let known = Mode::parse(&value());
                    mode = Some(known.ok_or_else(|| AddressError::Mode { path: path.to_owned() })?);
                }
                "sslrootcert" => roots = Some(path.with_file_name(value().as_ref())),
                name if OPTIONS.contains(&name) => {
                    target |= name == TARGET;
                    url.push_str(&format!("{option}&"));
                }
                _ => return Err(AddressError::Option { path: path.to_owned() }),
            }
        }
        let mut config: Config = url.parse().map_err(|_| malformed())?;
        if config.get_hosts().is_empty() {
            return Err(malformed());
        }
        // There is no TLS over a socket of this machine.
        let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let mode = if local { Mode::Disable } else { mode.unwrap_or(Mode::VerifyFull) };
        let no_roots = || AddressError::NoRoots { path: path.to_owned() };
        let (ssl_mode, trust) = match (mode, roots) {
            (Mode::Disable, _) => (SslMode::Disable, Trust::Anybody),
            (Mode::Prefer, _) => (SslMode::Prefer, Trust::Anybody),
            (Mode::Require, None) => (SslMode::Require, Trust::Anybody),
            // So does libpq.
            (Mode::Require | Mode::VerifyCa, Some(file)) => {
                (SslMode::Require, Trust::Chain(read_roots(file)?))
            }
            (Mode::VerifyFull, Some(file)) => (SslMode::Require, Trust::Host(read_roots(file)?)),
            (Mode::VerifyCa | Mode::VerifyFull, None) => return Err(no_roots()),
        };
        config.ssl_mode(ssl_mode).keepalives_idle(KEEPALIVE);
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_LIMIT);
        }
        if !target {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let exposed = !local && matches!(trust, Trust::Anybody);
        let tls = Tls::new(trust).ok_or_else(no_roots)?;
        Ok(Self { config, tls, exposed })
    }

    /// The hosts and ports.
    pub(super) fn server(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(index, host)| {
            let port = ports.get(index).or(ports.first()).unwrap_or(&5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(folder) => format!("{}:{port}", folder.display()),
            }
        });
        hosts.collect::<Vec<_>>().join(",")
    }
}

impl Mode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }
}

/// What stands before the options, and these. With more than one @, some of the password would pass for the host.
fn split(url: &str) -> Option<(&str, &str)> {
    let (location, query) = url.split_once('?').unwrap_or((url, ""));
    let known = ["postgresql://", "postgres://"].iter().any(|scheme| location.starts_with(scheme));
    (known && location.matches('@').count() <= 1).then_some((location, query))
}

fn read_roots(path: PathBuf) -> Result<RootCertStore, AddressError> {
    let mut roots = RootCertStore::empty();
    let pem =
        std::fs::read(&path).map_err(|source| AddressError::Unreadable { path: path.clone(), source })?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
        added.ok_or_else(|| AddressError::Roots { path: path.clone() })?;
    }
    if roots.is_empty() {
        return Err(AddressError::Roots { path });
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Address, AddressError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("none.crt"), "no certificate").unwrap();
        let path = folder.path().join("url");
        std::fs::write(&path, url).unwrap();
        Address::read(&path)
    }

    fn refusal(url: &str) -> String {
        let error = read(url).err().unwrap_or_else(|| panic!("{url} is taken"));
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_is_no_url_of_a_database_is_refused_and_not_quoted() {
        for url in [
            "",
            "hunter2",
            "host=h password=hunter2",
            "https://u:hunter2@h/d",
            "postgresql://",
            "postgresql:///d",
            "postgresql://u:p@hunter2@h/d",
            "postgresql://u@h:hunter2/d",
            "postgresql://u@h:70000/d?password=hunter2",
            "postgresql://u@h/d?hunter2",
            "postgresql://u@h/d?connect_timeout=hunter2",
            "postgresql://u%ffhunter2@h/d",
        ] {
            let error = refusal(url);
            assert!(error.contains("postgresql://USER:PASSWORD@HOST/DATABASE"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let error = Address::read(&folder.path().join("none")).err().unwrap();
        assert!(error.to_string().contains("none"), "{error}");
    }

    #[test]
    fn options_that_would_not_be_honoured_are_refused() {
        for option in ["sslcert=hunter2", "channel_binding=require", "p?hunter2@h/d=1", "SSLMODE=disable"] {
            let error = refusal(&format!("postgresql://u:p@h/d?{option}"));
            assert!(error.contains("none of sslmode, sslrootcert, application_name"), "{error}");
        }
        for mode in ["allow", "none", "", "Require", "hunter2"] {
            let error = refusal(&format!("postgresql://u:p@h/d?sslmode={mode}"));
            assert!(error.contains("none of disable, prefer, require, verify-ca, verify-full"), "{error}");
        }
    }

    #[test]
    fn without_certificates_to_trust_nothing_is_verified_and_therefore_refused() {
        for url in
            ["postgresql://u:p@h/d", "postgres://h/d?sslmode=verify-full", "postgres://h/d?sslmode=verify-ca"]
        {
            assert!(refusal(url).contains("no sslrootcert=FILE"), "{url}");
        }
        assert!(refusal("postgresql://h/d?sslrootcert=none.crt").contains("none.crt, which is sslrootcert"));
        assert!(refusal("postgresql://h/d?sslrootcert=missing.crt").contains("cannot read"));
    }

    #[test]
    fn what_the_url_says_is_taken_and_the_rest_is_cautious() {
        let url =
            "postgresql://u%40:p%2F%3F@a:1,b:2/d?sslmode=disable&application_name=x&connect_timeout=9\n";
        let address = read(url).unwrap();
        let config = &address.config;
        assert_eq!((config.get_user(), config.get_password()), (Some("u@"), Some(b"p/?".as_slice())));
        assert_eq!((config.get_dbname(), config.get_application_name()), (Some("d"), Some("x")));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(9)));
        assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(address.server(), "a:1,b:2");
        assert!(address.exposed);

        let address = read("postgresql:///d?host=/run/postgresql&target_session_attrs=any").unwrap();
        assert_eq!(address.config.get_ssl_mode(), SslMode::Disable);
        assert_eq!(address.config.get_target_session_attrs(), TargetSessionAttrs::Any);
        assert_eq!(address.config.get_application_name(), Some("sealpod-kbs"));
        assert!(!address.exposed);
        assert_eq!(address.server(), "/run/postgresql:5432");
    }
}
