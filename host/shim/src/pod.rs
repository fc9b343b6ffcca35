//! A pod: its VM, and the containers in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::types::task::Status;
use oci_spec::runtime::Spec;
use sealpod_agent_protocol::{
    Client, ContainerRef, ProcessRef, PullImage, Reply, Request, ResizeTerminal, Resources, SharedProcesses,
    SignalProcess, StartPod, Statistics, StatisticsOf, UpdateContainer, VolumeLimits,
};
use sealpod_sandbox::{Disks, GuestImage, Network, Sandbox, SandboxConfig, Tpm};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::error::Error;
use crate::events::Events;
use crate::forward;
use crate::launch;
use crate::number::Number;
use crate::process::{Exit, KILLED, Process};
use crate::size;
use crate::specification::{self, HostFolder, PodSpecification, Volume};
use crate::streams::{self, Outputs, Paths};
use crate::termination_message;
use crate::volumes;

/// A host name for pods without one.
const HOSTNAME: &str = "sealpod";
/// The file of a bundle that says that a process of the container was killed for want of memory.
const OOM: &str = "oom";
/// What the VM's own end is reported as.
const FAILED: u32 = 255;
/// How long after its guest's last answer a pod may take to end.
const END: Duration = Duration::from_secs(10);
/// How long a container that is killed, or removed, may take to be gone. Engines wait two minutes.
const KILL_PATIENCE: Duration = Duration::from_secs(60);
/// How long until a place is looked for again.
const MOMENT: Duration = Duration::from_millis(500);
/// SIGKILL.
const KILL: u32 = 9;

/// A pod whose VM runs.
#[derive(Debug)]
pub(crate) struct Pod {
    id: String,
    agent: Client,
    /// QEMU's.
    pid: u32,
    network_namespace: PathBuf,
    /// The pod as containerd's task: the VM.
    pub(crate) sandbox: Arc<Process>,
    stop: watch::Sender<Option<u32>>,
    /// Whether the engine has deleted the sandbox.
    deleted: AtomicBool,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// The volumes that were given to the guest, and who follows their changes.
    volumes: tokio::sync::Mutex<BTreeMap<String, JoinHandle<()>>>,
    volume_limits: VolumeLimits,
    disks: Disks,
    events: Events,
}

/// A container of the pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) process: Arc<Process>,
    number: Number,
    /// Where kubelet looks for why it ended.
    termination_message: Option<PathBuf>,
    execs: Mutex<BTreeMap<String, Arc<Exec>>>,
}

/// An exec: noted by one call, run by another.
#[derive(Debug)]
struct Exec {
    request: sealpod_agent_protocol::ExecProcess,
    process: Arc<Process>,
}

/// What a container or an exec is called, and its streams.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) paths: Paths,
}

impl Pod {
    /// Boots the VM and starts the pod in it.
    pub(crate) async fn start(
        task: Task,
        spec: &Spec,
        config: Config,
        events: Events,
    ) -> Result<Arc<Self>, Error> {
        let wanted = specification::pod(spec)?;
        let cgroup = wanted.cgroup.as_deref().map(Cgroup::create).transpose()?.unwrap_or_default();
        let booted = boot(&config, &wanted, &cgroup).await;
        let sandbox = match booted {
            Ok(sandbox) => sandbox,
            Err(error) => {
                cgroup.remove();
                return Err(error);
            }
        };
        let forwarding = forward_ports(&sandbox);
        let (stop, stopped) = watch::channel(None);
        let pod = Arc::new(Self {
            id: task.id,
            agent: sandbox.agent().clone(),
            pid: sandbox.pid(),
            network_namespace: wanted.network_namespace,
            sandbox: Arc::new(Process::new(task.paths)),
            stop,
            deleted: AtomicBool::new(false),
            containers: Mutex::default(),
            volumes: tokio::sync::Mutex::default(),
            volume_limits: wanted.volume_limits,
            disks: sandbox.disks(),
            events,
        });
        tokio::spawn(pod.clone().own(sandbox, stopped, cgroup, forwarding));
        Ok(pod)
    }

    /// By which number container engines know the pod (QEMU's process id), or one of its containers.
    pub(crate) fn number(&self, id: &str) -> u32 {
        self.container(id).map_or(self.pid, |container| container.number.get())
    }

    /// Keeps the VM until it ends or is to end, and tells the end of everything in it.
    async fn own(
        self: Arc<Self>,
        mut sandbox: Sandbox,
        mut stopped: watch::Receiver<Option<u32>>,
        cgroup: Cgroup,
        forwarding: Option<JoinHandle<()>>,
    ) {
        let asked = tokio::select! {
            reason = sandbox.failed() => {
                tracing::error!(pod = self.id, "the pod cannot go on: {reason}");
                None
            }
            asked = stopped.wait_for(Option::is_some) => asked.ok().and_then(|asked| *asked),
        };
        match asked {
            Some(_) => sandbox.stop().await,
            None => drop(sandbox),
        }
        let followers = std::mem::take(&mut *self.volumes.lock().await);
        for task in followers.into_values().chain(forwarding) {
            task.abort();
        }
        cgroup.remove();
        for container in self.containers() {
            self.tell_end(&container.id, &container.id, &container.process, Exit::now(KILLED));
            for (id, exec) in container.execs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                self.tell_end(&container.id, id, &exec.process, Exit::now(KILLED));
            }
        }
        let code = asked.map_or(FAILED, |signal| 128 + signal);
        self.tell_end(&self.id, &self.id, &self.sandbox, Exit::now(code));
    }

    /// Ends the VM; its exit is told when it is gone.
    pub(crate) fn stop(&self, signal: u32) {
        self.stop.send_if_modified(|asked| asked.is_none() && asked.replace(signal).is_none());
    }

    /// Notes that the engine has deleted the sandbox.
    pub(crate) fn deleted(&self) {
        self.deleted.store(true, Ordering::Relaxed);
    }

    /// Whether the VM, or a container in it, has not ended.
    pub(crate) fn runs(&self) -> bool {
        let containers = self.containers();
        self.sandbox.exit().is_none() || containers.iter().any(|known| known.process.exit().is_none())
    }

    /// Whether the engine has the sandbox, or a container, that it has not deleted.
    pub(crate) fn is_known(&self) -> bool {
        !self.deleted.load(Ordering::Relaxed) || !self.containers().is_empty()
    }

    /// Pulls the image in the guest and prepares a container there. `image` is that which the engine has left to it.
    ///
    /// Engines give up after a time. What was begun is finished then, and taken away again: they would not do it.
    pub(crate) async fn create(
        self: &Arc<Self>,
        task: Task,
        spec: Spec,
        image: Option<String>,
    ) -> Result<Arc<Container>, Error> {
        let (answer, answered) = oneshot::channel();
        let pod = self.clone();
        tokio::spawn(async move {
            let made = pod.prepare(task, &spec, image.as_deref()).await;
            if let Err(Ok(unwanted)) = answer.send(made) {
                tracing::warn!(
                    container = unwanted.id,
                    "its engine has given up on a container, which is removed"
                );
                if let Err(error) = pod.remove(&unwanted).await {
                    tracing::warn!(container = unwanted.id, %error, "it cannot be removed");
                }
            }
        });
        answered.await.map_err(|_| Error::Conflict("the container was not prepared to the end".into()))?
    }

    async fn prepare(
        self: &Arc<Self>,
        task: Task,
        spec: &Spec,
        image: Option<&str>,
    ) -> Result<Arc<Container>, Error> {
        specification::belongs(spec, &self.network_namespace, self.pid)?;
        let stdin = !task.paths.stdin.is_empty();
        let mut wanted = specification::container(&task.id, spec, image, stdin, &self.volume_limits)?;
        wanted.request.process_namespace =
            wanted.shares_processes_of.map(|number| self.processes_of(number)).transpose()?;
        let mut termination_message = None;
        for volume in &wanted.volumes {
            match volume {
                Volume::Files(folder) => self.give_volume(folder).await?,
                Volume::Disk(disk) => self.disks.plug(disk).await?,
                Volume::TerminationMessage(file) => termination_message = Some(file.clone()),
                Volume::Guest => {}
            }
        }
        let number = Number::take()?;
        let image = wanted.request.image.clone();
        self.agent.call(Request::PullImage(PullImage { image })).await?;
        self.agent.call(Request::CreateContainer(Box::new(wanted.request))).await?;
        let container = Arc::new(Container {
            id: task.id,
            bundle: task.bundle,
            process: Arc::new(Process::new(task.paths)),
            number,
            termination_message,
            execs: Mutex::default(),
        });
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.insert(container.id.clone(), container.clone());
        Ok(container)
    }

    /// Whose processes are meant by the number of one.
    fn processes_of(&self, number: u32) -> Result<SharedProcesses, Error> {
        if number == self.pid {
            return Ok(SharedProcesses::Pod);
        }
        let target = self.containers().into_iter().find(|container| container.number.get() == number);
        target
            .map(|target| SharedProcesses::Container { container: target.id.clone() })
            .ok_or_else(|| Error::NotFound(format!("container of the pod whose process is {number}")))
    }

    async fn give_volume(&self, folder: &HostFolder) -> Result<(), Error> {
        let mut followed = self.volumes.lock().await;
        if !followed.contains_key(&folder.volume) {
            let version = volumes::give(&self.agent, folder).await?;
            // A part of a volume has none: kubelet binds the current one at each start of its container.
            if version.is_some() {
                let follower = volumes::follow(self.agent.clone(), folder.clone(), version);
                followed.insert(folder.volume.clone(), follower);
            }
        }
        Ok(())
    }

    /// Lets a container's process go on.
    pub(crate) async fn start_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), Error> {
        let reference = ProcessRef { container: container.id.clone(), exec: None };
        let process = &container.process;
        let starting = process.starts()?;
        let outputs = streams::attach(&self.agent, &reference, process).await?;
        let name = ContainerRef { container: container.id.clone() };
        let started = self.agent.call(Request::StartContainer(name)).await.map_err(Error::from);
        match &started {
            Ok(_) => starting.done(),
            // It was killed meanwhile, and somebody may wait for its end.
            Err(error) if error.is_gone() => drop(starting),
            Err(_) => return started.map(drop),
        }
        self.follow(reference, container.id.clone(), process.clone(), outputs);
        started.map(drop)
    }

    /// Notes an exec.
    pub(crate) fn add_exec(
        &self,
        container: &Container,
        id: &str,
        json: &[u8],
        paths: Paths,
    ) -> Result<(), Error> {
        let (terminal, stdin) = (paths.terminal, !paths.stdin.is_empty());
        let request = specification::exec(&container.id, id, json, terminal, stdin)?;
        let exec = Exec { request, process: Arc::new(Process::new(paths)) };
        let mut execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(id) {
            return Err(Error::Conflict(format!("exec {id:?} exists already")));
        }
        execs.insert(id.into(), Arc::new(exec));
        Ok(())
    }

    /// Runs an exec.
    pub(crate) async fn start_exec(self: &Arc<Self>, container: &Container, id: &str) -> Result<(), Error> {
        let exec = container.exec(id)?;
        let process = &exec.process;
        let starting = process.starts()?;
        let reference = ProcessRef { container: container.id.clone(), exec: Some(id.into()) };
        let started = self.agent.call(Request::ExecProcess(Box::new(exec.request.clone()))).await;
        if let Err(error) = started {
            streams::close(&process.paths);
            return Err(error.into());
        }
        let outputs = streams::attach(&self.agent, &reference, process).await?;
        starting.done();
        self.follow(reference, container.id.clone(), process.clone(), outputs);
        Ok(())
    }

    /// Tells a process's end when it has come and all its output is with containerd, which has little patience after, and
    /// a container's also when kubelet has its termination message.
    fn follow(
        self: &Arc<Self>,
        reference: ProcessRef,
        container: String,
        process: Arc<Process>,
        outputs: Outputs,
    ) {
        let pod = self.clone();
        tokio::spawn(async move {
            let is_exec = reference.exec.is_some();
            let id = reference.exec.clone().unwrap_or_else(|| container.clone());
            let exit = match pod.wait_process(reference).await {
                Ok(Reply::Exit(status)) => Some(status.into()),
                // It never ran, or was removed by force.
                Err(error) if error.is_gone() => Some(Exit::now(KILLED)),
                // The end of the VM is told by who sees it.
                other => {
                    tracing::debug!(container, id, ?other, "a process's end was not seen");
                    None
                }
            };
            let last_words = async {
                if exit.is_some() && !is_exec {
                    pod.pass_on_message(&container).await;
                }
            };
            tokio::join!(outputs.drain(), last_words);
            if let Some(exit) = exit {
                pod.tell_end(&container, &id, &process, exit);
            }
        });
    }

    /// Waits for a process's end, and before that, if need be, for a place to wait at.
    async fn wait_process(&self, reference: ProcessRef) -> Result<Reply, Error> {
        loop {
            match self.agent.call(Request::WaitProcess(reference.clone())).await.map_err(Error::from) {
                Err(error) if error.is_own_limit() => tokio::time::sleep(MOMENT).await,
                other => return other,
            }
        }
    }

    async fn pass_on_message(&self, container: &str) {
        let known = self.container(container).ok();
        if let Some(file) = known.as_ref().and_then(|known| known.termination_message.as_deref()) {
            termination_message::pass_on(&self.agent, container, file).await;
        }
    }

    fn tell_end(&self, container: &str, id: &str, process: &Process, exit: Exit) {
        let event = TaskExit {
            container_id: container.into(),
            id: id.into(),
            pid: self.number(container),
            exit_status: exit.code,
            exited_at: exit.timestamp(),
            ..TaskExit::default()
        };
        if exit.out_of_memory {
            self.note_out_of_memory(container);
            let event = TaskOOM { container_id: container.into(), ..TaskOOM::default() };
            self.events.publish("/tasks/oom", "containerd.events.TaskOOM", &event);
        }
        if process.ended(exit) {
            self.events.publish("/tasks/exit", "containerd.events.TaskExit", &event);
        }
    }

    /// By a file of the container's bundle, where CRI-O looks once the container has ended.
    fn note_out_of_memory(&self, container: &str) {
        let noted = self.container(container).map(|known| std::fs::File::create(known.bundle.join(OOM)));
        if let Ok(Err(error)) = noted {
            tracing::warn!(container, %error, "cannot note that a container was out of memory");
        }
    }

    /// Sends a signal. One to a process that has just ended has done what it was for.
    pub(crate) async fn signal(
        self: &Arc<Self>,
        reference: ProcessRef,
        process: Arc<Process>,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        let signal =
            u8::try_from(signal).map_err(|_| Error::Invalid(format!("there is no signal {signal}")))?;
        let send = Request::SignalProcess(SignalProcess { process: reference.clone(), signal, all });
        let kills = u32::from(signal) == KILL && reference.exec.is_none();
        let sent = match kills {
            true => self.agent.call_with_timeout(send, KILL_PATIENCE).await,
            false => self.agent.call(send).await,
        };
        match sent.map_err(Error::from) {
            Err(error) if error.is_own_limit() => return Err(error),
            // The pod ends with its guest, and all of its processes.
            Err(error) if kills && !error.is_gone() || error.is_of_lost_guest() => {
                if kills {
                    self.end_instead(&reference.container, &error);
                }
                let ended = tokio::time::timeout(END, process.wait()).await;
                return ended.map(drop).map_err(|_| error);
            }
            Err(error) if !error.is_gone() || process.is_starting() => return Err(error),
            _ => {}
        }
        let container = reference.container.clone();
        // Nobody waits for one that was not started, or could not be.
        if !process.is_starting() && process.status() == Status::CREATED {
            self.follow(reference, container.clone(), process.clone(), Outputs::default());
        }
        if kills {
            self.expect_end(container, process);
        }
        Ok(())
    }

    /// Sees to it that what was killed ends, whatever the guest says.
    fn expect_end(self: &Arc<Self>, container: String, process: Arc<Process>) {
        let pod = self.clone();
        tokio::spawn(async move {
            if tokio::time::timeout(KILL_PATIENCE, process.wait()).await.is_err() {
                pod.end_instead(&container, &Error::Conflict("it was killed and has not ended".into()));
            }
        });
    }

    /// Ends the pod where a container in it does not go: whether it runs at all is the host's affair, whatever the guest, or
    /// its policy, thinks of that.
    fn end_instead(&self, container: &str, error: &Error) {
        tracing::warn!(container, %error, "a container cannot be ended, so its pod is");
        self.stop(KILL);
    }

    /// Sets a terminal's size.
    pub(crate) async fn resize(&self, process: ProcessRef, rows: u32, columns: u32) -> Result<(), Error> {
        let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let resize = ResizeTerminal { process, rows: cells(rows), columns: cells(columns) };
        self.agent.call(Request::ResizeTerminal(resize)).await?;
        Ok(())
    }

    /// Stops a container's processes where they are, or lets them go on.
    pub(crate) async fn pause(&self, container: &Container, paused: bool) -> Result<(), Error> {
        let name = ContainerRef { container: container.id.clone() };
        let request = if paused { Request::PauseContainer(name) } else { Request::ResumeContainer(name) };
        self.agent.call(request).await?;
        container.process.paused(paused);
        Ok(())
    }

    /// Changes a container's limits.
    pub(crate) async fn update(&self, container: &Container, resources: Resources) -> Result<(), Error> {
        let update = UpdateContainer { container: container.id.clone(), resources };
        self.agent.call(Request::UpdateContainer(update)).await?;
        Ok(())
    }

    /// What a container, or all of them, have used and use.
    pub(crate) async fn statistics(&self, container: Option<&Container>) -> Result<Statistics, Error> {
        let of = StatisticsOf { container: container.map(|container| container.id.clone()) };
        match self.agent.call(Request::ReadStatistics(of)).await? {
            Reply::Statistics(statistics) => Ok(statistics),
            other => {
                Err(Error::Invalid(format!("the agent answered a question for statistics with {other:?}")))
            }
        }
    }

    /// Ends what is left of a container and forgets it. An engine that gives up on that comes again, and finds it gone.
    pub(crate) async fn remove(self: &Arc<Self>, container: &Arc<Container>) -> Result<Exit, Error> {
        let (pod, container) = (self.clone(), container.clone());
        let removing = tokio::spawn(async move { pod.take_away(&container).await });
        removing.await.map_err(|_| Error::Conflict("the container was not removed to the end".into()))?
    }

    async fn take_away(&self, container: &Container) -> Result<Exit, Error> {
        if self.sandbox.exit().is_none() {
            let name = ContainerRef { container: container.id.clone() };
            let removing = self.agent.call_with_timeout(Request::RemoveContainer(name), KILL_PATIENCE);
            match removing.await.map_err(Error::from) {
                Err(error) if error.is_own_limit() => return Err(error),
                Err(error) if !error.is_gone() && self.sandbox.exit().is_none() => {
                    if container.process.exit().is_none() {
                        self.end_instead(&container.id, &error);
                    } else {
                        tracing::warn!(container = container.id, %error, "its files stay in the guest");
                    }
                }
                _ => {}
            }
        }
        // One that never ran has no end of its own.
        self.tell_end(&container.id, &container.id, &container.process, Exit::now(KILLED));
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(&container.id);
        Ok(container.process.wait().await)
    }

    /// Ends what is left of an exec and forgets it.
    pub(crate) async fn remove_exec(&self, container: &Container, id: &str) -> Result<Exit, Error> {
        let exec = container.exec(id)?;
        if self.sandbox.exit().is_none() {
            let reference = ProcessRef { container: container.id.clone(), exec: Some(id.into()) };
            match self.agent.call(Request::RemoveExec(reference)).await.map_err(Error::from) {
                Err(error) if !error.is_gone() && self.sandbox.exit().is_none() => return Err(error),
                _ => {}
            }
        }
        exec.process.ended(Exit::now(KILLED));
        exec.process.forget();
        container.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(exec.process.wait().await)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(id).cloned().ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Container {
    /// Its own process, or that of an exec.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        match exec {
            "" => Ok(self.process.clone()),
            id => self.exec(id).map(|exec| exec.process.clone()),
        }
    }

    fn exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(id).cloned().ok_or_else(|| Error::NotFound(format!("exec {id} in container {}", self.id)))
    }
}

/// Leads connections to the pod's loopback on this machine into the guest. A pod without them is better than none.
fn forward_ports(sandbox: &Sandbox) -> Option<JoinHandle<()>> {
    match sandbox.loopback() {
        Ok(loopback) => {
            loopback.map(|loopback| tokio::spawn(forward::serve(loopback, sandbox.agent().clone())))
        }
        Err(error) => {
            tracing::warn!(%error, hint = error.hint(), "no ports are forwarded");
            None
        }
    }
}

async fn boot(config: &Config, wanted: &PodSpecification, cgroup: &Cgroup) -> Result<Sandbox, Error> {
    let guest = GuestImage::open(&config.guest)?;
    if let Some(parent) = Path::new(&config.tpm_authority).parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(format!("cannot make {}", parent.display())))?;
    }
    if config.ephemeral_disk_mib > 0 {
        launch::make_folder(&config.ephemeral_disk_folder)?;
    }
    let (memory_mib, cpus) = size::of_vm(config, wanted, cgroup)?;
    let sandbox = Sandbox::start(SandboxConfig {
        memory_mib,
        cpus,
        ephemeral_disk_mib: config.ephemeral_disk_mib,
        ephemeral_disk_folder: config.ephemeral_disk_folder.clone(),
        answer_limit: Duration::from_secs(config.silence_limit_seconds.get().into()),
        pluggable_disks: true,
        accelerator: config.accelerator()?,
        tpm: Tpm::Emulated { authority: config.tpm_authority.clone() },
        network: Network::Namespace { path: wanted.network_namespace.clone() },
        cgroup_procs: cgroup.procs(),
        ..SandboxConfig::new(guest)
    })
    .await?;
    let (interfaces, _) = sandbox.pod_network();
    let hostname = Some(wanted.hostname.clone()).filter(|name| !name.is_empty());
    let start = StartPod {
        hostname: hostname.unwrap_or_else(|| HOSTNAME.into()),
        init_data: wanted.init_data.clone(),
        interfaces,
        dns: wanted.dns.clone(),
        hosts: Vec::new(),
        sysctls: wanted.sysctls.clone(),
    };
    match sandbox.agent().call(Request::StartPod(start)).await {
        Ok(_) => Ok(sandbox),
        Err(error) => {
            sandbox.stop().await;
            Err(error.into())
        }
    }
}
