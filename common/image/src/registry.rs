//! Registries (OCI distribution specification 1.1, Docker registry HTTP API v2).
//!
//! What a registry serves is believed only as far as a digest proves it, and nothing that it sends is read
//! without a bound.

mod blob;
mod credentials;
mod error;
#[cfg(feature = "author")]
mod push;
mod token;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::redirect::{Attempt, Policy as Redirects};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use crate::digest::Digest;
use crate::manifest::{ACCEPTED, Descriptor};
use crate::reference::Reference;

pub use blob::Blob;
pub use credentials::{Credentials, CredentialsError};
pub use error::RegistryError;

/// The longest error message or token answer of a registry that is read, in bytes.
const MAX_ANSWER_LENGTH: usize = 256 * 1024;
const MAX_REDIRECTS: usize = 5;

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Registries (`HOST` or `HOST:PORT`, as in a reference) that are spoken to without TLS. For all others
    /// there is no way around it.
    pub plain_http: BTreeSet<String>,
    /// Roots that certificates may lead to, in PEM, several in one text where wanted.
    pub extra_root_certificates: Vec<String>,
    /// Whether the system's roots count as well.
    pub system_roots: bool,
    /// Names and passwords.
    pub credentials: Credentials,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a registry may stay silent.
    pub idle_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            plain_http: BTreeSet::new(),
            extra_root_certificates: Vec::new(),
            system_roots: true,
            credentials: Credentials::default(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// Speaks to registries.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    options: ClientOptions,
    /// What opened a scope of a registry last.
    authorizations: Mutex<HashMap<(String, String), HeaderValue>>,
}

/// A manifest as it was served. The digest is that of the bytes, and the one that was asked for if one was.
#[derive(Clone, Debug)]
pub struct ServedManifest {
    /// The document.
    pub bytes: Vec<u8>,
    /// Of the document.
    pub digest: Digest,
    /// What the registry says it is; empty if it does not.
    pub media_type: String,
}

/// What a request is for: tokens are granted for this.
#[derive(Clone, Copy, Debug)]
enum Access {
    Pull,
    #[cfg(feature = "author")]
    Push,
}

impl Client {
    /// Prepares to speak to registries; connects to none yet.
    ///
    /// # Errors
    /// [`RegistryError::Configuration`]: roots that are no certificates, or no roots at all.
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let configuration = |error: reqwest::Error| RegistryError::Configuration(error::chain(&error));
        let mut roots = Vec::new();
        for pem in &options.extra_root_certificates {
            let found = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(configuration)?;
            if found.is_empty() {
                return Err(RegistryError::Configuration("a root certificate is not PEM".into()));
            }
            roots.extend(found);
        }
        // The environment's proxies are not for this program to follow: its configuration is explicit.
        let builder = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.idle_timeout)
            .redirect(Redirects::custom(redirect))
            .user_agent(concat!("sealpod/", env!("CARGO_PKG_VERSION")));
        let builder =
            if options.system_roots { builder.tls_certs_merge(roots) } else { builder.tls_certs_only(roots) };
        let http = builder.build().map_err(configuration)?;
        Ok(Self { http, options, authorizations: Mutex::default() })
    }

    /// Fetches the manifest or index that a reference names, `limit` bytes of it at most.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Digest`] if a digest was asked for and another came.
    pub async fn manifest(
        &self,
        reference: &Reference,
        limit: usize,
    ) -> Result<ServedManifest, RegistryError> {
        let wanted = manifest_name(reference);
        let url = self.url(reference, &["manifests", &wanted])?;
        let accept = HeaderValue::try_from(ACCEPTED.join(", ")).map_err(RegistryError::header)?;
        let request = || self.http.request(Method::GET, url.clone()).header(ACCEPT, accept.clone());
        let response = self.send(reference, Access::Pull, request).await?;
        let response = expect_success(reference, || reference.to_string(), response).await?;
        let media_type = content_type(response.headers());
        let bytes = read_bounded(reference, response, limit).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(RegistryError::Digest { what: "manifest", expected, actual: digest });
        }
        Ok(ServedManifest { bytes, digest, media_type })
    }

    /// Fetches a small blob whole, and verifies it.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::TooLarge`] if the descriptor says it has more bytes than `limit`.
    pub async fn small_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        limit: usize,
    ) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > limit as u64 {
            return Err(RegistryError::TooLarge { limit });
        }
        let mut blob = self.blob(reference, descriptor).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Begins to fetch a blob.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn blob<'a>(
        &'a self,
        reference: &'a Reference,
        descriptor: &'a Descriptor,
    ) -> Result<Blob<'a>, RegistryError> {
        Blob::open(self, reference, descriptor).await
    }

    /// `scheme://host/v2/repository/` and these parts.
    fn url(&self, reference: &Reference, parts: &[&str]) -> Result<Url, RegistryError> {
        let registry = reference.registry();
        let scheme = if self.is_plain(registry) { "http" } else { "https" };
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let text = format!("{scheme}://{host}/v2/{}/{}", reference.repository(), parts.join("/"));
        Url::parse(&text).map_err(|error| RegistryError::Configuration(format!("{text}: {error}")))
    }

    fn is_plain(&self, registry: &str) -> bool {
        self.options.plain_http.contains(registry)
    }

    /// Sends a request, and once more with what the registry asks for if it asks for something.
    async fn send(
        &self,
        reference: &Reference,
        access: Access,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let scope = access.scope(reference);
        let key = (reference.registry().to_owned(), scope.clone());
        let known = self.authorization(&key);
        let response = send_once(reference, request(), known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges: Vec<_> = response.headers().get_all(WWW_AUTHENTICATE).into_iter().cloned().collect();
        let authorization = self.authorize(reference, &scope, &challenges).await?;
        let response = send_once(reference, request(), Some(&authorization)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
            authorizations.insert(key, authorization);
        }
        Ok(response)
    }

    fn authorization(&self, key: &(String, String)) -> Option<HeaderValue> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }
}

impl Access {
    fn scope(self, reference: &Reference) -> String {
        let actions = match self {
            Self::Pull => "pull",
            #[cfg(feature = "author")]
            Self::Push => "pull,push",
        };
        format!("repository:{}:{actions}", reference.repository())
    }
}

/// The last part of a manifest's URL. A digest says more than a tag beside it.
fn manifest_name(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").into(),
    }
}

async fn send_once(
    reference: &Reference,
    request: RequestBuilder,
    authorization: Option<&HeaderValue>,
) -> Result<Response, RegistryError> {
    let request = match authorization {
        Some(value) => request.header(AUTHORIZATION, value.clone()),
        None => request,
    };
    request.send().await.map_err(|error| RegistryError::unreachable(reference, &error))
}

/// Follows a few redirects, and none that would take an encrypted connection to a plain one.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let was_encrypted = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_encrypted && attempt.url().scheme() != "https" {
        return attempt.error("redirected from https to http");
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    attempt.follow()
}

async fn expect_success(
    reference: &Reference,
    what: impl Fn() -> String,
    response: Response,
) -> Result<Response, RegistryError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = read_bounded(reference, response, MAX_ANSWER_LENGTH).await.unwrap_or_default();
    Err(RegistryError::answered(reference, what(), status, &body))
}

async fn read_bounded(
    reference: &Reference,
    mut response: Response,
    limit: usize,
) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    loop {
        let chunk = response.chunk().await.map_err(|error| RegistryError::unreachable(reference, &error))?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if bytes.len() + chunk.len() > limit {
            return Err(RegistryError::TooLarge { limit });
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// The media type without parameters.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().to_owned()
}
