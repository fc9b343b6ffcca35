//! OCI image layouts (image specification, image-layout.md): a folder that holds one image.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::AuthorError;
use crate::digest::{Digest, Hasher};
use crate::manifest::{Descriptor, ImageIndex, ImageManifest, Manifest, OCI_INDEX, OCI_MANIFEST};

/// An image in a folder.
#[derive(Clone, Debug)]
pub struct Layout {
    folder: PathBuf,
    /// Of the manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: ImageManifest,
}

/// A layout that is being made beside its place; it goes away unless it is committed.
pub(super) struct NewLayout {
    staging: tempfile::TempDir,
    target: PathBuf,
}

impl Layout {
    /// Opens a layout of exactly one image.
    ///
    /// # Errors
    /// [`AuthorError`]: a file cannot be read, or it is no layout, or one of more images or none.
    pub fn open(folder: &Path) -> Result<Self, AuthorError> {
        let wrong = |reason: String| AuthorError::Layout { path: folder.to_owned(), reason };
        let path = folder.join("index.json");
        let index = fs::read(&path).map_err(AuthorError::io(&path))?;
        let index: ImageIndex = serde_json::from_slice(&index).map_err(|error| wrong(error.to_string()))?;
        let [descriptor] = index.manifests.as_slice() else {
            return Err(wrong(format!("it holds {} images, expected one", index.manifests.len())));
        };
        let path = blob_path(folder, descriptor.digest);
        let bytes = fs::read(&path).map_err(AuthorError::io(&path))?;
        if Digest::of(&bytes) != descriptor.digest {
            return Err(wrong("its manifest does not have the digest that the index says".into()));
        }
        match Manifest::parse(&bytes, &descriptor.media_type)? {
            Manifest::Image(manifest) => {
                Ok(Self { folder: folder.to_owned(), digest: descriptor.digest, manifest })
            }
            Manifest::Index(_) => Err(wrong("it holds an index of images, expected one image".into())),
        }
    }

    /// The file of a blob.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        blob_path(&self.folder, digest)
    }

    /// A small blob's bytes.
    ///
    /// # Errors
    /// [`AuthorError::Io`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>, AuthorError> {
        let path = self.blob(digest);
        fs::read(&path).map_err(AuthorError::io(&path))
    }
}

impl NewLayout {
    /// Begins a layout that must not be there yet.
    pub(super) fn begin(target: &Path) -> Result<Self, AuthorError> {
        if target.exists() {
            return Err(AuthorError::Exists(target.to_owned()));
        }
        let parent =
            target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(AuthorError::io(parent))?;
        let staging = tempfile::Builder::new()
            .prefix(".layout-")
            .tempdir_in(parent)
            .map_err(AuthorError::io(parent))?;
        let blobs = staging.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(AuthorError::io(&blobs))?;
        Ok(Self { staging, target: target.to_owned() })
    }

    /// Adds a blob that is written as it is made.
    pub(super) fn blob_writer(&self) -> Result<BlobWriter<'_>, AuthorError> {
        let folder = self.staging.path();
        let file = NamedTempFile::new_in(folder).map_err(AuthorError::io(folder))?;
        Ok(BlobWriter { layout: self, file, hasher: Hasher::default(), size: 0 })
    }

    /// Adds a small blob.
    pub(super) fn add(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, AuthorError> {
        let descriptor = Descriptor::of(media_type, bytes);
        let path = blob_path(self.staging.path(), descriptor.digest);
        fs::write(&path, bytes).map_err(AuthorError::io(&path))?;
        Ok(descriptor)
    }

    /// Adds a blob of another layout.
    pub(super) fn copy(&self, from: &Layout, digest: Digest) -> Result<(), AuthorError> {
        let target = blob_path(self.staging.path(), digest);
        fs::copy(from.blob(digest), &target).map(drop).map_err(AuthorError::io(&target))
    }

    /// Writes manifest and index, and puts the layout in its place.
    pub(super) fn commit(self, manifest: &ImageManifest) -> Result<Layout, AuthorError> {
        let descriptor = self.add(OCI_MANIFEST, &json(manifest))?;
        let index = ImageIndex {
            schema_version: 2,
            media_type: Some(OCI_INDEX.into()),
            manifests: vec![descriptor],
            annotations: Default::default(),
        };
        let write = |name: &str, bytes: Vec<u8>| {
            let path = self.staging.path().join(name);
            fs::write(&path, bytes).map_err(AuthorError::io(path))
        };
        write("index.json", json(&index))?;
        write("oci-layout", json(&serde_json::json!({ "imageLayoutVersion": "1.0.0" })))?;
        let staged = self.staging.keep();
        fs::rename(&staged, &self.target).map_err(AuthorError::io(&self.target))?;
        Layout::open(&self.target)
    }
}

/// A blob that is being written.
pub(super) struct BlobWriter<'a> {
    layout: &'a NewLayout,
    file: NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter<'_> {
    /// Gives the blob its name.
    pub(super) fn finish(mut self, media_type: &str) -> Result<Descriptor, AuthorError> {
        let path = self.file.path().to_owned();
        self.file.flush().map_err(AuthorError::io(&path))?;
        let digest = self.hasher.finish();
        let target = blob_path(self.layout.staging.path(), digest);
        self.file
            .persist(&target)
            .map_err(|error| AuthorError::Io { path: target.clone(), source: error.error })?;
        Ok(Descriptor::new(media_type, digest, self.size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.size = self.size.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn blob_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// JSON by way of a value, whose members are sorted: the same content gives the same bytes.
fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_value(value).unwrap_or(Value::Null).to_string().into_bytes()
}
