//! What the tests share: registries, images and those who pull them.

pub(crate) mod archive;
pub(crate) mod image;
pub(crate) mod keys;
pub(crate) mod overlay;
pub(crate) mod registry;
pub(crate) mod served;
pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealpod_image::platform::Platform;
use sealpod_image::policy::Policy;
use sealpod_image::pull::{Limits, PullError, PullOptions, PulledImage, Puller};
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, ClientOptions};
use sealpod_image::store::Store;
use sealpod_ocicrypt::Unwrapper;
use tempfile::TempDir;

pub(crate) const ACCEPT_ANYTHING: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// One who pulls, with a store of its own. What it pulls with may be changed before.
pub(crate) struct Guest {
    folder: TempDir,
    pub(crate) client: ClientOptions,
    pub(crate) policy: Policy,
    pub(crate) keys: Unwrapper,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
    pub(crate) store: Arc<Store>,
}

impl Guest {
    /// Accepts every image, and has no keys.
    pub(crate) fn new(client: ClientOptions) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "layers hold owners and devices: run these tests as root"
        );
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new(folder.path().join("store")).unwrap());
        Self {
            folder,
            client,
            policy: Policy::parse(ACCEPT_ANYTHING).unwrap(),
            keys: Unwrapper::default(),
            platform: Platform::host(),
            limits: Limits::default(),
            store,
        }
    }

    pub(crate) fn puller(&self) -> Puller {
        Puller::new(PullOptions {
            client: Client::new(self.client.clone()).unwrap(),
            policy: self.policy.clone(),
            unwrapper: Arc::new(self.keys.clone()),
            store: self.store.clone(),
            platform: self.platform.clone(),
            limits: self.limits,
        })
    }

    pub(crate) async fn pull(&self, reference: &Reference) -> Result<PulledImage, PullError> {
        self.puller().pull(reference).await
    }

    /// Pulls what must not be had, and sees that nothing is left of it.
    pub(crate) async fn refused(&self, reference: &Reference) -> PullError {
        let error = self.pull(reference).await.expect_err("the pull must fail");
        assert_eq!(self.visible(), Vec::<PathBuf>::new(), "after {error}");
        until("the staging folder is empty", || self.staged().is_empty()).await;
        error
    }

    /// Lets the store go and takes it over, as after a restart.
    pub(crate) fn with_store_again(self) -> Self {
        let Self { folder, client, policy, keys, platform, limits, store } = self;
        drop(store);
        let store = Arc::new(Store::new(folder.path().join("store")).unwrap());
        Self { folder, client, policy, keys, platform, limits, store }
    }

    /// The folder around the store.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The layers that others would find.
    pub(crate) fn visible(&self) -> Vec<PathBuf> {
        entries(&self.folder.path().join("store/layers"))
    }

    /// The layers that are being put together.
    pub(crate) fn staged(&self) -> Vec<PathBuf> {
        entries(&self.folder.path().join("store/staging"))
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a program that the tests cannot do without, in a folder, and gives its standard output.
pub(crate) fn run(folder: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test and does not start: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed: {errors}");
    output.stdout
}
