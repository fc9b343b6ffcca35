//! containerd's snapshots service over a unix socket.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::api::snapshots::snapshots_server::{Snapshots as Api, SnapshotsServer};
use crate::api::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind as ApiKind, ListSnapshotsRequest,
    ListSnapshotsResponse, MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::config::Config;
use crate::filter::Filters;
use crate::image_user::Content;
use crate::records::{Kind, Record};
use crate::snapshots::{Error, Snapshots, target};

/// The manifest of the image that a layer is of, where containerd passes it on.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const NAMESPACE_HEADER: &str = "containerd-namespace";
/// How many entries a message of a list has.
const LIST_PART: usize = 100;

struct Service {
    snapshots: Arc<Snapshots>,
    content: Content,
}

/// Serves containerd on a socket until `ended` is ready.
///
/// `root` is the folder of the snapshots, `containerd` containerd's own socket.
///
/// # Errors
/// If the folder or the socket cannot be used; in one sentence.
pub async fn serve(
    root: &Path,
    address: &Path,
    containerd: PathBuf,
    config: Config,
    ended: impl Future<Output = ()>,
) -> Result<(), String> {
    let snapshots = Snapshots::open(root, config).map_err(|error| format!("{}: {error}", root.display()))?;
    let service = Service { snapshots: Arc::new(snapshots), content: Content::at(containerd) };
    let listener =
        listen(address).map_err(|error| format!("cannot listen on {}: {error}", address.display()))?;
    tracing::info!(address = %address.display(), root = %root.display(), "serving containerd");
    let served = Server::builder()
        .add_service(SnapshotsServer::new(service))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended)
        .await;
    // Somebody else may have removed it.
    let _ = std::fs::remove_file(address);
    served.map_err(|error| error.to_string())
}

/// The socket is root's alone. One that nobody listens on is replaced: who has the folder is the only one.
fn listen(address: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(folder) = address.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(address) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(address)?;
    std::fs::set_permissions(address, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Service {
    /// Does something with the disk without keeping others waiting.
    async fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Snapshots) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = self.snapshots.clone();
        let done = tokio::task::spawn_blocking(move || job(&snapshots)).await;
        done.map_err(|error| Status::internal(error.to_string()))?.map_err(status)
    }

    /// The users' names of the image that a layer is of; without them the layer is left to the guest all the same.
    async fn users(&self, namespace: &str, labels: &HashMap<String, String>) -> Vec<String> {
        let Some(manifest) = labels.get(MANIFEST) else { return Vec::new() };
        self.content.users(namespace, manifest).await.unwrap_or_else(|error| {
            tracing::warn!(manifest, error, "the image's user is not known to the host");
            Vec::new()
        })
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Api for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let namespace = namespace(&request);
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let sorted = labels.clone().into_iter().collect();
        if let Some(name) = target(self.snapshots.config(), &sorted).map(str::to_owned) {
            let users = self.users(&namespace, &labels).await;
            let (below, noted) = (parent.clone(), sorted.clone());
            let exists = format!("layer {name} is left to the guest");
            if self.with(move |snapshots| snapshots.leave_to_guest(&name, &below, noted, &users)).await? {
                return Err(Status::already_exists(exists));
            }
        }
        let mounts =
            self.with(move |snapshots| snapshots.prepare(&key, &parent, Kind::Active, sorted)).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let mounts = self.with(move |snapshots| snapshots.prepare(&key, &parent, Kind::View, labels)).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        let mounts = self.with(move |snapshots| snapshots.mounts(&key)).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        self.with(move |snapshots| snapshots.commit(&name, &key, labels)).await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        self.with(move |snapshots| snapshots.remove(&key)).await.map(Response::new)
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let name = key.clone();
        let record = self.with(move |snapshots| snapshots.stat(&key)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(info(name, record)) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let UpdateSnapshotRequest { info: wanted, update_mask, .. } = request.into_inner();
        let wanted = wanted.ok_or_else(|| Status::invalid_argument("there is nothing to change"))?;
        let name = wanted.name.clone();
        let labels = wanted.labels.into_iter().collect();
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let record = self.with(move |snapshots| snapshots.update(&wanted.name, &labels, &paths)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info(name, record)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(Status::invalid_argument)?;
        let all = self.with(move |snapshots| snapshots.list(&filters)).await?;
        let infos: Vec<_> = all.into_iter().map(|(name, record)| info(name, record)).collect();
        let parts: Vec<_> =
            infos.chunks(LIST_PART).map(|part| Ok(ListSnapshotsResponse { info: part.to_vec() })).collect();
        Ok(Response::new(Box::pin(iter(parts))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let (bytes, inodes) = self.with(move |snapshots| snapshots.usage(&key)).await?;
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: count(bytes), inodes: count(inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.with(Snapshots::clean_up).await.map(Response::new)
    }
}

/// Of the call; containerd's metadata store prefixes keys with it already, so it matters for containerd's own API only.
fn namespace<T>(request: &Request<T>) -> String {
    let value = request.metadata().get(NAMESPACE_HEADER).and_then(|value| value.to_str().ok());
    value.unwrap_or("k8s.io").to_owned()
}

fn status(error: Error) -> Status {
    let text = error.to_string();
    match error {
        Error::NotFound(_) => Status::not_found(text),
        Error::Exists(_) => Status::already_exists(text),
        Error::Precondition(_) => Status::failed_precondition(text),
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::Records(_) | Error::Io { .. } => {
            tracing::error!("{text}");
            Status::internal(text)
        }
    }
}

fn info(name: String, record: Record) -> Info {
    let kind = match record.kind {
        Kind::View => ApiKind::View,
        Kind::Active => ApiKind::Active,
        Kind::Committed => ApiKind::Committed,
    };
    let time = |ms: u64| {
        Some(prost_types::Timestamp {
            seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or_default(),
        })
    };
    Info {
        name,
        parent: record.parent,
        kind: kind.into(),
        created_at: time(record.created_ms),
        updated_at: time(record.updated_ms),
        labels: record.labels.into_iter().collect(),
    }
}
