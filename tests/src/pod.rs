//! A booted pod as the host sees it: typed requests to the agent.

use std::sync::atomic::{AtomicU32, Ordering};

use sealpod_agent_protocol::{
    CallError, Client, ContainerRef, CreateContainer, ExecProcess, ExitStatus, Failure, HostEntry,
    ProcessRef, PullImage, PulledImage, Reply, Request, StartPod,
};
use sealpod_sandbox::{GuestImage, Sandbox, SandboxConfig, Tpm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Owner, guest};

/// A pod whose agent was told to start.
#[derive(Debug)]
pub struct Pod {
    sandbox: Sandbox,
    containers: AtomicU32,
}

/// How a process ended, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Its exit.
    pub status: ExitStatus,
    /// Its standard output, or its terminal's.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Pod {
    /// Boots a guest with a TPM and starts a pod in it.
    ///
    /// # Panics
    ///
    /// Where that fails.
    pub async fn start(owner: &Owner, init_data: Option<String>) -> Self {
        let guest = GuestImage::open(guest()).expect("a guest");
        let tpm = Tpm::Emulated { authority: owner.path("tpm-authority") };
        let sandbox = Sandbox::start(SandboxConfig { tpm, ..SandboxConfig::new(guest) });
        let sandbox = sandbox.await.unwrap_or_else(|error| panic!("{error}"));
        let (interfaces, dns) = sandbox.pod_network();
        // Without init data there is no policy, and the host leads no name elsewhere.
        let host = init_data
            .is_some()
            .then(|| HostEntry { address: "192.0.2.7".into(), names: vec!["database".into()] });
        let start = StartPod {
            hostname: "pod-under-test".into(),
            init_data,
            interfaces,
            dns,
            hosts: host.into_iter().collect(),
            ..StartPod::default()
        };
        let pod = Self { sandbox, containers: AtomicU32::new(0) };
        pod.done(Request::StartPod(start)).await;
        pod
    }

    /// The connection to its agent.
    pub fn agent(&self) -> &Client {
        self.sandbox.agent()
    }

    /// Ends the pod in order.
    pub async fn stop(self) {
        self.sandbox.stop().await;
    }

    /// A request that must be carried out.
    ///
    /// # Panics
    ///
    /// Where it is not.
    pub async fn done(&self, request: Request) -> Reply {
        let name = request.name();
        self.agent().call(request).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A request that must be refused.
    ///
    /// # Panics
    ///
    /// Where it is carried out, or the connection breaks.
    pub async fn refused(&self, request: Request) -> Failure {
        match self.agent().call(request).await {
            Err(CallError::Refused(failure)) => failure,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Pulls an image that must be good.
    ///
    /// # Panics
    ///
    /// Where it is not.
    pub async fn pull(&self, image: &str) -> PulledImage {
        match self.done(Request::PullImage(PullImage { image: image.into() })).await {
            Reply::Image(image) => image,
            other => panic!("{other:?}"),
        }
    }

    /// A new container's id.
    pub fn new_id(&self) -> String {
        format!("container-{}", self.containers.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates and starts a container that runs on; gives its id.
    pub async fn spawn(&self, container: CreateContainer) -> String {
        let id = container.id.clone();
        self.done(Request::CreateContainer(Box::new(container))).await;
        self.done(Request::StartContainer(ContainerRef { container: id.clone() })).await;
        id
    }

    /// Runs a container to its end and removes it.
    pub async fn run(&self, container: CreateContainer, input: Option<&[u8]>) -> Exited {
        let (id, terminal) = (container.id.clone(), container.terminal);
        self.done(Request::CreateContainer(Box::new(container))).await;
        let process = ProcessRef { container: id.clone(), exec: None };
        let start = self.done(Request::StartContainer(ContainerRef { container: id.clone() }));
        let (exited, _) = tokio::join!(self.attend(&process, terminal, input), start);
        self.remove(&id).await;
        exited
    }

    /// Runs a shell script in a new container of an image.
    pub async fn sh(&self, image: &str, script: &str) -> Exited {
        self.run(self.container(image, script), None).await
    }

    /// What creates a container that runs a shell script.
    pub fn container(&self, image: &str, script: &str) -> CreateContainer {
        let command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
        CreateContainer { id: self.new_id(), image: image.into(), command, ..CreateContainer::default() }
    }

    /// Runs one more process in a container.
    pub async fn exec(&self, exec: ExecProcess) -> Exited {
        let process = ProcessRef { container: exec.container.clone(), exec: Some(exec.exec.clone()) };
        let terminal = exec.terminal;
        self.done(Request::ExecProcess(Box::new(exec))).await;
        self.attend(&process, terminal, None).await
    }

    /// Ends and forgets a container.
    pub async fn remove(&self, id: &str) {
        self.done(Request::RemoveContainer(ContainerRef { container: id.into() })).await;
    }

    /// Reads what a process says until its end.
    ///
    /// # Panics
    ///
    /// Where the agent does not let us.
    pub async fn attend(&self, process: &ProcessRef, terminal: bool, input: Option<&[u8]>) -> Exited {
        let write = async {
            if let Some(input) = input {
                let mut stream =
                    self.agent().open(Request::WriteStdin(process.clone())).await.expect("standard input");
                // The process may end before it has read all of it.
                let _ = stream.write_all(input).await;
                let _ = stream.shutdown().await;
            }
        };
        let errors = async {
            if terminal { String::new() } else { self.read(Request::ReadStderr(process.clone())).await }
        };
        let wait = self.done(Request::WaitProcess(process.clone()));
        let output = self.read(Request::ReadStdout(process.clone()));
        let (stdout, stderr, (), exit) = tokio::join!(output, errors, write, wait);
        match exit {
            Reply::Exit(status) => Exited { status, stdout, stderr },
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, request: Request) -> String {
        let mut stream = self.agent().open(request).await.expect("an output stream");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("the output can be read to its end");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
