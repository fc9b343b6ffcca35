//! The node installer's script, with a folder for the node and a server of ours for Kubernetes' API.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sealpod_deploy_tests::{repository, said};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOKEN: &str = "a.service.account.token";

#[test]
fn it_installs_then_labels_and_says_that_it_is_done() {
    let node = Node::new(0);
    let mut script = node.start("install", Api::start(vec![ok()]));
    script.wait_until_done();
    let images = "--images registry.example/* --images *.internal/app:?";
    assert_eq!(
        node.calls(),
        [format!(
            "/var/lib/sealpod-node/bin/sealpod node install --from /var/lib/sealpod-node/bin {images} (1)"
        )]
    );
    let request = script.api.only();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("PATCH", "/api/v1/nodes/worker-1"));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(request.header("content-type"), Some("application/merge-patch+json"));
    assert_eq!(request.body, json!({"metadata": {"labels": {"sealpod.io/ready": "true"}}}));
    assert!(!node.host().join("var/lib/sealpod-node").exists(), "the staging folder is left");
    script.ends_when_told();
}

#[test]
fn a_node_on_which_it_fails_is_not_labelled() {
    let node = Node::new(1);
    let (success, output, api) = node.run("install", Api::start(vec![ok()]));
    assert!(!success && output.contains("not labelled"), "{output}");
    assert!(api.requests().is_empty());
    assert!(!node.state().join("done").exists());
}

#[test]
fn a_node_that_cannot_be_labelled_is_not_done() {
    let node = Node::new(0);
    let (success, output, _) =
        node.run("install", Api::start(vec![(403, json!({"message": "not your node"}))]));
    assert!(!success && output.contains("cannot be labelled"), "{output}");
    assert!(!node.state().join("done").exists());
}

#[test]
fn it_uninstalls_after_the_label_is_gone() {
    let node = Node::new(0);
    node.install_program();
    let mut script = node.start("uninstall", Api::start(vec![ok()]));
    script.wait_until_done();
    assert_eq!(node.calls(), ["/var/lib/sealpod-node/sealpod node uninstall (1)"]);
    assert_eq!(script.api.only().body, json!({"metadata": {"labels": {"sealpod.io/ready": null}}}));
    script.ends_when_told();
}

#[test]
fn a_node_that_has_nothing_is_done() {
    let node = Node::new(0);
    let mut script = node.start("uninstall", Api::start(vec![ok()]));
    script.wait_until_done();
    assert!(node.calls().is_empty());
    script.ends_when_told();
}

#[test]
fn a_node_keeps_what_it_has_while_the_label_cannot_be_removed() {
    let node = Node::new(0);
    node.install_program();
    let (success, output, _) = node.run("uninstall", Api::start(vec![(403, json!({}))]));
    assert!(!success && output.contains("cannot be removed"), "{output}");
    assert!(node.calls().is_empty());
}

#[test]
fn retiring_waits_until_every_node_has_uninstalled() {
    let status = |generation: u32, updated: u32, ready: u32| {
        let status = json!({
            "observedGeneration": generation,
            "desiredNumberScheduled": 2,
            "updatedNumberScheduled": updated,
            "numberReady": ready,
        });
        (200, json!({"metadata": {"generation": 2}, "status": status}))
    };
    // The controller has not seen it; one is new; both are new and one is done; all is done.
    let answers = vec![ok(), status(1, 2, 2), status(2, 1, 2), status(2, 2, 1), status(2, 2, 2)];
    let node = Node::new(0);
    let (success, output, api) = node.run("retire", Api::start(answers));
    assert!(success, "{output}");
    let requests = api.requests();
    let path = "/apis/apps/v1/namespaces/sealpod/daemonsets/sealpod-node";
    assert!(requests.iter().all(|request| request.path == path));
    let methods: Vec<_> = requests.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["PATCH", "GET", "GET", "GET", "GET"]);
    let container = &requests[0].body["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container,
        &json!({"name": "installer", "env": [{"name": "SEALPOD_ACTION", "value": "uninstall"}]})
    );
    assert_eq!(requests[0].header("content-type"), Some("application/strategic-merge-patch+json"));
}

#[test]
fn without_an_action_it_says_which_there_are() {
    let (success, output, _) = Node::new(0).run("", Api::start(Vec::new()));
    assert!(!success && output.contains("expected install, uninstall or retire"), "{output}");
}

/// A node's root, what the image brings, and the container's own folders.
struct Node {
    folder: TempDir,
}

impl Node {
    /// A node on which `sealpod` ends with this status.
    fn new(status: u8) -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["host", "state", "bin", "payload/bin", "account"] {
            std::fs::create_dir_all(node.path(folder)).unwrap();
        }
        std::fs::write(node.path("account/token"), TOKEN).unwrap();
        std::fs::write(node.path("account/namespace"), "sealpod").unwrap();
        std::fs::write(node.path("account/ca.crt"), "").unwrap();
        // Another root needs a whole system in it: this one runs the program that it would have run there.
        let chroot = "#!/bin/sh\nroot=$1\nprogram=$2\nshift 2\nexec \"$root$program\" \"$@\"\n";
        program(&node.path("bin/chroot"), chroot);
        let calls = node.path("calls");
        let host = node.host();
        let sealpod = format!(
            "#!/bin/sh\necho \"${{0#{}}} $* ($SYSTEMD_IGNORE_CHROOT)\" >>{}\nexit {status}\n",
            host.display(),
            calls.display()
        );
        program(&node.path("payload/bin/sealpod"), &sealpod);
        node
    }

    fn path(&self, inner: &str) -> std::path::PathBuf {
        self.folder.path().join(inner)
    }

    fn host(&self) -> std::path::PathBuf {
        self.path("host")
    }

    fn state(&self) -> std::path::PathBuf {
        self.path("state")
    }

    /// As an earlier installation left it.
    fn install_program(&self) {
        let bin = self.host().join("opt/sealpod/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::copy(self.path("payload/bin/sealpod"), bin.join("sealpod")).unwrap();
    }

    /// How `sealpod` was called on the node.
    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn start(&self, action: &str, api: Api) -> Script {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let child = Command::new(repository().join("deploy/containers/sealpod-node"))
            .env("PATH", path)
            .env("SEALPOD_ACTION", action)
            .env("SEALPOD_LABEL", "sealpod.io/ready")
            .env("SEALPOD_DAEMONSET", "sealpod-node")
            .env("SEALPOD_IMAGES", "registry.example/* *.internal/app:?")
            .env("NODE_NAME", "worker-1")
            .env("SEALPOD_HOST", self.host())
            .env("SEALPOD_PAYLOAD", self.path("payload"))
            .env("SEALPOD_ACCOUNT", self.path("account"))
            .env("SEALPOD_STATE", self.state())
            .env("SEALPOD_API", &api.address)
            .env("SEALPOD_INTERVAL", "0.05")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Script { child: Some(child), done: self.state().join("done"), api }
    }

    /// Runs it to its end: whether it succeeded, and what it said.
    fn run(&self, action: &str, api: Api) -> (bool, String, Api) {
        let mut script = self.start(action, api);
        let output = script.child.take().unwrap().wait_with_output().unwrap();
        (output.status.success(), said(&output), script.api.clone())
    }
}

/// The running script.
struct Script {
    child: Option<Child>,
    done: std::path::PathBuf,
    api: Api,
}

impl Script {
    fn wait_until_done(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.done.exists() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it is not done: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ends_when_told(mut self) {
        let child = self.child.take().unwrap();
        let told = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(told.success());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A request that came.
#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A server that gives these answers, one after the other.
#[derive(Clone)]
struct Api {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Api {
    fn start(answers: Vec<(u16, Value)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let received = requests.clone();
        std::thread::spawn(move || {
            for (status, answer) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let request = read_request(&mut BufReader::new(stream.try_clone().unwrap()));
                received.lock().unwrap().push(request);
                let body = answer.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).unwrap();
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn only(&self) -> Request {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }
}

fn read_request(reader: &mut impl BufRead) -> Request {
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let first = line();
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = Vec::new();
    loop {
        let header = line();
        let Some((key, value)) = header.split_once(": ") else { break };
        headers.push((key.to_lowercase(), value.to_owned()));
    }
    let length =
        headers.iter().find(|(key, _)| key == "content-length").map_or(0, |(_, it)| it.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Request { method, path, headers, body }
}

fn ok() -> (u16, Value) {
    (200, json!({}))
}

fn program(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
