//! containerd's snapshots service over a unix socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
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
use crate::image_user::{Chain, Content, NAMESPACE_HEADER};
use crate::records::{Kind, Record};
use crate::snapshots::{Error as Refusal, Labels, Snapshots};

/// How long calls under way may take when the server is to end.
const PATIENCE: Duration = Duration::from_secs(3);

/// The snapshotter, which listens for containerd.
pub struct Server {
    listener: UnixListener,
    address: PathBuf,
    service: Service,
}

/// Why containerd cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder of the snapshots cannot be used.
    #[error("{}: {reason}", root.display())]
    Root {
        /// The folder.
        root: PathBuf,
        /// Why, in words.
        reason: String,
    },
    /// There is something at the socket's path that is not ours to replace.
    #[error("cannot listen on {}: {found} is there already", address.display())]
    Occupied {
        /// The socket's path.
        address: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", address.display())]
    Listen {
        /// The socket's path.
        address: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connections failed.
    #[error("cannot serve containerd: {0}")]
    Serve(#[from] tonic::transport::Error),
}

#[derive(Clone)]
struct Service {
    snapshots: Arc<Snapshots>,
    content: Content,
}

impl Server {
    /// Opens the snapshots' folder `root`, and listens on the socket `address`. `containerd` is containerd's own
    /// socket. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If another process has the folder or the socket, or one of them cannot be made.
    pub fn bind(root: &Path, address: &Path, containerd: PathBuf, config: Config) -> Result<Self, Error> {
        let snapshots = Snapshots::open(root, config)
            .map_err(|error| Error::Root { root: root.into(), reason: error.to_string() })?;
        let listener = listen(address)?;
        let service = Service { snapshots: Arc::new(snapshots), content: Content::at(containerd) };
        tracing::info!(address = %address.display(), root = %root.display(), "serving containerd");
        Ok(Self { listener, address: address.into(), service })
    }

    /// Serves containerd until `ended` is ready and the calls under way are answered, for which they have some seconds;
    /// then removes the socket.
    ///
    /// # Errors
    /// If the connections fail.
    pub async fn serve(self, ended: impl Future<Output = ()>) -> Result<(), Error> {
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tonic::transport::Server::builder()
            .add_service(SnapshotsServer::new(self.service))
            .serve_with_incoming_shutdown(UnixListenerStream::new(self.listener), async {
                // Without a sender there is nothing to wait for either.
                let _ = stopped.await;
            });
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            () = ended => {
                drop(stop);
                // A client that does not answer any more is not waited for.
                timeout(PATIENCE, serving).await.unwrap_or(Ok(()))
            }
        };
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.address);
        Ok(served?)
    }
}

/// Makes the socket, which is root's alone. One on which nobody listens any more is replaced.
fn listen(address: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Listen { address: address.into(), source };
    if let Some(folder) = address.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    match std::fs::symlink_metadata(address) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::Occupied { address: address.into(), found: "something that is no socket" });
        }
        Ok(_) if UnixStream::connect(address).is_ok() => {
            return Err(Error::Occupied { address: address.into(), found: "the socket of another process" });
        }
        Ok(_) => std::fs::remove_file(address).map_err(failed)?,
    }
    let listener = UnixListener::bind(address).map_err(failed)?;
    std::fs::set_permissions(address, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

impl Service {
    /// Does something with the disk without keeping others waiting.
    async fn with<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Snapshots) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = self.snapshots.clone();
        let done = tokio::task::spawn_blocking(move || job(&snapshots)).await;
        done.map_err(|error| Status::internal(error.to_string()))?.map_err(status)
    }

    /// The names of users whom the images of a guest's layers name; none for other layers.
    async fn users(
        &self,
        namespace: String,
        snapshotter: String,
        parent: String,
    ) -> Result<Vec<String>, Status> {
        match self.with(move |snapshots| snapshots.guests_chain(&parent)).await? {
            Some(id) => Ok(self.content.users(&Chain { namespace, snapshotter, id }).await),
            None => Ok(Vec::new()),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Api for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let namespace = namespace(&request, &request.get_ref().key);
        let PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let labels: Labels = labels.into_iter().collect();
        if let Some(name) = self.snapshots.target(&labels).map(str::to_owned) {
            let (below, noted, exists) =
                (parent.clone(), labels.clone(), format!("layer {name} is left to the guest"));
            self.with(move |snapshots| snapshots.leave_to_guest(&name, &below, &noted)).await?;
            tracing::info!("{exists}");
            return Err(Status::already_exists(exists));
        }
        let users = self.users(namespace, snapshotter, parent.clone()).await?;
        let mounts = self
            .with(move |snapshots| snapshots.prepare(&key, &parent, Kind::Active, labels, &users))
            .await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let namespace = namespace(&request, &request.get_ref().key);
        let ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let labels = labels.into_iter().collect();
        let users = self.users(namespace, snapshotter, parent.clone()).await?;
        let mounts =
            self.with(move |snapshots| snapshots.prepare(&key, &parent, Kind::View, labels, &users)).await?;
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

    type ListStream = ReceiverStream<Result<ListSnapshotsResponse, Status>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(Status::invalid_argument)?;
        let (service, filters) = (self.clone(), Arc::new(filters));
        // One part is ready while another is sent.
        let (parts, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut after = String::new();
            loop {
                let (filters, last) = (filters.clone(), after.clone());
                let part = service.with(move |snapshots| snapshots.list(&filters, &last)).await;
                let ends = part.as_ref().is_ok_and(Vec::is_empty) || part.is_err();
                if let Some((name, _)) = part.as_ref().ok().and_then(|part| part.last()) {
                    after.clone_from(name);
                }
                let message = part.map(|part| ListSnapshotsResponse {
                    info: part.into_iter().map(|(name, record)| info(name, record)).collect(),
                });
                // Whoever asked may have gone.
                if parts.send(message).await.is_err() || ends {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
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

/// containerd's namespace: the call says it, or else the key, which containerd begins with it.
fn namespace<T>(request: &Request<T>, key: &str) -> String {
    let said = request.metadata().get(NAMESPACE_HEADER).and_then(|value| value.to_str().ok());
    said.or_else(|| key.split_once('/').map(|(namespace, _)| namespace)).unwrap_or_default().to_owned()
}

fn status(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NotFound(_) => Status::not_found(text),
        Refusal::Exists(_) => Status::already_exists(text),
        Refusal::Precondition(_) => Status::failed_precondition(text),
        Refusal::Invalid(_) => Status::invalid_argument(text),
        Refusal::Records(_) | Refusal::Io { .. } => {
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
