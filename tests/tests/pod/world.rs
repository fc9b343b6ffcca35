//! What the tests share; each part is made when the first test needs it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sealpod_tests::{ImageOptions, InitData, Owner, Pod};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// Allows everything but one program: tests of containers need most requests, those of the policy a denial.
const AGENT_POLICY: &str = r#"
package agent_policy

StartPod := true

CreateContainer := true

ReadStdout := true

ReadStderr := true

ReadTerminationMessage := true

WriteStdin := true

default ExecProcess := false

ExecProcess if input.command[0] != "/bin/forbidden"

SignalProcess if input.signal != 19
"#;

/// Where the key broker has the lenient pod's image policy.
const LENIENT_POLICY: &str = "default/image-policy/lenient";
/// What the strict pod runs.
pub(crate) const STRICT_SCRIPT: &str = "sleep 1000";

pub(crate) struct World {
    runtime: Runtime,
    owner: OnceLock<Owner>,
    pod: OnceCell<Pod>,
    strict: OnceCell<Pod>,
    lenient: OnceCell<Mutex<Pod>>,
    tools: OnceLock<(PathBuf, String)>,
}

impl Default for World {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.unwrap(),
            owner: OnceLock::new(),
            pod: OnceCell::new(),
            strict: OnceCell::new(),
            lenient: OnceCell::new(),
            tools: OnceLock::new(),
        }
    }
}

impl World {
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn owner(&self) -> &Owner {
        self.owner.get_or_init(Owner::start)
    }

    /// The root folder of the image with busybox.
    pub(crate) fn root(&self) -> &Path {
        &self.tools().0
    }

    /// The name of the image with busybox, encrypted and signed.
    pub(crate) fn image(&self) -> String {
        self.tools().1.clone()
    }

    fn tools(&self) -> &(PathBuf, String) {
        self.tools.get_or_init(|| {
            let root = self.owner().root("tools");
            let image = self.owner().publish("tools", &root, &ImageOptions::default());
            (root, image)
        })
    }

    /// Init data under which most is allowed.
    pub(crate) fn init_data(&self) -> String {
        self.owner().init_data(&InitData { agent_policy: Some(AGENT_POLICY), ..InitData::default() })
    }

    /// The pod that most tests share; it has pulled the image with busybox.
    pub(crate) async fn pod(&self) -> &Pod {
        let start = async {
            let image = self.image();
            let pod = Pod::start(self.owner(), Some(self.init_data())).await;
            pod.pull(&image).await;
            pod
        };
        self.pod.get_or_init(|| start).await
    }

    /// A pod that may run one command of the image with busybox, and lets nobody read or write its streams.
    pub(crate) async fn strict_pod(&self) -> &Pod {
        let start = async {
            let image = self.image();
            let digest = self.pod().await.pull(&image).await.digest;
            let policy = format!(
                "package agent_policy\n\nStartPod := true\n\nCreateContainer if {{\n\tinput.image_digest == \"{digest}\"\n\
                 \tinput.effective_command == [\"/bin/sh\", \"-c\", \"{STRICT_SCRIPT}\"]\n}}\n"
            );
            let init_data = InitData { agent_policy: Some(&policy), ..InitData::default() };
            let pod = Pod::start(self.owner(), Some(self.owner().init_data(&init_data))).await;
            pod.pull(&image).await;
            pod
        };
        self.strict.get_or_init(|| start).await
    }

    /// A pod whose image policy tests replace and whose memory they fill, one at a time.
    pub(crate) async fn lenient_pod(&self) -> MutexGuard<'_, Pod> {
        let start = async {
            let init_data = InitData {
                agent_policy: Some(AGENT_POLICY),
                image_policy: LENIENT_POLICY,
                ..InitData::default()
            };
            Mutex::new(Pod::start(self.owner(), Some(self.owner().init_data(&init_data))).await)
        };
        self.lenient.get_or_init(|| start).await.lock().await
    }

    /// Sets the image policy of that pod, which asks for it at each pull; as long as a test has the pod.
    pub(crate) fn set_lenient_policy(&self, text: &str) {
        let owner = self.owner();
        std::fs::write(owner.path("lenient.json"), text).unwrap();
        owner.sealpod(["kbs", "resource", "set", LENIENT_POLICY, "--file", &owner.word("lenient.json")]);
    }

    /// Ends what was started.
    pub(crate) fn end(mut self) {
        let lenient = self.lenient.take().map(Mutex::into_inner);
        for pod in [lenient, self.strict.take(), self.pod.take()].into_iter().flatten() {
            self.runtime.block_on(pod.stop());
        }
    }
}
