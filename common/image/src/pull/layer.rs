//! One layer, in one pass.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealpod_ocicrypt::annotations::EncryptionAnnotations;
use sealpod_ocicrypt::layer::Decryptor;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::{PullError, PullOptions};
use crate::digest::Digest;
use crate::manifest::{Descriptor, LayerKind};
use crate::reference::Reference;
use crate::store::Staged;
use crate::unpack::{BrokenOff, Budget, UnpackError, Unpacked, inherit, unpack};

/// Chunks between the socket and the file system: what a layer holds in memory at a time.
const CHUNKS_AHEAD: usize = 8;

/// A layer that is to be fetched, and nobody else at work on it.
pub(super) struct Wanted<'a> {
    pub(super) descriptor: &'a Descriptor,
    pub(super) diff_id: Digest,
    pub(super) chain_id: Digest,
    pub(super) exclusive: OwnedMutexGuard<()>,
}

/// A layer whose bytes are authentic. What they unpacked to is looked at when those of all layers are.
pub(super) struct Fetched {
    layer: Digest,
    encrypted: bool,
    diff_id: Digest,
    chain_id: Digest,
    unpacked: Result<(Unpacked, Staged), UnpackError>,
    exclusive: OwnedMutexGuard<()>,
}

/// A layer that is what it must be. Nobody sees it yet, and it goes away unless it is committed.
pub(super) struct Settled {
    chain_id: Digest,
    staged: Staged,
    /// Held until the layer is where others find it.
    _exclusive: OwnedMutexGuard<()>,
}

/// Fetches a layer, to its last byte however unpacking goes, and fails if the bytes are not authentic. What unpacking
/// says is kept for [`Fetched::settle`]: told earlier, it would say what an altered ciphertext decrypts to.
pub(super) async fn fetch(
    options: &PullOptions,
    reference: &Reference,
    wanted: Wanted<'_>,
    budget: Arc<Budget>,
) -> Result<Fetched, PullError> {
    let Wanted { descriptor, diff_id, chain_id, exclusive } = wanted;
    let layer = descriptor.digest;
    let LayerKind { compression, encrypted } =
        LayerKind::of(&descriptor.media_type).ok_or(PullError::Internal)?;
    // First, for later it may fail by what other layers, whose bytes are not yet authentic, have filled the disk with.
    let staged = options.store.stage()?;
    let decryptor = if encrypted { Some(decryptor(options, descriptor).await?) } else { None };

    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    // A thread that is still at work when this future is dropped gets `BrokenOff` and ends. The folder is its own as
    // long as it works, for what is still written to cannot be removed.
    let unpacking = tokio::task::spawn_blocking(move || {
        unpack(Chunks::new(receiver), compression, staged.path(), &budget).map(|unpacked| (unpacked, staged))
    });
    let sent = send(options, reference, descriptor, decryptor, sender).await;
    let unpacked = unpacking.await;
    sent?;
    let unpacked = unpacked.map_err(|_| PullError::Internal)?;
    Ok(Fetched { layer, encrypted, diff_id, chain_id, unpacked, exclusive })
}

impl Fetched {
    /// Puts the layer over those that will be below it, lowest first, if it unpacked to what it must be.
    pub(super) fn settle(self, below: &[PathBuf]) -> Result<Settled, PullError> {
        let Self { layer, encrypted, diff_id, chain_id, unpacked, exclusive } = self;
        let failed = |source: UnpackError| {
            let source = if encrypted { source.without_content() } else { source };
            PullError::Unpack { layer, source }
        };
        let (unpacked, staged) = unpacked.map_err(failed)?;
        if unpacked.diff_id != diff_id {
            return Err(PullError::DiffId { layer, expected: diff_id, actual: unpacked.diff_id });
        }
        inherit(staged.path(), &unpacked.implied, below).map_err(failed)?;
        Ok(Settled { chain_id, staged, _exclusive: exclusive })
    }
}

impl Settled {
    /// Where the layer is now.
    pub(super) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Makes the layer visible.
    pub(super) fn commit(self) -> Result<PathBuf, PullError> {
        Ok(self.staged.commit(self.chain_id)?)
    }
}

async fn decryptor(options: &PullOptions, descriptor: &Descriptor) -> Result<Decryptor, PullError> {
    let layer = descriptor.digest;
    let key = |source| PullError::Key { layer, source };
    let annotations =
        EncryptionAnnotations::parse(&descriptor.annotations).map_err(|error| key(error.into()))?;
    let public = annotations.public_options.clone();
    let private = options.unwrapper.open(annotations).await.map_err(key)?;
    Decryptor::new(&private, &public).map_err(|source| PullError::Decrypt { layer, source })
}

/// From the registry's socket through the decryptor to the unpacking thread. Ends well only if the blob's digest and,
/// where it is encrypted, its authentication were right; the unpacking thread learns that by `Part::End` alone. Where
/// unpacking has failed nobody takes the parts any more, and the blob is read to its end all the same.
async fn send(
    options: &PullOptions,
    reference: &Reference,
    descriptor: &Descriptor,
    mut decryptor: Option<Decryptor>,
    sender: mpsc::Sender<Part>,
) -> Result<(), PullError> {
    let decrypt = |source| PullError::Decrypt { layer: descriptor.digest, source };
    let mut blob = options.client.blob(reference, descriptor).await?;
    while let Some(mut chunk) = blob.chunk().await? {
        if let Some(decryptor) = &mut decryptor {
            decryptor.update(&mut chunk).map_err(decrypt)?;
        }
        let _ = sender.send(Part::Bytes(chunk)).await;
    }
    if let Some(decryptor) = decryptor {
        decryptor.finish().map_err(decrypt)?;
    }
    let _ = sender.send(Part::End).await;
    Ok(())
}

/// What goes to the unpacking thread.
enum Part {
    Bytes(Vec<u8>),
    /// All was sent, and was what it must be.
    End,
}

/// The unpacking thread's end.
struct Chunks {
    receiver: mpsc::Receiver<Part>,
    current: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Chunks {
    fn new(receiver: mpsc::Receiver<Part>) -> Self {
        Self { receiver, current: Vec::new(), read: 0, ended: false }
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.read == self.current.len() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Part::Bytes(bytes)) => (self.current, self.read) = (bytes, 0),
                Some(Part::End) => self.ended = true,
                None => return Err(io::Error::other(BrokenOff)),
            }
        }
        Ok(self.current.get(self.read..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.read = self.read.saturating_add(count).min(self.current.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
