//! CRI-O's calls for one container, over its own connection to the shim.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, DeleteRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, ShutdownRequest,
    StartRequest, StateRequest, StateResponse, StatsRequest, WaitRequest,
};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::context::Context;
use serde_json::Value;
use tokio::sync::{Mutex, oneshot};

/// How long an end, or an output's end, may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// A container, or a pod's sandbox.
pub struct Task {
    /// Its id.
    pub id: String,
    /// The number that the shim gave for its process.
    pub pid: u32,
    /// Calls that have no function here.
    pub client: TaskClient,
    outputs: Mutex<Option<Streams>>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Task").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: u32,
    /// What it wrote to its standard output, or its terminal.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Task {
    pub(super) fn new(id: &str, pid: u32, client: TaskClient, streams: Streams) -> Self {
        Self { id: id.into(), pid, client, outputs: Mutex::new(Some(streams)) }
    }

    /// Starts its process.
    ///
    /// # Errors
    /// What the shim says, as of all calls here.
    pub async fn start(&self) -> Result<(), String> {
        self.start_process("").await
    }

    async fn start_process(&self, exec: &str) -> Result<(), String> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec.into(), ..StartRequest::default() };
        self.client.start(Context::default(), &request).await.map(drop).map_err(|error| message(&error))
    }

    /// Asks for its state.
    pub async fn state(&self) -> Result<StateResponse, String> {
        let request = StateRequest { id: self.id.clone(), ..StateRequest::default() };
        self.client.state(Context::default(), &request).await.map_err(|error| message(&error))
    }

    /// Waits for its end; gives its exit code.
    pub async fn wait(&self) -> u32 {
        self.wait_for("").await
    }

    async fn wait_for(&self, exec: &str) -> u32 {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.into(), ..WaitRequest::default() };
        let answer = tokio::time::timeout(PATIENCE, self.client.wait(Context::default(), &request)).await;
        answer.expect("it ends in time").unwrap_or_else(|error| panic!("{}", message(&error))).exit_status
    }

    /// Waits for its end; gives its output too, which can be had once.
    pub async fn ended(&self) -> Ended {
        let code = self.wait().await;
        let streams = self.outputs.lock().await.take().expect("nobody has its output");
        streams.end(code).await
    }

    /// Sends a signal.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<(), String> {
        let request = KillRequest { id: self.id.clone(), signal, all, ..KillRequest::default() };
        self.client.kill(Context::default(), &request).await.map(drop).map_err(|error| message(&error))
    }

    /// Ends it, as CRI does before it removes it.
    pub async fn stop(&self, signal: u32) {
        let (killed, _) = tokio::join!(self.kill(signal, false), self.wait());
        killed.expect("a known task can be stopped");
    }

    /// Asks for what it uses. Those parts are there of which CRI-O believes that they are.
    pub async fn statistics(&self) -> Metrics {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        let answer = self.client.stats(Context::default(), &request).await;
        let any = answer.unwrap_or_else(|error| panic!("{}", message(&error))).stats;
        assert_eq!(any.type_url, METRICS);
        let metrics = Metrics::parse_from_bytes(&any.value).expect("metrics");
        assert!(metrics.memory.is_some() && metrics.cpu.is_some() && metrics.pids.is_some(), "{metrics:?}");
        metrics
    }

    /// Runs a script in it: `process` is the container's own, of which only the words are changed.
    ///
    /// # Errors
    /// What the shim says where the script does not start.
    pub async fn exec(
        &self,
        process: &Value,
        script: &str,
        terminal: bool,
        input: Option<&str>,
    ) -> Result<Ended, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let exec = format!("{:064x}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.state().await?;
        let mut process = process.clone();
        process["args"] = serde_json::json!(["/bin/sh", "-c", script]);
        let streams = Streams::open(&self.id, terminal, input);
        let spec = Any { type_url: PROCESS.into(), value: process.to_string().into(), ..Any::default() };
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.clone(),
            terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        self.client.exec(Context::default(), &request).await.map_err(|error| message(&error))?;
        self.start_process(&exec).await?;
        if terminal {
            let size = ResizePtyRequest {
                id: self.id.clone(),
                exec_id: exec.clone(),
                width: 77,
                height: 11,
                ..ResizePtyRequest::default()
            };
            self.client.resize_pty(Context::default(), &size).await.map_err(|error| message(&error))?;
        }
        if input.is_some() {
            streams.written().await;
            let close = CloseIORequest {
                id: self.id.clone(),
                exec_id: exec.clone(),
                stdin: true,
                ..CloseIORequest::default()
            };
            self.client.close_io(Context::default(), &close).await.map_err(|error| message(&error))?;
        }
        let code = self.wait_for(&exec).await;
        let delete = DeleteRequest { id: self.id.clone(), exec_id: exec, ..DeleteRequest::default() };
        self.client.delete(Context::default(), &delete).await.map_err(|error| message(&error))?;
        Ok(streams.end(code).await)
    }

    /// Forgets it, as CRI-O does after its end.
    pub async fn remove(self) {
        let delete = DeleteRequest { id: self.id.clone(), ..DeleteRequest::default() };
        let deleted = self.client.delete(Context::default(), &delete).await;
        deleted.unwrap_or_else(|error| panic!("{}: {}", self.id, message(&error)));
        let shutdown = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        match self.client.shutdown(Context::default(), &shutdown).await {
            // The last one's connection may be gone before the answer.
            Ok(_) | Err(ttrpc::Error::RemoteClosed | ttrpc::Error::LocalClosed) => {}
            Err(error) => panic!("{}: {}", self.id, message(&error)),
        }
    }
}

/// The FIFOs of a process's streams, and what comes out of them.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: String,
    pub(super) stdout: String,
    /// Said even where a terminal has none.
    pub(super) stderr: String,
    writes: Mutex<Option<oneshot::Receiver<()>>>,
    reads: Vec<oneshot::Receiver<Vec<u8>>>,
}

impl Streams {
    /// Makes FIFOs in a folder of their own, and begins to read and to write.
    pub(super) fn open(id: &str, terminal: bool, input: Option<&str>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let folder = super::fifos().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&folder).expect("a folder");
        let fifo = |name: &str| {
            let path = folder.join(format!("{id}-{name}"));
            super::make_fifo(&path);
            path.display().to_string()
        };
        let (stdout, stderr) = (fifo("stdout"), fifo("stderr"));
        let stdin = input.map(|_| fifo("stdin")).unwrap_or_default();
        let writes = input.map(|input| {
            let (path, input) = (stdin.clone(), input.to_owned());
            on_a_thread(move || std::fs::write(path, input).expect("the shim takes it"))
        });
        let read = |path: &String| {
            let path = path.clone();
            on_a_thread(move || std::fs::read(Path::new(&path)).expect("the shim's output"))
        };
        let reads = [&stdout, &stderr].into_iter().take(if terminal { 1 } else { 2 }).map(read).collect();
        Self { stdin, stdout, stderr, writes: Mutex::new(writes), reads }
    }

    async fn written(&self) {
        if let Some(writes) = self.writes.lock().await.take() {
            tokio::time::timeout(PATIENCE, writes).await.expect("the shim reads").expect("it was written");
        }
    }

    async fn end(self, code: u32) -> Ended {
        let mut texts = Vec::new();
        for read in self.reads {
            let bytes = tokio::time::timeout(PATIENCE, read).await.expect("an output ends with its process");
            texts.push(String::from_utf8_lossy(&bytes.expect("it was read")).into_owned());
        }
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap_or_default();
        Ended { code, stdout: next(), stderr: next() }
    }
}

/// FIFOs are opened when the other end is, however late.
fn on_a_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || done.send(job()));
    result
}

/// What an error says to whoever asked.
pub(super) fn message(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => format!("{:?}: {}", status.code(), status.message),
        other => other.to_string(),
    }
}
