//! Containers: created from verified images, with limits and without privileges, through the OCI runtime.

mod control_group;
mod destinations;
mod disks;
pub(crate) mod helper;
mod join;
mod launch;
pub(crate) mod namespace;
mod nested;
mod parts;
mod process;
pub(crate) mod reduce;
mod rootfs;
mod seccomp;
mod spec;
mod termination_message;
mod user;
pub(crate) mod volumes;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use disks::{DeviceNode, Disks};
use join::Namespaces;
use namespace::PodNamespace;
pub(crate) use process::{Process, Stream};
use rootfs::Folders;
pub(crate) use rootfs::POD_CGROUP;
use rustix::process::{Pid, Signal, kill_process};
use sealpod_agent_protocol::{
    ContainerState, CreateContainer, Device, ExecProcess, Failure, FailureKind, Interface, Mount,
    MountSource, Phase, ProcessRef, Resources, Statistics, TerminationMessage,
};
pub(crate) use spec::ImageProcess;
use spec::VolumeMount;
use volumes::Volumes;

use crate::failure::{Hint, failure, internal};
use crate::network;
use crate::reaper::Reaper;

/// The pod's shared memory, which containers see as `/dev/shm`.
pub(crate) const SHARED_MEMORY: &str = "/run/sealpod/shm";

/// How long killed processes may take to end.
const PATIENCE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(2);
/// How long they may keep the machine from ending.
const END_LIMIT: Duration = Duration::from_secs(5);

/// An image as far as containers need it.
#[derive(Clone, Debug)]
pub(crate) struct ContainerImage {
    /// The manifest's.
    pub(crate) digest: String,
    pub(crate) process: ImageProcess,
    /// Unpacked layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
}

/// What all containers of the pod share.
pub(crate) struct PodFiles {
    pub(crate) hostname: String,
    /// File names in `/etc` and their contents.
    pub(crate) etc: Vec<(&'static str, String)>,
    /// For `/etc/hosts` of containers that have their own.
    pub(crate) interfaces: Vec<Interface>,
}

/// The pod's containers.
pub(crate) struct Containers {
    reaper: Reaper,
    files: PodFiles,
    pub(crate) volumes: Volumes,
    disks: Disks,
    pod_namespace: PodNamespace,
    /// `None` while one is being created.
    all: Mutex<BTreeMap<String, Option<Arc<Container>>>>,
}

/// One container.
pub(crate) struct Container {
    id: String,
    name: Option<String>,
    image: String,
    folders: Folders,
    process: Arc<Process>,
    phase: Mutex<Phase>,
    execs: Mutex<BTreeMap<String, Option<Arc<Process>>>>,
}

impl Containers {
    pub(crate) fn new(reaper: Reaper, files: PodFiles) -> Self {
        Self {
            reaper,
            files,
            volumes: Volumes::new(),
            disks: Disks::default(),
            pod_namespace: PodNamespace::default(),
            all: Mutex::default(),
        }
    }

    /// The pod's host name.
    pub(crate) fn hostname(&self) -> &str {
        &self.files.hostname
    }

    /// Prepares a container; its process waits to be started.
    pub(crate) async fn create(
        &self,
        request: CreateContainer,
        image: ContainerImage,
    ) -> Result<(), Failure> {
        check_id("container", &request.id)?;
        let id = request.id.clone();
        self.reserve(&id)?;
        let folders = Folders::of(&id);
        let created = self.launch(request, image, &folders).await;
        if created.is_err() {
            // Best effort: the failure that led here is the one to report.
            let _ = kill_all(&folders);
            let _ = folders.remove(&id);
        }
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match created {
            Ok(container) => all.insert(id, Some(Arc::new(container))),
            Err(failure) => {
                all.remove(&id);
                return Err(failure);
            }
        };
        Ok(())
    }

    fn reserve(&self, id: &str) -> Result<(), Failure> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.contains_key(id) {
            return Err(failure(FailureKind::Conflict, format!("container {id:?} exists already")));
        }
        all.insert(id.into(), None);
        Ok(())
    }

    async fn launch(
        &self,
        request: CreateContainer,
        image: ContainerImage,
        folders: &Folders,
    ) -> Result<Container, Failure> {
        // Before anything waits: it is the container's that the policy has just seen by its name.
        let namespace = match &request.process_namespace {
            Some(processes) => Some(self.shared(processes).await?),
            None => None,
        };
        let volumes = self.find_volumes(&request.mounts, folders).await?;
        let devices = self.find_devices(&request.devices).await?;
        self.write_etc(&request, folders)?;
        let (id, name, reference) = (request.id.clone(), request.name.clone(), request.image.clone());
        let io = launch::Io::new(request.terminal.then(|| folders.console.clone()), request.stdin)?;
        let operation = helper::Operation::Create(Box::new(helper::Create {
            request,
            image: image.process,
            layers: image.layers,
            volumes,
            devices,
            process_namespace: namespace.as_ref().map(namespace::path),
            hostname: self.files.hostname.clone(),
        }));
        let process = Arc::new(launch::process(&self.reaper, &operation, io, folders).await?);
        if namespace.is_some() {
            tokio::spawn(end_with(process.clone(), folders.clone()));
        }
        Ok(Container {
            id,
            name,
            image: reference,
            folders: folders.clone(),
            process,
            phase: Mutex::new(Phase::Created),
            execs: Mutex::default(),
        })
    }

    async fn find_volumes(&self, mounts: &[Mount], folders: &Folders) -> Result<Vec<VolumeMount>, Failure> {
        let mut found = Vec::new();
        volumes::refuse_writable_files(mounts)?;
        for Mount { destination, read_only, source } in mounts {
            VolumeMount::check_destination(destination)
                .map_err(|error| failure(FailureKind::Invalid, error.to_string()))?;
            let volume = match source {
                MountSource::Disk { disk, file_system, group, .. } => {
                    self.disks.file_system(disk, file_system, *group).await?
                }
                MountSource::EmptyFile { .. } => {
                    termination_message::make(&folders.bundle).map_err(|error| {
                        let twice = "a container has one empty file";
                        match error.kind() {
                            io::ErrorKind::AlreadyExists => failure(FailureKind::Invalid, twice),
                            _ => internal("make the container's empty file", &error),
                        }
                    })?
                }
                of_guest => self.volumes.path(of_guest)?,
            };
            let of_disk = matches!(source, MountSource::Disk { .. });
            let path = match source.sub_path() {
                Some(path) => part(&volume, path, folders.parts.join(found.len().to_string())).await?,
                None => volume,
            };
            let destination = destination.clone();
            found.push(VolumeMount { destination, source: path, read_only: *read_only, of_disk });
        }
        Ok(found)
    }

    async fn find_devices(&self, devices: &[Device]) -> Result<Vec<DeviceNode>, Failure> {
        let mut found: Vec<DeviceNode> = Vec::new();
        for device in devices {
            if found.iter().any(|other| other.path == device.path) {
                let message = format!("there are two devices at {:?}", device.path);
                return Err(failure(FailureKind::Invalid, message));
            }
            found.push(self.disks.device(device).await?);
        }
        Ok(found)
    }

    fn write_etc(&self, request: &CreateContainer, folders: &Folders) -> Result<(), Failure> {
        let own_hosts = (!request.hosts.is_empty())
            .then(|| network::hosts(&self.files.hostname, &self.files.interfaces, &request.hosts))
            .transpose()
            .map_err(|error| failure(FailureKind::Invalid, error.to_string()))?;
        let write = || {
            fs::create_dir_all(&folders.etc)?;
            for (name, text) in &self.files.etc {
                let text = own_hosts.as_ref().filter(|_| *name == "hosts").unwrap_or(text);
                fs::write(folders.etc.join(name), text)?;
            }
            Ok(())
        };
        write().map_err(|error: io::Error| internal("prepare the container's files", &error))
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Failure> {
        let container = self.get(id)?;
        container.begin()?;
        let operation = helper::Operation::Start { id: id.into() };
        launch::alone(&self.reaper, &operation).await
    }

    /// Runs one more process in a container.
    pub(crate) async fn exec(&self, request: ExecProcess) -> Result<(), Failure> {
        check_id("exec", &request.exec)?;
        let container = self.get(&request.container)?;
        let id = request.exec.clone();
        container.reserve_exec(&id)?;
        let launched = async {
            let console = request.terminal.then(|| container.folders.exec_console());
            let io = launch::Io::new(console, request.stdin)?;
            let console = io.console();
            let kinds = [namespace::PROCESSES, namespace::MOUNTS, namespace::CONTROL_GROUPS];
            // They stay open here until the helper has opened them by their paths.
            let open = container.namespaces(kinds)?;
            let [processes, mounts, control_groups] = open.each_ref().map(namespace::path);
            let namespaces = Namespaces { processes, mounts, control_groups };
            let operation = helper::Operation::Exec { request: Box::new(request), namespaces, console };
            let launched = launch::process(&self.reaper, &operation, io, &container.folders).await;
            // Where the container has ended meanwhile, that is what to say.
            if launched.is_err() {
                container.namespaces([])?;
            }
            launched
        }
        .await;
        let mut execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        match launched {
            Ok(process) => execs.insert(id, Some(Arc::new(process))),
            Err(failure) => {
                execs.remove(&id);
                return Err(failure);
            }
        };
        Ok(())
    }

    /// Before the machine's end: ends all processes where there are disks that they may write to, and leaves those whole.
    pub(crate) async fn leave_disks(&self) {
        if !self.disks.are_used().await {
            return;
        }
        let all: Vec<_> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.values().flatten().cloned().collect()
        };
        for container in &all {
            // Those that do not end are told below.
            let _ = kill_all(&container.folders);
        }
        let ended = async {
            for container in &all {
                while control_group::has_processes(&container.folders.cgroup) {
                    tokio::time::sleep(MOMENT).await;
                }
            }
        };
        if tokio::time::timeout(END_LIMIT, ended).await.is_err() {
            tracing::warn!(limit = ?END_LIMIT, "some processes do not end, and may leave their disks unclean");
        }
        self.disks.leave().await;
    }

    pub(crate) fn list(&self) -> Vec<ContainerState> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().map(|container| container.state()).collect()
    }

    /// The process that a reference names.
    pub(crate) fn process(&self, reference: &ProcessRef) -> Result<Arc<Process>, Failure> {
        let container = self.get(&reference.container)?;
        let Some(exec) = &reference.exec else { return Ok(container.process.clone()) };
        let execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(exec).cloned().flatten().ok_or_else(|| {
            let message = format!("container {:?} has no exec {exec:?}", reference.container);
            failure(FailureKind::NotFound, message)
        })
    }

    /// Sends a signal to a process, or to all processes of its container.
    pub(crate) fn signal(&self, reference: &ProcessRef, signal: u8, all: bool) -> Result<(), Failure> {
        let signal = parse_signal(signal)?;
        let process = self.process(reference)?;
        if !all {
            return process.signal(signal);
        }
        let container = self.get(&reference.container)?;
        container.signal_all(signal).map_err(|error| internal("send the signal", &error))
    }

    /// Stops a container's processes where they are, or lets them go on.
    pub(crate) fn pause(&self, id: &str, paused: bool) -> Result<(), Failure> {
        self.get(id)?.pause(paused)
    }

    /// Changes a container's limits.
    pub(crate) fn update(&self, id: &str, resources: &Resources) -> Result<(), Failure> {
        control_group::update(&self.get(id)?.folders.cgroup, resources)
            .map_err(|error| internal("change the container's limits", &error))
    }

    /// What a container, or all of them, have used and use.
    pub(crate) fn statistics(&self, id: Option<&str>) -> Result<Statistics, Failure> {
        let group = match id {
            Some(id) => self.get(id)?.folders.cgroup.clone(),
            None => Path::new(POD_CGROUP).to_owned(),
        };
        match control_group::statistics(&group) {
            // The pod's group comes with its first container.
            Err(error) if error.kind() == io::ErrorKind::NotFound && id.is_none() => {
                Ok(Statistics::default())
            }
            other => other.map_err(|error| internal("read the statistics", &error)),
        }
    }

    /// What a container that has ended wrote into its empty file.
    pub(crate) fn termination_message(&self, id: &str) -> Result<TerminationMessage, Failure> {
        let container = self.get(id)?;
        if container.process.exit_status().is_none() {
            return Err(failure(FailureKind::Conflict, format!("container {id:?} has not ended")));
        }
        termination_message::read(&container.folders.bundle)
            .map_err(|error| internal("read the termination message", &error))
    }

    /// Ends what is left of an exec and forgets it.
    pub(crate) async fn remove_exec(&self, reference: &ProcessRef) -> Result<(), Failure> {
        let Some(exec) = &reference.exec else {
            return Err(failure(FailureKind::Invalid, "RemoveExec needs the exec's id"));
        };
        let process = self.process(reference)?;
        // One that has ended needs no signal.
        let _ = process.signal(Signal::KILL);
        process.wait().await?;
        let container = self.get(&reference.container)?;
        container.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec);
        Ok(())
    }

    /// Ends what is left of a container and forgets it.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Failure> {
        let container = self.get(id)?;
        container.end().await?;
        match self.all.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            // The id stays taken until its files are gone.
            Some(known) if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &container)) => {
                *known = None
            }
            // Another call has removed it, and the id may be another container's by now.
            _ => return Ok(()),
        }
        let folders = container.folders.clone();
        let name = id.to_owned();
        let removed = tokio::task::spawn_blocking(move || folders.remove(&name)).await;
        let removed = removed.map_err(io::Error::other).and_then(|removed| removed);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match removed {
            Ok(()) => drop(all.remove(id)),
            Err(_) => drop(all.insert(id.to_owned(), Some(container))),
        }
        removed.map_err(|error| internal("remove the container's files", &error))
    }

    fn get(&self, id: &str) -> Result<Arc<Container>, Failure> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| failure(FailureKind::NotFound, format!("there is no container {id:?}")))
    }
}

impl Container {
    fn state(&self) -> ContainerState {
        let phase = match self.process.exit_status() {
            Some(_) => Phase::Stopped,
            None => *self.phase.lock().unwrap_or_else(PoisonError::into_inner),
        };
        ContainerState { id: self.id.clone(), image: self.image.clone(), phase }
    }

    /// From created to running, once.
    fn begin(&self) -> Result<(), Failure> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase != Phase::Created || self.process.exit_status().is_some() {
            return Err(failure(
                FailureKind::Conflict,
                format!("container {:?} was started before", self.id),
            ));
        }
        *phase = Phase::Running;
        Ok(())
    }

    fn pause(&self, paused: bool) -> Result<(), Failure> {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) =
            if paused { (Phase::Running, Phase::Paused) } else { (Phase::Paused, Phase::Running) };
        if *phase != from || self.process.exit_status().is_some() {
            let message =
                format!("container {:?} is not {}", self.id, if paused { "running" } else { "paused" });
            return Err(failure(FailureKind::Conflict, message));
        }
        control_group::freeze(&self.folders.cgroup, paused)
            .map_err(|error| internal("pause or resume the container", &error))?;
        *phase = to;
        Ok(())
    }

    fn reserve_exec(&self, id: &str) -> Result<(), Failure> {
        if self.state().phase != Phase::Running {
            let message = format!("container {:?} is not running", self.id);
            return Err(failure(FailureKind::Conflict, message));
        }
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(id) {
            return Err(failure(FailureKind::Conflict, format!("exec {id:?} exists already")));
        }
        execs.insert(id.into(), None);
        Ok(())
    }

    fn signal_all(&self, signal: Signal) -> io::Result<()> {
        if signal == Signal::KILL {
            return kill_all(&self.folders);
        }
        let processes = fs::read_to_string(self.folders.cgroup.join("cgroup.procs"))?;
        for pid in processes.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
            // One that has just ended needs no signal.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    /// Kills all its processes and waits until they have ended.
    async fn end(&self) -> Result<(), Failure> {
        kill_all(&self.folders).map_err(|error| internal("end the container's processes", &error))?;
        self.process.wait().await?;
        // In a namespace of its own the others have ended by now; in a shared one they may take a moment more.
        let empty = async {
            while control_group::has_processes(&self.folders.cgroup) {
                tokio::time::sleep(MOMENT).await;
            }
        };
        if tokio::time::timeout(PATIENCE, empty).await.is_err() {
            let message = format!("processes of container {:?} do not end", self.id);
            return Err(failure(FailureKind::Internal, message));
        }
        let execs: Vec<_> = {
            let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            execs.values().flatten().cloned().collect()
        };
        for exec in execs {
            exec.wait().await?;
        }
        Ok(())
    }
}

/// Mounts a part of a volume at a place of its own; gives the place.
async fn part(volume: &Path, path: &str, place: PathBuf) -> Result<PathBuf, Failure> {
    let inside = volumes::check_path(path)?.to_owned();
    let (volume, to) = (volume.to_owned(), place.clone());
    let mounted = tokio::task::spawn_blocking(move || parts::mount(&volume, &inside, &to)).await;
    mounted.map_err(io::Error::other).and_then(|mounted| mounted).map_err(|error| {
        failure(FailureKind::Invalid, format!("{path:?} is no folder of the volume: {error}"))
            .hint("a subPath leads through folders only, never over a link")
    })?;
    Ok(place)
}

/// Ends a container's other processes with its own, as the kernel does where that is the first of its namespace.
async fn end_with(process: Arc<Process>, folders: Folders) {
    // The end of everything ends them too.
    if process.wait().await.is_ok()
        && let Err(error) = kill_all(&folders)
    {
        tracing::warn!(%error, "a container's processes outlive it");
    }
}

/// Kills all processes of a container at once, so that none can fork away.
fn kill_all(folders: &Folders) -> io::Result<()> {
    match fs::write(folders.cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Ids become file names and cgroup names.
fn check_id(what: &str, id: &str) -> Result<(), Failure> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match starts_well && id.len() <= 128 && id.bytes().all(valid) {
        true => Ok(()),
        false => Err(failure(FailureKind::Invalid, format!("{what} id {id:?} is not allowed"))
            .hint("ids are 1 to 128 letters, digits, '_', '.' and '-', the first a letter or digit")),
    }
}

fn parse_signal(number: u8) -> Result<Signal, Failure> {
    let number = i32::from(number);
    match number {
        // SAFETY: these are signal numbers. That this process's own libc reserves some of them is no matter:
        // the signal is only ever sent to a process of a container.
        32..=64 => Ok(unsafe { Signal::from_raw_unchecked(number) }),
        _ => Signal::from_named_raw(number)
            .ok_or_else(|| failure(FailureKind::Invalid, format!("there is no signal {number}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_lead_elsewhere() {
        for id in ["a", "A1_b.c-d", &"a".repeat(128)] {
            assert!(check_id("container", id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "../a", "a/b", "-a", "_a", "a b", "a\0", "\u{e4}", &"a".repeat(129)] {
            assert!(check_id("container", id).is_err(), "{id}");
        }
    }

    #[test]
    fn signals_are_those_of_linux() {
        assert_eq!(parse_signal(15).unwrap(), Signal::TERM);
        assert!(parse_signal(34).is_ok());
        assert!(parse_signal(0).is_err());
        assert!(parse_signal(65).is_err());
    }
}
