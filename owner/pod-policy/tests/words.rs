//! Manifests and what `sealpod policy explain` says of them: `manifests/NAME.yaml` beside `manifests/NAME.txt`.

use std::fmt::Write;
use std::path::Path;

use sealpod_pod_policy::{Given, Manifest, Options, build, differences, explain, render};

/// Each pod with its statements, a line each.
fn words(manifest: &str) -> String {
    let manifest = Manifest::read(manifest).unwrap();
    let mut words = String::new();
    for pod in manifest.pods() {
        let policy = build(&manifest, pod, &Options::default()).unwrap();
        let policy = Some(render(&policy).unwrap());
        for one in explain(&Given { pod: None, init_data: None, policy }) {
            writeln!(words, "{}: {}", one.about, one.says).unwrap();
        }
    }
    words
}

#[test]
fn what_is_allowed_is_what_the_manifest_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let actual = words(&std::fs::read_to_string(&path).unwrap());
            let expected = std::fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
            assert_eq!(actual, expected, "{} says\n{actual}", path.display());
            count += 1;
        }
    }
    assert!(count >= 3);
}

fn given(policy: &str) -> Given {
    Given { pod: None, init_data: None, policy: Some(policy.into()) }
}

#[test]
fn a_policy_written_by_hand_is_told_by_its_rules() {
    let all = explain(&given(
        "package agent_policy\nExecProcess if input.command == [\"ls\"]\ndefault ReadStdoutRequest := true\n",
    ));
    let of = |about: &str| all.iter().find(|one| one.about == about).unwrap().says.clone();
    assert!(of("policy").contains("by hand"));
    assert_eq!(of("executing a command in a container"), "the rule ExecProcess decides");
    assert_eq!(of("reading a container's output"), "the rule ReadStdout decides");
    assert_eq!(of("making a container"), "denied: there is no rule CreateContainer");
}

#[test]
fn a_policy_that_was_changed_is_not_taken_for_a_generated_one() {
    let manifest = Manifest::read(include_str!("manifests/batch.yaml")).unwrap();
    let policy = render(&build(&manifest, &manifest.pods()[0], &Options::default()).unwrap()).unwrap();
    let evil = format!("{policy}\nExecProcess := true\n");
    assert!(explain(&given(&evil)).iter().any(|one| one.about == "policy" && one.says.contains("changed")));
}

#[test]
fn what_changed_is_said_and_nothing_else() {
    let manifest = Manifest::read(include_str!("manifests/shop.yaml")).unwrap();
    let policy = |options: &Options| {
        explain(&given(&render(&build(&manifest, &manifest.pods()[0], options).unwrap()).unwrap()))
    };
    let plain = policy(&Options::default());
    assert_eq!(differences(&plain, &plain), []);
    let logs = policy(&Options { logs: true, exec: vec![vec!["ls".into()]], ..Options::default() });
    let changed: Vec<_> = differences(&plain, &logs)
        .into_iter()
        .map(|one| (one.about, one.old.unwrap_or_default(), one.new.unwrap_or_default()))
        .collect();
    assert_eq!(
        changed,
        [
            ("logs".into(), "denied".into(), "allowed".into()),
            ("exec: ls".into(), String::new(), "allowed, by people".into())
        ]
    );
}

#[test]
fn what_is_given_is_told_by_its_content() {
    let init_data = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"[token_configs.kbs]\\nurl = \\\"https://b\\\"\\n\"\n";
    let all = Given::read(init_data).unwrap();
    let statements = explain(&all[0]);
    let of = |about: &str| statements.iter().find(|one| one.about == about).unwrap().says.clone();
    assert_eq!(of("key broker"), "https://b");
    assert_eq!(of("image policy"), "none: no image may run");
    assert!(of("policy").starts_with("none"));

    let annotation = sealpod_evidence::init_data::encode_annotation(init_data).unwrap();
    let pod = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{{}: {annotation:?}}}}}\nspec: {{containers: []}}\n",
            sealpod_pod_policy::ANNOTATION
        )
    };
    let of_manifest = Given::read(&pod(&annotation)).unwrap();
    assert_eq!(
        (of_manifest[0].pod.as_deref(), &of_manifest[0].init_data),
        (Some("Pod/p"), &all[0].init_data)
    );
    for (text, words) in [
        (pod("%%"), "Pod/p: its annotation is no init data"),
        (pod("aGk="), "Pod/p: its annotation is no init data"),
        ("version = 1".into(), "no init data"),
        ("hello".into(), "neither a policy"),
        (String::new(), "neither a policy"),
    ] {
        let error = Given::read(&text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
