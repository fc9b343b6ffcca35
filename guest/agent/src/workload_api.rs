//! What containers may ask of their guest, on `127.0.0.1:8006`: secrets, tokens, evidence.
//!
//! The paths and answers are those that workloads of Confidential Containers know.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use sealpod_agent_protocol::{Failure, FailureKind, WORKLOAD_API_PORT};
use sealpod_evidence::Tee;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::attestation::Attestation;
use crate::failure::{failure, internal};

/// What this guest says to who wants to extend the event log.
const NO_EVENT_LOG: &str = "this guest keeps no event log of its containers: its quotes cover PCR 0 to 9";

#[derive(Clone)]
struct Api {
    attestation: Arc<Attestation>,
    tee: Tee,
}

/// Starts to serve the pod's containers.
pub(crate) async fn start(attestation: Arc<Attestation>, tee: Tee) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, WORKLOAD_API_PORT)).await?;
    let router = router(Api { attestation, tee }).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the workload's API ended: {error}");
        }
    });
    Ok(())
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/info", get(info))
        .route("/aa/token", get(token))
        .route("/aa/evidence", get(evidence))
        .route("/aa/additional-evidence", get(additional_evidence))
        .route("/aa/aael", post(extend_event_log))
        .route("/cdh/resource/{repository}/{kind}/{tag}", get(resource))
        .layer(middleware::from_fn(loopback_only))
        .with_state(api)
}

async fn loopback_only(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    match peer.ip().is_loopback() {
        true => next.run(request).await,
        false => (StatusCode::FORBIDDEN, "this API is for the pod's own containers\n").into_response(),
    }
}

async fn info(State(api): State<Api>) -> Response {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "tee": api.tee.to_string()})).into_response()
}

async fn resource(
    State(api): State<Api>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Result<Response, ApiError> {
    let path = format!("{repository}/{kind}/{tag}")
        .parse()
        .map_err(|_| failure(FailureKind::Invalid, "the path is not repository/type/tag"))?;
    let secret = api.attestation.resource(&path).await?;
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Bytes::from_owner(secret)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenQuery {
    token_type: String,
}

#[derive(Serialize)]
struct TokenAnswer<'a> {
    token: &'a str,
    tee_keypair: &'a str,
}

async fn token(State(api): State<Api>, Query(query): Query<TokenQuery>) -> Result<Response, ApiError> {
    if query.token_type != "kbs" {
        let message = format!("token_type is {:?}, expected \"kbs\"", query.token_type);
        return Err(failure(FailureKind::Invalid, message).into());
    }
    let token = api.attestation.token().await?;
    let answer = TokenAnswer {
        token: &token.token,
        tee_keypair: &String::from_utf8_lossy(token.tee_key_pem.as_bytes()),
    };
    // With room for every escape, so that no smaller buffer with a part of the key is left behind.
    let room = 2 * (token.token.len() + token.tee_key_pem.as_bytes().len()) + 64;
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *body, &answer).map_err(|error| internal("write the token", &error))?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, Bytes::from_owner(body)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvidenceQuery {
    runtime_data: String,
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Raw,
    Base64,
}

impl EvidenceQuery {
    fn runtime_data(self) -> Result<Vec<u8>, Failure> {
        use base64::Engine as _;
        match self.encoding {
            Encoding::Raw => Ok(self.runtime_data.into_bytes()),
            Encoding::Base64 => base64::engine::general_purpose::STANDARD
                .decode(&self.runtime_data)
                .map_err(|_| failure(FailureKind::Invalid, "runtime_data is not base64")),
        }
    }
}

async fn evidence(State(api): State<Api>, Query(query): Query<EvidenceQuery>) -> Result<Response, ApiError> {
    let evidence = api.attestation.evidence(query.runtime_data()?).await?;
    Ok(Json(evidence).into_response())
}

/// The evidence of devices, by device. This guest has none.
async fn additional_evidence(Query(query): Query<EvidenceQuery>) -> Result<Response, ApiError> {
    query.runtime_data()?;
    Ok(Json(json!({})).into_response())
}

async fn extend_event_log() -> Response {
    let hint = "put what verifiers are to see into the runtime_data of /aa/evidence";
    (StatusCode::NOT_IMPLEMENTED, Json(json!({"error": NO_EVENT_LOG, "hint": hint}))).into_response()
}

/// A failure as an HTTP answer.
struct ApiError(Failure);

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(failure) = self;
        tracing::warn!("a container's request failed: {}", failure.message);
        let status = match failure.kind {
            FailureKind::Invalid => StatusCode::BAD_REQUEST,
            FailureKind::DeniedByPolicy | FailureKind::DeniedByKeyBroker => StatusCode::FORBIDDEN,
            FailureKind::NotFound => StatusCode::NOT_FOUND,
            FailureKind::Unreachable => StatusCode::BAD_GATEWAY,
            FailureKind::Conflict => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({"error": failure.message, "hint": failure.hint, "denial": failure.denial})))
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::connect_info::MockConnectInfo;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sealpod_attester::{Attester as _, SampleAttester};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::attestation::Evidence;

    const CONTAINER: &str = "127.0.0.1:40000";

    async fn get(peer: &str, path: &str) -> (u16, String) {
        ask(peer, "GET", path).await
    }

    /// Asks as this peer would; gives status and body.
    async fn ask(peer: &str, method: &str, path: &str) -> (u16, String) {
        let (evidence, init_data) = Evidence::open(Tee::Sample, None).await.unwrap();
        let attestation = Arc::new(Attestation::new(evidence, None, init_data).unwrap());
        let peer: SocketAddr = peer.parse().unwrap();
        let router = router(Api { attestation, tee: Tee::Sample }).layer(MockConnectInfo(peer));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn only_the_pods_own_containers_are_answered() {
        for path in [
            "/info",
            "/aa/evidence?runtime_data=a",
            "/aa/additional-evidence?runtime_data=a",
            "/aa/token?token_type=kbs",
            "/cdh/resource/a/b/c",
        ] {
            for peer in ["10.0.2.2:40000", "[2001:db8::1]:40000"] {
                let (status, body) = get(peer, path).await;
                assert_eq!(status, 403, "{peer} {path}: {body}");
                assert!(!body.contains("version") && !body.contains("report_data"), "{body}");
            }
        }
        for peer in [CONTAINER, "[::1]:40000"] {
            let (status, body) = get(peer, "/info").await;
            let info: Value = serde_json::from_str(&body).unwrap();
            assert_eq!((status, &info["tee"]), (200, &json!("sample")));
            assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
        }
    }

    #[tokio::test]
    async fn evidence_binds_what_a_container_gives_in_either_encoding() {
        let all = "r".repeat(SampleAttester.report_data_length());
        for (query, bound) in [
            ("runtime_data=abc".to_owned(), "abc"),
            ("runtime_data=YWJj&encoding=raw".to_owned(), "YWJj"),
            ("runtime_data=YWJj&encoding=base64".to_owned(), "abc"),
            (format!("runtime_data={all}"), &all),
        ] {
            let (status, body) = get(CONTAINER, &format!("/aa/evidence?{query}")).await;
            assert_eq!(status, 200, "{query}: {body}");
            let evidence: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(evidence["report_data"], STANDARD.encode(bound), "{query}");
        }
    }

    #[tokio::test]
    async fn what_this_guest_does_not_have_is_said() {
        let (status, body) = get(CONTAINER, "/aa/additional-evidence?runtime_data=abc").await;
        assert_eq!((status, body.as_str()), (200, "{}"));
        let (status, body) = get(CONTAINER, "/aa/additional-evidence").await;
        assert_eq!(status, 400, "{body}");
        let (status, body) = ask(CONTAINER, "POST", "/aa/aael").await;
        assert_eq!(status, 501, "{body}");
        assert!(body.contains(NO_EVENT_LOG), "{body}");
        let (status, body) = get(CONTAINER, "/aa/token?token_type=coco_as").await;
        assert_eq!(status, 400, "{body}");
        assert!(body.contains("coco_as") && body.contains("kbs"), "{body}");
    }

    #[tokio::test]
    async fn what_cannot_be_bound_is_refused() {
        let long = "r".repeat(SampleAttester.report_data_length() + 1);
        let encoded = STANDARD.encode(&long);
        for query in [
            String::new(),
            format!("runtime_data={long}"),
            format!("runtime_data={encoded}&encoding=base64"),
            "runtime_data=...&encoding=base64".into(),
            "runtime_data=abc&encoding=hex".into(),
            "runtime_data=abc&more=1".into(),
        ] {
            let (status, body) = get(CONTAINER, &format!("/aa/evidence?{query}")).await;
            assert_eq!(status, 400, "{query}: {body}");
        }
    }
}
