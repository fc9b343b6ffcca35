//! What the tests share: one node, one owner, and a pod in which most containers run.

use std::sync::OnceLock;

use sealpod_tests::node::namespaces::ADDRESS;
use sealpod_tests::node::{Containerd, Crio, CrioPod, NodePod, RUNTIME};
use sealpod_tests::{ImageOptions, InitData, Node, Owner};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// Allows what the tests do, and refuses one program.
const AGENT_POLICY: &str = r#"
package agent_policy

default CreateContainer := false

CreateContainer if input.effective_command[0] != "/bin/forbidden"

ReadStdout := true

ReadStderr := true

ReadTerminationMessage := true

WriteStdin := true

WriteVolume := true

default ForwardPort := false

ForwardPort if input.port != 9999

default ExecProcess := false

ExecProcess if not contains(input.command[2], "forbidden")
"#;

pub(crate) struct World {
    runtime: Runtime,
    owner: OnceLock<Owner>,
    node: OnceCell<Mutex<Node>>,
    pod: OnceCell<NodePod>,
    crio: OnceLock<Crio>,
    crio_pod: OnceCell<CrioPod>,
    image: OnceLock<String>,
    pause: OnceLock<String>,
}

impl Default for World {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.unwrap(),
            owner: OnceLock::new(),
            node: OnceCell::new(),
            pod: OnceCell::new(),
            crio: OnceLock::new(),
            crio_pod: OnceCell::new(),
            image: OnceLock::new(),
            pause: OnceLock::new(),
        }
    }
}

impl World {
    pub(crate) fn run(&self, test: impl AsyncFn(&Self)) {
        self.runtime.block_on(test(self));
    }

    pub(crate) fn owner(&self) -> &Owner {
        self.owner.get_or_init(|| Owner::start_at(ADDRESS.parse().unwrap(), ADDRESS))
    }

    pub(crate) async fn node(&self) -> MutexGuard<'_, Node> {
        let start = async {
            let node = self.start_node(Containerd::V1_6, "node");
            node.ready().await;
            Mutex::new(node)
        };
        self.node.get_or_init(|| start).await.lock().await
    }

    /// Another node, with its files in a folder of its own.
    pub(crate) fn start_node(&self, version: Containerd, folder: &str) -> Node {
        let owner = self.owner();
        let plain = ImageOptions {
            encrypted: false,
            signed: false,
            build: &["--cmd", "/bin/sleep", "--cmd", "infinity"],
        };
        let pause = self.pause.get_or_init(|| owner.publish("pause", &owner.root("pause"), &plain));
        let authority = owner.path("tpm-authority");
        Node::start(version, &owner.path(folder), &owner.registry_in_guest(), pause, &authority)
    }

    /// The name of an image with busybox, encrypted and signed, for guests.
    pub(crate) fn image(&self) -> String {
        let publish = || {
            let root = self.owner().root("tools");
            let build = ["--cmd", "/bin/sh", "--cmd", "-c", "--cmd", "echo as the image says"];
            self.owner().publish(
                "guest/tools",
                &root,
                &ImageOptions { build: &build, ..ImageOptions::default() },
            )
        };
        self.image.get_or_init(publish).clone()
    }

    /// The digest of that image's manifest.
    pub(crate) fn digest(&self) -> String {
        self.image();
        let index = self.owner().path("images/guest/tools-encrypted/index.json");
        let index: serde_json::Value = serde_json::from_slice(&std::fs::read(index).unwrap()).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// Init data under which most is allowed.
    pub(crate) fn init_data(&self) -> String {
        self.owner().init_data(&InitData { agent_policy: Some(AGENT_POLICY), ..InitData::default() })
    }

    /// The pod that most tests share.
    pub(crate) async fn pod(&self, node: &Node) -> NodePod {
        let start = async {
            node.pull(&self.image()).await;
            let mut config = node.pod_config("shared", Some(&self.init_data()));
            // As kubelet says where one of the containers is privileged.
            let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
            security.expect("pods have a security context").privileged = true;
            let started = node.try_run_pod(config, RUNTIME).await;
            started.unwrap_or_else(|status| panic!("{}\n{}", status.message(), node.log()))
        };
        self.pod.get_or_init(|| start).await.clone()
    }

    /// A node's other engine.
    pub(crate) fn crio(&self) -> &Crio {
        let owner = self.owner();
        self.crio.get_or_init(|| Crio::new(&owner.path("crio"), &owner.path("tpm-authority")))
    }

    /// The pod of that engine which most tests of it share.
    pub(crate) async fn crio_pod(&self) -> &CrioPod {
        let start = async { self.crio().run_pod(&self.init_data()).await };
        self.crio_pod.get_or_init(|| start).await
    }

    /// Ends what was started.
    pub(crate) fn end(self) {
        let Self { runtime, owner, node, pod, crio, crio_pod, .. } = self;
        runtime.block_on(async {
            if let (Some(crio), Some(pod)) = (crio.get(), crio_pod.into_inner()) {
                crio.remove_pod(pod, Vec::new()).await;
            }
            if let (Some(node), Some(pod)) = (node.get(), pod.get()) {
                node.lock().await.remove(pod).await;
            }
        });
        drop((node, crio, owner));
    }
}
