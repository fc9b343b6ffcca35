//! How commands find the pods of this user: a socket for each, on which `run` passes requests on to its agent.
//!
//! Whoever may write to the socket is the host, as far as the guest is concerned: the agent decides each request by
//! the owner's policy all the same.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealpod_agent_protocol::{
    ByteStream, CallError, Client, Failure, FailureKind, Handler, Reply, Request, serve,
};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{ANSWER_LIMIT, runtime_folder};
use crate::error::{Context, Error, Result};

/// A running pod, as `ps` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PodEntry {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) image: String,
}

/// A pod's socket while it runs; gone with this value.
pub(crate) struct Control {
    folder: PathBuf,
    server: JoinHandle<()>,
}

impl Control {
    /// Announces a pod under its name. A name that is in use is an error.
    pub(crate) fn open(name: &str, image: &str, agent: Client) -> Result<Self> {
        let folder = make_folder(name)?;
        let entry = PodEntry { name: name.to_owned(), pid: std::process::id(), image: image.to_owned() };
        std::fs::write(folder.join("pod.json"), serde_json::to_vec(&entry)?)?;
        let listener =
            UnixListener::bind(folder.join("agent.sock")).context("cannot listen for `sealpod exec`")?;
        Ok(Self { folder, server: tokio::spawn(accept(listener, agent)) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
        // The last pod to go takes the folders of all pods along; others keep them by being in them.
        let _ = std::fs::remove_dir(pods_folder());
        let _ = std::fs::remove_dir(runtime_folder());
    }
}

/// Makes the pod's own folder: whoever makes it has the name.
fn make_folder(name: &str) -> Result<PathBuf> {
    let folder = folder_of(name)?;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    // Another pod's end may remove the folder of all pods again before this one is in it.
    for _ in 0..10 {
        builder.recursive(true);
        builder.create(pods_folder()).context("cannot make the folder of running pods")?;
        check_free(name)?;
        builder.recursive(false);
        match builder.create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(taken(name)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::new(format!("cannot make {}: {error}", folder.display()))),
        }
    }
    Err(Error::new(format!("cannot make {}: it is removed again and again", folder.display())))
}

/// That no running pod has this name: to be asked before one boots.
pub(crate) fn check_free(name: &str) -> Result<()> {
    let folder = folder_of(name)?;
    sweep(&folder);
    if folder.exists() { Err(taken(name)) } else { Ok(()) }
}

fn taken(name: &str) -> Error {
    Error::new(format!("a pod named {name} runs already")).hint("`sealpod ps` lists the running pods")
}

/// Connects to a running pod's agent.
pub(crate) async fn connect(name: &str) -> Result<Client> {
    let socket = folder_of(name)?.join("agent.sock");
    let stream = UnixStream::connect(&socket)
        .await
        .context(format!("there is no running pod named {name}"))
        .hint("`sealpod ps` lists the running pods")?;
    let connecting = tokio::time::timeout(ANSWER_LIMIT, Client::connect(stream)).await;
    let late = |_| Error::new(format!("the pod {name} does not answer within {ANSWER_LIMIT:?}"));
    connecting.map_err(late)?.context(format!("the pod {name} does not answer"))
}

/// The running pods by name; remains of those that died are cleared away.
pub(crate) async fn list() -> Result<Vec<PodEntry>> {
    let mut pods = Vec::new();
    let Ok(entries) = std::fs::read_dir(pods_folder()) else { return Ok(pods) };
    for entry in entries.flatten() {
        sweep(&entry.path());
        if let Some(pod) = read_entry(&entry.path()) {
            pods.push(pod);
        }
    }
    pods.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(pods)
}

fn pods_folder() -> PathBuf {
    runtime_folder().join("pods")
}

fn folder_of(name: &str) -> Result<PathBuf> {
    let proper = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '.';
    if name.is_empty() || name.len() > 63 || name.starts_with(['-', '.']) || !name.chars().all(proper) {
        return Err(Error::new(format!("{name:?} is no pod's name"))
            .hint("letters, digits, `-` and `.`, 63 at most, beginning with a letter or digit"));
    }
    Ok(pods_folder().join(name))
}

fn read_entry(folder: &Path) -> Option<PodEntry> {
    serde_json::from_slice(&std::fs::read(folder.join("pod.json")).ok()?).ok()
}

/// Removes what a process left that died without a word: a socket on which nobody listens.
fn sweep(folder: &Path) {
    let socket = folder.join("agent.sock");
    let is_socket = std::fs::symlink_metadata(&socket).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(&socket).is_err() {
        let _ = std::fs::remove_dir_all(folder);
    }
}

async fn accept(listener: UnixListener, agent: Client) {
    while let Ok((stream, _)) = listener.accept().await {
        let relay = Arc::new(Relay { agent: agent.clone() });
        // A client that breaks off harms nobody but itself.
        tokio::spawn(async move { serve(stream, relay).await });
    }
}

/// Passes requests on to the agent, and its answers back.
struct Relay {
    agent: Client,
}

impl Handler for Relay {
    type Opened = ByteStream;

    async fn call(&self, request: Request) -> Result<Reply, Failure> {
        self.agent.call(request).await.map_err(passed_on)
    }

    async fn open(&self, request: Request) -> Result<ByteStream, Failure> {
        self.agent.open(request).await.map_err(passed_on)
    }

    async fn stream(&self, mut upstream: ByteStream, mut stream: ByteStream) {
        // Either side may hang up at any time.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
    }
}

fn passed_on(error: CallError) -> Failure {
    match error {
        CallError::Refused(failure) => failure,
        lost => Failure {
            kind: FailureKind::Internal,
            message: format!("the connection to the guest broke: {lost}"),
            hint: None,
            denial: None,
        },
    }
}
