//! One layer, in one pass.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;

use sealpod_ocicrypt::annotations::EncryptionAnnotations;
use sealpod_ocicrypt::layer::Decryptor;
use tokio::sync::mpsc;

use super::{PullError, PullOptions};
use crate::digest::Digest;
use crate::manifest::{Descriptor, LayerKind};
use crate::reference::Reference;
use crate::unpack::{BrokenOff, Budget, unpack};

/// Chunks between the socket and the file system: what a layer holds in memory at a time.
const CHUNKS_AHEAD: usize = 8;

/// The layer's tree, from the store or from the registry.
pub(super) async fn ready(
    options: &PullOptions,
    reference: &Reference,
    descriptor: &Descriptor,
    diff_id: Digest,
    budget: Arc<Budget>,
) -> Result<PathBuf, PullError> {
    // The same layer twice in an image, or in two images at once, is unpacked once.
    let _exclusive = options.store.exclusive(diff_id).await;
    if let Some(path) = options.store.layer(diff_id) {
        return Ok(path);
    }
    let layer = descriptor.digest;
    let kind = LayerKind::of(&descriptor.media_type).ok_or(PullError::Internal)?;
    let decryptor = if kind.encrypted { Some(decryptor(options, descriptor).await?) } else { None };

    let staged = options.store.stage()?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let folder = staged.path().to_owned();
    // A thread that is still at work when this future is dropped gets `BrokenOff` and ends.
    let unpacking = tokio::task::spawn_blocking(move || {
        unpack(Chunks::new(receiver), kind.compression, &folder, &budget)
    });
    let sent = send(options, reference, descriptor, decryptor, sender).await;
    let unpacked = unpacking.await.map_err(|_| PullError::Internal)?;
    // What went wrong first is what is told: a broken transfer before the half archive that it leaves, but an archive
    // that was given up before the transfer that nobody took any more.
    let actual = match (sent, unpacked) {
        (Ok(()) | Err(Sending::NotTaken), Err(source)) => return Err(PullError::Unpack { layer, source }),
        (Err(Sending::Failed(error)), _) => return Err(error),
        (Err(Sending::NotTaken), Ok(_)) => return Err(PullError::Internal),
        (Ok(()), Ok(diff_id)) => diff_id,
    };
    if actual != diff_id {
        return Err(PullError::DiffId { layer, expected: diff_id, actual });
    }
    Ok(staged.commit(diff_id)?)
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
