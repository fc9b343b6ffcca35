//! Writing to a registry.

use std::path::Path;

use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::{Access, Client, RegistryError, expect_success, manifest_name};
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::reference::Reference;

impl Client {
    /// Whether the repository has this blob already.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn has_blob(&self, reference: &Reference, digest: Digest) -> Result<bool, RegistryError> {
        let url = self.url(reference, &["blobs", &digest.to_string()])?;
        let request = || self.http.request(Method::HEAD, url.clone());
        let response = self.send(reference, Access::Push, request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(false);
        }
        expect_success(reference, || format!("blob {digest}"), response).await.map(|_| true)
    }

    /// Uploads a small blob, unless it is there.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn push_bytes(&self, reference: &Reference, bytes: Vec<u8>) -> Result<(), RegistryError> {
        let descriptor = Descriptor::of("", &bytes);
        self.push(reference, &descriptor, async || Ok(bytes.into())).await
    }

    /// Uploads a blob from a file, unless it is there.
    ///
    /// # Errors
    /// [`RegistryError`]; the file's are [`RegistryError::Configuration`].
    pub async fn push_file(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        file: &Path,
    ) -> Result<(), RegistryError> {
        let open = async || {
            tokio::fs::File::open(file)
                .await
                .map(Body::from)
                .map_err(|error| RegistryError::Configuration(format!("{}: {error}", file.display())))
        };
        self.push(reference, descriptor, open).await
    }

    /// Uploads a manifest or index under the reference's tag, or under its own digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(RegistryError::Digest { what: "manifest", expected, actual: digest });
        }
        let name = reference.tag().map_or_else(|| manifest_name(reference), Into::into);
        let url = self.url(reference, &["manifests", &name])?;
        let request = || {
            let request = self.http.request(Method::PUT, url.clone());
            request.header(CONTENT_TYPE, media_type).body(bytes.clone())
        };
        let response = self.send(reference, Access::Push, request).await?;
        expect_success(reference, || format!("write access to {reference}"), response).await?;
        Ok(digest)
    }

    async fn push(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        body: impl AsyncFnOnce() -> Result<Body, RegistryError>,
    ) -> Result<(), RegistryError> {
        if self.has_blob(reference, descriptor.digest).await? {
            return Ok(());
        }
        let start = self.url(reference, &["blobs", "uploads", ""])?;
        let request = || self.http.request(Method::POST, start.clone()).header(CONTENT_LENGTH, 0);
        let response = self.send(reference, Access::Push, request).await?;
        let what = || format!("write access to {}", reference.name());
        let response = expect_success(reference, what, response).await?;
        let mut upload = upload_url(reference, &start, &response)?;
        upload.query_pairs_mut().append_pair("digest", &descriptor.digest.to_string());
        let mut request = self
            .http
            .request(Method::PUT, upload.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, descriptor.size)
            .body(body().await?);
        // The request cannot be repeated, but the one before it has got what this one needs.
        let key = (reference.registry().to_owned(), Access::Push.scope(reference));
        if let Some(value) = self.authorization(&key).filter(|_| same_origin(&start, &upload)) {
            request = request.header(reqwest::header::AUTHORIZATION, value);
        }
        let response = request.send().await.map_err(|error| RegistryError::unreachable(reference, &error))?;
        expect_success(reference, what, response).await.map(|_| ())
    }
}

/// Where the registry wants the blob.
fn upload_url(reference: &Reference, start: &Url, response: &Response) -> Result<Url, RegistryError> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    location
        .and_then(|location| start.join(location).ok())
        .ok_or_else(|| RegistryError::protocol(reference, "an upload without a location"))
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}
