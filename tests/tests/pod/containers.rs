//! What a container is, has and may.

use std::os::unix::fs::symlink;

use sealpod_agent_protocol::{
    ContainerRef, CreateContainer, FailureKind, Mount, MountSource, Phase, ProcessRef, Reply, Request,
    Resources, SignalProcess,
};
use sealpod_tests::ImageOptions;

use crate::world::World;

pub(crate) async fn a_container_lives_and_ends_as_its_phases_say(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "echo why > /message; sleep 1000";
    let container = CreateContainer { mounts: vec![message("/message")], ..pod.container(&image, script) };
    let id = container.id.clone();
    let phase = async || match pod.done(Request::ListContainers).await {
        Reply::Containers(all) => all.into_iter().find(|container| container.id == id).map(|it| it.phase),
        other => panic!("{other:?}"),
    };
    assert_eq!(phase().await, None);
    pod.done(Request::CreateContainer(Box::new(container.clone()))).await;
    assert_eq!(phase().await, Some(Phase::Created));
    let reference = ContainerRef { container: id.clone() };
    pod.done(Request::StartContainer(reference.clone())).await;
    assert_eq!(phase().await, Some(Phase::Running));

    // Neither a second start nor a second container of the same name, nor why it ended before it has.
    assert_eq!(pod.refused(Request::StartContainer(reference.clone())).await.kind, FailureKind::Conflict);
    let why = Request::ReadTerminationMessage(reference);
    assert_eq!(pod.refused(why.clone()).await.kind, FailureKind::Conflict);
    let again = pod.refused(Request::CreateContainer(Box::new(container.clone()))).await;
    assert_eq!(again.kind, FailureKind::Conflict);

    let process = ProcessRef { container: id.clone(), exec: None };
    let kill = SignalProcess { process: process.clone(), signal: 9, all: false };
    pod.done(Request::SignalProcess(kill)).await;
    match pod.done(Request::WaitProcess(process)).await {
        Reply::Exit(status) => assert_eq!((status.code, status.out_of_memory), (137, false)),
        other => panic!("{other:?}"),
    }
    assert_eq!(phase().await, Some(Phase::Stopped));
    assert!(matches!(pod.done(why).await, Reply::TerminationMessage(_)));
    pod.remove(&id).await;
    assert_eq!(phase().await, None);

    // The name is free again.
    let exited = pod.run(CreateContainer { command: None, ..container }, None).await;
    assert_eq!(exited.status.code, 0);
}

/// A container's empty file.
fn message(destination: &str) -> Mount {
    let source = MountSource::EmptyFile { volume: "message".into() };
    Mount { destination: destination.into(), read_only: false, source }
}

pub(crate) async fn two_containers_share_network_and_memory_but_not_processes_and_files(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "echo from the first > /dev/shm/note; readlink /proc/self/ns/ipc > /dev/shm/ipc
        touch /dev/mqueue/queue; echo mine > /tmp/mine; cd /tmp; httpd -f -p 8123";
    let server = pod.spawn(pod.container(&image, script)).await;
    let script = "until wget -q -O - http://127.0.0.1:8123/mine; do sleep 0.1; done
        cat /dev/shm/note; readlink /proc/self/ns/ipc | cmp - /dev/shm/ipc && ls /dev/mqueue
        ls /tmp; ps -o comm | grep -c httpd; hostname; rm /dev/shm/note /dev/shm/ipc /dev/mqueue/queue";
    let client = pod.sh(&image, script).await;
    assert_eq!(client.stdout, "mine\nfrom the first\nqueue\n0\npod-under-test\n", "{}", client.stderr);
    pod.remove(&server).await;
}

pub(crate) async fn the_image_says_user_folder_environment_and_command(world: &World) {
    let owner = world.owner();
    let build = [
        "--entrypoint",
        "/bin/sh",
        "--entrypoint",
        "-c",
        "--cmd",
        "id -un; pwd; echo $COLOUR $MORE $HOME; touch made && ls",
        "--env",
        "COLOUR=green",
        "--user",
        "app",
        "--workdir",
        "/home/app/new",
    ];
    // The working directory does not exist in the image; whoever runs in it gets one.
    let image =
        owner.publish("app", world.root(), &ImageOptions { build: &build, ..ImageOptions::default() });
    let pod = world.pod().await;
    pod.pull(&image).await;
    let as_it_is = CreateContainer { id: pod.new_id(), image: image.clone(), ..CreateContainer::default() };
    let exited = pod.run(as_it_is.clone(), None).await;
    assert!(exited.stdout.starts_with("app\n/home/app/new\ngreen /home/app\n"), "{exited:?}");

    let changed = CreateContainer {
        id: pod.new_id(),
        arguments: Some(vec!["id -u; pwd; echo $COLOUR $MORE".into()]),
        environment: [("COLOUR", "red"), ("MORE", "also")]
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
        user: Some("0".into()),
        working_directory: Some("/work".into()),
        ..as_it_is
    };
    assert_eq!(pod.run(changed, None).await.stdout, "0\n/work\nred also\n");
}

pub(crate) async fn users_and_groups_are_those_of_the_image(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let as_user = async |user: &str| {
        let container = pod.container(&image, "id -u; id -g; id -G");
        pod.run(CreateContainer { user: Some(user.into()), ..container }, None).await.stdout
    };
    assert_eq!(as_user("app").await, "1000\n1001\n1001 29\n");
    assert_eq!(as_user("1000").await, "1000\n1001\n1001 29\n");
    // The user's other groups are the user's, whichever group is the first.
    assert_eq!(as_user("app:audio").await, "1000\n29\n29\n");
    assert_eq!(as_user("1000:5000").await, "1000\n5000\n5000 29\n");
    assert_eq!(as_user("4000:5000").await, "4000\n5000\n5000\n");
    let nobody = CreateContainer { user: Some("nobody-here".into()), ..pod.container(&image, "id") };
    let failure = pod.refused(Request::CreateContainer(Box::new(nobody))).await;
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(failure.message.contains("nobody-here"), "{failure}");
}

pub(crate) async fn volumes_are_where_the_images_links_lead(world: &World) {
    let owner = world.owner();
    let root = owner.root("links");
    for (link, target) in [("a", "data"), ("system", "proc/sys")] {
        symlink(format!("/{target}"), root.join(link)).unwrap();
    }
    let image = owner.publish("links", &root, &ImageOptions::default());
    let pod = world.pod().await;
    pod.pull(&image).await;
    let empty = |volume: &str, destination: &str| Mount {
        destination: destination.into(),
        read_only: false,
        source: MountSource::Empty {
            volume: format!("links-{volume}"),
            size_bytes: None,
            group: None,
            sub_path: None,
        },
    };
    let container =
        |script: &str, mounts: Vec<Mount>| CreateContainer { mounts, ..pod.container(&image, script) };
    let inside = || vec![empty("inner", "/a/x"), empty("outer", "/data")];
    let script = "echo inner > /data/x/note; echo outer > /a/note; cat /a/x/note /data/note; grep -c ' /data' /proc/mounts";
    assert_eq!(pod.run(container(script, inside()), None).await.stdout, "inner\nouter\n2\n");
    for mounts in
        [vec![empty("inner", "/a"), empty("outer", "/data")], vec![empty("inner", "/system/kernel")]]
    {
        let refused = pod.refused(Request::CreateContainer(Box::new(container("true", mounts)))).await;
        assert_eq!(refused.kind, FailureKind::Invalid, "{refused}");
        assert!(refused.message.contains("in the image"), "{refused}");
    }
    // Who shares the volume cannot lead another's mount out of it.
    let script = "rmdir /data/x && ln -s ../bin /data/x";
    assert_eq!(pod.run(container(script, vec![empty("outer", "/data")]), None).await.status.code, 0);
    let refused = pod.refused(Request::CreateContainer(Box::new(container("true", inside())))).await;
    assert_eq!(refused.kind, FailureKind::Invalid, "{refused}");
    assert!(refused.message.contains("inside the volume"), "{refused}");
}

pub(crate) async fn root_in_a_container_has_few_capabilities_and_gains_none(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script =
        "grep -E '^(CapInh|CapPrm|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d ' \\t'
        mount -t tmpfs none /tmp 2>&1; mknod /tmp/null c 1 3 2>&1; ping -c 1 127.0.0.1 2>&1 | tail -n 1
        ip link set lo down 2>&1; chroot / true && echo chroot";
    let exited = pod.sh(&image, script).await;
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
    let capabilities =
        1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1u64 << 31;
    for line in [
        "CapInh:0000000000000000".to_owned(),
        format!("CapPrm:{capabilities:016x}"),
        format!("CapBnd:{capabilities:016x}"),
        "CapAmb:0000000000000000".to_owned(),
        "NoNewPrivs:1".to_owned(),
        "Seccomp:2".to_owned(),
    ] {
        assert!(exited.stdout.lines().any(|it| it == line), "{line} is missing in {}", exited.stdout);
    }
    assert_eq!(exited.stdout.matches("ermi").count(), 4, "{}", exited.stdout);
    assert!(exited.stdout.ends_with("chroot\n"), "{}", exited.stdout);
}

pub(crate) async fn what_reveals_or_tunes_the_guest_is_hidden(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "wc -c < /proc/kcore; wc -c < /proc/keys; ls /sys/firmware | wc -l
        ls /dev | tr '\\n' ' '; echo
        echo 1 > /proc/sys/vm/overcommit_memory; echo b > /proc/sysrq-trigger; echo 1 > /sys/kernel/mm/ksm/run
        ls /sys/fs/cgroup | grep -c memory.max; echo 1 > /sys/fs/cgroup/cgroup.procs";
    let exited = pod.sh(&image, script).await;
    let lines: Vec<_> = exited.stdout.lines().collect();
    assert_eq!(lines[..3], ["0", "0", "0"], "{exited:?}");
    // Neither the TPM nor the console nor the channel to the host.
    assert_eq!(
        lines[3].trim(),
        "fd full kcore mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
        "{exited:?}"
    );
    assert_eq!(exited.stderr.matches("Read-only file system").count(), 4, "{exited:?}");
}

pub(crate) async fn a_read_only_root_stays_as_it_is(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "touch /new; touch /tmp/new; echo x >> /etc/hosts; echo x > /dev/shm/x && rm /dev/shm/x";
    let container = CreateContainer { read_only_root: true, ..pod.container(&image, script) };
    let exited = pod.run(container, None).await;
    assert_eq!(exited.stderr.matches("Read-only file system").count(), 3, "{exited:?}");
    assert_eq!(exited.status.code, 0);
}

pub(crate) async fn a_container_that_takes_too_much_memory_is_killed_and_it_is_said(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let limited = |script: &str| CreateContainer {
        resources: Resources { memory_bytes: Some(24 << 20), ..Resources::default() },
        ..pod.container(&image, script)
    };
    let exited = pod.run(limited("exec tail /dev/zero"), None).await;
    assert_eq!((exited.status.code, exited.status.out_of_memory), (137, true));
    // Whoever is killed by its own hand did not lack memory.
    let exited = pod.run(limited("sh -c 'kill -9 $$'; exit $?"), None).await;
    assert_eq!((exited.status.code, exited.status.out_of_memory), (137, false));
}

pub(crate) async fn a_limit_on_processes_holds(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; echo all";
    let container = CreateContainer {
        resources: Resources { pids: Some(4), ..Resources::default() },
        ..pod.container(&image, script)
    };
    let exited = pod.run(container, None).await;
    assert!(exited.stderr.contains("can't fork"), "{exited:?}");
    assert_eq!(exited.stdout, "");
}

pub(crate) async fn names_resolve_as_the_pod_says(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script =
        "cat /etc/hostname; grep database /etc/hosts; grep -c '^nameserver 10.0.2.3' /etc/resolv.conf
        grep pod-under-test /etc/hosts | wc -l";
    let exited = pod.sh(&image, script).await;
    assert_eq!(exited.stdout, "pod-under-test\n192.0.2.7 database\n1\n1\n");
}

pub(crate) async fn requests_that_make_no_sense_are_refused_by_kind(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let good = pod.container(&image, "true");
    let invalid: [fn(&mut CreateContainer); 6] = [
        |it| it.id = "../escape".into(),
        |it| it.id = String::new(),
        |it| it.working_directory = Some("relative".into()),
        |it| drop(it.environment.insert("A=B".into(), "c".into())),
        |it| it.command = Some(vec!["/bin/echo".into(), "nul\0".into()]),
        |it| it.mounts = vec![message("/a"), message("/b")],
    ];
    for change in invalid {
        let mut container = good.clone();
        change(&mut container);
        let request = Request::CreateContainer(Box::new(container.clone()));
        assert_eq!(pod.refused(request).await.kind, FailureKind::Invalid, "{container:?}");
    }
    let unknown = CreateContainer { image: "registry.example/never:1".into(), ..good.clone() };
    let failure = pod.refused(Request::CreateContainer(Box::new(unknown))).await;
    assert_eq!(failure.kind, FailureKind::NotFound);
    let nobody = ContainerRef { container: "nobody".into() };
    assert_eq!(pod.refused(Request::StartContainer(nobody)).await.kind, FailureKind::NotFound);
    // What failed left nothing: the same name works.
    assert_eq!(pod.run(good, None).await.status.code, 0);
}
