//! What the tests share; each part is made when the first test needs it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sealpod_tests::{ImageOptions, InitData, Owner, Pod};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// Allows everything but one program: tests of containers need most requests, those of the policy a denial.
const AGENT_POLICY: &str = r#"
package agent_policy

CreateContainer := true

ReadStdout := true

ReadStderr := true

WriteStdin := true

default ExecProcess := false

ExecProcess if input.command[0] != "/bin/forbidden"

SignalProcess if input.signal != 19
"#;

pub(crate) struct World {
    runtime: Runtime,
    owner: OnceLock<Owner>,
    pod: OnceCell<Pod>,
    tools: OnceLock<(PathBuf, String)>,
}

impl Default for World {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self {
            runtime: runtime.unwrap(),
            owner: OnceLock::new(),
            pod: OnceCell::new(),
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

    /// Ends what was started.
    pub(crate) fn end(mut self) {
        if let Some(pod) = self.pod.take() {
            self.runtime.block_on(pod.stop());
        }
    }
}
