//! The administrator's side of the key broker's HTTP interface.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// How long one administrator token is good for: each command makes its own.
const TOKEN_LIFETIME: Duration = Duration::from_secs(120);

/// Where the key broker is and who asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Address of the key broker, as https://broker.example:8080
    #[arg(long, value_name = "URL", env = "SEALPOD_KBS", global = true)]
    kbs: Option<String>,
    /// The broker's certificate or its authority's (PEM), where the system does not know it
    #[arg(long, value_name = "FILE", env = "SEALPOD_KBS_CERTIFICATE", global = true)]
    kbs_certificate: Option<PathBuf>,
    /// The administrator's private key (Ed25519, PKCS#8 PEM)
    #[arg(long, value_name = "FILE", env = "SEALPOD_ADMIN_KEY", global = true)]
    admin_key: Option<PathBuf>,
}

/// A client with an administrator's key.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    key: EncodingKey,
}

/// One entry of the audit log, as far as this tool reads it.
pub(crate) type AuditEntry = serde_json::Map<String, Value>;

#[derive(Serialize)]
struct AdminClaims {
    role: &'static str,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct ErrorBody {
    detail: String,
}

impl Connection {
    pub(crate) fn client(&self) -> Result<Client> {
        let url = self
            .kbs
            .as_deref()
            .ok_or_else(|| Error::new("no key broker given").hint("add --kbs URL or set SEALPOD_KBS"))?;
        let key = self.admin_key.as_deref().ok_or_else(|| {
            Error::new("no administrator's key given")
                .hint("add --admin-key FILE or set SEALPOD_ADMIN_KEY; `sealpod-kbs init` makes one")
        })?;
        Client::new(url, self.kbs_certificate.as_deref(), key)
    }
}

impl Client {
    pub(crate) fn new(url: &str, certificate: Option<&Path>, admin_key: &Path) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_secs(60));
        if let Some(path) = certificate {
            let pem = read(path)?;
            let certificate = reqwest::Certificate::from_pem(&pem)
                .context(format!("{} is no PEM certificate", path.display()))?;
            http = http.tls_certs_merge([certificate]);
        }
        let key = EncodingKey::from_ed_pem(&read(admin_key)?)
            .context(format!("{} is no Ed25519 private key in PKCS#8 PEM", admin_key.display()))?;
        let http = http.build().context("cannot set up HTTPS")?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned(), key })
    }

    pub(crate) async fn set_resource(&self, path: &str, secret: Vec<u8>) -> Result<()> {
        self.send(Method::POST, &format!("resource/{path}"), Some(secret)).await.map(drop)
    }

    pub(crate) async fn resource(&self, path: &str) -> Result<Vec<u8>> {
        self.send(Method::GET, &format!("resource/{path}"), None).await
    }

    pub(crate) async fn delete_resource(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, &format!("resource/{path}"), None).await.map(drop)
    }

    pub(crate) async fn resources(&self) -> Result<Vec<String>> {
        self.get("resource").await
    }

    pub(crate) async fn set_policy(&self, kind: PolicyKind, rego: &str) -> Result<()> {
        let policy = URL_SAFE_NO_PAD.encode(rego);
        let body = match kind {
            PolicyKind::Resource => json!({ "policy": policy }),
            PolicyKind::Attestation => json!({ "policy_id": "default", "policy": policy }),
        };
        self.send(Method::POST, kind.route(), Some(body.to_string().into_bytes())).await.map(drop)
    }

    pub(crate) async fn policy(&self, kind: PolicyKind) -> Result<String> {
        #[derive(Deserialize)]
        struct Body {
            policy: String,
        }
        let body: Body = self.get(kind.route()).await?;
        let rego = URL_SAFE_NO_PAD.decode(body.policy).context("the broker's answer is not base64url")?;
        String::from_utf8(rego).context("the broker's policy is not text")
    }

    pub(crate) async fn set_reference_values(&self, values: &serde_json::Map<String, Value>) -> Result<()> {
        let payload = base64::engine::general_purpose::STANDARD.encode(serde_json::to_vec(values)?);
        let message = json!({ "version": "0.1.0", "type": "sample", "payload": payload });
        self.send(Method::POST, "reference-value", Some(message.to_string().into_bytes())).await.map(drop)
    }

    pub(crate) async fn reference_value(&self, id: &str) -> Result<Value> {
        self.get(&format!("reference-value/{id}")).await
    }

    pub(crate) async fn reference_values(&self) -> Result<serde_json::Map<String, Value>> {
        self.get("reference-value").await
    }

    pub(crate) async fn audit(&self, id: Option<&str>, limit: usize) -> Result<Vec<AuditEntry>> {
        let query = match id {
            Some(id) => format!("audit?id={id}"),
            None => format!("audit?limit={limit}"),
        };
        self.get(&query).await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, route: &str) -> Result<T> {
        let body = self.send(Method::GET, route, None).await?;
        serde_json::from_slice(&body)
            .context(format!("the answer to {route} is not what this version expects"))
    }

    async fn send(&self, method: Method, route: &str, body: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let url = format!("{}/kbs/v0/{route}", self.base);
        let mut request = self.http.request(method, &url).bearer_auth(self.token()?);
        if let Some(body) = body {
            request = request.body(body);
        }
        let response =
            request.send().await.context(format!("cannot reach the key broker at {}", self.base)).hint(
                "is `sealpod-kbs serve` running there, and does --kbs-certificate name its certificate?",
            )?;
        let status = response.status();
        let bytes = response.bytes().await.context("the key broker broke off its answer")?;
        if status.is_success() {
            return Ok(bytes.to_vec());
        }
        let detail = serde_json::from_slice::<ErrorBody>(&bytes).map(|body| body.detail).unwrap_or_default();
        let error = Error::new(format!("the key broker refused ({status}): {detail}"));
        Err(match status {
            StatusCode::UNAUTHORIZED => {
                error.hint("is --admin-key the key whose public half the broker's configuration names?")
            }
            StatusCode::NOT_FOUND => error.hint(what_there_is(route)),
            _ => error,
        })
    }

    fn token(&self) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = AdminClaims { role: "admin", iat: now.as_secs(), exp: (now + TOKEN_LIFETIME).as_secs() };
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.key)
            .context("cannot sign a token")
    }
}

/// The broker's two policies.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum PolicyKind {
    /// What makes a guest trustworthy.
    Attestation,
    /// Which guest gets which resource.
    Resource,
}

impl PolicyKind {
    fn route(self) -> &'static str {
        match self {
            Self::Attestation => "attestation-policy",
            Self::Resource => "resource-policy",
        }
    }
}

/// What to do where the broker does not have what a route names.
fn what_there_is(route: &str) -> &'static str {
    match route.split_once('/') {
        Some(("resource", _)) => "`sealpod kbs resource list` shows what there is",
        Some(("reference-value", _)) => "`sealpod kbs reference-value list` shows what there is",
        _ => "does --kbs name the key broker, without a path?",
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).context(format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_looked_for_where_it_would_be() {
        assert!(what_there_is("resource/default/key/web").contains("resource list"));
        assert!(what_there_is("reference-value/initrd").contains("reference-value list"));
        for route in ["resource", "reference-value", "audit?limit=50", "resource-policy"] {
            assert!(what_there_is(route).contains("--kbs"), "{route}");
        }
    }
}
