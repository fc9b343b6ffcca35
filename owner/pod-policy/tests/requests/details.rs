//! What small manifests come to.

use sealpod_agent_policy::ImageFacts;
use sealpod_agent_protocol::{CreateContainer, MountSource, SharedProcesses};
use sealpod_pod_policy::{Manifest, Options, build, render};

use crate::world::{DIGEST, SHOP, examine, fields, files, mount, pod, policy_of, variables, words};

#[test]
fn any_text_can_be_a_value() {
    for value in
        ["\"\\\n\t\u{1}`{}[]#$", "Grüß 🦀\u{2028}", "", "\\u0041", &"long ".repeat(2000), "${x} \\(y)"]
    {
        let json = serde_json::to_string(value).unwrap();
        let spec = format!("{{containers: [{{name: a, image: i, env: [{{name: A, value: {json}}}]}}]}}");
        let policy = policy_of(&pod(&spec), &Options::default());
        let request = |value: &str| CreateContainer {
            name: Some("a".into()),
            image: "i".into(),
            allow_privilege_escalation: true,
            environment: variables(&[("A", value)]),
            ..CreateContainer::default()
        };
        let facts = ImageFacts::default();
        assert_eq!(examine(&policy, &request(value), &facts), Ok(()), "{value:?}");
        assert!(examine(&policy, &request(&format!("{value}x")), &facts).is_err(), "{value:?}");
    }
}

#[test]
fn a_resource_is_any_number_and_not_none() {
    let spec = "{containers: [{name: a, image: i, env: [{name: CPUS, valueFrom: \
                {resourceFieldRef: {resource: limits.cpu}}}]}]}";
    let policy = policy_of(&pod(spec), &Options::default());
    for (value, allowed) in
        [("2", true), ("0", true), ("", false), ("1.5", false), ("-1", false), ("2 ", false)]
    {
        let request = CreateContainer {
            name: Some("a".into()),
            image: "i".into(),
            allow_privilege_escalation: true,
            environment: variables(&[("CPUS", value)]),
            ..CreateContainer::default()
        };
        let decided = examine(&policy, &request, &ImageFacts::default());
        assert_eq!(decided.is_ok(), allowed, "{value:?}: {decided:?}");
        if !allowed {
            assert_eq!(fields(decided), ["environment.CPUS"]);
        }
    }
}

#[test]
fn a_tag_is_a_name_that_the_signer_decides_on() {
    let policy = policy_of(&pod("{containers: [{name: a, image: busybox}]}"), &Options::default());
    let request = |image: &str| CreateContainer {
        name: Some("a".into()),
        image: image.into(),
        allow_privilege_escalation: true,
        ..CreateContainer::default()
    };
    for (image, allowed) in [
        ("busybox", true),
        ("docker.io/library/busybox:latest", true),
        ("docker.io/library/busybox:1", false),
        ("docker.io/other/busybox:latest", false),
    ] {
        let decided = examine(&policy, &request(image), &ImageFacts::default());
        assert_eq!(decided.is_ok(), allowed, "{image}");
        if !allowed {
            assert_eq!(fields(decided), ["image"]);
        }
    }
}

#[test]
fn users_are_told_as_engines_tell_them() {
    let asks = |security: &str, user: Option<&str>, of_image: &str| {
        let spec = format!("{{containers: [{{name: a, image: i, securityContext: {security}}}]}}");
        let policy = policy_of(&pod(&spec), &Options::default());
        let request = CreateContainer {
            name: Some("a".into()),
            image: "i".into(),
            allow_privilege_escalation: true,
            user: user.map(str::to_owned),
            ..CreateContainer::default()
        };
        let facts = ImageFacts { user: of_image.into(), ..ImageFacts::default() };
        examine(&policy, &request, &facts).is_ok()
    };
    let cases = [
        ("{}", None, "", true),
        ("{}", None, "app:app", true),
        // kubelet tells the number alone.
        ("{}", Some("1000"), "1000:1000", true),
        ("{}", Some("0"), "1000", false),
        ("{}", Some("1000:0"), "1000", false),
        ("{runAsUser: 0}", None, "root", true),
        ("{runAsUser: 0}", None, "", true),
        ("{runAsUser: 0}", None, "app", false),
        ("{runAsUser: 7}", None, "7", true),
        ("{runAsUser: 7}", Some("7"), "", true),
        ("{runAsUser: 0, runAsGroup: 0}", None, "", true),
        ("{runAsUser: 0, runAsGroup: 0}", Some("0"), "7", true),
        ("{runAsUser: 0, runAsGroup: 0}", None, "7", false),
        ("{runAsUser: 7, runAsGroup: 8}", Some("7:8"), "", true),
        ("{runAsUser: 7, runAsGroup: 8}", Some("7"), "", false),
        ("{runAsUser: 7, runAsGroup: 8}", None, "7:8", true),
        ("{runAsGroup: 8}", Some("0:8"), "", true),
        ("{runAsGroup: 8}", Some("9:8"), "9", true),
        ("{runAsGroup: 8}", None, "9", false),
    ];
    for (security, user, of_image, allowed) in cases {
        assert_eq!(asks(security, user, of_image), allowed, "{security} {user:?} {of_image:?}");
    }
}

#[test]
fn a_privileged_container_is_so_within_the_guest() {
    let spec =
        "{containers: [{name: a, image: i, tty: true, stdin: true, securityContext: {privileged: true}}]}";
    let policy = policy_of(&pod(spec), &Options::default());
    let request = CreateContainer {
        name: Some("a".into()),
        image: "i".into(),
        allow_privilege_escalation: true,
        privileged: true,
        terminal: true,
        stdin: true,
        ..CreateContainer::default()
    };
    assert_eq!(examine(&policy, &request, &ImageFacts::default()), Ok(()));
    let plain = CreateContainer { privileged: false, ..request };
    assert_eq!(fields(examine(&policy, &plain, &ImageFacts::default())), ["privileged"]);
}

#[test]
fn without_service_links_only_kubernetes_is_told() {
    let spec = "{enableServiceLinks: false, containers: [{name: a, image: i}]}";
    let policy = policy_of(&pod(spec), &Options::default());
    let request = |name: &str| CreateContainer {
        name: Some("a".into()),
        image: "i".into(),
        allow_privilege_escalation: true,
        environment: variables(&[(name, "10.0.0.1")]),
        ..CreateContainer::default()
    };
    assert_eq!(examine(&policy, &request("KUBERNETES_SERVICE_HOST"), &ImageFacts::default()), Ok(()));
    assert_eq!(
        fields(examine(&policy, &request("DB_SERVICE_HOST"), &ImageFacts::default())),
        ["environment.DB_SERVICE_HOST"]
    );
}

#[test]
fn a_change_of_the_rules_is_noticed() {
    let manifest = Manifest::read(SHOP).unwrap();
    let policy = build(&manifest, &manifest.pods()[0], &Options::default()).unwrap();
    let text = render(&policy).unwrap();
    assert_eq!(sealpod_pod_policy::read_back(&text), Some(policy));
    assert_eq!(sealpod_pod_policy::read_back(&format!("{text}ReadStdout := true\n")), None);
    assert_eq!(sealpod_pod_policy::read_back(&text.replace("if pod.allow.logs", ":= true")), None);
}

#[test]
fn containers_share_processes_where_the_pod_says_so() {
    let shared = Some(SharedProcesses::Pod);
    let targets = Some(SharedProcesses::Container { container: "4f2a".into() });
    for (share, asked, allowed) in [
        (true, &shared, true),
        (true, &None, false),
        (true, &targets, false),
        (false, &shared, false),
        (false, &None, true),
        (false, &targets, false),
    ] {
        let spec = format!("{{shareProcessNamespace: {share}, containers: [{{name: a, image: i}}]}}");
        let request = CreateContainer {
            name: Some("a".into()),
            image: "i".into(),
            allow_privilege_escalation: true,
            process_namespace: asked.clone(),
            ..CreateContainer::default()
        };
        let examined =
            examine(&policy_of(&pod(&spec), &Options::default()), &request, &ImageFacts::default());
        match allowed {
            true => assert_eq!(examined, Ok(()), "{share} {asked:?}"),
            false => assert_eq!(fields(examined), ["process_namespace"], "{share} {asked:?}"),
        }
    }
}

#[test]
fn the_host_must_ask_for_a_volumes_limit_in_memory_and_not() {
    let asks = |empty_dir: &str, size_bytes: Option<u64>| {
        let spec = format!(
            "{{automountServiceAccountToken: false, volumes: [{{name: v, emptyDir: {empty_dir}}}], \
             containers: [{{name: a, image: i, volumeMounts: [{{name: v, mountPath: /v, subPath: part}}]}}]}}"
        );
        let source =
            MountSource::Empty { volume: "v".into(), size_bytes, group: None, sub_path: Some("part".into()) };
        let request = CreateContainer {
            name: Some("a".into()),
            image: "i".into(),
            allow_privilege_escalation: true,
            mounts: vec![mount("/v", false, source)],
            ..CreateContainer::default()
        };
        examine(&policy_of(&pod(&spec), &Options::default()), &request, &ImageFacts::default())
    };
    const LIMITED: &str = "{sizeLimit: 1Mi}";
    const LIMITED_IN_MEMORY: &str = "{medium: Memory, sizeLimit: 1Mi}";
    let mib = 1 << 20;
    for (empty_dir, size_bytes, allowed) in [
        (LIMITED, Some(mib), true),
        (LIMITED, Some(1), true),
        (LIMITED, Some(mib + 1), false),
        (LIMITED, Some(u64::MAX), false),
        // To the kernel that is no limit.
        (LIMITED, Some(0), false),
        (LIMITED, None, false),
        ("{sizeLimit: 1000}", Some(1000), true),
        ("{sizeLimit: 1000}", Some(1001), false),
        (LIMITED_IN_MEMORY, Some(mib), true),
        (LIMITED_IN_MEMORY, Some(mib + 1), false),
        (LIMITED_IN_MEMORY, Some(0), false),
        (LIMITED_IN_MEMORY, None, false),
        ("{}", None, true),
        ("{}", Some(mib), false),
        ("{sizeLimit: 0}", None, true),
        ("{sizeLimit: 0}", Some(0), false),
        ("{medium: Memory}", None, true),
        ("{medium: Memory}", Some(mib), true),
        ("{medium: Memory, sizeLimit: 0}", Some(mib), true),
    ] {
        let examined = asks(empty_dir, size_bytes);
        match allowed {
            true => assert_eq!(examined, Ok(()), "{empty_dir} {size_bytes:?}"),
            false => {
                assert_eq!(fields(examined), ["mounts./v.source.size_bytes"], "{empty_dir} {size_bytes:?}");
            }
        }
    }
    let reasons = |empty_dir: &str, size_bytes| {
        let reason = asks(empty_dir, size_bytes).unwrap_err().reasons.remove(0);
        (reason.expected, reason.actual)
    };
    assert_eq!(reasons(LIMITED, None), ("at most 1048576".into(), "nothing".into()));
    assert_eq!(reasons(LIMITED, Some(mib + 1)), ("at most 1048576".into(), "1048577".into()));
    assert_eq!(reasons("{}", Some(1)), ("nothing".into(), "1".into()));
}

#[test]
fn limits_that_kubelet_does_not_tell_are_the_annotations() {
    let spec = "{volumes: [{name: b, emptyDir: {sizeLimit: 1Mi}}, {name: a, emptyDir: {sizeLimit: 1k}}, \
        {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: plain, emptyDir: {}}, \
        {name: unused, emptyDir: {sizeLimit: 1Mi}}], initContainers: [{name: i, image: i, volumeMounts: \
        [{name: a, mountPath: /a}]}], containers: [{name: c, image: i, volumeMounts: [{name: a, mountPath: /a}, \
        {name: b, mountPath: /b, subPath: c}, {name: memory, mountPath: /m}, {name: plain, mountPath: /p}]}]}";
    let manifest = Manifest::read(&pod(spec)).unwrap();
    let policy = build(&manifest, &manifest.pods()[0], &Options::default()).unwrap();
    assert_eq!(policy.volume_limits().to_string(), "a=1000 b=1048576");
}

#[test]
fn debug_containers_are_of_the_images_that_were_named() {
    let spec = "{containers: [{name: a, image: i}]}";
    let options = Options {
        debug: vec![format!("registry.example/debug@{DIGEST}"), "registry.example/tools:1".into()],
        ..Options::default()
    };
    let policy = policy_of(&pod(spec), &options);
    let request = |image: &str| CreateContainer {
        name: Some("debugger-x7k2p".into()),
        image: image.into(),
        command: Some(words(&["sh"])),
        allow_privilege_escalation: true,
        terminal: true,
        stdin: true,
        process_namespace: Some(SharedProcesses::Container { container: "4f2a".into() }),
        ..CreateContainer::default()
    };
    let facts = ImageFacts { digest: DIGEST.into(), target: Some("a".into()), ..ImageFacts::default() };
    assert_eq!(examine(&policy, &request("registry.example/mirror/debug"), &facts), Ok(()));
    let other = ImageFacts { digest: "sha256:0".into(), ..facts.clone() };
    assert_eq!(examine(&policy, &request("registry.example/tools:1"), &other), Ok(()));
    assert!(examine(&policy, &request("registry.example/tools:2"), &other).is_err());
    assert!(
        examine(&policy_of(&pod(spec), &Options::default()), &request("registry.example/tools:1"), &other)
            .is_err()
    );
    let changes: [fn(&mut CreateContainer); 6] = [
        // The name of a container that the manifest has, which is what the policy says of it.
        |r| r.name = Some("a".into()),
        |r| r.process_namespace = Some(SharedProcesses::Pod),
        |r| r.privileged = true,
        |r| r.unmasked_paths = true,
        |r| r.capabilities = Some(["CAP_SYS_ADMIN".to_owned()].into()),
        |r| r.mounts = vec![mount("/secret", true, files("database", None))],
    ];
    for change in changes {
        let mut request = request("registry.example/tools:1");
        change(&mut request);
        assert!(examine(&policy, &request, &other).is_err(), "{request:?}");
    }
    let mut narrow = request("registry.example/tools:1");
    narrow.capabilities = Some(["CAP_KILL".to_owned()].into());
    assert_eq!(examine(&policy, &narrow, &other), Ok(()));
    // A tracer could take over what the runtime prepares for others, which is not confined yet.
    narrow.capabilities = Some(["CAP_SYS_PTRACE".to_owned()].into());
    assert_eq!(fields(examine(&policy, &narrow, &other)), ["capabilities"]);
}
