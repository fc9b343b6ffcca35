//! Starting the pod, its volumes' files, and executing commands.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_agent_policy::Policy;
use sealpod_agent_protocol::{
    ContainerRef, ExecProcess, ForwardPort, HostEntry, ProcessRef, Request, StartPod, VolumeFile, WriteVolume,
};
use sealpod_pod_policy::Options;

use crate::world::{SHOP, fields, host, policy_of, shop, variables, words};

#[test]
fn the_pod_and_its_volumes_are_allowed() {
    let policy = shop();
    let sysctls = variables(&[("net.core.somaxconn", "1024"), ("net.ipv4.ip_unprivileged_port_start", "0")]);
    let start = StartPod { sysctls, ..StartPod::default() };
    assert_eq!(policy.examine(&Request::StartPod(start), None), Ok(()));
    let conf = "listen = 8080\ngreeting = \"Grüß Gott\"\n";
    for (volume, given) in [
        ("settings", vec![("app.conf", conf)]),
        ("settings.web.1", vec![("file", conf)]),
        ("database", vec![("password", "whatever the cluster says")]),
        ("kube-api-access-7xk2p", vec![("token", "t"), ("ca.crt", "c"), ("namespace", "shop")]),
    ] {
        assert_eq!(policy.examine(&write(volume, Some(2000), &given), None), Ok(()), "{volume}");
        assert_eq!(policy.examine(&write(volume, None, &given), None), Ok(()), "{volume}");
    }
}

fn write(volume: &str, group: Option<u32>, given: &[(&str, &str)]) -> Request {
    let file = |(path, text): &(&str, &str)| VolumeFile {
        path: path.to_string(),
        mode: 0o644,
        user: None,
        content: STANDARD.encode(text),
    };
    let files = given.iter().map(file).collect();
    Request::WriteVolume(Box::new(WriteVolume { volume: volume.into(), group, files }))
}

#[test]
fn volumes_get_the_manifests_files_only() {
    let policy = shop();
    let conf = "listen = 8080\ngreeting = \"Grüß Gott\"\n";
    for (request, field) in [
        (write("settings", None, &[("app.conf", "listen = 1\n")]), "files.app.conf"),
        (write("settings", None, &[]), "files.app.conf"),
        (write("settings", None, &[("app.conf", conf), ("more", "")]), "files.more"),
        (write("settings", Some(0), &[("app.conf", conf)]), "group"),
        (write("settings.web.1", None, &[("other", conf)]), "files.other"),
        (write("database", None, &[("password", "x"), ("more", "")]), "files.more"),
        (write("kube-api-access-7xk2p", None, &[("evil.so", "")]), "files.evil.so"),
        (write("cache", None, &[]), "volume"),
        (write("", None, &[]), "volume"),
    ] {
        let denied = fields(policy.examine(&request, None));
        assert!(denied.iter().any(|denied| denied == field), "{request:?}: {denied:?}");
    }
    let mut broken = WriteVolume { volume: "settings".into(), group: None, files: Vec::new() };
    broken.files.push(VolumeFile { path: "app.conf".into(), mode: 0o644, user: None, content: "%".into() });
    assert!(policy.examine(&Request::WriteVolume(Box::new(broken)), None).is_err());
}

#[test]
fn the_pods_kernel_parameters_and_names_are_the_manifests() {
    let policy = shop();
    let start = |sysctls: &[(&str, &str)], hosts: Vec<HostEntry>| {
        let start = StartPod { sysctls: variables(sysctls), hosts, ..StartPod::default() };
        fields(policy.examine(&Request::StartPod(start), None))
    };
    let own = ("net.core.somaxconn", "1024");
    assert_eq!(start(&[], Vec::new()), ["sysctls.net.core.somaxconn"]);
    assert_eq!(start(&[("net.core.somaxconn", "1")], Vec::new()), ["sysctls.net.core.somaxconn"]);
    assert_eq!(start(&[own, ("kernel.shmmax", "1")], Vec::new()), ["sysctls.kernel.shmmax"]);
    let usual = "net.ipv4.ip_unprivileged_port_start";
    assert_eq!(start(&[own, (usual, "7")], Vec::new()), [format!("sysctls.{usual}")]);
    assert_eq!(start(&[own], vec![host("10.0.0.1", &["db"])]), ["hosts"]);
}

#[test]
fn the_pods_own_name_leads_no_other_elsewhere() {
    let start = |policy: &Policy, hostname: &str| {
        let sysctls = variables(&[("net.core.somaxconn", "1024")]);
        let start = StartPod { hostname: hostname.into(), sysctls, ..StartPod::default() };
        policy.examine(&Request::StartPod(start), None)
    };
    let policy = shop();
    for name in ["web-6d4b75cb6d-x8k2p", "web.shop.example", "localhosts", "my-localhost", "internal", ""] {
        assert_eq!(start(&policy, name), Ok(()), "{name}");
    }
    for name in
        ["localhost", "LocalHost", "localhost.localdomain", "a.localhost", "db", "DB", "db.internal", "self"]
    {
        assert_eq!(fields(start(&policy, name)), ["hostname"], "{name}");
    }
}

type Change = fn(&mut ExecProcess);

fn exec(command: &[&str], change: Change) -> Request {
    let mut exec = ExecProcess {
        container: "4f2a".into(),
        exec: "e1".into(),
        command: words(command),
        ..ExecProcess::default()
    };
    change(&mut exec);
    Request::ExecProcess(Box::new(exec))
}

#[test]
fn probes_and_hooks_are_executed_as_they_are_written() {
    let policy = shop();
    let probe = ["/usr/bin/web", "check", "--mode=C.UTF-8"];
    assert_eq!(policy.examine(&exec(&probe, |_| ()), None), Ok(()));
    assert_eq!(policy.examine(&exec(&["/usr/bin/web", "drain"], |_| ()), None), Ok(()));
    let changes: [(&str, Change); 6] = [
        ("command", |e| e.command.push("x".into())),
        ("terminal", |e| e.terminal = true),
        ("stdin", |e| e.stdin = true),
        ("user", |e| e.user = Some("0".into())),
        ("working_directory", |e| e.working_directory = Some("/".into())),
        ("environment.LD_PRELOAD", |e| drop(e.environment.insert("LD_PRELOAD".into(), "/x".into()))),
    ];
    for (field, change) in changes {
        let denied = fields(policy.examine(&exec(&probe, change), None));
        assert!(denied.iter().any(|denied| denied == field), "{field}: {denied:?}");
    }
    assert_eq!(fields(policy.examine(&exec(&["sh"], |_| ()), None)), ["command"]);
}

#[test]
fn people_get_what_the_author_allowed() {
    let process = || ProcessRef { container: "4f2a".into(), exec: None };
    let requests = || {
        [
            ("logs", Request::ReadStdout(process())),
            ("logs", Request::ReadStderr(process())),
            ("messages", Request::ReadTerminationMessage(ContainerRef { container: "4f2a".into() })),
            ("attach", Request::WriteStdin(process())),
            ("exec", exec(&["ls", "-l"], |e| e.terminal = true)),
            ("any exec", exec(&["sh"], |e| e.terminal = true)),
            ("copy", exec(&["tar", "cf", "-", "/var/log"], |_| ())),
            ("copy", exec(&["tar", "-xmf", "-", "-C", "/tmp"], |e| e.stdin = true)),
            ("copy", exec(&["test", "-d", "/tmp"], |_| ())),
        ]
    };
    let all = [
        ("", Options::default()),
        ("logs", Options { logs: true, ..Options::default() }),
        ("messages", Options { termination_messages: true, ..Options::default() }),
        ("attach", Options { attach: true, ..Options::default() }),
        ("exec", Options { exec: vec![words(&["ls", "-l"])], ..Options::default() }),
        ("any exec", Options { any_exec: true, ..Options::default() }),
        ("copy", Options { copy: true, ..Options::default() }),
    ];
    for (allowed, options) in &all {
        let policy = policy_of(SHOP, options);
        for (what, request) in requests() {
            let is_exec = matches!(request, Request::ExecProcess(_));
            let expected = what == *allowed || (*allowed == "any exec" && is_exec);
            assert_eq!(policy.examine(&request, None).is_ok(), expected, "{allowed}: {request:?}");
        }
    }
    let policy = policy_of(SHOP, &all[6].1);
    for command in [
        &["tar", "cf", "-", "--checkpoint-action=exec=sh"][..],
        &["tar", "-xmf", "-", "-C", "--to-command=sh"],
        &["tar", "-xmf", "-", "-C", "/tmp", "--to-command=sh"],
        &["tar"],
        &["test", "-d"],
        &[],
    ] {
        assert!(policy.examine(&exec(command, |_| ()), None).is_err(), "{command:?}");
    }
    assert!(policy.examine(&exec(&["test", "-d", "/"], |e| e.user = Some("0".into())), None).is_err());
}

#[test]
fn ports_are_those_that_were_named() {
    let asks = |options: &Options, port| {
        policy_of(SHOP, options).examine(&Request::ForwardPort(ForwardPort { port }), None)
    };
    let one = Options { ports: [8080].into(), ..Options::default() };
    assert_eq!(asks(&one, 8080), Ok(()));
    assert_eq!(fields(asks(&one, 8081)), ["port"]);
    assert_eq!(fields(asks(&Options::default(), 8080)), ["port"]);
    let any = Options { any_port: true, ..Options::default() };
    assert_eq!(asks(&any, 8081), Ok(()));
}
