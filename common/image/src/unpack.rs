//! From a layer's decrypted bytes to a directory tree, in one pass.
//!
//! Everything here reads what a registry sent before it is verified. So nothing is trusted: sizes are bounded,
//! no name leads outside of the tree, and nobody sees the tree before the caller has verified it.

mod archive;
mod attributes;
mod extension;
mod folder;
mod inherit;
mod name;
mod numeric;
mod tree;

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher};
use crate::manifest::Compression;
use archive::{Archive, Data, Kind};
use tree::Tree;

pub(crate) use inherit::{Implied, hides_all_below, inherit};

/// Zstandard frames may ask for a window of 2^25 bytes at most (RFC 8878 recommends support for 2^23).
const ZSTD_WINDOW_LOG: u32 = 25;
const BUFFER_LENGTH: usize = 64 * 1024;

/// How much an image may unpack to. Shared by its layers.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: u64,
    bytes_left: AtomicU64,
    entries: u64,
    entries_left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64, entries: u64) -> Self {
        Self { bytes, bytes_left: AtomicU64::new(bytes), entries, entries_left: AtomicU64::new(entries) }
    }

    fn take_bytes(&self, count: u64) -> Result<(), UnpackError> {
        take(&self.bytes_left, count).map_err(|()| UnpackError::TooLarge { limit: self.bytes, unit: "bytes" })
    }

    fn take_entry(&self) -> Result<(), UnpackError> {
        take(&self.entries_left, 1).map_err(|()| UnpackError::TooLarge { limit: self.entries, unit: "files" })
    }
}

fn take(left: &AtomicU64, count: u64) -> Result<(), ()> {
    let take = |left: u64| left.checked_sub(count);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(|_| ()).map_err(|_| ())
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compressed stream is broken.
    #[error("it cannot be decompressed: {0}")]
    Decompress(#[source] io::Error),
    /// The archive is broken.
    #[error("its tar archive is malformed: {0}")]
    Malformed(String),
    /// The archive holds something that must not be in a layer.
    #[error("it holds {path:?}, {reason}")]
    Refused {
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It unpacks to more than it may.
    #[error("the image unpacks to more than {limit} {unit}, which is the limit")]
    TooLarge {
        /// How much it may be.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The file system refuses.
    #[error("{path:?} cannot be written: {source}")]
    Io {
        /// The entry's name.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Whoever sent the bytes went away.
    #[error("the transfer was broken off")]
    BrokenOff,
}

/// What a layer turned out to be.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Directories that it leaves to the layers below to describe: see [`inherit`].
    pub(crate) implied: Implied,
}

/// Unpacks a layer into an existing empty folder, and reads `source` to its end.
pub(crate) fn unpack(
    source: impl BufRead,
    compression: Compression,
    folder: &Path,
    budget: &Budget,
) -> Result<Unpacked, UnpackError> {
    match compression {
        Compression::None => unpack_archive(source, folder, budget),
        Compression::Gzip => unpack_archive(MultiGzDecoder::new(source), folder, budget),
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(source).map_err(UnpackError::Decompress)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(UnpackError::Decompress)?;
            unpack_archive(decoder, folder, budget)
        }
    }
}

fn unpack_archive(source: impl Read, folder: &Path, budget: &Budget) -> Result<Unpacked, UnpackError> {
    let metered = Metered { source, hasher: Hasher::default(), budget, error: None };
    let mut source = BufReader::with_capacity(BUFFER_LENGTH, metered);
    let result = unpack_entries(&mut source, folder, budget);
    // The budget's word stands behind any error that reading gave.
    if let Some(error) = source.get_mut().error.take() {
        return Err(error);
    }
    let implied = result?;
    Ok(Unpacked { diff_id: source.into_inner().hasher.finish(), implied })
}

fn unpack_entries(source: &mut impl Read, folder: &Path, budget: &Budget) -> Result<Implied, UnpackError> {
    let mut tree = Tree::open(folder, budget)?;
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next_entry()? {
        budget.take_entry()?;
        if let Kind::File { data: Data { real_size, stored_size, .. } } = &entry.kind {
            budget.take_bytes(real_size.saturating_sub(*stored_size))?;
        }
        tree.add(entry, &mut archive)?;
    }
    archive.drain()?;
    tree.finish()
}

/// Hashes and counts what comes out of decompression.
struct Metered<'a, R> {
    source: R,
    hasher: Hasher,
    budget: &'a Budget,
    error: Option<UnpackError>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if let Err(error) = self.budget.take_bytes(count as u64) {
            self.error = Some(error);
            return Err(io::Error::other("over the limit"));
        }
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

impl UnpackError {
    /// From reading the archive.
    fn read(error: io::Error) -> Self {
        let broken_off = error.get_ref().is_some_and(|inner| inner.is::<BrokenOff>());
        if broken_off { Self::BrokenOff } else { Self::Decompress(error) }
    }

    /// The same kind of error with nothing of what the layer holds: who is told it need not be who may read the layer.
    pub(crate) fn without_content(self) -> Self {
        let withheld = || String::from("(withheld, as the layer is encrypted)");
        match self {
            Self::Decompress(source) => Self::Decompress(source.kind().into()),
            Self::Malformed(_) => Self::Malformed(withheld()),
            Self::Refused { .. } => {
                Self::Refused { path: withheld(), reason: "which must not be in a layer".into() }
            }
            Self::Io { source, .. } => Self::Io { path: withheld(), source: source.kind().into() },
            Self::TooLarge { limit, unit } => Self::TooLarge { limit, unit },
            Self::BrokenOff => Self::BrokenOff,
        }
    }

    fn io(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io { path: String::from_utf8_lossy(path).into(), source: source.into() }
    }

    fn refused(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused { path: String::from_utf8_lossy(path).into(), reason: reason.into() }
    }
}

/// What a source's `read` fails with where its sender went away.
#[derive(Debug, thiserror::Error)]
#[error("broken off")]
pub(crate) struct BrokenOff;
