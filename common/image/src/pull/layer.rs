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
use crate::unpack::{BrokenOff, Budget, Implied, inherit, unpack};

/// Chunks between the socket and the file system: what a layer holds in memory at a time.
const CHUNKS_AHEAD: usize = 8;

/// A layer that is to be fetched, and nobody else at work on it.
pub(super) struct Wanted<'a> {
    pub(super) descriptor: &'a Descriptor,
    pub(super) diff_id: Digest,
    pub(super) chain_id: Digest,
    pub(super) exclusive: OwnedMutexGuard<()>,
}

/// A layer that was fetched and is what it must be. Nobody sees it yet, and it goes away unless it is committed.
pub(super) struct Fetched {
    layer: Digest,
    chain_id: Digest,
    staged: Staged,
    implied: Implied,
    /// Held until the layer is where others find it.
    _exclusive: OwnedMutexGuard<()>,
}

/// Fetches a layer and verifies it.
pub(super) async fn fetch(
    options: &PullOptions,
    reference: &Reference,
    wanted: Wanted<'_>,
    budget: Arc<Budget>,
) -> Result<Fetched, PullError> {
    let Wanted { descriptor, diff_id, chain_id, exclusive } = wanted;
    let layer = descriptor.digest;
    let kind = LayerKind::of(&descriptor.media_type).ok_or(PullError::Internal)?;
    let decryptor = if kind.encrypted { Some(decryptor(options, descriptor).await?) } else { None };

    let staged = options.store.stage()?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    // A thread that is still at work when this future is dropped gets `BrokenOff` and ends. The folder is its own as
    // long as it works, for what is still written to cannot be removed.
    let unpacking = tokio::task::spawn_blocking(move || {
        unpack(Chunks::new(receiver), kind.compression, staged.path(), &budget)
            .map(|unpacked| (unpacked, staged))
    });
    let sent = send(options, reference, descriptor, decryptor, sender).await;
    let unpacked = unpacking.await.map_err(|_| PullError::Internal)?;
    // What went wrong first is what is told: a broken transfer before the half archive that it leaves, but an archive
    // that was given up before the transfer that nobody took any more.
    let (unpacked, staged) = match (sent, unpacked) {
        (Ok(()) | Err(Sending::NotTaken), Err(source)) => return Err(PullError::Unpack { layer, source }),
        (Err(Sending::Failed(error)), _) => return Err(error),
        (Err(Sending::NotTaken), Ok(_)) => return Err(PullError::Internal),
        (Ok(()), Ok(unpacked)) => unpacked,
    };
    if unpacked.diff_id != diff_id {
        return Err(PullError::DiffId { layer, expected: diff_id, actual: unpacked.diff_id });
    }
    Ok(Fetched { layer, chain_id, staged, implied: unpacked.implied, _exclusive: exclusive })
}

impl Fetched {
    /// Where the layer is now.
    pub(super) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Puts the layer over those that will be below it, lowest first.
    pub(super) fn settle(&self, below: &[PathBuf]) -> Result<(), PullError> {
        inherit(self.path(), &self.implied, below)
            .map_err(|source| PullError::Unpack { layer: self.layer, source })
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

/// Why not all of a layer was handed on.
enum Sending {
    Failed(PullError),
    /// Unpacking ended before.
    NotTaken,
}

/// From the registry's socket through the decryptor to the unpacking thread. Ends well only if the blob's digest and,
/// where it is encrypted, its authentication were right; the unpacking thread learns that by `Part::End` alone.
async fn send(
    options: &PullOptions,
    reference: &Reference,
    descriptor: &Descriptor,
    mut decryptor: Option<Decryptor>,
    sender: mpsc::Sender<Part>,
) -> Result<(), Sending> {
    let failed = |error: PullError| Sending::Failed(error);
    let decrypt = |source| Sending::Failed(PullError::Decrypt { layer: descriptor.digest, source });
    let mut blob = options.client.blob(reference, descriptor).await.map_err(|error| failed(error.into()))?;
    while let Some(mut chunk) = blob.chunk().await.map_err(|error| failed(error.into()))? {
        if let Some(decryptor) = &mut decryptor {
            decryptor.update(&mut chunk).map_err(decrypt)?;
        }
        sender.send(Part::Bytes(chunk)).await.map_err(|_| Sending::NotTaken)?;
    }
    if let Some(decryptor) = decryptor {
        decryptor.finish().map_err(decrypt)?;
    }
    sender.send(Part::End).await.map_err(|_| Sending::NotTaken)
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
