//! Reading a blob, and going on where a connection broke.

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use super::{Access, Client, RegistryError, expect_success};
use crate::digest::{Digest, Hasher};
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// How many times a broken connection is taken up again.
const MAX_RESUMPTIONS: u32 = 3;

/// A blob that is being read. Its end is given only if length and digest were what they must be: until
/// then, what was read is unverified.
pub struct Blob<'a> {
    client: &'a Client,
    reference: &'a Reference,
    descriptor: &'a Descriptor,
    response: Response,
    hasher: Option<Hasher>,
    received: u64,
    resumptions: u32,
}

impl<'a> Blob<'a> {
    pub(super) async fn open(
        client: &'a Client,
        reference: &'a Reference,
        descriptor: &'a Descriptor,
    ) -> Result<Self, RegistryError> {
        let response = request(client, reference, descriptor, 0).await?;
        let hasher = Some(Hasher::default());
        Ok(Self { client, reference, descriptor, response, hasher, received: 0, resumptions: 0 })
    }

    /// The next bytes; `None` at the verified end.
    ///
    /// # Errors
    /// [`RegistryError::Length`], [`RegistryError::Digest`]; [`RegistryError::Unreachable`] if the connection
    /// breaks too often.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, RegistryError> {
        loop {
            match self.response.chunk().await {
                Ok(Some(chunk)) => return self.take(chunk.into()).map(Some),
                Ok(None) => return self.end().map(|()| None),
                // All is here; how the connection ended does not matter.
                Err(_) if self.received == self.descriptor.size => return self.end().map(|()| None),
                Err(_) if self.resumptions < MAX_RESUMPTIONS => self.resume().await?,
                Err(error) => return Err(RegistryError::unreachable(self.reference, &error)),
            }
        }
    }

    fn take(&mut self, chunk: Vec<u8>) -> Result<Vec<u8>, RegistryError> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        if self.received > self.descriptor.size {
            return Err(self.length());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        Ok(chunk)
    }

    fn end(&mut self) -> Result<(), RegistryError> {
        if self.received != self.descriptor.size {
            return Err(self.length());
        }
        let expected = self.descriptor.digest;
        match self.hasher.take().map(Hasher::finish) {
            Some(actual) if actual != expected => {
                Err(RegistryError::Digest { what: "blob", expected, actual })
            }
            _ => Ok(()),
        }
    }

    async fn resume(&mut self) -> Result<(), RegistryError> {
        self.resumptions += 1;
        tracing::warn!(blob = %self.descriptor.digest, at = self.received, "the connection broke, going on");
        self.response = request(self.client, self.reference, self.descriptor, self.received).await?;
        Ok(())
    }

    fn length(&self) -> RegistryError {
        let Descriptor { digest, size, .. } = *self.descriptor;
        RegistryError::Length { digest, expected: size, actual: self.received }
    }
}

async fn request(
    client: &Client,
    reference: &Reference,
    descriptor: &Descriptor,
    offset: u64,
) -> Result<Response, RegistryError> {
    let digest: Digest = descriptor.digest;
    let url = client.url(reference, &["blobs", &digest.to_string()])?;
    let request = || {
        let request = client.http.request(Method::GET, url.clone());
        if offset == 0 { request } else { request.header(RANGE, format!("bytes={offset}-")) }
    };
    let response = client.send(reference, Access::Pull, request).await?;
    let response = expect_success(reference, || format!("blob {digest}"), response).await?;
    if offset > 0 && !continues_at(&response, offset) {
        let detail = format!("{}, expected the blob's bytes from {offset} on", response.status());
        return Err(RegistryError::protocol(reference, detail));
    }
    Ok(response)
}

fn continues_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}
