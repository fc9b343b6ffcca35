//! Processes: streams, ends, signals, terminals, execs.

use sealpod_agent_protocol::{
    ByteStream, CreateContainer, ExecProcess, FailureKind, ProcessRef, Reply, Request, ResizeTerminal,
    SignalProcess,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::World;

pub(crate) async fn exit_codes_and_signals_come_through(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    for code in [0, 7, 255] {
        assert_eq!(pod.sh(&image, &format!("exit {code}")).await.status.code, code);
    }
    // The first process of a PID namespace has no default actions: only what it handles, and SIGKILL, reach it.
    let container = pod.container(&image, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done");
    let process = ProcessRef { container: container.id.clone(), exec: None };
    let id = pod.spawn(container).await;
    let mut ready = [0; 6];
    pod.agent()
        .open(Request::ReadStdout(process.clone()))
        .await
        .unwrap()
        .read_exact(&mut ready)
        .await
        .unwrap();
    let exec = ExecProcess {
        container: id.clone(),
        exec: "sleep".into(),
        command: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
        ..ExecProcess::default()
    };
    pod.done(Request::ExecProcess(Box::new(exec))).await;
    let sleeper = ProcessRef { container: id.clone(), exec: Some("sleep".into()) };
    for (process, signal, code) in [(sleeper, 15, 143), (process, 15, 3)] {
        pod.done(Request::SignalProcess(SignalProcess { process: process.clone(), signal, all: false }))
            .await;
        match pod.done(Request::WaitProcess(process)).await {
            Reply::Exit(status) => assert_eq!(status.code, code),
            other => panic!("{other:?}"),
        }
    }
    pod.remove(&id).await;
}

pub(crate) async fn both_outputs_arrive_whole_and_apart(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let exited = pod.sh(&image, "echo out; echo err >&2; seq 1 100000; echo last >&2").await;
    let lines: Vec<_> = exited.stdout.lines().collect();
    assert_eq!(lines.len(), 100_001);
    assert_eq!((lines[0], lines[1], lines[100_000]), ("out", "1", "100000"));
    assert!(lines[1..].iter().enumerate().all(|(index, line)| line.parse() == Ok(index + 1)));
    assert_eq!(exited.stderr, "err\nlast\n");
}

pub(crate) async fn input_reaches_the_process_to_its_end(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let sum = CreateContainer { stdin: true, ..pod.container(&image, "wc -c; read more || echo ended") };
    let exited = pod.run(sum, Some(&[b'x'; 300_000])).await;
    assert_eq!(exited.stdout, "300000\nended\n");
    // Without one, input is at its end from the beginning.
    assert_eq!(pod.sh(&image, "cat; readlink /proc/self/fd/0").await.stdout, "/dev/null\n");
}

pub(crate) async fn a_terminal_has_a_size_that_follows_the_hosts(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script =
        "tty; read go; stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.1; done";
    let container = CreateContainer { terminal: true, stdin: true, ..pod.container(&image, script) };
    let process = ProcessRef { container: container.id.clone(), exec: None };
    let resize =
        |rows, columns| Request::ResizeTerminal(ResizeTerminal { process: process.clone(), rows, columns });
    let id = pod.spawn(container).await;
    pod.done(resize(33, 101)).await;
    let mut input = pod.agent().open(Request::WriteStdin(process.clone())).await.unwrap();
    let mut output = pod.agent().open(Request::ReadStdout(process.clone())).await.unwrap();
    let mut said = String::new();
    read_until(&mut output, "/dev/pts/0\r\n", &mut said).await;
    input.write_all(b"go\n").await.unwrap();
    read_until(&mut output, "ready", &mut said).await;
    pod.done(resize(25, 80)).await;
    output.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "/dev/pts/0\r\ngo\r\n33 101\r\nready\r\n25 80\r\n");
    pod.remove(&id).await;
}

async fn read_until(output: &mut ByteStream, word: &str, said: &mut String) {
    let mut buffer = [0; 1024];
    while !said.contains(word) {
        let count = output.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}

pub(crate) async fn an_exec_runs_in_its_container(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let container = CreateContainer {
        environment: [("FROM".into(), "container".into())].into(),
        working_directory: Some("/work".into()),
        ..pod.container(&image, "echo here > /tmp/mark; touch /work/ready; sleep 1000")
    };
    let id = pod.spawn(container).await;
    let script = "until [ -e /work/ready ]; do sleep 0.1; done
        cat /tmp/mark; pwd; echo $FROM $ADDED; id -u; cat /proc/1/comm; echo problem >&2; exit 9";
    let exec = ExecProcess {
        container: id.clone(),
        exec: "look".into(),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        environment: [("ADDED".into(), "too".into())].into(),
        ..ExecProcess::default()
    };
    let exited = pod.exec(exec.clone()).await;
    assert_eq!(exited.stdout, "here\n/work\ncontainer too\n0\nsleep\n");
    assert_eq!((exited.stderr.as_str(), exited.status.code), ("problem\n", 9));

    let as_app = ExecProcess {
        exec: "as-app".into(),
        command: ["/bin/sh", "-c", "id -un; echo $HOME; grep CapPrm /proc/self/status; tty"]
            .map(str::to_owned)
            .to_vec(),
        user: Some("app".into()),
        terminal: true,
        ..exec.clone()
    };
    let exited = pod.exec(as_app).await;
    assert!(
        exited.stdout.starts_with("app\r\n/home/app\r\nCapPrm:\t0000000000000000\r\n/dev/pts/"),
        "{exited:?}"
    );

    // An id is used once, and a container that has ended runs nothing.
    assert_eq!(pod.refused(Request::ExecProcess(Box::new(exec.clone()))).await.kind, FailureKind::Conflict);
    let process = ProcessRef { container: id.clone(), exec: None };
    let kill = SignalProcess { process: process.clone(), signal: 9, all: false };
    pod.done(Request::SignalProcess(kill)).await;
    pod.done(Request::WaitProcess(process)).await;
    let late = ExecProcess { exec: "late".into(), ..exec };
    assert_eq!(pod.refused(Request::ExecProcess(Box::new(late))).await.kind, FailureKind::Conflict);
    pod.remove(&id).await;
}

pub(crate) async fn a_program_that_cannot_be_run_is_named(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    for (program, kind) in [
        ("/bin/not-there", FailureKind::ProgramNotFound),
        ("not-there", FailureKind::ProgramNotFound),
        ("/etc/passwd", FailureKind::ProgramNotExecutable),
        ("/etc", FailureKind::ProgramNotExecutable),
    ] {
        let container =
            CreateContainer { command: Some(vec![program.into()]), ..pod.container(&image, "unused") };
        let failure = pod.refused(Request::CreateContainer(Box::new(container))).await;
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(program), "{failure}");
    }
}

pub(crate) async fn a_signal_to_all_reaches_every_process(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let script = "sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.1; done' &
        trap : USR1; wait $!; wait $!; echo parent";
    let container = pod.container(&image, script);
    let process = ProcessRef { container: container.id.clone(), exec: None };
    let id = pod.spawn(container).await;
    let mut output = pod.agent().open(Request::ReadStdout(process.clone())).await.unwrap();
    let mut line = [0; 6];
    output.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"ready\n");
    pod.done(Request::SignalProcess(SignalProcess { process, signal: 10, all: true })).await;
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "child\nparent\n");
    pod.remove(&id).await;
}

pub(crate) async fn an_exec_has_what_its_container_has_and_no_more(world: &World) {
    let (pod, image) = (world.pod().await, world.image());
    let look = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/self/status
        umask; ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/ns/* | tr '\\n' ' '; cat /proc/self/cgroup
        ulimit -n; ulimit -c";
    let script = format!("{{ {look}\n}} > /tmp/own; touch /tmp/ready; sleep 1000");
    let id = pod.spawn(pod.container(&image, &script)).await;
    let exec = |exec: String, command: &[&str]| ExecProcess {
        container: id.clone(),
        exec,
        command: command.iter().map(ToString::to_string).collect(),
        ..ExecProcess::default()
    };
    let script = format!("until [ -e /tmp/ready ]; do sleep 0.1; done; {look}");
    let theirs = pod.exec(exec("look".into(), &["/bin/sh", "-c", &script])).await;
    let own = pod.exec(exec("own".into(), &["cat", "/tmp/own"])).await;
    assert_eq!(theirs.stdout, own.stdout);
    assert!(own.stdout.contains("NoNewPrivs:\t1") && own.stdout.contains("Seccomp:\t2"), "{}", own.stdout);

    // What is open while the program's path is looked up would be a way out.
    for number in 3..=20 {
        let out = format!("/proc/self/fd/{number}/../../../../../sealpod-agent");
        let failure =
            pod.refused(Request::ExecProcess(Box::new(exec(format!("out-{number}"), &[&out])))).await;
        assert_eq!(failure.kind, FailureKind::ProgramNotFound, "{failure}");
        let there = ExecProcess {
            working_directory: Some(format!("/proc/self/fd/{number}")),
            ..exec(format!("there-{number}"), &["pwd"])
        };
        let failure = pod.refused(Request::ExecProcess(Box::new(there))).await;
        assert!(failure.message.contains("working directory"), "{failure}");
    }
}
