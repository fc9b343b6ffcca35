//! The client of the key broker against one that a test plays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use sealpod_attester::{Error, KbsClient, KbsConfig, SampleAttester};
use sealpod_kbs_protocol::ResourcePath;
use sealpod_kbs_protocol::jwe::{Jwe, TeePublicKey};
use sealpod_kbs_protocol::rcar::Attestation;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A broker that believes everybody.
#[derive(Default)]
struct Broker {
    /// How many attested. The latest one's session is good, where no one forgot it.
    attestations: AtomicUsize,
    forgotten: AtomicBool,
    /// How long its tokens are good for, in seconds.
    lifetime: AtomicU64,
    key: std::sync::Mutex<Option<TeePublicKey>>,
}

impl Broker {
    /// Serves on a port of its own, whose address it gives.
    async fn start(lifetime: u64) -> (Arc<Self>, String) {
        let broker = Arc::new(Self { lifetime: lifetime.into(), ..Self::default() });
        let router = Router::new()
            .route("/kbs/v0/auth", post(auth))
            .route("/kbs/v0/attest", post(attest))
            .route("/kbs/v0/resource/a/b/c", get(resource))
            .with_state(broker.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (broker, url)
    }

    fn attestations(&self) -> usize {
        self.attestations.load(Ordering::SeqCst)
    }
}

async fn auth() -> Response {
    let challenge = json!({ "nonce": "AAAA", "extra-params": {} });
    ([(header::SET_COOKIE, "kbs-session-id=1; Path=/kbs")], Json(challenge)).into_response()
}

async fn attest(State(broker): State<Arc<Broker>>, body: Bytes) -> Response {
    let attestation: Attestation = serde_json::from_slice(&body).unwrap();
    *broker.key.lock().unwrap() = Some(attestation.runtime_data.tee_pubkey);
    let number = broker.attestations.fetch_add(1, Ordering::SeqCst);
    broker.forgotten.store(false, Ordering::SeqCst);
    let claims =
        json!({ "iat": 1000, "exp": 1000 + broker.lifetime.load(Ordering::SeqCst), "number": number });
    let token = format!("e30.{}.AAAA", URL_SAFE_NO_PAD.encode(claims.to_string()));
    Json(json!({ "token": token })).into_response()
}

async fn resource(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Response {
    if broker.forgotten.load(Ordering::SeqCst) || headers[header::COOKIE] != "kbs-session-id=1" {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let key = broker.key.lock().unwrap().clone().unwrap();
    Json(Jwe::seal(&key, b"a secret").unwrap()).into_response()
}

fn client(url: &str, certificates: &[&str]) -> Result<KbsClient, Error> {
    let certificates = certificates.iter().map(|&pem| pem.to_owned()).collect();
    KbsClient::new(KbsConfig { url: url.into(), certificates }, Box::new(SampleAttester), None)
}

fn path() -> ResourcePath {
    "a/b/c".parse().unwrap()
}

#[tokio::test]
async fn one_attestation_serves_many_requests() {
    let (broker, url) = Broker::start(300).await;
    let client = client(&url, &[]).unwrap();
    let token = client.token().await.unwrap().token;
    for _ in 0..3 {
        assert_eq!(client.resource(&path()).await.unwrap().as_bytes(), b"a secret");
        assert_eq!(client.token().await.unwrap().token, token);
    }
    assert_eq!(broker.attestations(), 1);
}

#[tokio::test]
async fn a_token_that_is_over_is_not_given_out_again() {
    let (broker, url) = Broker::start(0).await;
    let client = client(&url, &[]).unwrap();
    let first = client.token().await.unwrap();
    let second = client.token().await.unwrap();
    assert_ne!(first.token, second.token);
    assert_ne!(first.tee_key_pem.as_bytes(), second.tee_key_pem.as_bytes());
    assert_eq!(broker.attestations(), 2);
    // It takes no new attestation to ask for a secret: the broker says whether the session is good.
    client.resource(&path()).await.unwrap();
    assert_eq!(broker.attestations(), 2);
    broker.lifetime.store(300, Ordering::SeqCst);
    let third = client.token().await.unwrap();
    assert_eq!(client.token().await.unwrap().token, third.token);
    assert_eq!(broker.attestations(), 3);
}

#[tokio::test]
async fn a_session_that_the_broker_forgot_is_made_again_once() {
    let (broker, url) = Broker::start(300).await;
    let client = client(&url, &[]).unwrap();
    client.resource(&path()).await.unwrap();
    broker.forgotten.store(true, Ordering::SeqCst);
    let path = path();
    let (one, other) = tokio::join!(client.resource(&path), client.resource(&path));
    assert_eq!(one.unwrap().as_bytes(), b"a secret");
    assert_eq!(other.unwrap().as_bytes(), b"a secret");
    assert_eq!(broker.attestations(), 2);
}

/// A certificate for the loopback address and its key.
fn certificate() -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    (certificate, key)
}

/// Answers over TLS that there is nothing, and gives its address.
async fn start_tls((certificate, key): &(rcgen::Certificate, KeyPair)) -> String {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(socket).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    url
}

#[tokio::test]
async fn a_broker_with_another_certificate_than_the_pinned_one_is_not_talked_to() {
    let (pinned, other) = (certificate(), certificate());
    for (server, good) in [(&pinned, true), (&other, false)] {
        let url = start_tls(server).await;
        let error = client(&url, &[&pinned.0.pem()]).unwrap().attest().await.unwrap_err();
        match good {
            true => assert!(matches!(&error, Error::Protocol(why) if why.contains("404")), "{error}"),
            false => assert!(matches!(error, Error::Unreachable { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn of_several_certificates_one_must_vouch() {
    let (one, other) = (certificate(), certificate());
    let url = start_tls(&one).await;
    let error = client(&url, &[&other.0.pem(), &one.0.pem()]).unwrap().attest().await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[test]
fn a_client_without_a_usable_certificate_is_refused() {
    for certificates in [&[][..], &["no certificate"], &[""]] {
        let error = client("https://127.0.0.1:1", certificates).err().unwrap();
        assert!(matches!(error, Error::Configuration(_)), "{error}");
    }
    assert!(client("ftp://127.0.0.1:1", &[]).is_err());
    client("http://127.0.0.1:1", &[]).unwrap();
}
