//! Making a container: each field as the manifest has it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_agent_policy::ImageFacts;
use sealpod_agent_protocol::{CreateContainer, MountSource, Request};
use sealpod_pod_policy::{Manifest, Options, build, render};

use crate::world::{
    SHOP, empty, examine, fields, files, host, mount, pod, policy_of, shop, variables, web, words,
};

#[test]
fn what_the_shim_asks_for_is_allowed() {
    let policy = shop();
    let (request, facts) = web();
    assert_eq!(examine(&policy, &request, &facts), Ok(()));

    let sidecar = CreateContainer {
        id: "b".into(),
        name: Some("sidecar".into()),
        image: "registry.example/shop/sidecar:latest".into(),
        user: Some("1000".into()),
        supplemental_groups: [2000, 3000].into(),
        allow_privilege_escalation: true,
        mounts: vec![mount(
            "/dev/termination-log",
            false,
            MountSource::EmptyFile { volume: "termination-log-sidecar".into() },
        )],
        hosts: vec![host("192.0.2.7", &["db.internal", "db"]), host("127.0.0.1", &["self"])],
        ..CreateContainer::default()
    };
    assert_eq!(examine(&policy, &sidecar, &ImageFacts::default()), Ok(()));
    // CRI-O's own set of capabilities.
    let mut by_crio = sidecar.clone();
    let usual = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "NET_BIND_SERVICE",
        "SETGID",
        "SETPCAP",
        "SETUID",
    ];
    by_crio.capabilities = Some(usual.iter().map(|name| format!("CAP_{name}")).collect());
    assert_eq!(examine(&policy, &by_crio, &ImageFacts::default()), Ok(()));

    let arguments = words(&["up", "--user=shop"]);
    let migrate = CreateContainer {
        name: Some("migrate".into()),
        image: "registry.example/shop/migrate:2".into(),
        arguments: Some(arguments.clone()),
        environment: variables(&[("DB_USER", "shop")]),
        ..sidecar
    };
    let migrate = CreateContainer {
        mounts: vec![mount(
            "/dev/termination-log/",
            false,
            MountSource::EmptyFile { volume: "termination-log-migrate".into() },
        )],
        ..migrate
    };
    for entrypoint in [words(&["/migrate"]), Vec::new()] {
        let effective_command = [entrypoint.clone(), arguments.clone()].concat();
        let facts = ImageFacts { entrypoint, effective_command, ..ImageFacts::default() };
        assert_eq!(examine(&policy, &migrate, &facts), Ok(()));
    }
}

type Tampering = fn(&mut CreateContainer, &mut ImageFacts);

#[test]
fn a_single_field_that_was_tampered_with_is_denied_and_named() {
    let policy = shop();
    let all: &[(&str, Tampering)] = &[
        ("name", |r, _| r.name = None),
        ("name", |r, _| r.name = Some("other".into())),
        ("image_digest", |_, f| f.digest = f.digest.replace("9a", "00")),
        ("image_digest", |_, f| f.digest.clear()),
        ("command", |r, f| {
            f.effective_command = words(&["/bin/sh"]);
            r.command = Some(f.effective_command.clone());
        }),
        ("command", |_, f| f.effective_command.push("--more".into())),
        ("command", |_, f| drop(f.effective_command.pop())),
        ("command", |_, f| f.effective_command[1] = "--node=other".into()),
        ("environment.LD_PRELOAD", |r, _| drop(r.environment.insert("LD_PRELOAD".into(), "/x.so".into()))),
        ("environment.PATH", |r, _| drop(r.environment.insert("PATH".into(), "/tmp".into()))),
        ("environment.HOSTNAME", |r, _| drop(r.environment.insert("HOSTNAME".into(), "other".into()))),
        ("environment.MODE", |r, _| drop(r.environment.remove("MODE"))),
        ("environment.LANG", |r, _| drop(r.environment.insert("LANG".into(), "x".into()))),
        ("environment.LANG", |_, f| drop(f.environment.insert("LANG".into(), "x".into()))),
        ("environment.LANG", |_, f| drop(f.environment.remove("LANG"))),
        ("environment.DB_URL", |r, _| drop(r.environment.insert("DB_URL".into(), "postgres://evil".into()))),
        ("environment.DB_PASSWORD", |r, _| drop(r.environment.remove("DB_PASSWORD"))),
        ("environment.NODE", |r, f| {
            f.effective_command[1] = "--node=a b".into();
            r.environment.insert("NODE".into(), "a b".into());
        }),
        ("environment.POD", |r, _| drop(r.environment.insert("POD".into(), "api-1-2".into()))),
        ("environment.POD", |r, _| drop(r.environment.insert("POD".into(), "web-/../x".into()))),
        ("environment.POD_IP", |r, _| drop(r.environment.insert("POD_IP".into(), "$(id)".into()))),
        ("environment.POD_IP", |r, _| drop(r.environment.insert("POD_IP".into(), String::new()))),
        ("environment.DEBUG", |r, _| drop(r.environment.insert("DEBUG".into(), "1".into()))),
        ("environment.A_SERVICE_HOST", |r, _| {
            drop(r.environment.insert("A_SERVICE_HOST".into(), "evil.example".into()))
        }),
        // The image's own, if it looks like a service's too.
        ("environment.ADMIN_PORT", |r, f| {
            f.environment.insert("ADMIN_PORT".into(), "0".into());
            r.environment.insert("ADMIN_PORT".into(), "8081".into());
        }),
        ("environment.KUBERNETES_PORT", |_, f| {
            drop(f.environment.insert("KUBERNETES_PORT".into(), String::new()))
        }),
        ("environment.JOB_COMPLETION_INDEX", |r, _| {
            drop(r.environment.insert("JOB_COMPLETION_INDEX".into(), "0".into()))
        }),
        ("environment.a_PORT", |r, _| drop(r.environment.insert("a_PORT".into(), "1".into()))),
        ("environment.A_PORT_x_TCP", |r, _| drop(r.environment.insert("A_PORT_x_TCP".into(), "1".into()))),
        ("user", |r, _| r.user = None),
        ("user", |r, _| r.user = Some("0".into())),
        ("user", |r, _| r.user = Some("1000:5".into())),
        ("user", |r, f| {
            r.user = None;
            f.user = "app".into();
        }),
        ("supplemental_groups", |r, _| assert!(r.supplemental_groups.insert(0))),
        ("supplemental_groups", |r, _| assert!(r.supplemental_groups.remove(&2000))),
        ("working_directory", |r, _| r.working_directory = None),
        ("working_directory", |r, _| r.working_directory = Some("/tmp".into())),
        ("capabilities", |r, _| r.capabilities = None),
        ("capabilities", |r, _| assert!(r.capabilities.as_mut().unwrap().insert("CAP_SYS_ADMIN".into()))),
        ("capabilities", |r, _| r.capabilities = Some([].into())),
        ("privileged", |r, _| r.privileged = true),
        ("allow_privilege_escalation", |r, _| r.allow_privilege_escalation = true),
        ("read_only_root", |r, _| r.read_only_root = false),
        ("unmasked_paths", |r, _| r.unmasked_paths = true),
        ("terminal", |r, _| r.terminal = true),
        ("stdin", |r, _| r.stdin = true),
        ("mounts./usr/bin", |r, _| r.mounts.push(mount("/usr/bin", true, files("settings", None)))),
        ("mounts./etc/web", |r, _| drop(r.mounts.remove(0))),
        ("mounts./dev/shm", |r, _| drop(r.mounts.pop())),
        ("mounts./etc/web.read_only", |r, _| r.mounts[0].read_only = false),
        ("mounts./etc/web.source", |r, _| r.mounts[0].source = files("database", None)),
        ("mounts./etc/web.source", |r, _| r.mounts[0].source = files("settings", Some("app.conf"))),
        ("mounts", |r, _| {
            let again = r.mounts[0].clone();
            r.mounts.push(again);
        }),
        ("mounts", |r, _| r.mounts.push(mount("/etc/web/", true, files("settings", None)))),
        ("mounts./var/cache/web.source", |r, _| {
            r.mounts[2].source = empty("cache", None, Some(5));
        }),
        ("mounts./var/cache/web.source.size_bytes", |r, _| {
            r.mounts[2].source = empty("cache", Some(1), None);
        }),
        ("mounts./var/cache/web.source", |r, _| {
            r.mounts[2].source = empty("scratch", None, None);
        }),
        ("mounts./scratch.source.size_bytes", |r, _| {
            let size_bytes = Some(65 << 20);
            r.mounts[3].source = empty("scratch", size_bytes, None);
        }),
        ("mounts./scratch.source.size_bytes", |r, _| r.mounts[3].source = empty("scratch", None, None)),
        ("mounts./dev/termination-log.source", |r, _| {
            r.mounts[5].source = MountSource::EmptyFile { volume: "termination-log-sidecar".into() };
        }),
        ("mounts./var/run/secrets/kubernetes.io/serviceaccount.source", |r, _| {
            r.mounts[6].source = files("settings", None);
        }),
        ("hosts", |r, _| drop(r.hosts.pop())),
        ("hosts", |r, _| r.hosts[1].address = "192.0.2.8".into()),
        ("hosts", |r, _| drop(r.hosts.remove(1))),
        ("hosts", |r, _| r.hosts.push(host("10.0.0.1", &["x", "DB"]))),
        ("hosts", |r, _| r.hosts.push(host("10.0.0.1", &["localhost"]))),
        ("hosts", |r, _| r.hosts.push(host("10.0.0.1", &["self"]))),
    ];
    for (number, (field, tamper)) in all.iter().enumerate() {
        let (mut request, mut facts) = web();
        tamper(&mut request, &mut facts);
        let denied = fields(examine(&policy, &request, &facts));
        assert!(denied.iter().any(|denied| denied == field), "{number} {field}: {denied:?}");
    }
}

/// Whether a container without a command may have these variables.
fn may_have(manifest: &str, container: &str, given: &[(&str, &str)]) -> bool {
    let request = CreateContainer {
        name: Some(container.into()),
        image: "i".into(),
        allow_privilege_escalation: true,
        environment: variables(given),
        ..CreateContainer::default()
    };
    let examined = examine(&policy_of(manifest, &Options::default()), &request, &ImageFacts::default());
    if let Err(denial) = &examined {
        assert_eq!(fields(Err(denial.clone())), ["environment.JOB_COMPLETION_INDEX"]);
    }
    examined.is_ok()
}

const INDEX: &str = "JOB_COMPLETION_INDEX";

fn jobs(mode: &str) -> [String; 2] {
    let spec = format!(
        "{{{mode}template: {{spec: {{initContainers: [{{name: first, image: i}}], containers: [{{name: a, image: i}}, \
         {{name: own, image: i, env: [{{name: {INDEX}, value: all}}]}}]}}}}}}"
    );
    let head = "apiVersion: batch/v1\nmetadata: {name: j}\n";
    [
        format!("{head}kind: Job\nspec: {spec}\n"),
        format!("{head}kind: CronJob\nspec: {{jobTemplate: {{spec: {spec}}}}}\n"),
    ]
}

#[test]
fn every_container_of_an_indexed_job_is_told_its_index() {
    for job in jobs("completionMode: Indexed, ") {
        for container in ["first", "a"] {
            for (value, allowed) in [("0", true), ("17", true), ("-1", false), ("x", false), ("1 2", false)] {
                assert_eq!(
                    may_have(&job, container, &[(INDEX, value)]),
                    allowed,
                    "{job} {container} {value}"
                );
            }
            assert!(!may_have(&job, container, &[]), "{job} {container}");
        }
        assert!(may_have(&job, "own", &[(INDEX, "all")]));
        assert!(!may_have(&job, "own", &[(INDEX, "0")]));
    }
}

#[test]
fn an_index_that_an_object_gives_is_the_controllers_all_the_same() {
    let config =
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {JOB_COMPLETION_INDEX: all}\n";
    for (mode, index) in [("completionMode: Indexed, ", "3"), ("", "all")] {
        let [job, _] = jobs(mode);
        let job =
            job.replace("{name: a, image: i}", "{name: a, image: i, envFrom: [{configMapRef: {name: c}}]}");
        for value in ["3", "all"] {
            assert_eq!(may_have(&format!("{job}{config}"), "a", &[(INDEX, value)]), value == index, "{mode}");
        }
    }
}

#[test]
fn other_pods_have_no_index() {
    let [job, cron] = jobs("");
    let [plain, _] = jobs("completionMode: NonIndexed, ");
    for manifest in [job, cron, plain, pod("{containers: [{name: a, image: i}]}")] {
        assert!(!may_have(&manifest, "a", &[(INDEX, "0")]), "{manifest}");
        assert!(may_have(&manifest, "a", &[]), "{manifest}");
    }
}

#[test]
fn a_denial_says_what_was_expected_and_what_came() {
    let policy = shop();
    let (mut request, facts) = web();
    request.environment.insert("MODE".into(), "test".into());
    let request = Request::CreateContainer(Box::new(request));
    let message = policy.decide(&request, Some(&facts)).unwrap_err().message;
    let expected = "does not allow CreateContainer: rule CreateContainer is false: environment.MODE: expected production, came test";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn a_denial_never_tells_a_secret() {
    let policy = shop();
    let secrets: &[Tampering] = &[
        |r, _| drop(r.environment.insert("DB_URL".into(), "postgres://x:hunter2@evil/".into())),
        |_, f| f.effective_command.push("hunter2".into()),
        |r, _| drop(r.environment.insert("OTHER".into(), "hunter2".into())),
        |r, _| drop(r.environment.remove("DB_PASSWORD")),
    ];
    for (number, tamper) in secrets.iter().enumerate() {
        let (mut request, mut facts) = web();
        tamper(&mut request, &mut facts);
        let denial = examine(&policy, &request, &facts).unwrap_err();
        assert!(
            !denial.reasons.is_empty() && !format!("{denial:?}").contains("hunter2"),
            "{number} {denial:?}"
        );
    }
    let manifest = Manifest::read(SHOP).unwrap();
    let policy = render(&build(&manifest, &manifest.pods()[0], &Options::default()).unwrap()).unwrap();
    assert!(!policy.contains("hunter2") && !policy.contains(&STANDARD.encode("hunter2")));
}
