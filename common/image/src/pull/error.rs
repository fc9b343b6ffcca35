//! Why an image cannot be had.

use sealpod_ocicrypt::UnwrapError;
use sealpod_ocicrypt::layer::LayerError;

use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::platform::Platform;
use crate::policy::Refused;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::unpack::UnpackError;

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The policy does not allow it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A reference that follows from the one given is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Something else of the image.
    #[error("the image is malformed: {0}")]
    Malformed(String),
    /// It is for other machines.
    #[error("the image is not for {wanted} but for {}", list(offered))]
    Platform {
        /// What it must be for.
        wanted: Platform,
        /// What it is for.
        offered: Vec<Platform>,
    },
    /// No key opens a layer.
    #[error("the layer {layer}: {source}")]
    Key {
        /// The layer's digest.
        layer: Digest,
        /// What was tried.
        source: UnwrapError,
    },
    /// A layer does not decrypt to what was encrypted.
    #[error("the layer {layer}: {source}")]
    Decrypt {
        /// The layer's digest.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer does not unpack. Of an encrypted one, nothing is told of what it holds.
    #[error("the layer {layer}: {source}")]
    Unpack {
        /// The layer's digest.
        layer: Digest,
        /// Why.
        source: UnpackError,
    },
    /// A layer unpacks to something else than the configuration says.
    #[error("the layer {layer} unpacks to {actual}, expected {expected}")]
    DiffId {
        /// The layer's digest.
        layer: Digest,
        /// As the configuration has it.
        expected: Digest,
        /// As it is.
        actual: Digest,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This program.
    #[error("unpacking ended unexpectedly")]
    Internal,
}

impl PullError {
    /// Whether memory or disk ran out.
    pub fn is_exhausted(&self) -> bool {
        let full = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory)
        };
        match self {
            Self::Unpack { source: UnpackError::Io { source, .. }, .. } => full(source),
            Self::Store(StoreError::Io { source, .. }) => full(source),
            _ => false,
        }
    }
}

fn list(platforms: &[Platform]) -> String {
    let platforms: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    if platforms.is_empty() { "no platform that it names".into() } else { platforms.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_full_disk_is_known_as_one_where_the_content_is_withheld() {
        for (kind, exhausted) in [(ErrorKind::StorageFull, true), (ErrorKind::NotADirectory, false)] {
            let source = UnpackError::Io { path: "secret".into(), source: kind.into() }.without_content();
            let error = PullError::Unpack { layer: Digest::of(b""), source };
            assert_eq!(error.is_exhausted(), exhausted, "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
