//! Where unpacked layers are kept.
//!
//! A layer is a directory tree in overlayfs's own form, and shared by every image that has it above the same
//! layers: it is named for its chain id (OCI image specification, "Layer ChainID"), because what it does not say
//! of a directory comes from below. It is put together under another name and gets this one only once every
//! byte of it was verified: what is under `layers/` is good, what is elsewhere is nobody's.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::digest::Digest;

const LAYERS: &str = "layers";
const STAGING: &str = "staging";

/// A folder of unpacked layers. One program at a time has it.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    next: AtomicU64,
    /// Who is at work on which layer, so that two pulls do not do the same work.
    in_progress: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    _lock: File,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program has it.
    #[error("the layer store {} is in use by another program", .0.display())]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("the layer store: {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// Takes over a folder, makes it where it is missing, and removes what an earlier owner left unfinished.
    ///
    /// The layers that are in it are taken as verified: nobody else may write there. It must be on a file
    /// system with `trusted.*` attributes and device nodes (a tmpfs is one), and root's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        make_folder(&root)?;
        let lock_path = root.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => StoreError::InUse(root.clone()),
            other => at(&lock_path)(other.into()),
        })?;
        let staging = root.join(STAGING);
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&staging)(error)),
            _ => {}
        }
        for name in [STAGING, LAYERS] {
            make_folder(&root.join(name))?;
        }
        Ok(Self { root, next: AtomicU64::new(0), in_progress: Mutex::default(), _lock: lock })
    }

    /// The tree of the layer with this chain id, if it is here.
    pub fn layer(&self, chain_id: Digest) -> Option<PathBuf> {
        Some(self.root.join(LAYERS).join(chain_id.hex())).filter(|path| path.is_dir())
    }

    /// Waits until nobody else is at work on this layer. Work on different layers does not wait. Who wants
    /// several takes an image's from the lowest up: then no two wait for each other.
    pub(crate) async fn exclusive(&self, chain_id: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let mutex = {
            let mut in_progress = self.in_progress.lock().unwrap_or_else(PoisonError::into_inner);
            in_progress.retain(|_, mutex| mutex.strong_count() > 0);
            let known = in_progress.get(&chain_id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let mutex = Arc::default();
                in_progress.insert(chain_id, Arc::downgrade(&mutex));
                mutex
            })
        };
        mutex.lock_owned().await
    }

    /// A new empty folder to put a layer together in.
    pub(crate) fn stage(self: &Arc<Self>) -> Result<Staged, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join(STAGING).join(number.to_string());
        DirBuilder::new().mode(0o755).create(&path).map_err(at(&path))?;
        Ok(Staged { store: self.clone(), path, committed: false })
    }
}

/// A folder that goes away unless it is committed.
#[derive(Debug)]
pub(crate) struct Staged {
    store: Arc<Store>,
    path: PathBuf,
    committed: bool,
}

impl Staged {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this the tree of the layer with this chain id, which the caller has verified, unless somebody was
    /// faster: then theirs stays.
    pub(crate) fn commit(mut self, chain_id: Digest) -> Result<PathBuf, StoreError> {
        let target = self.store.root.join(LAYERS).join(chain_id.hex());
        match fs::rename(&self.path, &target) {
            Err(_) if target.is_dir() => Ok(target),
            Err(error) => Err(at(&target)(error)),
            Ok(()) => {
                self.committed = true;
                Ok(target)
            }
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a half unpacked layer cannot be removed");
        }
    }
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        assert!(matches!(Store::new(folder.path()), Err(StoreError::InUse(_))));
        drop(store);
        assert!(Store::new(folder.path()).is_ok());
    }

    #[test]
    fn what_an_earlier_owner_left_unfinished_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let half = folder.path().join("staging/7/half");
        fs::create_dir_all(&half).unwrap();
        let store = Store::new(folder.path()).unwrap();
        assert!(!half.exists());
        drop(store);
    }

    #[test]
    fn what_is_not_committed_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new(folder.path()).unwrap());
        let staged = store.stage().unwrap();
        let path = staged.path().to_owned();
        fs::write(path.join("file"), "").unwrap();
        drop(staged);
        assert!(!path.exists());
        assert_eq!(store.layer(Digest::of(b"")), None);
    }

    #[test]
    fn a_committed_layer_is_found_and_the_second_of_two_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new(folder.path()).unwrap());
        let id = Digest::of(b"");
        let (one, two) = (store.stage().unwrap(), store.stage().unwrap());
        fs::write(one.path().join("one"), "").unwrap();
        fs::write(two.path().join("two"), "").unwrap();
        let path = one.commit(id).unwrap();
        assert_eq!(two.commit(id).unwrap(), path);
        assert!(path.join("one").exists() && !path.join("two").exists());
        assert_eq!(store.layer(id), Some(path));
        assert_eq!(fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[test]
    fn a_store_is_free_once_its_layers_are_committed_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new(folder.path()).unwrap());
        store.stage().unwrap().commit(Digest::of(b"")).unwrap();
        drop(store.stage().unwrap());
        drop(store);
        assert!(Store::new(folder.path()).is_ok());
    }
}
