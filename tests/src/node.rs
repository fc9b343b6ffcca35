//! A Kubernetes node without its kubelet: a stock containerd with folders of its own, our snapshotter and shim, driven
//! by CRI as kubelet would.

mod containerd;
pub mod control_groups;
mod crio;
mod log;
pub mod namespaces;

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper_util::rt::TokioIo;
pub use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use rustix::process::{Signal, kill_process};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::service::Service;
use crate::{guest, program};

pub use containerd::Containerd;
pub use crio::{Crio, CrioPod, Ended, PodNetwork, Task};
pub use log::{LogLine, log_lines};

/// The name of our runtime in containerd's configuration, as a RuntimeClass would have it.
pub const RUNTIME: &str = "sealpod";
/// The annotation that brings a pod's init data.
const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// The annotation that tells newer releases for which runtime an image is.
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";
/// Where the pods' network plugin has a file for each address that it has given away.
pub const ADDRESSES: &str = "/run/sealpod/cni/pods";
/// What kubelet has hidden from containers.
const MASKED_PATHS: [&str; 3] = ["/proc/kcore", "/proc/keys", "/sys/firmware"];

/// The node.
#[derive(Debug)]
pub struct Node {
    // Declared before the folder's owner drops it: servers end first.
    containerd: Option<Service>,
    snapshotter: Option<Service>,
    version: Containerd,
    folder: PathBuf,
    channel: Channel,
}

/// A pod that was started.
#[derive(Clone, Debug)]
pub struct NodePod {
    /// Its sandbox's id.
    pub id: String,
    /// What it was started with, which containers need again.
    pub config: cri::PodSandboxConfig,
}

impl NodePod {
    /// Its name.
    ///
    /// # Panics
    ///
    /// Never: it was started with one.
    pub fn name(&self) -> &str {
        &self.config.metadata.as_ref().expect("a pod has a name").name
    }
}

impl Node {
    /// Starts the node in a folder; `registry` may be asked without TLS, and images whose repository there begins
    /// with `guest/` are left to guests.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as everywhere here.
    pub fn start(
        version: Containerd,
        folder: &Path,
        registry: &str,
        pause: &str,
        tpm_authority: &Path,
    ) -> Self {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        // Where each runtime has a snapshotter, all of its images are the guests'.
        let images = if version == Containerd::V1_6 { format!("{registry}/guest/*") } else { "*".into() };
        write("snapshotter.toml", format!("images = [\"{images}\"]\n"));
        write("shim.toml", shim_configuration(tpm_authority));
        write("cni/10-pods.conflist", CNI.into());
        write(&format!("registries/{registry}/hosts.toml"), format!("server = \"http://{registry}\"\n"));
        write("containerd.toml", version.config(folder, registry, pause));
        // As `sealpod node install` makes it, for kubelet.
        let images = folder.join("root/io.containerd.snapshotter.v1.sealpod");
        std::fs::create_dir_all(folder.join("root")).expect("a folder");
        symlink(folder.join("snapshots"), images).expect("a link");
        let socket = folder.join("containerd.sock");
        let mut node = Self {
            containerd: None,
            snapshotter: None,
            version,
            folder: folder.into(),
            channel: connect(socket),
        };
        node.start_snapshotter();
        node.start_containerd();
        node
    }

    /// Starts the snapshotter, again after [`Node::kill_snapshotter`].
    pub fn start_snapshotter(&mut self) {
        let place = |name: &str| self.folder.join(name);
        let mut command = Command::new(program("sealpod-snapshotter"));
        command.arg("--root").arg(place("snapshots")).arg("--address").arg(place("snapshotter.sock"));
        command.arg("--containerd-address").arg(place("containerd.sock"));
        command.arg("--config").arg(place("snapshotter.toml"));
        let mut service = Service::start("sealpod-snapshotter", &mut command, &place("snapshotter.log"));
        service.until(|| std::os::unix::net::UnixStream::connect(place("snapshotter.sock")).ok());
        // containerd found nobody there meanwhile, and waits a second or more before it tries to connect again.
        if self.containerd.is_some() {
            let mut snapshots = self.ctr();
            snapshots.args(["snapshots", "--snapshotter", "sealpod", "list"]);
            service.until(|| snapshots.output().is_ok_and(|output| output.status.success()).then_some(()));
        }
        self.snapshotter = Some(service);
    }

    /// Kills the snapshotter.
    pub fn kill_snapshotter(&mut self) {
        self.snapshotter = None;
    }

    /// Starts containerd, again after [`Node::kill_containerd`].
    pub fn start_containerd(&mut self) {
        let place = |name: &str| self.folder.join(name);
        let programs = program("containerd-shim-sealpod-v2");
        let programs = programs.parent().expect("a program is in a folder").display().to_string();
        let own = self.version.folder().map(|folder| format!("{}:", folder.display())).unwrap_or_default();
        let mut command = self.version.command("containerd");
        command.arg("--config").arg(place("containerd.toml"));
        command.env("PATH", format!("{programs}:{own}{}", std::env::var("PATH").unwrap_or_default()));
        let mut service = Service::start("containerd", &mut command, &place("containerd.log"));
        let mut version = self.ctr();
        version.arg("version");
        service.until(|| version.output().is_ok_and(|output| output.status.success()).then_some(()));
        self.containerd = Some(service);
    }

    /// containerd's own client, for what is CRI's.
    fn ctr(&self) -> Command {
        let mut ctr = self.version.command("ctr");
        ctr.arg("--address").arg(self.folder.join("containerd.sock")).args(["--namespace", "k8s.io"]);
        ctr
    }

    /// Stops containerd where it is, or lets it go on.
    pub fn pause_containerd(&self, paused: bool) {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        let containerd = self.containerd.as_ref().expect("it runs");
        kill_process(containerd.pid(), signal).expect("it is ours");
    }

    /// Kills containerd. Pods go on.
    pub fn kill_containerd(&mut self) {
        self.containerd = None;
    }

    /// What containerd, and through it the shims, have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("containerd.log")).unwrap_or_default()
    }

    /// A path of the node's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// CRI's calls for pods and containers.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    /// CRI's calls for images.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// Which containerd this is, in its own words.
    pub async fn version(&self) -> String {
        let version = self.runtime().version(cri::VersionRequest::default()).await;
        let version = version.expect("containerd says its version").into_inner();
        format!("{} {}", version.runtime_name, version.runtime_version)
    }

    /// Waits until containerd's CRI answers.
    pub async fn ready(&self) {
        let ready = async || {
            let status =
                self.runtime().status(cri::StatusRequest::default()).await.ok()?.into_inner().status?;
            // Others are but warnings, of settings that a later release will not have.
            let has = |kind: &str| {
                status.conditions.iter().any(|condition| condition.r#type == kind && condition.status)
            };
            (has("RuntimeReady") && has("NetworkReady")).then_some(())
        };
        self.until("containerd is ready", ready).await;
    }

    /// Waits for something.
    ///
    /// # Panics
    ///
    /// Where it does not come within a minute, with the end of containerd's log.
    pub async fn until<T>(&self, what: &str, ready: impl AsyncFn() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(value) = ready().await {
                return value;
            }
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", tail(&self.log()));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where kubelet would keep files of the pod with a name; the folder is made.
    pub fn kubelets(&self, pod: &str, path: &str) -> PathBuf {
        let path = self.path("kubelet/pods").join(uid(pod)).join(path);
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        path
    }

    /// What kubelet would ask for: a pod with a name, init data, and logs in a folder of its own.
    pub fn pod_config(&self, name: &str, init_data: Option<&str>) -> cri::PodSandboxConfig {
        let logs = self.folder.join("logs").join(name);
        std::fs::create_dir_all(&logs).expect("a folder");
        let annotations = init_data.map(|text| (INIT_DATA.to_owned(), pack(text))).into_iter().collect();
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: uid(name),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: logs.display().to_string(),
            dns_config: Some(cri::DnsConfig {
                servers: vec!["192.0.2.53".into()],
                searches: vec!["default.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            annotations,
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: control_groups::parent(),
                security_context: Some(cri::LinuxSandboxSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Starts a pod under a runtime; an empty one is containerd's default, runc.
    pub async fn try_run_pod(&self, config: cri::PodSandboxConfig, runtime: &str) -> Result<NodePod, Status> {
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: runtime.into() };
        let response = self.runtime().run_pod_sandbox(request).await?.into_inner();
        Ok(NodePod { id: response.pod_sandbox_id, config })
    }

    /// Starts a pod in a VM, which must work.
    pub async fn run_pod(&self, name: &str, init_data: &str) -> NodePod {
        let started = self.try_run_pod(self.pod_config(name, Some(init_data)), RUNTIME).await;
        started.unwrap_or_else(|status| panic!("{}\n{}", status.message(), tail(&self.log())))
    }

    /// Has containerd pull an image (as far as it does).
    pub async fn pull(&self, image: &str) {
        self.pull_for(image, "").await;
    }

    /// The same for pods of a runtime, which newer releases know by an annotation, or by a field.
    pub async fn pull_for(&self, image: &str, runtime: &str) {
        if let Err(status) = self.try_pull_for(image, runtime).await {
            panic!("{image}: {}\n{}", status.message(), tail(&self.log()));
        }
    }

    /// The same, which need not work.
    pub async fn try_pull_for(&self, image: &str, runtime: &str) -> Result<(), Status> {
        let handler = runtime.to_owned();
        let spec = cri::ImageSpec { image: image.into(), runtime_handler: handler, ..Default::default() };
        let pod =
            cri::PodSandboxConfig { annotations: map(&[(RUNTIME_HANDLER, runtime)]), ..Default::default() };
        let request =
            cri::PullImageRequest { image: Some(spec), sandbox_config: Some(pod), ..Default::default() };
        self.images().pull_image(request).await.map(drop)
    }

    /// What kubelet would ask for: a container that runs a shell script.
    pub fn container_config(&self, name: &str, image: &str, script: &str) -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig {
                resources: None,
                security_context: Some(cri::LinuxContainerSecurityContext {
                    masked_paths: MASKED_PATHS.map(str::to_owned).to_vec(),
                    readonly_paths: vec!["/proc/sys".into()],
                    namespace_options: Some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// Where CRI says that images are, which kubelet looks at for the room that is left.
    pub async fn image_file_systems(&self) -> Vec<PathBuf> {
        let info = self.images().image_fs_info(cri::ImageFsInfoRequest::default()).await;
        let all = info.expect("containerd knows where images are").into_inner().image_filesystems;
        all.into_iter().filter_map(|one| Some(one.fs_id?.mountpoint.into())).collect()
    }

    /// Creates a container in a pod; gives its id.
    pub async fn try_create(&self, pod: &NodePod, config: cri::ContainerConfig) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.runtime().create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn try_start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.runtime().start_container(request).await.map(drop)
    }

    /// Creates and starts a container, which must work; gives its id.
    pub async fn spawn(&self, pod: &NodePod, config: cri::ContainerConfig) -> String {
        let created = match self.try_create(pod, config).await {
            Ok(id) => self.try_start(&id).await.map(|()| id),
            Err(status) => Err(status),
        };
        created.unwrap_or_else(|status| panic!("{}\n{}", status.message(), tail(&self.log())))
    }

    /// What CRI says of a container.
    pub async fn status(&self, id: &str) -> cri::ContainerStatus {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let response = self.runtime().container_status(request).await.expect("the container is known");
        response.into_inner().status.expect("a status")
    }

    /// Waits until a container has ended.
    pub async fn ended(&self, id: &str) -> cri::ContainerStatus {
        self.until("the container ends", async || {
            let status = self.status(id).await;
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Runs a container to its end; gives its status and its log's lines.
    pub async fn run(
        &self,
        pod: &NodePod,
        config: cri::ContainerConfig,
    ) -> (cri::ContainerStatus, Vec<LogLine>) {
        let id = self.spawn(pod, config).await;
        let status = self.ended(&id).await;
        let lines = log_lines(Path::new(&status.log_path));
        (status, lines)
    }

    /// Runs a program in a container, as kubelet's probes do.
    pub async fn exec(&self, id: &str, script: &str) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 30 };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    /// Does to a container what CRI has no call for: `pause`, `resume`.
    pub fn task(&self, what: &str, id: &str) {
        let mut ctr = self.ctr();
        let output = ctr.args(["tasks", what, id]).output().expect("ctr comes with containerd");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What the shim counts of a container, or of a pod, in containerd's words for control groups.
    pub fn metrics(&self, id: &str) -> serde_json::Value {
        let mut ctr = self.ctr();
        let output = ctr.args(["tasks", "metrics", "--format", "json", id]).output();
        let output = output.expect("ctr comes with containerd");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON was asked for")
    }

    /// Stops and removes a pod with everything in it, which must work.
    pub async fn remove(&self, pod: &NodePod) {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let stopped = self.runtime().stop_pod_sandbox(stop).await;
        stopped.unwrap_or_else(|status| panic!("{}\n{}", status.message(), tail(&self.log())));
        let removed = self.runtime().remove_pod_sandbox(remove).await;
        removed.unwrap_or_else(|status| panic!("{}\n{}", status.message(), tail(&self.log())));
    }

    /// Whether CRI calls a pod ready.
    pub async fn is_ready(&self, pod: &NodePod) -> bool {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        match self.runtime().pod_sandbox_status(request).await {
            Ok(response) => response
                .into_inner()
                .status
                .is_some_and(|status| status.state() == cri::PodSandboxState::SandboxReady),
            Err(status) if status.code() == Code::NotFound => false,
            Err(status) => panic!("{}", status.message()),
        }
    }

    /// The address that CNI gave a pod.
    pub async fn address(&self, pod: &NodePod) -> String {
        self.network(pod).await.ip
    }

    /// The second one, of IPv6.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub async fn second_address(&self, pod: &NodePod) -> String {
        self.network(pod).await.additional_ips.remove(0).ip
    }

    async fn network(&self, pod: &NodePod) -> cri::PodSandboxNetworkStatus {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
        let response =
            self.runtime().pod_sandbox_status(request).await.expect("the pod is known").into_inner();
        response.status.and_then(|status| status.network).expect("the pod has an address")
    }
}

impl Drop for Node {
    /// Servers end first, then their pods' control groups can be removed.
    fn drop(&mut self) {
        (self.containerd, self.snapshotter) = (None, None);
        control_groups::remove_all();
    }
}

/// The shim's configuration, whichever engine starts it.
fn shim_configuration(tpm_authority: &Path) -> String {
    let disks = tpm_authority.with_file_name("disks");
    format!(
        "guest = {:?}\ntpm_authority = {tpm_authority:?}\nephemeral_disk_folder = {disks:?}\naccelerator = \"tcg\"\n",
        guest()
    )
}

/// That of a pod with a name.
fn uid(pod: &str) -> String {
    format!("uid-{pod}")
}

/// base64(gzip(text))
fn pack(text: &str) -> String {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).expect("memory takes it");
    STANDARD.encode(encoder.finish().expect("memory takes it"))
}

/// CRI's calls, to the containerd of a socket.
pub fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector)
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(30)).copied().collect::<Vec<_>>().join("\n")
}

/// As clusters have it: a bridge, an address of each family, ports of the host.
const CNI: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "sealpod0",
      "isGateway": true,
      "mtu": 1400,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        "dataDir": "/run/sealpod/cni"
      }
    }
  ]
}
"#;

/// Values of environment variables in CRI's form.
pub fn variables(pairs: &[(&str, &str)]) -> Vec<cri::KeyValue> {
    pairs
        .iter()
        .map(|(key, value)| cri::KeyValue { key: key.to_string(), value: value.to_string() })
        .collect()
}

/// Annotations or labels in CRI's form.
pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}
