//! From a root folder to an image of one layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::AuthorError;
use super::layout::{Layout, NewLayout};
use crate::digest::Hasher;
use crate::manifest::{ImageManifest, OCI_CONFIG, OCI_MANIFEST};
use crate::platform::Platform;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// As long as the list of a file's attributes may be on Linux, and the value of one.
const MAX_ATTRIBUTE_LENGTH: usize = 64 * 1024;

/// What to make an image of.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// What the image's root directory holds.
    pub root: PathBuf,
    /// The `config` of an image configuration (entrypoint, command, environment, user, …), as JSON.
    pub config: Value,
    /// Where the layout goes; must not be there yet.
    pub output: PathBuf,
}

/// Makes an image. The same folder gives the same image: times are zero and names sorted.
///
/// # Errors
/// [`AuthorError`]: the configuration is no JSON object, a file cannot be read, or the output is there already.
pub fn build(options: &BuildOptions) -> Result<Layout, AuthorError> {
    if !options.config.is_object() {
        return Err(AuthorError::Configuration("expected a JSON object".into()));
    }
    let layout = NewLayout::begin(&options.output)?;
    let (layer, diff_id) = {
        let gzip = GzEncoder::new(layout.blob_writer()?, Compression::default());
        let mut archive = tar::Builder::new(Hashing { inner: gzip, hasher: Hasher::default() });
        archive.follow_symlinks(false);
        add_folder(&mut archive, &options.root, Path::new(""))?;
        let hashing = archive.into_inner().map_err(AuthorError::io(&options.root))?;
        let blob = hashing.inner.finish().map_err(AuthorError::io(&options.output))?;
        (blob.finish(LAYER)?, hashing.hasher.finish())
    };
    let platform = Platform::host();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": options.config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "sealpod image build" }],
    });
    let config = layout.add(OCI_CONFIG, config.to_string().as_bytes())?;
    layout.commit(&ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config,
        layers: vec![layer],
        annotations: Default::default(),
    })
}

fn add_folder<W: Write>(
    archive: &mut tar::Builder<W>,
    root: &Path,
    inside: &Path,
) -> Result<(), AuthorError> {
    let folder = root.join(inside);
    let mut names = std::fs::read_dir(&folder)
        .and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()
        })
        .map_err(AuthorError::io(&folder))?;
    names.sort();
    for name in names {
        let inside = inside.join(name);
        add(archive, &root.join(&inside), &inside)?;
        if root.join(&inside).symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            add_folder(archive, root, &inside)?;
        }
    }
    Ok(())
}

fn add<W: Write>(archive: &mut tar::Builder<W>, path: &Path, inside: &Path) -> Result<(), AuthorError> {
    let io = |error| AuthorError::Io { path: path.to_owned(), source: error };
    let metadata = path.symlink_metadata().map_err(io)?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_dir() {
        let attributes = extended_attributes(path).map_err(io)?;
        let records = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        archive.append_pax_extensions(records).map_err(io)?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(0);
    header.set_size(0);
    if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(metadata.len());
        archive.append_data(&mut header, inside, File::open(path).map_err(io)?).map_err(io)
    } else if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        let target = std::fs::read_link(path).map_err(io)?;
        archive.append_link(&mut header, inside, target).map_err(io)
    } else if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        archive.append_data(&mut header, inside, std::io::empty()).map_err(io)
    } else if kind.is_fifo() {
        header.set_entry_type(tar::EntryType::Fifo);
        archive.append_data(&mut header, inside, std::io::empty()).map_err(io)
    } else {
        Err(io(std::io::Error::other("devices and sockets do not go into an image")))
    }
}

/// As PAX records, sorted: capabilities of programs, and what users noted. What else there is belongs to the machine.
fn extended_attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0; MAX_ATTRIBUTE_LENGTH];
    let length = match llistxattr(path, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    list.truncate(length);
    let mut records = BTreeMap::new();
    for name in list.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
        if name != "security.capability" && !name.starts_with("user.") {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE_LENGTH];
        let length = lgetxattr(path, name, value.as_mut_slice())?;
        value.truncate(length);
        records.insert(format!("SCHILY.xattr.{name}"), value);
    }
    Ok(records)
}

/// Hashes what is written on its way.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
