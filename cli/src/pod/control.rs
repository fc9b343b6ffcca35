//! How commands find the pods of this user: a socket for each, on which `run` passes requests on to its agent.
//!
//! Whoever may write to the socket is the host, as far as the guest is concerned: the agent decides each request by
//! the owner's policy all the same.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
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
    /// Ports of this machine's that lead to the pod, by the pod's port.
    #[serde(default)]
    pub(crate) ports: BTreeMap<u16, u16>,
}

/// A pod's socket while it runs; gone with this value.
pub(crate) struct Control {
    folder: PathBuf,
    server: JoinHandle<()>,
}

impl Control {
    /// Announces a pod under its name. A name that is in use is an error.
    pub(crate) fn open(name: &str, image: &str, ports: BTreeMap<u16, u16>, agent: Client) -> Result<Self> {
        let folder = make_folder(name)?;
        let (name, image) = (name.to_owned(), image.to_owned());
        let entry = PodEntry { name, pid: std::process::id(), image, ports };
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
    // Another pod's end may remove the folder of all pods again before this one is in it.
    for _ in 0..10 {
        if let Some(parent) = runtime_folder().parent() {
            let made = private().recursive(true).create(parent);
            made.context(format!("cannot make {}", parent.display())).hint("XDG_RUNTIME_DIR names it")?;
        }
        if !(make_private(&runtime_folder())? && make_private(&pods_folder())?) {
            continue;
        }
        check_free(name)?;
        match private().create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(taken(name)),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::new(format!("cannot make {}: {error}", folder.display()))),
        }
    }
    Err(Error::new(format!("cannot make {}: it is removed again and again", folder.display())))
}

fn private() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// Makes a folder that only this user can reach, or checks the one that is there. Says whether it is there still.
fn make_private(folder: &Path) -> Result<bool> {
    match private().create(folder) {
        Ok(()) => (),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => (),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::new(format!("cannot make {}: {error}", folder.display()))),
    }
    check_private(folder)
}

/// Refuses a folder that is not this user's alone: in /tmp anybody may have made it, and who has it answers for the
/// pods. Says whether it is there.
fn check_private(folder: &Path) -> Result<bool> {
    let metadata = match std::fs::symlink_metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::new(format!("cannot look at {}: {error}", folder.display()))),
    };
    let (own, mode) = (rustix::process::getuid().as_raw(), metadata.permissions().mode() & 0o777);
    let wrong = if metadata.file_type().is_symlink() {
        "is a symbolic link, expected a folder".to_owned()
    } else if !metadata.is_dir() {
        "is no folder".to_owned()
    } else if metadata.uid() != own {
        format!("belongs to the user {}, expected {own}", metadata.uid())
    } else if mode != 0o700 {
        format!("has the mode {mode:04o}, expected 0700")
    } else {
        return Ok(true);
    };
    Err(Error::new(format!("{} {wrong}", folder.display()))
        .hint("remove it, or set XDG_RUNTIME_DIR to a folder that is yours alone"))
}

/// That pods are looked for only where nobody else can have put them. Says whether there can be any.
fn check_folders() -> Result<bool> {
    Ok(check_private(&runtime_folder())? && check_private(&pods_folder())?)
}

/// That no running pod has this name: to be asked before one boots.
pub(crate) fn check_free(name: &str) -> Result<()> {
    let folder = folder_of(name)?;
    if !check_folders()? {
        return Ok(());
    }
    sweep(&folder);
    if folder.exists() { Err(taken(name)) } else { Ok(()) }
}

fn taken(name: &str) -> Error {
    Error::new(format!("a pod named {name} runs already")).hint("`sealpod ps` lists the running pods")
}

/// Connects to a running pod's agent.
pub(crate) async fn connect(name: &str) -> Result<Client> {
    let socket = folder_of(name)?.join("agent.sock");
    check_folders()?;
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
    check_folders()?;
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

/// A pod by its name, once its container is being started.
pub(crate) fn find(name: &str) -> Result<Option<PodEntry>> {
    check_folders()?;
    Ok(read_entry(&folder_of(name)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_this_users_alone_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        assert!(!check_private(&path("own")).unwrap());
        assert!(make_private(&path("own")).unwrap());
        assert!(make_private(&path("own")).unwrap(), "the second time");
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink(path("own"), path("link")).unwrap();
        private().create(path("open")).unwrap();
        std::fs::set_permissions(path("open"), PermissionsExt::from_mode(0o755)).unwrap();
        for (name, word) in
            [("file", "is no folder"), ("link", "symbolic link"), ("open", "0755, expected 0700")]
        {
            let error = make_private(&path(name)).unwrap_err();
            assert!(error.message().contains(word), "{}", error.message());
            assert!(error.next_step().is_some_and(|hint| hint.contains("XDG_RUNTIME_DIR")));
        }
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let theirs = if rustix::process::getuid().is_root() {
            let folder = parent.path().join("theirs");
            private().create(&folder).unwrap();
            std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
            folder
        } else {
            PathBuf::from("/root")
        };
        let message = check_private(&theirs).unwrap_err().message();
        assert!(message.contains("belongs to the user "), "{message}");
    }
}
