//! A genuine registry: Debian's `docker-registry`, on loopback and for one test only.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, ClientOptions};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running registry; killed when dropped.
pub(crate) struct Registry {
    process: Child,
    folder: TempDir,
    address: SocketAddr,
    /// The root that its certificate leads to, in PEM.
    authority: Option<String>,
}

impl Registry {
    /// Without TLS.
    pub(crate) fn plain() -> Self {
        Self::start(tempfile::tempdir().unwrap(), "", None)
    }

    /// With TLS, under an authority of its own.
    pub(crate) fn secure() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (authority, certificate, key) = certificate();
        for (name, text) in [("certificate.pem", certificate), ("key.pem", key)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let place = folder.path().display().to_string();
        let tls = format!("  tls: {{certificate: {place}/certificate.pem, key: {place}/key.pem}}\n");
        Self::start(folder, &tls, Some(authority))
    }

    fn start(folder: TempDir, tls: &str, authority: Option<String>) -> Self {
        let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let configuration = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http:\n  addr: '{address}'\n{tls}",
            storage.display()
        );
        std::fs::write(&configuration, text).unwrap();
        let log = folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry is needed for this test: {error}"));
        let mut registry = Self { process, folder, address, authority };
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            let ended = registry.process.try_wait().unwrap();
            let in_time = Instant::now() < deadline;
            assert!(
                ended.is_none() && in_time,
                "docker-registry: {}",
                std::fs::read_to_string(&log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    /// How it is reached.
    pub(crate) fn options(&self) -> ClientOptions {
        let plain_http = if self.authority.is_none() { vec![self.address.to_string()] } else { Vec::new() };
        ClientOptions {
            plain_http: plain_http.into_iter().collect(),
            extra_root_certificates: self.authority.iter().cloned().collect(),
            system_roots: false,
            ..ClientOptions::default()
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.options()).unwrap()
    }

    /// The file in which it keeps a blob.
    pub(crate) fn blob(&self, digest: sealpod_image::digest::Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        let blobs = self.folder.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An authority, and a certificate and key for loopback under it, in PEM.
pub(crate) fn certificate() -> (String, String, String) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let authority = root.self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap().pem();
    (authority, certificate, key.serialize_pem())
}
