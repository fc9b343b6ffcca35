use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::*;

pub(crate) fn image() -> ImageProcess {
    ImageProcess {
        entrypoint: vec!["/entry".into()],
        command: vec!["serve".into()],
        environment: vec!["A=1".into(), "PATH=/bin".into()],
        working_directory: "/srv".into(),
        user: "app".into(),
    }
}

fn request() -> CreateContainer {
    CreateContainer { id: "c1".into(), image: "i".into(), ..CreateContainer::default() }
}

fn user() -> User {
    User { uid: 1000, gid: 1001, additional_gids: vec![29], home: "/home/app".into() }
}

pub(crate) fn list(words: &[&str]) -> Option<Vec<String>> {
    Some(words.iter().map(ToString::to_string).collect())
}

fn main(change: impl FnOnce(&mut CreateContainer)) -> Process {
    let mut request = request();
    change(&mut request);
    Process::main(&image(), &request, "pod").unwrap()
}

/// Without volumes.
fn bare(request: &CreateContainer, process: &Process) -> Value {
    let places = Places { volumes: &[], etc: &[], devices: &[], folders: &Folders::of(&request.id) };
    container(request, process, &user(), places, None).unwrap()
}

fn specification(change: impl FnOnce(&mut CreateContainer)) -> Spec {
    let mut request = request();
    change(&mut request);
    let process = Process::main(&image(), &request, "pod").unwrap();
    let volume = VolumeMount {
        destination: "/data".into(),
        source: "/volume".into(),
        read_only: true,
        of_disk: false,
    };
    let etc = [("hosts", "/etc/hosts".to_owned())];
    let devices = [DeviceNode { path: "/dev/xvda".into(), major: 254, minor: 16, user: 0, group: 6 }];
    let folders = Folders::of(&request.id);
    let places = Places { volumes: &[volume], etc: &etc, devices: &devices, folders: &folders };
    let json = container(&request, &process, &user(), places, None);
    serde_json::from_value(json.unwrap()).unwrap()
}

#[test]
fn command_and_arguments_replace_entrypoint_and_command() {
    assert_eq!(main(|_| ()).arguments, ["/entry", "serve"]);
    assert_eq!(main(|r| r.arguments = list(&["check"])).arguments, ["/entry", "check"]);
    assert_eq!(main(|r| r.command = list(&["sh"])).arguments, ["sh"]);
    let both = main(|r| {
        r.command = list(&["sh"]);
        r.arguments = list(&["-c", "id"]);
    });
    assert_eq!(both.arguments, ["sh", "-c", "id"]);
    assert_eq!(main(|r| r.arguments = list(&[])).arguments, ["/entry", "serve"]);
}

#[test]
fn an_image_without_a_command_needs_one() {
    let image = ImageProcess::default();
    assert!(matches!(Process::main(&image, &request(), "pod"), Err(Error::NoCommand)));
}

#[test]
fn the_environment_is_the_images_and_what_was_added() {
    let process = main(|r| {
        r.environment = [("A".into(), "2".into()), ("B".into(), "3=4".into())].into();
    });
    assert_eq!(process.environment, ["PATH=/bin", "A=2", "B=3=4", "HOSTNAME=pod"]);
}

#[test]
fn defaults_fill_what_the_image_leaves_out() {
    let image = ImageProcess { command: vec!["sh".into()], ..ImageProcess::default() };
    let process = Process::main(&image, &CreateContainer { terminal: true, ..request() }, "pod").unwrap();
    assert_eq!(process.working_directory, "/");
    assert!(process.environment.contains(&format!("PATH={DEFAULT_PATH}")));
    assert!(process.environment.contains(&"TERM=xterm".into()));
    let json = process.to_json(&(&user()).into(), &Privileges::of_request(&request()).unwrap());
    assert!(strings(&json["env"]).contains(&"HOME=/home/app".into()));
}

#[test]
fn what_cannot_be_is_refused() {
    let changes: [fn(&mut CreateContainer); 6] = [
        |r| r.command = list(&["sh\0"]),
        |r| r.command = list(&[""]),
        |r| r.working_directory = Some("relative".into()),
        |r| r.working_directory = Some("/a\0b".into()),
        |r| r.environment = [("A=B".into(), "C".into())].into(),
        |r| r.environment = [("A".into(), "\0".into())].into(),
    ];
    for change in changes {
        let mut request = request();
        change(&mut request);
        assert!(Process::main(&image(), &request, "pod").is_err(), "{request:?}");
    }
}

#[test]
fn a_container_has_namespaces_of_its_own_but_the_pods_network() {
    let spec = specification(|_| ());
    let namespaces: Vec<_> =
        spec.linux().as_ref().unwrap().namespaces().iter().flatten().map(|ns| ns.typ()).collect();
    use LinuxNamespaceType::{Cgroup, Mount, Pid};
    assert_eq!(namespaces, [Pid, Mount, Cgroup]);
}

#[test]
fn privileges_are_limited() {
    let spec = specification(|_| ());
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.no_new_privileges(), Some(true));
    let capabilities = process.capabilities().as_ref().unwrap();
    assert_eq!(capabilities.bounding().as_ref().unwrap().len(), CAPABILITIES.len());
    assert!(capabilities.ambient().is_none());
    assert!(capabilities.inheritable().is_none());
    for name in ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"] {
        assert!(!CAPABILITIES.contains(&name), "{name}");
    }
    // Engines ask for it on everybody's behalf.
    let asked = ["CAP_MKNOD", "CAP_KILL"].map(str::to_owned);
    let spec_of_engine = specification(|request| request.capabilities = Some(asked.into()));
    let given = spec_of_engine.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding();
    assert_eq!(given.as_ref().unwrap().len(), 1, "{given:?}");
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".into()));
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".into()));
    assert_eq!(process.user().uid(), 1000);
    assert_eq!(process.user().additional_gids().as_deref(), Some([29, 1001].as_slice()));
}

#[test]
fn sys_and_cgroups_are_read_only() {
    let spec = specification(|_| ());
    for path in ["/sys", "/sys/fs/cgroup"] {
        let mount = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new(path)).unwrap();
        assert!(mount.options().as_ref().unwrap().contains(&"ro".into()), "{path}");
    }
}

#[test]
fn a_read_only_root_has_read_only_files_in_etc() {
    let spec = specification(|r| r.read_only_root = true);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    let hosts = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/etc/hosts")).unwrap();
    assert!(hosts.options().as_ref().unwrap().contains(&"ro".into()));
}

#[test]
fn privileges_are_those_that_were_asked_for() {
    let asked: BTreeSet<String> = ["CAP_NET_RAW".to_owned()].into();
    let spec = specification(|r| {
        r.capabilities = Some(asked.clone());
        r.allow_privilege_escalation = true;
        r.supplemental_groups = [29, 4000].into();
    });
    let process = spec.process().as_ref().unwrap();
    let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
    assert_eq!(bounding.len(), 1);
    // The runtime filters before it drops what it takes to do so.
    assert_eq!(process.no_new_privileges(), None);
    assert!(spec.linux().as_ref().unwrap().seccomp().is_some());
    assert_eq!(process.user().additional_gids().as_deref(), Some([29, 1001, 4000].as_slice()));

    let none = Privileges::of_request(&CreateContainer { capabilities: Some([].into()), ..request() });
    assert!(none.unwrap().capabilities.is_empty());
    let unknown = CreateContainer { capabilities: Some(["NET_RAW".into()].into()), ..request() };
    assert!(matches!(Privileges::of_request(&unknown), Err(Error::Capability(_))));
}

#[test]
fn privileged_means_all_within_the_guest() {
    let request = CreateContainer { privileged: true, ..request() };
    let main = Process::main(&image(), &request, "pod").unwrap();
    let json = bare(&request, &main);
    let spec: Spec = serde_json::from_value(json.clone()).unwrap();
    let linux = spec.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none());
    assert!(linux.masked_paths().as_ref().unwrap().is_empty());
    assert_eq!(Privileges::of_exec(&json), Privileges::of_request(&request).unwrap());
    let sys = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/sys")).unwrap();
    assert!(sys.options().as_ref().unwrap().contains(&"rw".into()));
}

#[test]
fn execs_of_a_container_never_gain_privileges() {
    let request = CreateContainer { allow_privilege_escalation: true, ..request() };
    let main = Process::main(&image(), &request, "pod").unwrap();
    let json = bare(&request, &main);
    assert_eq!(Privileges::of_exec(&json).filter, Filter::AtTheEnd);
}

#[test]
fn volumes_come_last_and_hide_nothing_of_the_kernels() {
    let spec = specification(|_| ());
    let last = spec.mounts().as_ref().unwrap().last().unwrap().clone();
    assert_eq!(last.destination(), Path::new("/data"));
    assert!(last.options().as_ref().unwrap().contains(&"ro".into()));
    for destination in ["/data", "/a/b", "/dev/termination-log", "/dev/shm", "/etc/hosts", "/process"] {
        VolumeMount::check_destination(destination).unwrap();
    }
    for destination in
        ["", "/", "data", "/../etc", "/a/../b", "/proc", "/proc/sys", "/sys/fs", "/dev", "/dev/pts/", "/a\0"]
    {
        assert!(VolumeMount::check_destination(destination).is_err(), "{destination:?}");
    }
}

#[test]
fn a_device_is_its_owners() {
    let spec = specification(|_| ());
    let device = &spec.linux().as_ref().unwrap().devices().as_ref().unwrap()[0];
    assert_eq!((device.path().as_path(), device.major(), device.minor()), (Path::new("/dev/xvda"), 254, 16));
    assert_eq!((device.file_mode(), device.uid(), device.gid()), (Some(0o660), Some(0), Some(6)));
}

#[test]
fn limits_become_cgroup_settings() {
    let spec = specification(|r| {
        r.resources = Resources {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(1500),
            pids: Some(10),
            ..Resources::default()
        };
    });
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().clone();
    assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(150_000));
    assert_eq!(resources.cpu().as_ref().unwrap().period(), Some(100_000));
    assert_eq!(resources.pids().as_ref().unwrap().limit(), 10);
    let none = specification(|_| ());
    let resources = none.linux().as_ref().unwrap().resources().as_ref().unwrap().clone();
    assert!(resources.memory().is_none() && resources.cpu().is_none() && resources.pids().is_none());
}

#[test]
fn an_exec_inherits_from_its_container() {
    let request = request();
    let main = Process::main(&image(), &request, "pod").unwrap();
    let specification = bare(&request, &main);
    let mut exec = ExecProcess { command: vec!["id".into()], ..ExecProcess::default() };
    exec.environment.insert("A".into(), "9".into());
    let process = Process::exec(&specification, &exec).unwrap();
    assert_eq!(process.arguments, ["id"]);
    assert_eq!(process.working_directory, "/srv");
    assert!(process.environment.contains(&"A=9".into()));
    assert!(process.environment.contains(&"HOME=/home/app".into()));
    let privileges = Privileges::of_exec(&specification);
    assert_eq!(privileges, Privileges::of_request(&request).unwrap());
    let json = process.to_json(&UserJson::of_container(&specification), &privileges);
    assert_eq!(json["user"]["uid"], 1000);
    exec.user = Some("root".into());
    let process = Process::exec(&specification, &exec).unwrap();
    assert!(!process.environment.iter().any(|variable| variable.starts_with("HOME=")));
}
