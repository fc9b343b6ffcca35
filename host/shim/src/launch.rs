//! The short-lived calls of the shim: `start` leaves a process that serves the pod, `delete` tidies up after one.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};

use crate::bootstrap;
use crate::cgroup::Cgroup;
use crate::command_line::CommandLine;
use crate::error::Error;
use crate::process::{Exit, KILLED};
use crate::specification::{self, Kind};

/// Where sockets and VMs' folders are.
pub(crate) const RUNTIME_FOLDER: &str = "/run/sealpod";
/// The file of a bundle by which containerd, and the pod's other containers, find the shim again.
const ADDRESS: &str = "address";
/// Socket addresses have 108 bytes.
const LONGEST_ID: usize = 76;
/// How long a shim that was killed, and then its VM, may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(5);

/// Gives the address of the pod's shim, which it starts for the pod's sandbox, in the form that containerd understands.
///
/// # Errors
/// If the bundle cannot be read, or the shim does not begin to serve.
pub fn start(line: &CommandLine) -> Result<String, Error> {
    let bundle = bundle(line)?;
    let spec = specification::read(&bundle)?;
    let role = specification::role(&spec, &line.id)?;
    let address = match role.kind {
        Kind::Sandbox => spawn(line, &bundle)?,
        Kind::Container => address_of(&bundle, &line.id, &role.sandbox)?,
    };
    std::fs::write(bundle.join(ADDRESS), &address)
        .map_err(Error::io("cannot write the bundle's address file"))?;
    Ok(bootstrap::start_answer(&address, std::env::var(bootstrap::MAX_SHIM_VERSION).ok().as_deref()))
}

/// Removes what a container's shim left that is gone, and says how the container ended.
///
/// It is called for containers too whose pod's shim still serves; then there is nothing to do.
///
/// # Errors
/// If the answer cannot be written.
pub fn delete(line: &CommandLine) -> Result<Vec<u8>, Error> {
    let bundle = bundle(line)?;
    if let Ok(spec) = specification::read(&bundle)
        && specification::role(&spec, &line.id).is_ok_and(|role| role.kind == Kind::Sandbox)
    {
        sockets().filter(|(_, id, _)| *id == line.id).for_each(|(pid, ..)| wait_for_end(pid));
        remove_abandoned();
        // Nothing else of the specification matters any more, nor whether it can be read.
        if let Some(group) = control_group(&spec) {
            let group = Cgroup::find(group);
            wait_for_emptiness(&group);
            group.remove();
        }
    }
    let exit = Exit::now(KILLED);
    let response =
        DeleteResponse { exit_status: exit.code, exited_at: exit.timestamp(), ..DeleteResponse::default() };
    response.write_to_bytes().map_err(|error| Error::Invalid(error.to_string()))
}

/// The pod's control group on this machine, as the engine wrote it.
fn control_group(spec: &Spec) -> Option<&Path> {
    spec.linux().as_ref()?.cgroups_path().as_deref()
}

/// The engine's working directory for both calls is the bundle.
fn bundle(line: &CommandLine) -> Result<PathBuf, Error> {
    match &line.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => std::env::current_dir().map_err(Error::io("there is no working directory")),
    }
}

/// Bundles differ in the container's id: `<namespace>/<id>` under containerd, `<id>/userdata` under CRI-O.
fn address_of(bundle: &Path, id: &str, sandbox: &str) -> Result<String, Error> {
    let plain = !sandbox.is_empty() && !sandbox.contains(['/', '\0']) && !sandbox.starts_with('.');
    let mut words: Vec<_> = bundle.iter().collect();
    let own = words.iter_mut().rev().find(|word| **word == id).filter(|_| plain);
    *own.ok_or_else(|| Error::Invalid(format!("{sandbox:?} is no sandbox's id")))? = sandbox.as_ref();
    let file = words.into_iter().collect::<PathBuf>().join(ADDRESS);
    let address = std::fs::read_to_string(&file)
        .map_err(Error::io(format!("the pod's shim cannot be found by {}", file.display())))?;
    // Another runtime's shim would not ask whether the container is of its pod.
    let ours = format!("{UNIX}{RUNTIME_FOLDER}/");
    match address.starts_with(&ours) {
        true => Ok(address),
        false => Err(Error::Invalid(format!("the pod {sandbox:?} is another runtime's"))),
    }
}

/// Starts the process that serves, and waits until it does.
fn spawn(line: &CommandLine, bundle: &Path) -> Result<String, Error> {
    if line.id.len() > LONGEST_ID || line.id.contains('/') {
        return Err(Error::Invalid(format!("{:?} cannot be a pod's id", line.id)));
    }
    make_folder(Path::new(RUNTIME_FOLDER))?;
    remove_abandoned();
    let program = std::env::current_exe().map_err(Error::io("cannot find this program"))?;
    let mut serve = Command::new(program);
    serve.args(["-namespace", &line.namespace, "-id", &line.id, "-address", &line.address]);
    if line.debug {
        serve.arg("-debug");
    }
    serve.arg("serve").current_dir(bundle).env("XDG_RUNTIME_DIR", RUNTIME_FOLDER);
    serve.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log(bundle)).process_group(0);
    let mut child = serve.spawn().map_err(Error::io("cannot start the pod's shim"))?;
    let mut address = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut address).map_err(Error::io("cannot hear the pod's shim"))?;
    }
    match address.trim() {
        "" => {
            let status = child.wait().map_err(Error::io("cannot hear of the shim's end"))?;
            // containerd has not heard of this shim, and does not tidy up after it.
            remove_abandoned();
            Err(Error::Invalid(format!(
                "the pod's shim ended at once ({status}); the log of containerd or CRI-O has its reason"
            )))
        }
        address => Ok(address.into()),
    }
}

/// The engine reads a FIFO in the bundle into its own log. Where it does not, lines are lost rather than waited for: CRI-O
/// does not come back to it when it starts anew.
fn log(bundle: &Path) -> Stdio {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(bundle.join("log"), flags, Mode::empty()).map_or_else(|_| Stdio::null(), Stdio::from)
}

/// A folder that only root can enter.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Error> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(Error::io(format!("cannot make {}", folder.display())))
}

/// What the address of a socket with a path begins with.
pub(crate) const UNIX: &str = "unix://";

/// Where the shim of a pod listens. The process's id makes it new each time.
pub(crate) fn socket(id: &str) -> PathBuf {
    Path::new(RUNTIME_FOLDER).join(format!("{}-{id}", std::process::id()))
}

/// The sockets of shims: each with the process that made it, and its pod's id.
fn sockets() -> impl Iterator<Item = (u32, String, PathBuf)> {
    let entries = std::fs::read_dir(RUNTIME_FOLDER).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = entry.file_name();
        let (pid, id) = name.to_str()?.split_once('-')?;
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        is_socket.then_some((pid.parse().ok()?, id.to_owned(), entry.path()))
    })
}

/// Removes what shims and their VMs left that were killed.
fn remove_abandoned() {
    sealpod_sandbox::remove_abandoned(Path::new(RUNTIME_FOLDER));
    for (_, _, path) in sockets().filter(|(pid, ..)| sealpod_sandbox::has_ended(*pid)) {
        // Who is in another process namespace listens still.
        let heard = UnixStream::connect(&path);
        if heard.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            // Somebody else may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// containerd hears of a shim's end before the process has come to it.
fn wait_for_end(process: u32) {
    let began = Instant::now();
    while !sealpod_sandbox::has_ended(process) && began.elapsed() < PATIENCE {
        std::thread::sleep(MOMENT);
    }
}

/// The VM ends with its shim, but not in the same moment, and a group that has processes cannot be removed.
fn wait_for_emptiness(group: &Cgroup) {
    let began = Instant::now();
    let files = group.procs();
    let has_processes =
        |file: &PathBuf| std::fs::read_to_string(file).is_ok_and(|processes| !processes.trim().is_empty());
    while files.iter().any(has_processes) && began.elapsed() < PATIENCE {
        std::thread::sleep(MOMENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_finds_its_pods_shim_by_its_own_bundle() {
        for userdata in ["", "userdata"] {
            let root = tempfile::tempdir().unwrap();
            let bundle = |id: &str| root.path().join(id).join(userdata);
            for id in ["pod", "web"] {
                std::fs::create_dir_all(bundle(id)).unwrap();
            }
            std::fs::write(bundle("pod").join(ADDRESS), "unix:///run/sealpod/7-pod").unwrap();
            assert_eq!(address_of(&bundle("web"), "web", "pod").unwrap(), "unix:///run/sealpod/7-pod");
            for sandbox in ["", "..", "../pod", "gone"] {
                assert!(address_of(&bundle("web"), "web", sandbox).is_err(), "{sandbox:?}");
            }
            assert!(address_of(&bundle("web"), "other", "pod").is_err());
            std::fs::write(bundle("pod").join(ADDRESS), "unix:///run/vc/7-pod").unwrap();
            assert!(address_of(&bundle("web"), "web", "pod").is_err(), "another runtime's");
        }
    }

    #[test]
    fn a_pods_control_group_is_known_by_a_specification_that_cannot_be_used() {
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [{"destination": "/etc/resolv.conf", "type": "bind", "source": "/gone/resolv.conf"}],
            "annotations": {"io.katacontainers.config.hypervisor.cc_init_data": "broken"},
            "linux": {"cgroupsPath": "/kubepods/pod1/abc", "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "network", "path": "/gone/netns"}
            ]}
        });
        let spec: Spec = serde_json::from_value(spec).unwrap();
        assert!(specification::pod(&spec).is_err());
        assert_eq!(control_group(&spec), Some(Path::new("/kubepods/pod1/abc")));
    }

    #[test]
    fn a_sockets_path_is_not_too_long() {
        assert!(socket(&"a".repeat(LONGEST_ID)).as_os_str().len() < 108);
    }
}
