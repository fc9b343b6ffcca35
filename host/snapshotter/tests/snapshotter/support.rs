//! The program under test, a client of it, and mounts.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use sealpod_snapshotter::api::snapshots::snapshots_client::SnapshotsClient;
use sealpod_snapshotter::api::snapshots::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, Mount, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// By this label containerd says which snapshot a layer is to become.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";
/// The image's reference, where containerd passes it on.
pub(crate) const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
/// The name of the snapshotter in containerd's configuration.
pub(crate) const SNAPSHOTTER: &str = "sealpod";
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A folder on a file system that overlayfs takes for an upper one: a container's own root would not do.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Waits until there is something.
pub(crate) fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program that ends with the test.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; `make setup` installs it")))
    }

    /// Waits until it does something.
    pub(crate) fn until<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> T {
        until("the program is ready", || {
            let value = ready();
            assert!(value.is_some() || self.0.try_wait().unwrap().is_none(), "the program has ended");
            value
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        until("the program has ended", || self.0.try_wait().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running snapshotter in a folder.
pub(crate) struct Snapshotter {
    pub(crate) process: Process,
    folder: PathBuf,
}

impl Snapshotter {
    /// Starts it with its files in a folder; `config` is its configuration, if it has one.
    pub(crate) fn start(folder: &Path, config: Option<&str>) -> Self {
        let mut command = Self::command(folder);
        if let Some(config) = config {
            std::fs::write(folder.join("config.toml"), config).unwrap();
            command.arg("--config").arg(folder.join("config.toml"));
        }
        Self::run(command, folder)
    }

    /// How it is started.
    pub(crate) fn command(folder: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealpod-snapshotter"));
        command.arg("--root").arg(folder.join("root"));
        command.arg("--address").arg(folder.join("snapshotter.sock"));
        command.arg("--containerd-address").arg(folder.join("containerd.sock"));
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Starts it and waits for its socket.
    pub(crate) fn run(mut command: Command, folder: &Path) -> Self {
        let mut process = Process::start(&mut command, &folder.join("snapshotter.log"));
        process.until(|| BlockingStream::connect(folder.join("snapshotter.sock")).ok());
        Self { process, folder: folder.into() }
    }

    /// What containerd would be to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.folder.join("snapshotter.sock"), None)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("snapshotter.log")).unwrap()
    }

    /// The names in the folder of the snapshots.
    pub(crate) fn folders(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join("root/snapshots")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A client of the snapshots service: of the snapshotter's, or of containerd's own.
#[derive(Clone)]
pub(crate) struct Client {
    api: SnapshotsClient<Channel>,
    namespace: Option<&'static str>,
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// A channel over a socket.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://socket").connect_with_connector_lazy(connector)
}

impl Client {
    pub(crate) fn connect(socket: &Path, namespace: Option<&'static str>) -> Self {
        Self { api: SnapshotsClient::new(channel(socket)), namespace }
    }

    /// The calls themselves.
    pub(crate) fn api(&self) -> SnapshotsClient<Channel> {
        self.api.clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(namespace) = self.namespace {
            request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
        }
        request
    }

    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (SNAPSHOTTER.into(), key.into(), parent.into());
        let request = self.request(PrepareSnapshotRequest { snapshotter, key, parent, labels });
        Ok(self.api().prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, HashMap::new()).await
    }

    /// As containerd begins with a layer.
    pub(crate) async fn prepare_layer(
        &self,
        chain: &str,
        parent: &str,
        image: &str,
    ) -> Result<Vec<Mount>, Status> {
        let labels = labels(&[(TARGET, chain), (IMAGE, image)]);
        self.prepare_with(&format!("k8s.io/1/extract-1-ab {chain}"), parent, labels).await
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let (snapshotter, key, parent) = (SNAPSHOTTER.into(), key.into(), parent.into());
        let request = self.request(ViewSnapshotRequest { snapshotter, key, parent, labels: HashMap::new() });
        Ok(self.api().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        Ok(self.api().mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let (snapshotter, name, key) = (SNAPSHOTTER.into(), name.into(), key.into());
        let request = CommitSnapshotRequest { snapshotter, name, key, labels: HashMap::new() };
        self.api().commit(self.request(request)).await.map(drop)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request =
            self.request(RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        self.api().remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        Ok(self.api().stat(request).await?.into_inner().info.unwrap())
    }

    /// Bytes and inodes.
    pub(crate) async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = self.request(UsageRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() });
        let usage = self.api().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = self.request(ListSnapshotsRequest { snapshotter: SNAPSHOTTER.into(), filters });
        let mut stream = self.api().list(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = stream.message().await? {
            all.extend(part.info);
        }
        Ok(all)
    }

    /// The names of what a list has.
    pub(crate) async fn names(&self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.unwrap().into_iter().map(|info| info.name).collect()
    }
}

/// Fails a test that must mount where it cannot.
pub(crate) fn needs_root() {
    assert!(rustix::process::geteuid().is_root(), "only root can mount: run this test as root");
}

/// A mounted snapshot; unmounted when dropped.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    /// As containerd does it.
    pub(crate) fn of(mounts: &[Mount]) -> Self {
        let place = folder();
        let [one] = mounts else { panic!("{mounts:?}") };
        let read_only = one.options.iter().any(|option| option == "ro");
        match one.r#type.as_str() {
            "bind" => {
                mount_bind_recursive(one.source.as_str(), place.path()).unwrap();
                if read_only {
                    let flags = MountFlags::BIND | MountFlags::RDONLY;
                    mount_remount(place.path(), flags, c"").unwrap();
                }
            }
            other => {
                let options = CString::new(one.options.join(",")).unwrap();
                mount(one.source.as_str(), place.path(), other, MountFlags::empty(), options.as_c_str())
                    .unwrap_or_else(|error| panic!("{one:?}: {error}"));
            }
        }
        Self(place)
    }

    pub(crate) fn join(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A file's text, if there is the file.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.join(path)).ok()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}
