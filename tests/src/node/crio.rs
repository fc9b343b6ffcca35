//! CRI-O, as a shim sees it: the command line, environment, bundles, FIFOs and calls of its runtime type `vm`, in the
//! words and in the order of its source. What it does beside (images, CNI, CRI) is done as far as pods need it.

mod network;
mod specification;
mod task;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, Mount, ShutdownRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context::Context;
use serde_json::{Value, json};

use crate::program;

use task::message;

pub use network::PodNetwork;
pub use task::{Ended, Task};

/// `runtime_root`, as the installer sets it.
const RUNTIME_ROOT: &str = "/run/sealpod";
/// `runtimeoptions.v1.Options`.
const OPTIONS: &str = "runtimeoptions.v1.Options";

/// A CRI-O with folders of its own.
#[derive(Debug)]
pub struct Crio {
    folder: PathBuf,
    ids: AtomicU32,
}

/// A pod that was started.
#[derive(Debug)]
pub struct CrioPod {
    /// Its sandbox: the VM.
    pub infra: Task,
    /// Its network, up to its end.
    pub network: PodNetwork,
}

impl Crio {
    /// One with its files in a folder.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as everywhere here.
    pub fn new(folder: &Path, tpm_authority: &Path) -> Self {
        let crio = Self { folder: folder.into(), ids: AtomicU32::new(1) };
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::create_dir_all(fifos()).expect("a folder");
        std::fs::write(crio.shim_configuration(), super::shim_configuration(tpm_authority)).expect("a file");
        crio
    }

    fn shim_configuration(&self) -> PathBuf {
        self.folder.join("shim.toml")
    }

    /// What shims have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("crio.log")).unwrap_or_default()
    }

    /// Whose specification it is.
    pub fn id_of(specification: &Value) -> &str {
        specification["annotations"]["io.kubernetes.cri-o.ContainerID"].as_str().expect("an id")
    }

    /// An id that is nobody else's.
    fn id(&self) -> String {
        format!("{:032x}{:032x}", std::process::id(), self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Connects a pod that is to be started.
    pub fn network(&self) -> PodNetwork {
        PodNetwork::new(&self.folder, self.ids.fetch_add(1, Ordering::Relaxed))
    }

    /// The bundle of a container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.folder.join("run/containers/storage/overlay-containers").join(id).join("userdata")
    }

    /// Starts a shim for a container, and gives the address that it says.
    ///
    /// # Errors
    /// What it says where it fails.
    pub fn start(&self, specification: &Value) -> Result<String, String> {
        let id = Self::id_of(specification);
        let bundle = self.bundle(id);
        std::fs::create_dir_all(&bundle).expect("a folder");
        std::fs::write(bundle.join("config.json"), specification.to_string()).expect("a file");
        self.follow_log(&bundle.join("log"));
        let (mut said, says) = std::io::pipe().expect("a pipe");
        let mut command = Command::new(program("containerd-shim-sealpod-v2"));
        command.args([
            "-namespace",
            "default",
            "-address",
            "",
            "-publish-binary",
            "/usr/bin/crio",
            "-id",
            id,
        ]);
        command.arg("start").current_dir(&bundle).process_group(0);
        command.envs([("GOMAXPROCS", "2"), ("MAX_SHIM_VERSION", "2"), ("NAMESPACE", "default")]);
        command.envs([("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", "")]);
        command.stdin(Stdio::null()).stdout(says.try_clone().expect("a descriptor")).stderr(says);
        let mut shim = command.spawn().expect("the shim is there");
        drop(command);
        let mut text = String::new();
        said.read_to_string(&mut text).expect("the shim speaks");
        let text = text.trim().to_owned();
        if !shim.wait().expect("a child").success() {
            return Err(text);
        }
        assert!(text.starts_with("unix:///") && text.lines().count() == 1, "{text}");
        // By it a CRI-O that was restarted finds the shim again.
        assert_eq!(std::fs::read_to_string(bundle.join("address")).expect("the shim wrote it"), text);
        Ok(text)
    }

    /// Reads what a shim logs into a file.
    fn follow_log(&self, fifo: &Path) {
        make_fifo(fifo);
        let (fifo, log) = (fifo.to_owned(), self.folder.join("crio.log"));
        std::thread::spawn(move || {
            let log = std::fs::File::options().create(true).append(true).open(log);
            std::io::copy(&mut std::fs::File::open(fifo)?, &mut log?)
        });
    }

    /// Starts a shim for a container, and creates the container.
    ///
    /// # Errors
    /// What the shim says where either fails.
    pub async fn create(&self, specification: &Value, rootfs: Vec<Mount>) -> Result<Task, String> {
        let id = Self::id_of(specification);
        let address = self.start(specification)?;
        let client = TaskClient::new(Client::connect(&address).await.expect("the shim listens"));
        let terminal = specification["process"]["terminal"].as_bool().unwrap_or_default();
        let streams = task::Streams::open(id, terminal, None);
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: self.bundle(id).display().to_string(),
            rootfs,
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal,
            options: MessageField::some(self.options()),
            ..CreateTaskRequest::default()
        };
        match client.create(Context::default(), &request).await {
            Ok(answer) => {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", answer.pid));
                assert!(answer.pid > 0 && stat.is_ok(), "{answer:?}");
                Ok(Task::new(id, answer.pid, client, streams))
            }
            Err(error) => {
                let delete = DeleteRequest { id: id.into(), ..DeleteRequest::default() };
                let _ = client.delete(Context::default(), &delete).await;
                let shutdown = ShutdownRequest { id: id.into(), ..ShutdownRequest::default() };
                let _ = client.shutdown(Context::default(), &shutdown).await;
                Err(message(&error))
            }
        }
    }

    /// The runtime's options, whose second field is `runtime_config_path`.
    fn options(&self) -> Any {
        let path = self.shim_configuration().display().to_string();
        let mut value = vec![2 << 3 | 2, u8::try_from(path.len()).expect("a short path")];
        value.extend(path.bytes());
        Any { type_url: OPTIONS.into(), value, ..Any::default() }
    }

    /// Starts a pod, which must work.
    pub async fn run_pod(&self, init_data: &str) -> CrioPod {
        let network = self.network();
        let specification = self.sandbox(&network, Some(init_data));
        let infra = self.create(&specification, Vec::new()).await;
        let infra = infra.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        infra.start().await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        CrioPod { infra, network }
    }

    /// Creates and starts a container, which must work.
    pub async fn spawn(&self, specification: &Value, rootfs: Vec<Mount>) -> Task {
        let created = self.create(specification, rootfs).await;
        let task = created.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        task.start().await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        task
    }

    /// Stops a pod and removes it with its containers, which must work.
    pub async fn remove_pod(&self, pod: CrioPod, containers: Vec<Task>) {
        pod.network.disconnect();
        for container in &containers {
            container.stop(9).await;
        }
        pod.infra.stop(15).await;
        drop(pod.network);
        for task in containers.into_iter().chain([pod.infra]) {
            task.remove().await;
        }
    }

    /// The root file system of an image that is left to the guest.
    pub fn left_to_the_guest(image: &str) -> Mount {
        let volume = json!({
            "volume_type": "image_guest_pull",
            "source": image,
            "fs_type": "overlay_fs",
            "image_pull": {"metadata": {"io.kubernetes.cri-o.ImageName": image}}
        });
        let option = format!("io.katacontainers.volume={}", STANDARD.encode(volume.to_string()));
        Mount { type_: "fuse.nydus-overlayfs".into(), options: vec![option], ..Mount::default() }
    }
}

impl Drop for Crio {
    fn drop(&mut self) {
        super::control_groups::remove_all();
    }
}

/// Where CRI-O keeps the FIFOs of containers' streams.
fn fifos() -> PathBuf {
    Path::new(RUNTIME_ROOT).join("crio/fifo/io")
}

fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg("-m").arg("700").arg(path).status();
    assert!(made.expect("a program of the system").success(), "{}", path.display());
}
