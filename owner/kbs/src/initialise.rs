//! `sealpod-kbs init`: all that a new broker needs, in one folder.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use zeroize::Zeroizing;

use crate::config::{Audit, Config, Store, Tls, Tpm};

/// What a new broker is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder.
    pub folder: PathBuf,
    /// Names and addresses by which guests and owners reach it.
    pub hosts: Vec<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether the broker itself speaks plain HTTP. A certificate is made all the same, for a front before it.
    pub plain_http: bool,
    /// Certificates that TPMs' endorsement key certificates chain to.
    pub tpm_ek_roots: Vec<PathBuf>,
}

/// Makes a configuration, an administrator's key pair and a certificate; gives the configuration's path.
///
/// # Errors
/// If there is a configuration already, a file cannot be read or written, or a name is none that a certificate can have.
pub fn initialise(options: &Options) -> anyhow::Result<PathBuf> {
    let folder = &options.folder;
    let configuration = folder.join("kbs.toml");
    if configuration.exists() {
        bail!("{} exists already; remove it or choose another folder", configuration.display());
    }
    let admin = KeyPair::generate_for(&PKCS_ED25519)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new(options.hosts.clone())
        .and_then(|parameters| parameters.self_signed(&key))
        .with_context(|| format!("no certificate can be made for {}", options.hosts.join(", ")))?;
    let ek_roots = options
        .tpm_ek_roots
        .iter()
        .map(|path| path.canonicalize().with_context(|| format!("cannot read {}", path.display())))
        .collect::<anyhow::Result<_>>()?;
    let tls = Tls { certificate: "tls.crt".into(), key: "tls.key".into() };
    let config = Config {
        listen: options.listen,
        store: Store::Embedded("store.redb".into()),
        admin_keys: vec!["admin.pub".into()],
        tls: (!options.plain_http).then_some(tls),
        tpm: Tpm { ek_roots, enrolled_aks: Vec::new() },
        allow_sample: false,
        token_lifetime_seconds: 300,
        audit: Audit::default(),
    };

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    write(&folder.join("admin.key"), Zeroizing::new(admin.serialize_pem()).as_bytes(), 0o600)?;
    write(&folder.join("admin.pub"), admin.public_key_pem().as_bytes(), 0o644)?;
    write(&folder.join("tls.key"), Zeroizing::new(key.serialize_pem()).as_bytes(), 0o600)?;
    write(&folder.join("tls.crt"), certificate.pem().as_bytes(), 0o644)?;
    write(&configuration, toml::to_string(&config)?.as_bytes(), 0o644)?;
    Ok(configuration)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
