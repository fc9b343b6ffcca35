//! What to do when an image cannot be made, pushed, signed or looked at.

use std::io::ErrorKind;

use sealpod_image::author::AuthorError;
use sealpod_image::registry::RegistryError;

use super::RegistryArgs;
use crate::error::Error;

/// What rustls says of a server that answers something else than TLS.
const NO_TLS: &str = "InvalidContentType";

/// Of a command that works on folders.
pub(super) fn of_folder(error: AuthorError) -> Error {
    let full = matches!(&error, AuthorError::Io { source, .. }
        if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded));
    let error = Error::from(error);
    if full { error.hint("make room there, or name a folder on another file system") } else { error }
}

/// Of a command that was given these options for a registry.
pub(super) fn of_registry(error: AuthorError, options: &RegistryArgs) -> Error {
    match &error {
        AuthorError::Registry(refused) => {
            let hint = next_step(refused, options);
            let error = Error::from(error);
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
        _ => of_folder(error),
    }
}

fn next_step(error: &RegistryError, options: &RegistryArgs) -> Option<&'static str> {
    Some(match error {
        RegistryError::Unreachable { detail, .. } if detail.contains(NO_TLS) => {
            "it does not speak HTTPS: if it is a registry on a network that you trust, add --plain-http"
        }
        RegistryError::Unreachable { detail, .. } if detail.contains("certificate") => {
            "--registry-authority names the authority of its certificate"
        }
        RegistryError::Unreachable { .. } if options.plain_http => {
            "check its name and port, that it runs, and that it speaks plain HTTP: if not, leave out --plain-http"
        }
        RegistryError::Unreachable { .. } => "check its name and port, and that it runs",
        RegistryError::Protocol { .. } if options.plain_http => {
            "is it a registry, and does it speak plain HTTP? If not, leave out --plain-http"
        }
        RegistryError::Protocol { .. } => "is it a registry that is named there, with its port?",
        RegistryError::NotFound { .. } => {
            "check the names of registry, repository and tag; `sealpod image push` puts an image there"
        }
        RegistryError::Unauthorized { .. } if options.authfile.is_none() => {
            "--authfile gives it credentials (a docker config.json); check the repository's name, too"
        }
        RegistryError::Unauthorized { .. } => {
            "check the credentials in --authfile, what they allow, and the repository's name"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers whatever it is sent with the same words.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                // One that goes away early has seen enough.
                let _ = client.read(&mut [0; 4096]).await;
                let _ = client.write_all(answer.as_bytes()).await;
                let _ = client.shutdown().await;
            }
        });
        address
    }

    async fn hint(registry: &str, plain_http: bool, authfile: Option<&std::path::Path>) -> String {
        let authfile = authfile.map(Into::into);
        let options = RegistryArgs { plain_http, registry_authority: Vec::new(), authfile };
        let error = super::super::inspect(&options, &format!("{registry}/web:1"), true).await.unwrap_err();
        error.next_step().map(str::to_owned).unwrap_or_else(|| panic!("no hint: {}", error.message()))
    }

    #[tokio::test]
    async fn each_failure_of_a_registry_has_a_next_step() {
        let nobody = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().to_string();
        let hinted = hint(&nobody, false, None).await;
        assert!(hinted.contains("that it runs") && !hinted.contains("--plain-http"), "{hinted}");
        let hinted = hint(&nobody, true, None).await;
        assert!(hinted.contains("leave out --plain-http"), "{hinted}");

        let plain =
            server("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        let hinted = hint(&plain, false, None).await;
        assert!(hinted.contains("add --plain-http"), "{hinted}");
        let hinted = hint(&plain, true, None).await;
        assert!(hinted.contains("is it a registry"), "{hinted}");

        let missing =
            server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        let hinted = hint(&missing, true, None).await;
        assert!(hinted.contains("repository and tag"), "{hinted}");
    }

    #[tokio::test]
    async fn a_registry_that_asks_for_a_name_is_given_one_by_authfile() {
        let closed = server(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n",
        )
        .await;
        let hinted = hint(&closed, true, None).await;
        assert!(hinted.starts_with("--authfile gives it credentials"), "{hinted}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let auth = serde_json::json!({ "auths": { &closed: { "auth": "bmFtZTpwYXNzd29yZA==" } } });
        std::fs::write(file.path(), auth.to_string()).unwrap();
        let hinted = hint(&closed, true, Some(file.path())).await;
        assert!(hinted.starts_with("check the credentials in --authfile"), "{hinted}");
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let error = |kind: ErrorKind| AuthorError::Io { path: "web".into(), source: kind.into() };
        assert!(
            of_folder(error(ErrorKind::StorageFull)).next_step().is_some_and(|hint| hint.contains("room"))
        );
        assert_eq!(of_folder(error(ErrorKind::NotFound)).next_step(), None);
    }
}
