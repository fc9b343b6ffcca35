//! A registry within the test, that does whatever a hostile one might.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sealpod_image::digest::Digest;
use sealpod_image::manifest::{OCI_INDEX, OCI_MANIFEST};
use sealpod_image::reference::Reference;
use sealpod_image::registry::ClientOptions;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::image::Image;

/// The only repository.
pub(crate) const REPOSITORY: &str = "app";

/// What is answered to a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// What was asked for.
    Content { media_type: String, bytes: Vec<u8> },
    /// A status, with headers and a body.
    Status { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// At most so many bytes, then the connection breaks. Goes on where a range is asked for.
    Broken { bytes: Vec<u8>, at_most: usize },
    /// All bytes, but the connection breaks before it is said that they are all.
    Unfinished { bytes: Vec<u8> },
    /// So many bytes, and the others when the test lets them.
    Held { bytes: Vec<u8>, after: usize },
    /// Nothing, but the connection stays.
    Silent,
    /// Nothing, and the connection ends.
    Closed,
    /// What was asked for, but only for this `Authorization`; a challenge for others.
    Guarded { authorization: String, challenge: String, bytes: Vec<u8>, media_type: String },
}

/// A running registry; its connections end with it.
pub(crate) struct Served {
    address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    answers: Mutex<HashMap<String, Answer>>,
    /// `METHOD path`, in their order.
    requests: Mutex<Vec<String>>,
    held: watch::Sender<usize>,
    let_go: watch::Sender<bool>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(serve(connection, shared.clone()));
            }
        });
        Self { address, state, task: task.abort_handle() }
    }

    /// Starts with an image under the tag `1`.
    pub(crate) async fn with(image: &Image) -> Self {
        let served = Self::start().await;
        served.add(image);
        served.tag("1", OCI_MANIFEST, image.manifest_bytes());
        served
    }

    /// Adds an image under its digest.
    pub(crate) fn add(&self, image: &Image) {
        for layer in &image.layers {
            self.blob(layer.digest(), layer.blob.clone());
        }
        let config = image.config_bytes();
        self.blob(Digest::of(&config), config);
        self.tag(&image.digest().to_string(), OCI_MANIFEST, image.manifest_bytes());
    }

    /// Adds an index under the tag `1`.
    pub(crate) fn index(&self, index: &Value) {
        self.tag("1", OCI_INDEX, index.to_string().into_bytes());
    }

    pub(crate) fn tag(&self, name: &str, media_type: &str, bytes: Vec<u8>) {
        self.answer_manifest(name, Answer::Content { media_type: media_type.into(), bytes });
    }

    pub(crate) fn blob(&self, digest: Digest, bytes: Vec<u8>) {
        self.answer_blob(digest, Answer::Content { media_type: "application/octet-stream".into(), bytes });
    }

    pub(crate) fn answer_manifest(&self, name: &str, answer: Answer) {
        self.answer(&format!("/v2/{REPOSITORY}/manifests/{name}"), answer);
    }

    pub(crate) fn answer_blob(&self, digest: Digest, answer: Answer) {
        self.answer(&format!("/v2/{REPOSITORY}/blobs/{digest}"), answer);
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.state.answers.lock().unwrap().insert(path.into(), answer);
    }

    /// How often a blob was asked for.
    pub(crate) fn requests_for(&self, digest: Digest) -> usize {
        let path = format!("/v2/{REPOSITORY}/blobs/{digest}");
        self.requests().iter().filter(|request| request.ends_with(&path)).count()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Waits until so many answers are held.
    pub(crate) async fn until_held(&self, count: usize) {
        self.state.held.subscribe().wait_for(|held| *held >= count).await.unwrap();
    }

    /// Lets all that is held go.
    pub(crate) fn let_go(&self) {
        self.state.let_go.send_replace(true);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The image under the tag `1`.
    pub(crate) fn reference(&self) -> Reference {
        self.named(":1")
    }

    pub(crate) fn named(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{REPOSITORY}{rest}", self.address)).unwrap()
    }

    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions { plain_http: [self.address.to_string()].into(), ..ClientOptions::default() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request; the connection ends with its answer, and where the client has gone nobody minds.
async fn serve(mut connection: TcpStream, state: Arc<State>) {
    let Some(request) = read_request(&mut connection).await else { return };
    state.requests.lock().unwrap().push(format!("{} {}", request.method, request.path));
    let answer = state.answers.lock().unwrap().get(&request.path).cloned();
    let _ = reply(&mut connection, &request, answer, &state).await;
    let _ = connection.shutdown().await;
}

struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

async fn read_request(connection: &mut TcpStream) -> Option<Request> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(connection.read_u8().await.ok()?);
    }
    let text = String::from_utf8(text).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Request { method, path, headers })
}

async fn reply(
    connection: &mut TcpStream,
    request: &Request,
    answer: Option<Answer>,
    state: &State,
) -> std::io::Result<()> {
    let not_found = Answer::Status { status: 404, headers: Vec::new(), body: String::new() };
    match answer.unwrap_or(not_found) {
        Answer::Content { media_type, bytes } => {
            head(connection, 200, bytes.len(), &[("content-type", media_type)]).await?;
            connection.write_all(&bytes).await
        }
        Answer::Status { status, headers, body } => {
            head(connection, status, body.len(), &headers).await?;
            connection.write_all(body.as_bytes()).await
        }
        Answer::Broken { bytes, at_most } => {
            let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
            let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
            let content_range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            let status = if range.is_some() { 206 } else { 200 };
            let rest = &bytes[start..];
            head(connection, status, rest.len(), &[("content-range", content_range)]).await?;
            connection.write_all(&rest[..rest.len().min(at_most)]).await
        }
        Answer::Unfinished { bytes } => {
            connection.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            connection.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
            connection.write_all(&bytes).await?;
            connection.write_all(b"\r\n").await
        }
        Answer::Held { bytes, after } => {
            head(connection, 200, bytes.len(), &[]).await?;
            connection.write_all(&bytes[..after]).await?;
            let mut let_go = state.let_go.subscribe();
            state.held.send_modify(|held| *held += 1);
            let_go.wait_for(|let_go| *let_go).await.map_err(std::io::Error::other)?;
            connection.write_all(&bytes[after..]).await
        }
        Answer::Silent => std::future::pending().await,
        Answer::Closed => Ok(()),
        Answer::Guarded { authorization, challenge, bytes, media_type } => {
            if request.headers.get("authorization") == Some(&authorization) {
                head(connection, 200, bytes.len(), &[("content-type", media_type)]).await?;
                return connection.write_all(&bytes).await;
            }
            head(connection, 401, 0, &[("www-authenticate", challenge)]).await
        }
    }
}

async fn head(
    connection: &mut TcpStream,
    status: u16,
    length: usize,
    headers: &[(&str, String)],
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Answer\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    connection.write_all((text + "\r\n").as_bytes()).await
}
