//! A broker of one's own, and guests and an administrator for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, RequestBuilder, StatusCode};
use sealpod_evidence::{HashAlgorithm, report_data};
use sealpod_kbs_protocol::jwe::{Jwe, TeeKeyPair};
use sealpod_kbs_protocol::rcar::{RuntimeData, VERSION};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::database::Database;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a broker, made by `sealpod-kbs init`.
pub(crate) struct Home {
    folder: TempDir,
}

/// A broker that runs.
pub(crate) struct Broker {
    child: Child,
    pub(crate) address: String,
    url: String,
    pub(crate) http: reqwest::Client,
    admin: EncodingKey,
    log: Log,
}

/// What a broker says: a file, in which everything is that it has said before it answers.
struct Log(File);

impl Log {
    fn read(&self) -> String {
        // Not by its own position, at which the broker writes.
        let mut bytes = vec![0; usize::try_from(self.0.metadata().unwrap().len()).unwrap()];
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A guest with sample evidence.
pub(crate) struct Guest {
    pub(crate) keys: TeeKeyPair,
}

/// What a broker asked of a guest.
pub(crate) struct Session {
    pub(crate) nonce: String,
    /// As the guest sends it back.
    pub(crate) cookie: String,
}

/// What a broker answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
}

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sealpod-kbs"))
}

impl Home {
    /// Speaks HTTPS and takes no sample evidence.
    pub(crate) fn secure() -> Self {
        Self::new(&[])
    }

    /// Speaks plain HTTP and takes sample evidence.
    pub(crate) fn sample() -> Self {
        let home = Self::new(&["--plain-http"]);
        home.configure("allow_sample = false", "allow_sample = true");
        home
    }

    /// Like `sample`, with a database for its store.
    pub(crate) fn sharing(database: &Database) -> Self {
        let home = Self::sample();
        home.share(&std::fs::read_to_string(database.url_file()).unwrap());
        home
    }

    /// Has the store at a URL, whose file is `database-url`.
    pub(crate) fn share(&self, url: &str) {
        std::fs::write(self.path("database-url"), url).unwrap();
        self.configure("store = \"store.redb\"\n", "");
        let path = self.path("kbs.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let store = "[store]\nkind = \"postgres\"\nurl_file = \"database-url\"\n";
        std::fs::write(path, format!("{text}\n{store}")).unwrap();
    }

    fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = initialise(&folder.path().join("kbs"), options);
        assert!(output.status.success(), "{output:?}");
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("kbs").join(name)
    }

    pub(crate) fn configure(&self, before: &str, after: &str) {
        let path = self.path("kbs.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(before), "{text}");
        std::fs::write(path, text.replace(before, after)).unwrap();
    }

    /// Lets a TPM's attestation key in that no guest has.
    pub(crate) fn enrol(&self) {
        self.configure("enrolled_aks = []", &format!("enrolled_aks = [\"{}\"]", "ab".repeat(32)));
    }

    pub(crate) fn start(&self) -> Broker {
        self.start_as(program())
    }

    /// Starts it by a command that ends in the program.
    pub(crate) fn start_as(&self, mut command: Command) -> Broker {
        let address_file = self.path("address");
        let _ = std::fs::remove_file(&address_file);
        let log = Log(tempfile::tempfile().unwrap());
        let mut child = command
            .args(["serve", "--config"])
            .arg(self.path("kbs.toml"))
            .arg("--address-file")
            .arg(&address_file)
            .stderr(log.0.try_clone().unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while !log.read().contains("listening") {
            let waits = Instant::now() < end && child.try_wait().unwrap().is_none();
            assert!(waits, "it does not start: {}", log.read());
            std::thread::sleep(Duration::from_millis(5));
        }
        let address = std::fs::read_to_string(address_file).unwrap();
        let secure = std::fs::read_to_string(self.path("kbs.toml")).unwrap().contains("[tls]");
        let mut http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
        if secure {
            let pem = std::fs::read(self.path("tls.crt")).unwrap();
            http = http.tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()]);
        }
        Broker {
            child,
            url: format!("{}://{address}", if secure { "https" } else { "http" }),
            address,
            http: http.build().unwrap(),
            admin: EncodingKey::from_ed_pem(&std::fs::read(self.path("admin.key")).unwrap()).unwrap(),
            log,
        }
    }
}

/// Runs `sealpod-kbs init` for loopback.
pub(crate) fn initialise(folder: &Path, options: &[&str]) -> Output {
    program()
        .args(["init", "--host", "127.0.0.1", "--listen", "127.0.0.1:0", "--dir"])
        .arg(folder)
        .args(options)
        .output()
        .unwrap()
}

impl Broker {
    /// A request to `/kbs/v0/…`, by nobody in particular.
    pub(crate) fn request(&self, method: Method, route: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/kbs/v0/{route}", self.url))
    }

    /// A request by the administrator.
    pub(crate) fn admin(&self, method: Method, route: &str) -> RequestBuilder {
        self.request(method, route).bearer_auth(self.admin_token())
    }

    /// What stands outside of `/kbs/v0`.
    pub(crate) async fn text(&self, path: &str) -> String {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.unwrap()
    }

    pub(crate) fn admin_token(&self) -> String {
        sign(&self.admin, json!({ "role": "admin", "exp": now() + 60 }))
    }

    pub(crate) fn sign_as_admin(&self, claims: Value) -> String {
        sign(&self.admin, claims)
    }

    pub(crate) async fn set_resource(&self, path: &str, secret: &[u8]) {
        let route = format!("resource/{path}");
        send(self.admin(Method::POST, &route).body(secret.to_vec())).await.expect(StatusCode::OK);
    }

    pub(crate) async fn set_policy(&self, route: &str, rego: &str) -> Answer {
        let body = json!({ "policy": URL_SAFE_NO_PAD.encode(rego) });
        send(self.admin(Method::POST, route).body(body.to_string())).await
    }

    /// Registers reference values, given as `{id: value}`.
    pub(crate) async fn set_reference_values(&self, values: Value) -> Answer {
        let payload = STANDARD.encode(values.to_string());
        let message = json!({ "version": "0.1.0", "type": "sample", "payload": payload });
        send(self.admin(Method::POST, "reference-value").body(message.to_string())).await
    }

    /// The audit log's entry of a denial, whose answer must have told nothing but this id.
    pub(crate) async fn reason(&self, denied: &Answer) -> Value {
        denied.expect(StatusCode::FORBIDDEN);
        let body = denied.json();
        let members: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(members, ["denial", "detail", "type"]);
        assert_eq!(body["detail"], "denied; the owner finds the reason under the id");
        let id = body["denial"].as_str().unwrap();
        let entries = send(self.admin(Method::GET, &format!("audit?id={id}"))).await.json();
        let [entry] = entries.as_array().unwrap().as_slice() else { panic!("{entries}") };
        assert_eq!((entry["id"].as_str(), entry["outcome"].as_str()), (Some(id), Some("denied")));
        entry.clone()
    }

    pub(crate) async fn audit(&self) -> Vec<Value> {
        let answer = send(self.admin(Method::GET, "audit")).await;
        answer.json().as_array().unwrap().clone()
    }

    /// Without what administrators did.
    pub(crate) async fn audit_of_guests(&self) -> Vec<Value> {
        let mut entries = self.audit().await;
        entries.retain(|entry| entry.get("administrator").is_none());
        entries
    }

    pub(crate) fn log(&self) -> String {
        self.log.read()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power failure would, as far as the process is concerned.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by name and waits for the end.
    pub(crate) fn end_with(&mut self, signal: &str) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the broker's log:\n{}", self.log());
        }
    }
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self { keys: TeeKeyPair::generate().unwrap() }
    }

    /// What answers a challenge.
    pub(crate) fn attestation(&self, nonce: &str) -> Value {
        attestation(nonce, json!(self.keys.public_key()), HashAlgorithm::Sha384)
    }

    /// Attests, and gives the token and the session's cookie.
    pub(crate) async fn attest(&self, broker: &Broker) -> (String, String) {
        let session = challenge(broker, "sample").await;
        let answer = attest(broker, &session.cookie, &self.attestation(&session.nonce)).await;
        answer.expect(StatusCode::OK);
        (answer.json()["token"].as_str().unwrap().to_owned(), session.cookie)
    }

    /// Opens what was sealed to it.
    pub(crate) fn open(&self, answer: &Answer) -> Vec<u8> {
        answer.expect(StatusCode::OK);
        let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
        self.keys.open(&jwe).unwrap().as_bytes().to_vec()
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(&self, status: StatusCode) -> &Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The detail of an error of the given name.
    #[track_caller]
    pub(crate) fn error(&self, status: StatusCode, name: &str) -> String {
        let body = self.expect(status).json();
        let kind = format!("https://github.com/confidential-containers/kbs/errors/{name}");
        assert_eq!(body["type"], kind);
        body["detail"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer { status: response.status(), body: response.bytes().await.unwrap().to_vec() }
}

/// `POST auth` with a request as it is.
pub(crate) async fn auth(broker: &Broker, request: &Value) -> reqwest::Response {
    broker.request(Method::POST, "auth").body(request.to_string()).send().await.unwrap()
}

/// Asks for a challenge.
pub(crate) async fn challenge(broker: &Broker, tee: &str) -> Session {
    let request = json!({ "version": VERSION, "tee": tee, "extra-params": {} });
    let response = auth(broker, &request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    Session { nonce: body["nonce"].as_str().unwrap().to_owned(), cookie }
}

/// `POST attest`.
pub(crate) async fn attest(broker: &Broker, cookie: &str, attestation: &Value) -> Answer {
    let request = broker.request(Method::POST, "attest").header("cookie", cookie);
    send(request.body(attestation.to_string())).await
}

/// `GET resource/…` by a session.
pub(crate) async fn fetch(broker: &Broker, cookie: &str, path: &str) -> Answer {
    send(broker.request(Method::GET, &format!("resource/{path}")).header("cookie", cookie)).await
}

/// An answer to a challenge with sample evidence that binds the key.
pub(crate) fn attestation(nonce: &str, key: Value, hash: HashAlgorithm) -> Value {
    let runtime_data = json!({ "nonce": nonce, "tee-pubkey": key });
    let bound: RuntimeData = serde_json::from_value(runtime_data.clone()).unwrap();
    let report_data = STANDARD.encode(report_data(hash, &bound.bound_with("")));
    json!({
        "init-data": null,
        "runtime-data": runtime_data,
        "tee-evidence": {
            "primary_evidence": { "svn": "1", "report_data": report_data },
            "additional_evidence": "",
        },
    })
}

pub(crate) fn sign(key: &EncodingKey, claims: Value) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, key).unwrap()
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Asks until the answer is as wanted.
pub(crate) async fn until(mut ask: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < end, "it never comes to that");
    }
}
