//! The user whom an image names: container engines look it up in the image's files, which the host does not have.
//!
//! The image's config is there, for containerd downloads it, and when it is done with an image it writes on the config
//! which snapshot the image's layers made (a label for its garbage collector). So the configs of all images of a
//! snapshot can be asked for, also of those of which containerd never told the snapshotter because another image had
//! brought all layers already. The names that they hold are listed in the stand-in's `/etc/passwd` under a number that
//! stands for "as the image says".

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::api::content::content_client::ContentClient;
use crate::api::content::{ListContentRequest, ReadContentRequest};

/// The number of a user (and of a group) that stands for the one whom the image names. The shim knows it.
pub const USER_OF_IMAGE: u32 = 1_397_048_656;

/// The longest config, in bytes.
const LONGEST_CONFIG: usize = 4 << 20;
/// How many images of the same layers are looked at.
const MOST_CONFIGS: usize = 64;
/// How long containerd may take for all of it: a container is waiting.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// containerd's label of an image's config; its end is the snapshotter's name, its value the snapshot's.
const SNAPSHOT_OF_IMAGE: &str = "containerd.io/gc.ref.snapshot";
/// Of a call to containerd.
pub(crate) const NAMESPACE_HEADER: &str = "containerd-namespace";

/// An image's layers, as containerd knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// containerd's namespace, to which the images belong.
    pub(crate) namespace: String,
    /// The name by which containerd knows this snapshotter.
    pub(crate) snapshotter: String,
    /// The chain id (OCI image specification, "Layer ChainID").
    pub(crate) id: String,
}

/// Reads images' configs from containerd.
#[derive(Clone)]
pub(crate) struct Content {
    client: ContentClient<Channel>,
}

/// Why images' configs are not known.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("namespace, snapshotter or chain id have characters that no such name has: {0:?}")]
    Names(Chain),
    #[error("containerd says: {}", .0.message())]
    Containerd(#[from] Status),
    #[error("it is longer than {LONGEST_CONFIG} bytes")]
    TooLong,
    #[error("it is no image's config: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    config: Option<ImageConfig>,
}

#[derive(Default, Deserialize)]
struct ImageConfig {
    #[serde(default, rename = "User")]
    user: Option<String>,
}

impl Content {
    /// Connects when it is first used.
    pub(crate) fn at(socket: PathBuf) -> Self {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self { client: ContentClient::new(channel) }
    }

    /// The names of users and groups under which images of these layers run; of those images that can be read in time.
    pub(crate) async fn users(&self, chain: &Chain) -> Vec<String> {
        let mut users = Vec::new();
        if timeout(TIME_LIMIT, self.collect_users(chain, &mut users)).await.is_err() {
            tracing::warn!(chain = chain.id, "containerd did not say in time which users the images name");
        }
        users
    }

    async fn collect_users(&self, chain: &Chain, users: &mut Vec<String>) {
        let configs = match self.configs(chain).await {
            Ok(configs) => configs,
            Err(error) => {
                tracing::warn!(chain = chain.id, %error, "which users the images name is not known");
                return;
            }
        };
        for config in configs {
            match self.user(&chain.namespace, &config).await {
                Ok(user) => users.extend(names(&user)),
                Err(error) => tracing::warn!(config, %error, "which user the image names is not known"),
            }
        }
        users.sort();
        users.dedup();
    }

    /// Digests of the configs of images that have these layers.
    async fn configs(&self, chain: &Chain) -> Result<Vec<String>, Error> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b':');
        let Chain { namespace, snapshotter, id } = chain;
        if ![namespace, snapshotter, id].iter().all(|name| !name.is_empty() && name.bytes().all(plain)) {
            return Err(Error::Names(chain.clone()));
        }
        let filters = vec![format!("labels.\"{SNAPSHOT_OF_IMAGE}.{snapshotter}\"==\"{id}\"")];
        let request = in_namespace(ListContentRequest { filters }, namespace);
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut configs = Vec::new();
        while let Some(part) = stream.message().await? {
            configs.extend(part.info.into_iter().map(|info| info.digest));
            if configs.len() > MOST_CONFIGS {
                tracing::warn!(chain = id, "only {MOST_CONFIGS} images of the same layers are looked at");
                configs.truncate(MOST_CONFIGS);
                break;
            }
        }
        Ok(configs)
    }

    /// The user whom an image names, as it stands there.
    async fn user(&self, namespace: &str, config: &str) -> Result<String, Error> {
        let request = ReadContentRequest { digest: config.into(), offset: 0, size: 0 };
        let mut stream = self.client.clone().read(in_namespace(request, namespace)).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            if bytes.len() + part.data.len() > LONGEST_CONFIG {
                return Err(Error::TooLong);
            }
            bytes.extend_from_slice(&part.data);
        }
        let image: Image = serde_json::from_slice(&bytes)?;
        Ok(image.config.unwrap_or_default().user.unwrap_or_default())
    }
}

/// A call that says for which of containerd's namespaces it is.
fn in_namespace<T>(message: T, namespace: &str) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = namespace.parse() {
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
    }
    request
}

/// `user[:group]`, of which numbers need no entry. What would break a line is no name.
fn names(user: &str) -> Vec<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let proper = |name: &&str| {
        (1..=64).contains(&name.len()) && name.bytes().all(plain) && name.parse::<u32>().is_err()
    };
    user.splitn(2, ':').filter(proper).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_listed() {
        assert_eq!(names("app"), ["app"]);
        assert_eq!(names("app:staff"), ["app", "staff"]);
        assert_eq!(names("1000:staff"), ["staff"]);
        for user in ["", "0", "1000:1000", "a b", "a\nroot", &"a".repeat(65), "x/y", "é"] {
            assert!(names(user).is_empty(), "{user:?}");
        }
    }
}
