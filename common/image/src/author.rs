//! The owner's tools: from a root folder to an encrypted, signed image in a registry.

mod build;
mod encrypt;
mod inspect;
mod layout;
mod push;
mod sign;

use std::path::PathBuf;

pub use build::{BuildOptions, build};
pub use encrypt::encrypt;
pub use inspect::{Inspection, LayerInspection, inspect_layout, inspect_reference};
pub use layout::Layout;
pub use push::push;
pub use sign::{SigningKey, sign};

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorError {
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that is no OCI image layout with one image.
    #[error("{} is no OCI image layout: {reason}", path.display())]
    Layout {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The output is there already.
    #[error("{} exists already; remove it or name another folder", .0.display())]
    Exists(PathBuf),
    /// The configuration is none.
    #[error("the image's configuration: {0}")]
    Configuration(String),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] crate::manifest::ManifestError),
    /// The reference.
    #[error(transparent)]
    Reference(#[from] crate::reference::ReferenceError),
    /// The cipher.
    #[error("encryption failed: {0}")]
    Encrypt(String),
    /// The signing key.
    #[error("the signing key: {0}")]
    Key(String),
}

impl AuthorError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
