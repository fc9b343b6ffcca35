//! Pushing an image.

use super::AuthorError;
use super::layout::Layout;
use crate::digest::Digest;
use crate::manifest::OCI_MANIFEST;
use crate::reference::Reference;
use crate::registry::Client;

/// Pushes an image under a reference: blobs first, the manifest last. `progress` is told of each blob's bytes.
///
/// # Errors
/// [`AuthorError`]: a blob cannot be read, or the registry does not take it.
pub async fn push(
    client: &Client,
    layout: &Layout,
    reference: &Reference,
    progress: impl Fn(u64),
) -> Result<Digest, AuthorError> {
    for descriptor in layout.manifest.layers.iter().chain([&layout.manifest.config]) {
        client.push_file(reference, descriptor, &layout.blob(descriptor.digest)).await?;
        progress(descriptor.size);
    }
    let media_type = layout.manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
    Ok(client.push_manifest(reference, media_type, layout.read(layout.digest)?).await?)
}
