//! containerd's Task API (containerd.task.v2.Task), call by call.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, MessageField};
use containerd_shim_protos::shim_async::Task as TaskService;
use containerd_shim_protos::ttrpc::Result as Answer;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use sealpod_agent_protocol::ProcessRef;
use tokio::sync::{Mutex, Notify, RwLock};

use crate::config::Config;
use crate::error::Error;
use crate::events::Events;
use crate::metrics;
use crate::pod::{Container, Pod, Task};
use crate::process::Process;
use crate::specification::{self, Kind};
use crate::streams::Paths;

/// The signal that is none: it asks whether a process lives (kill(2)).
const LIVENESS: u32 = 0;

/// The API of one pod.
pub(crate) struct Service {
    /// The sandbox's id.
    pod_id: String,
    pod: RwLock<Option<Arc<Pod>>>,
    /// One pod is started, once.
    starting: Mutex<()>,
    events: Events,
    /// Told when nothing is left to do.
    done: Arc<Notify>,
}

impl Service {
    pub(crate) fn new(pod_id: String, events: Events, done: Arc<Notify>) -> Self {
        Self { pod_id, pod: RwLock::default(), starting: Mutex::default(), events, done }
    }

    async fn pod(&self) -> Result<Arc<Pod>, Error> {
        self.pod.read().await.clone().ok_or_else(|| Error::NotFound(format!("pod {}", self.pod_id)))
    }

    /// The process that a call means: the pod's VM, a container's, or an exec's.
    async fn process(&self, id: &str, exec: &str) -> Result<(Arc<Pod>, Arc<Process>), Error> {
        let pod = self.pod().await?;
        let process = match self.is_pod(id) {
            true if exec.is_empty() => pod.sandbox.clone(),
            true => return Err(Error::NotFound(format!("exec {exec} in the pod's sandbox"))),
            false => pod.container(id)?.process(exec)?,
        };
        Ok((pod, process))
    }

    async fn container(&self, id: &str) -> Result<(Arc<Pod>, Arc<Container>), Error> {
        let pod = self.pod().await?;
        if self.is_pod(id) {
            return Err(Error::Invalid("the pod's sandbox is a VM, not a container".into()));
        }
        let container = pod.container(id)?;
        Ok((pod, container))
    }

    fn is_pod(&self, id: &str) -> bool {
        id == self.pod_id
    }

    async fn create_task(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse, Error> {
        let bundle = PathBuf::from(&request.bundle);
        let spec = specification::read_all(&bundle)?;
        let role = specification::role(&spec, &request.id)?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let task = Task { id: request.id.clone(), bundle, paths };
        let pid = match role.kind {
            Kind::Sandbox => {
                let _turn = self.starting.lock().await;
                if self.pod.read().await.is_some() || !self.is_pod(&request.id) {
                    return Err(Error::Conflict(format!("this shim serves the pod {}", self.pod_id)));
                }
                let config = Config::load(config_path(&request.options)?.as_deref())?;
                let pod = Pod::start(task, &spec, config, self.events.clone()).await?;
                let pid = pod.number(&request.id);
                *self.pod.write().await = Some(pod);
                pid
            }
            Kind::Container => {
                let pod = self.pod().await?;
                let mut options = request.rootfs.iter().map(|mount| mount.options.as_slice());
                let image = options.find_map(|options| specification::left_to_the_guest(options).transpose());
                let image = image.transpose()?;
                pod.create(task, spec, image).await?;
                pod.number(&request.id)
            }
        };
        let event = TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: MessageField::some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..TaskIO::default()
            }),
            pid,
            ..TaskCreate::default()
        };
        self.events.publish("/tasks/create", "containerd.events.TaskCreate", &event);
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start_task(&self, request: StartRequest) -> Result<StartResponse, Error> {
        let (id, exec) = (request.id, request.exec_id);
        let pod = self.pod().await?;
        let pid = pod.number(&id);
        if self.is_pod(&id) && exec.is_empty() {
            pod.sandbox.started();
        } else {
            let (pod, container) = self.container(&id).await?;
            match exec.as_str() {
                "" => pod.start_container(&container).await?,
                exec => pod.start_exec(&container, exec).await?,
            }
        }
        if exec.is_empty() {
            let event = TaskStart { container_id: id, pid, ..TaskStart::default() };
            self.events.publish("/tasks/start", "containerd.events.TaskStart", &event);
        } else {
            let event =
                TaskExecStarted { container_id: id, exec_id: exec, pid, ..TaskExecStarted::default() };
            self.events.publish("/tasks/exec-started", "containerd.events.TaskExecStarted", &event);
        }
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete_task(&self, request: DeleteRequest) -> Result<DeleteResponse, Error> {
        let (id, exec) = (request.id, request.exec_id);
        let pod = self.pod().await?;
        let pid = pod.number(&id);
        let exit = if self.is_pod(&id) {
            pod.stop(9);
            let exit = pod.sandbox.wait().await;
            pod.deleted();
            exit
        } else {
            let container = pod.container(&id)?;
            match exec.as_str() {
                "" => pod.remove(&container).await?,
                exec => pod.remove_exec(&container, exec).await?,
            }
        };
        if exec.is_empty() {
            let event = TaskDelete {
                container_id: id.clone(),
                id,
                pid,
                exit_status: exit.code,
                exited_at: exit.timestamp(),
                ..TaskDelete::default()
            };
            self.events.publish("/tasks/delete", "containerd.events.TaskDelete", &event);
        }
        Ok(DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: exit.timestamp(),
            ..DeleteResponse::default()
        })
    }

    async fn kill_task(&self, request: KillRequest) -> Result<(), Error> {
        let (pod, process) = self.process(&request.id, &request.exec_id).await?;
        match (request.signal, process.exit()) {
            (LIVENESS, None) => return Ok(()),
            (LIVENESS, Some(_)) => {
                return Err(Error::NotFound(format!("running process in {}: it has ended", request.id)));
            }
            // Whoever wants its end has it. CRI-O takes any other answer for a failure to stop it.
            (_, Some(_)) => return Ok(()),
            (_, None) => {}
        }
        if self.is_pod(&request.id) {
            pod.stop(request.signal);
            return Ok(());
        }
        let exec = Some(request.exec_id).filter(|exec| !exec.is_empty());
        let reference = ProcessRef { container: request.id, exec };
        pod.signal(reference, process, request.signal, request.all).await
    }

    async fn state_of(&self, request: StateRequest) -> Result<StateResponse, Error> {
        let (pod, process) = self.process(&request.id, &request.exec_id).await?;
        let bundle = match self.is_pod(&request.id) {
            true => PathBuf::new(),
            false => pod.container(&request.id)?.bundle.clone(),
        };
        let exit = process.exit();
        let pid = pod.number(&request.id);
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: bundle.to_string_lossy().into_owned(),
            pid,
            status: process.status().into(),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            exit_status: exit.as_ref().map(|exit| exit.code).unwrap_or_default(),
            exited_at: exit.map(|exit| exit.timestamp()).unwrap_or_default(),
            ..StateResponse::default()
        })
    }

    async fn add_exec(&self, request: ExecProcessRequest) -> Result<(), Error> {
        let (pod, container) = self.container(&request.id).await?;
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        pod.add_exec(&container, &request.exec_id, &request.spec.value, paths)?;
        let event =
            TaskExecAdded { container_id: request.id, exec_id: request.exec_id, ..TaskExecAdded::default() };
        self.events.publish("/tasks/exec-added", "containerd.events.TaskExecAdded", &event);
        Ok(())
    }

    async fn pause_task(&self, id: String, paused: bool) -> Result<(), Error> {
        let (pod, container) = self.container(&id).await?;
        pod.pause(&container, paused).await?;
        if paused {
            let event = TaskPaused { container_id: id, ..TaskPaused::default() };
            self.events.publish("/tasks/paused", "containerd.events.TaskPaused", &event);
        } else {
            let event = TaskResumed { container_id: id, ..TaskResumed::default() };
            self.events.publish("/tasks/resumed", "containerd.events.TaskResumed", &event);
        }
        Ok(())
    }

    async fn statistics_of(&self, id: &str) -> Result<StatsResponse, Error> {
        let pod = self.pod().await?;
        let statistics = match self.is_pod(id) {
            true => pod.statistics(None).await?,
            false => pod.statistics(Some(&*pod.container(id)?)).await?,
        };
        let stats = MessageField::some(metrics::of(&statistics)?);
        Ok(StatsResponse { stats, ..StatsResponse::default() })
    }

    /// Whether there is no pod, and none is starting.
    pub(crate) async fn is_idle(&self) -> bool {
        self.pod.read().await.is_none() && self.starting.try_lock().is_ok()
    }

    /// Ends the pod, if it has begun; one that still begins ends with this process.
    pub(crate) async fn end(&self) {
        let pod = self.pod.read().await.clone();
        if let Some(pod) = pod {
            pod.stop(9);
            pod.sandbox.wait().await;
        }
    }

    /// CRI-O and older releases of containerd ask after each container, newer ones after the sandbox alone. That is the
    /// last one for each, but CRI-O asks for containers, and has more to ask of them, when the VM has already ended.
    async fn shut_down(&self, request: &ShutdownRequest) {
        let busy = match self.pod.read().await.as_ref() {
            // Not of this pod, which begins.
            None => !self.is_pod(&request.id),
            Some(pod) if self.is_pod(&request.id) => pod.runs(),
            Some(pod) => pod.is_known(),
        };
        if request.now || !busy {
            self.end().await;
            self.done.notify_one();
        }
    }
}

/// Logs what containerd is told went wrong.
fn answer<T>(call: &'static str, result: Result<T, Error>) -> Answer<T> {
    result.map_err(|error| {
        match error {
            Error::NotFound(_) => tracing::debug!(call, %error),
            _ => tracing::warn!(call, %error),
        }
        error.status()
    })
}

#[async_trait]
impl TaskService for Service {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        answer("create", self.create_task(request).await)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        answer("start", self.start_task(request).await)
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        answer("delete", self.delete_task(request).await)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        answer("state", self.state_of(request).await)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let process = self.process(&request.id, &request.exec_id).await;
        let (_, process) = answer("wait", process)?;
        let exit = process.wait().await;
        Ok(WaitResponse { exit_status: exit.code, exited_at: exit.timestamp(), ..WaitResponse::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        answer("kill", self.kill_task(request).await).map(|()| Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        answer("exec", self.add_exec(request).await).map(|()| Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let resized = async {
            let (pod, _) = self.process(&request.id, &request.exec_id).await?;
            let exec = Some(request.exec_id).filter(|exec| !exec.is_empty());
            pod.resize(ProcessRef { container: request.id, exec }, request.height, request.width).await
        };
        answer("resize_pty", resized.await).map(|()| Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let (_, process) = answer("close_io", self.process(&request.id, &request.exec_id).await)?;
        if request.stdin {
            process.input_ends.notify_one();
        }
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        answer("pause", self.pause_task(request.id, true).await).map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        answer("resume", self.pause_task(request.id, false).await).map(|()| Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let updated = async {
            // The VM's own size stays: its containers' limits are what changes.
            if self.is_pod(&request.id) {
                return Ok(());
            }
            let (pod, container) = self.container(&request.id).await?;
            pod.update(&container, specification::update(&request.resources.value)?).await
        };
        answer("update", updated.await).map(|()| Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        answer("stats", self.statistics_of(&request.id).await)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let (pod, _) = answer("pids", self.process(&request.id, "").await)?;
        let processes = vec![ProcessInfo { pid: pod.number(&request.id), ..ProcessInfo::default() }];
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> Answer<ConnectResponse> {
        let task_pid = self.pod().await.map(|pod| pod.number(&self.pod_id)).unwrap_or_default();
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Answer<Empty> {
        self.shut_down(&request).await;
        Ok(Empty::new())
    }
}

/// The file that containerd's configuration names: `ConfigPath` of the runtime's options, field 2 of
/// `runtimeoptions.v1.Options`.
fn config_path(options: &MessageField<Any>) -> Result<Option<PathBuf>, Error> {
    const LENGTH_DELIMITED_FIELD_2: u32 = 2 << 3 | 2;
    let Some(options) = options.as_ref() else { return Ok(None) };
    let unreadable = |_| Error::Invalid("the runtime's options cannot be read".into());
    let mut stream = CodedInputStream::from_bytes(&options.value);
    let mut path = None;
    while let Some(tag) = stream.read_raw_tag_or_eof().map_err(unreadable)? {
        if tag == LENGTH_DELIMITED_FIELD_2 {
            path = Some(stream.read_string().map_err(unreadable)?);
        } else {
            containerd_shim_protos::protobuf::rt::skip_field_for_tag(tag, &mut stream).map_err(unreadable)?;
        }
    }
    Ok(path.filter(|path| !path.is_empty()).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_file_is_named_by_containerds_options() {
        let options = |value: &[u8]| MessageField::some(Any { value: value.to_vec(), ..Any::default() });
        assert_eq!(config_path(&MessageField::none()).unwrap(), None);
        assert_eq!(config_path(&options(b"")).unwrap(), None);
        let both = b"\x0a\x03abc\x12\x0a/etc/x.tom";
        assert_eq!(config_path(&options(both)).unwrap(), Some("/etc/x.tom".into()));
        assert!(config_path(&options(b"\x12\x7fshort")).is_err());
    }
}
