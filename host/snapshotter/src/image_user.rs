//! The user whom an image names: container engines look it up in the image's files, which the host does not have.
//!
//! The config of the image is there, for containerd downloads it. The name that it holds is listed in the stand-in's
//! `/etc/passwd` under a number that stands for "as the image says".

use serde::Deserialize;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::api::content::ReadContentRequest;
use crate::api::content::content_client::ContentClient;

/// The number of a user (and of a group) that stands for the one whom the image names. The shim knows it.
pub const USER_OF_IMAGE: u32 = 1_397_048_656;

/// The longest manifest or config.
const LIMIT: usize = 4 << 20;
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// Reads images' configs from containerd.
#[derive(Clone)]
pub(crate) struct Content {
    client: ContentClient<Channel>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    config: ImageConfig,
}

#[derive(Default, Deserialize)]
struct ImageConfig {
    #[serde(default, rename = "User")]
    user: String,
}

impl Content {
    /// Connects when it is first used.
    pub(crate) fn at(socket: std::path::PathBuf) -> Self {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self { client: ContentClient::new(channel) }
    }

    /// The names of user and group that an image of this manifest names.
    pub(crate) async fn users(&self, namespace: &str, manifest: &str) -> Result<Vec<String>, String> {
        let manifest: Manifest = parse(&self.read(namespace, manifest).await?)?;
        let image: Image = parse(&self.read(namespace, &manifest.config.digest).await?)?;
        Ok(names(&image.config.user))
    }

    async fn read(&self, namespace: &str, digest: &str) -> Result<Vec<u8>, String> {
        let mut request = Request::new(ReadContentRequest { digest: digest.into(), offset: 0, size: 0 });
        let value = namespace.parse().map_err(|_| format!("{namespace:?} is no namespace"))?;
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
        let said = |status: tonic::Status| format!("{digest}: {}", status.message());
        let mut stream = self.client.clone().read(request).await.map_err(said)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await.map_err(said)? {
            if bytes.len() + part.data.len() > LIMIT {
                return Err(format!("{digest} is longer than {LIMIT} bytes"));
            }
            bytes.extend_from_slice(&part.data);
        }
        Ok(bytes)
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
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
        for user in ["", "0", "1000:1000", "a b", "a\nroot", &"a".repeat(65), "x/y"] {
            assert!(names(user).is_empty(), "{user:?}");
        }
    }
}
