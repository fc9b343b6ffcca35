//! Encrypting an image's layers.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use sealpod_ocicrypt::annotations::{encrypted_media_type, is_encrypted};
use sealpod_ocicrypt::layer::Encryptor;
use sealpod_ocicrypt::{Recipient, wrap};

use super::AuthorError;
use super::layout::{Layout, NewLayout};

const CHUNK: usize = 256 * 1024;

/// Makes an image whose layers only the recipients' keys open. Layers that are encrypted already stay as they are.
///
/// # Errors
/// [`AuthorError`]: a layer is none or cannot be read, a recipient's key does not wrap, or the output is there already.
pub fn encrypt(from: &Layout, output: &Path, recipients: &[Recipient]) -> Result<Layout, AuthorError> {
    let layout = NewLayout::begin(output)?;
    let mut manifest = from.manifest.clone();
    layout.copy(from, manifest.config.digest)?;
    for descriptor in &mut manifest.layers {
        if is_encrypted(&descriptor.media_type) {
            layout.copy(from, descriptor.digest)?;
            continue;
        }
        let media_type = encrypted_media_type(&descriptor.media_type)
            .ok_or_else(|| AuthorError::Encrypt(format!("{:?} is no layer", descriptor.media_type)))?;
        let failed = |error: &dyn std::fmt::Display| AuthorError::Encrypt(error.to_string());
        let path = from.blob(descriptor.digest);
        let mut source = File::open(&path).map_err(AuthorError::io(&path))?;
        let mut blob = layout.blob_writer()?;
        let mut encryptor = Encryptor::new().map_err(|error| failed(&error))?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = source.read(&mut buffer).map_err(AuthorError::io(&path))?;
            let Some(chunk) = buffer.get_mut(..count).filter(|chunk| !chunk.is_empty()) else { break };
            encryptor.update(chunk).map_err(|error| failed(&error))?;
            blob.write_all(chunk).map_err(AuthorError::io(output))?;
        }
        let (private, public) = encryptor.finish();
        let mut encrypted = blob.finish(&media_type)?;
        encrypted.annotations.clone_from(&descriptor.annotations);
        encrypted.annotations.extend(wrap(recipients, &private, &public).map_err(|error| failed(&error))?);
        *descriptor = encrypted;
    }
    layout.commit(&manifest)
}
