//! What the host may ask: each request is decided by the policy, then carried out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sealpod_agent_policy::ImageFacts;
use sealpod_agent_protocol::{
    ByteStream, CreateContainer, Failure, FailureKind, ForwardPort, Handler, Info, ProcessRef, Reply,
    Request, StartPod,
};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::boot::{self, Parameters};
use crate::container::reduce::{effective_command, own_environment, reduce};
use crate::container::{Process, Stream};
use crate::failure::{Hint, failure};
use crate::forward;
use crate::pod::Pod;
use crate::reaper::Reaper;

/// How long the answer to `StopPod` may take to reach the host before the power goes.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The agent, before and after its pod was started.
pub(crate) struct Agent {
    parameters: Parameters,
    reaper: Reaper,
    ready_after_ms: u64,
    start_was_tried: AtomicBool,
    pod: OnceCell<Arc<Pod>>,
}

impl Agent {
    pub(crate) fn new(parameters: Parameters) -> anyhow::Result<Self> {
        let now = clock_gettime(ClockId::Boottime);
        let ready_after_ms = u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or_default();
        Ok(Self {
            parameters,
            reaper: Reaper::start()?,
            ready_after_ms,
            start_was_tried: AtomicBool::new(false),
            pod: OnceCell::new(),
        })
    }

    fn info(&self) -> Reply {
        Reply::Info(Info {
            version: env!("CARGO_PKG_VERSION").into(),
            ready_after_ms: self.ready_after_ms,
            resident_bytes: resident_bytes(),
            tee: self.parameters.tee.to_string(),
        })
    }

    /// A pod is started once. After a failed start the measurements are spent, so there is no second try.
    async fn start_pod(&self, request: StartPod) -> Result<Reply, Failure> {
        if self.start_was_tried.swap(true, Ordering::SeqCst) {
            return Err(failure(FailureKind::Conflict, "the pod was started before").hint("boot a new guest"));
        }
        let pod = Pod::start(request, &self.parameters, self.reaper.clone()).await?;
        self.pod.set(pod).map_err(|_| failure(FailureKind::Internal, "two pods were started"))?;
        Ok(Reply::Done)
    }

    fn pod(&self) -> Result<&Arc<Pod>, Failure> {
        self.pod.get().ok_or_else(|| {
            failure(FailureKind::Conflict, "the pod is not started")
                .hint("send StartPod before anything else")
        })
    }

    async fn carry_out(&self, pod: &Pod, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Attest => pod.attestation.attest().await.map(done),
            Request::PullImage(pull) => pod.images.pull(&pull.image).await.map(Reply::Image),
            Request::CreateContainer(create) => {
                let image = pod.images.for_container(&create.image)?;
                pod.containers.create(*create, image).await.map(done)
            }
            Request::StartContainer(name) => pod.containers.start(&name.container).await.map(done),
            Request::ExecProcess(exec) => pod.containers.exec(*exec).await.map(done),
            Request::RemoveExec(process) => pod.containers.remove_exec(&process).await.map(done),
            Request::SignalProcess(signal) => {
                pod.containers.signal(&signal.process, signal.signal, signal.all).map(done)
            }
            Request::ResizeTerminal(size) => {
                pod.containers.process(&size.process)?.resize(size.rows, size.columns).map(done)
            }
            Request::WaitProcess(process) => {
                let process = pod.containers.process(&process)?;
                process.wait().await.map(Reply::Exit)
            }
            Request::ListContainers => Ok(Reply::Containers(pod.containers.list())),
            Request::PauseContainer(name) => pod.containers.pause(&name.container, true).map(done),
            Request::ResumeContainer(name) => pod.containers.pause(&name.container, false).map(done),
            Request::UpdateContainer(update) => {
                pod.containers.update(&update.container, &update.resources).map(done)
            }
            Request::ReadStatistics(of) => {
                pod.containers.statistics(of.container.as_deref()).map(Reply::Statistics)
            }
            Request::ReadTerminationMessage(name) => {
                pod.containers.termination_message(&name.container).map(Reply::TerminationMessage)
            }
            Request::WriteVolume(write) => pod.containers.volumes.write(&write).map(done),
            Request::RemoveContainer(name) => pod.containers.remove(&name.container).await.map(done),
            other => Err(failure(FailureKind::Invalid, format!("{} is not a call", other.name()))),
        }
    }

    async fn open_stream(&self, request: &Request) -> Result<Opened, Failure> {
        let pod = self.pod()?;
        if let Request::ForwardPort(ForwardPort { port }) = request {
            pod.policy.decide(request, None)?;
            return forward::connect(*port).await.map(Opened::Port);
        }
        let (reference, stream) = stream_request(request)?;
        let process = pod.containers.process(reference)?;
        // Who was allowed to start an exec may use its streams.
        if reference.exec.is_none()
            && let Err(denial) = pod.policy.decide(request, None)
        {
            // The host will never read it, and the process must not wait for that.
            process.discard(stream);
            return Err(denial);
        }
        process.has(stream)?;
        Ok(Opened::Process(process, stream))
    }
}

/// What a stream leads to.
pub(crate) enum Opened {
    Process(Arc<Process>, Stream),
    Port(TcpStream),
}

impl Handler for Agent {
    type Opened = Opened;

    async fn call(&self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Info => Ok(self.info()),
            Request::StartPod(start) => self.start_pod(start).await.inspect_err(complain("StartPod")),
            Request::StopPod => {
                if let Some(pod) = self.pod.get() {
                    pod.policy.decide(&Request::StopPod, None).inspect_err(complain("StopPod"))?;
                    pod.containers.leave_disks().await;
                }
                tokio::spawn(async {
                    tokio::time::sleep(LAST_WORDS).await;
                    boot::power_off();
                });
                Ok(Reply::Done)
            }
            mut request => {
                let pod = self.pod()?;
                let image = match &mut request {
                    Request::CreateContainer(create) => Some(image_facts(pod, create)?),
                    _ => None,
                };
                let name = request.name();
                pod.policy.decide(&request, image.as_ref()).inspect_err(complain(name))?;
                self.carry_out(pod, request).await.inspect_err(complain(name))
            }
        }
    }

    async fn open(&self, request: Request) -> Result<Opened, Failure> {
        self.open_stream(&request).await.inspect_err(complain(request.name()))
    }

    async fn stream(&self, opened: Opened, host: ByteStream) {
        match opened {
            Opened::Process(process, stream) => process.carry(stream, host).await,
            Opened::Port(service) => forward::carry(service, host).await,
        }
    }
}

/// Brings the request into the form that policies decide by, and says what they cannot see in it.
fn image_facts(pod: &Pod, create: &mut CreateContainer) -> Result<ImageFacts, Failure> {
    let image = pod.images.for_container(&create.image)?;
    let hostname = pod.containers.hostname();
    reduce(create, &image.process, hostname);
    Ok(ImageFacts {
        effective_command: effective_command(create, &image.process),
        environment: own_environment(create, &image.process, hostname),
        target: pod.containers.target_name(create.process_namespace.as_ref())?,
        digest: image.digest,
        entrypoint: image.process.entrypoint,
        user: image.process.user,
        working_directory: image.process.working_directory,
    })
}

fn stream_request(request: &Request) -> Result<(&ProcessRef, Stream), Failure> {
    match request {
        Request::WriteStdin(process) => Ok((process, Stream::Stdin)),
        Request::ReadStdout(process) => Ok((process, Stream::Stdout)),
        Request::ReadStderr(process) => Ok((process, Stream::Stderr)),
        other => Err(failure(FailureKind::Invalid, format!("{} opens no stream", other.name()))),
    }
}

/// The console has each failure too: its reader may be somebody else than who asked. A denial's id is part of
/// the message.
fn complain(name: &'static str) -> impl Fn(&Failure) {
    move |failure| tracing::warn!("{name} failed: {}", failure.message)
}

fn done(_: ()) -> Reply {
    Reply::Done
}

/// `VmRSS` of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or_default() * 1024
}
