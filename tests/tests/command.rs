//! The owner's commands as a person types them, against a real broker and a real registry, without a VM.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use sealpod_tests::{ImageOptions, Owner, guest, program, sealpod};
use serde_json::{Value, json};

macro_rules! trials {
    ($owner:expr, $($name:ident),* $(,)?) => {
        vec![$({
            let owner = Arc::clone(&$owner);
            Trial::test(stringify!($name), move || {
                $name(&owner);
                Ok(())
            })
        }),*]
    };
}

/// The usual harness would never end the owner that the tests share.
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let owner = Arc::new(Owner::start());
    let trials = trials!(
        owner,
        a_secret_is_stored_listed_given_back_and_deleted,
        policies_are_replaced_and_printed_and_broken_ones_are_refused,
        reference_values_are_listed_as_they_were_set,
        the_audit_log_has_a_refusal_and_why_explains_it,
        a_broker_that_is_not_there_or_not_ours_is_one_clear_error,
        a_registry_that_is_not_there_or_an_image_that_is_none_is_one_clear_error,
        the_annotation_of_init_data_is_its_compressed_text,
        a_policy_is_generated_from_what_is_piped,
        the_page_on_policies_says_what_the_tool_says,
        a_pod_as_large_as_they_come_has_a_policy_that_kubernetes_takes,
        a_node_is_installed_below_a_folder_or_only_told_what_would_be_done,
        a_guest_is_measured_as_text_as_it_is_as_json,
        the_doctor_says_the_same_to_people_and_to_programs,
        a_shell_takes_the_completions,
        a_reader_that_goes_away_is_no_failure_of_what_only_prints,
        a_demo_that_nobody_hears_does_not_pass_for_a_whole_one,
    );
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A file of a test's own.
fn file(owner: &Owner, name: &str, content: &[u8]) -> String {
    std::fs::write(owner.path(name), content).unwrap();
    owner.word(name)
}

fn parsed(owner: &Owner, words: &[&str]) -> Value {
    serde_json::from_str(&owner.sealpod(words)).unwrap()
}

fn failed(output: &Output, code: i32, expected: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("error: "), "{said}");
    for word in expected {
        assert!(said.contains(word), "{word:?} is missing in {said}");
    }
}

fn refused(owner: &Owner, words: &[&str], expected: &[&str]) {
    failed(&owner.try_sealpod(words), 1, expected);
}

/// An address on which nobody listens.
fn nobody() -> String {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string()
}

/// How a command ends whose reader has gone before it writes.
fn unread(mut command: Command) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap()
}

fn a_secret_is_stored_listed_given_back_and_deleted(owner: &Owner) {
    let secret = [0, 159, 146, 150, b'\n'];
    let path = "team/key/round-trip";
    owner.sealpod(["kbs", "resource", "set", path, "--file", &file(owner, "round-trip", &secret)]);
    assert_eq!(owner.try_sealpod(["kbs", "resource", "get", path]).stdout, secret);
    assert!(owner.sealpod(["kbs", "resource", "list"]).lines().any(|line| line == path));
    let listed = parsed(owner, &["kbs", "resource", "list", "--json"]);
    assert!(listed.as_array().unwrap().contains(&json!(path)), "{listed}");

    // Without a file it is read from standard input.
    let mut set = owner.command();
    set.args(["kbs", "resource", "set", path]).stdin(Stdio::piped());
    let mut set = set.spawn().unwrap();
    set.stdin.take().unwrap().write_all(b"from standard input").unwrap();
    assert!(set.wait().unwrap().success());
    assert_eq!(owner.sealpod(["kbs", "resource", "get", path]), "from standard input");

    assert_eq!(owner.sealpod(["kbs", "resource", "delete", path]), "");
    refused(owner, &["kbs", "resource", "get", path], &["404", "hint: `sealpod kbs resource list`"]);
    assert!(!owner.sealpod(["kbs", "resource", "list"]).contains(path));
}

fn policies_are_replaced_and_printed_and_broken_ones_are_refused(owner: &Owner) {
    for kind in ["resource", "attestation"] {
        let before = owner.sealpod(["kbs", "policy", "get", kind]);
        assert!(before.contains("package policy"), "{before}");
        let changed = format!("{before}# {kind}: reviewed\n");
        let path = file(owner, &format!("{kind}.rego"), changed.as_bytes());
        owner.sealpod(["kbs", "policy", "set", kind, "--file", &path]);
        assert_eq!(owner.sealpod(["kbs", "policy", "get", kind]), changed);
        let broken = file(owner, &format!("{kind}-broken.rego"), b"package policy\nallow if {\n");
        refused(owner, &["kbs", "policy", "set", kind, "--file", &broken], &["the key broker refused (400"]);
        assert_eq!(owner.sealpod(["kbs", "policy", "get", kind]), changed, "the good one stays");
    }
    let binary = file(owner, "binary.rego", &[0xff, 0xfe]);
    refused(owner, &["kbs", "policy", "set", "resource", "--file", &binary], &["the policy is not text"]);
}

fn reference_values_are_listed_as_they_were_set(owner: &Owner) {
    owner.sealpod(["kbs", "reference-value", "set", "tested", "aa", "bb"]);
    assert_eq!(parsed(owner, &["kbs", "reference-value", "get", "tested"]), json!(["aa", "bb"]));
    let all = parsed(owner, &["kbs", "reference-value", "list", "--json"]);
    assert_eq!(all["tested"], json!(["aa", "bb"]));
    for (id, accepted) in owner.measurements().as_object().unwrap() {
        assert_eq!(&all[id], accepted, "{id}");
    }
    let table = owner.sealpod(["kbs", "reference-value", "list"]);
    assert!(table.starts_with("ID "), "{table}");
    assert!(table.lines().any(|line| line.starts_with("tested ") && line.ends_with("[\"aa\",\"bb\"]")));
    let hint = "hint: `sealpod kbs reference-value list`";
    refused(owner, &["kbs", "reference-value", "get", "never-set"], &["404", hint]);
    let list = file(owner, "list.json", b"[1]");
    refused(owner, &["kbs", "reference-value", "set", "--from", &list], &["list.json", "JSON object"]);
}

fn the_audit_log_has_a_refusal_and_why_explains_it(owner: &Owner) {
    let rows = |table: &str| table.lines().count() - 1;
    // A TPM that nobody certified.
    let tpm = json!({ "ek_certificate": "AAAA", "ek_public": "AAAA", "ak_public": "AAAA" });
    let request = json!({ "version": "0.4.0", "tee": "tpm", "extra-params": { "tpm": tpm } }).to_string();
    let command = owner.command();
    let url = command.get_envs().find_map(|(name, value)| (name == "SEALPOD_KBS").then_some(value?));
    let mut ask = Command::new("curl");
    ask.args(["--silent", "--cacert", &owner.word("kbs/tls.crt"), "--data", &request]);
    let answer = ask.arg(format!("{}/kbs/v0/auth", url.unwrap().to_str().unwrap())).output().unwrap();
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let id = answer["denial"].as_str().unwrap_or_else(|| panic!("{answer}"));

    let entries = parsed(owner, &["kbs", "audit", "--json"]);
    let entry = entries.as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap();
    assert_eq!(entry["outcome"], "denied");
    let table = owner.sealpod(["kbs", "audit"]);
    assert!(table.starts_with("TIME "), "{table}");
    assert!(table.lines().any(|line| line.contains(id) && line.contains("denied")), "{table}");
    assert_eq!(rows(&owner.sealpod(["kbs", "audit", "--limit", "1"])), 1);
    let why = owner.sealpod(["kbs", "why", id]);
    assert!(why.starts_with("denied: attestation of a tpm guest, "), "{why}");
    refused(owner, &["kbs", "why", "0000000000000000"], &["no entry 0000000000000000", "hint: "]);
}

fn a_broker_that_is_not_there_or_not_ours_is_one_clear_error(owner: &Owner) {
    let url = format!("https://{}", nobody());
    refused(owner, &["kbs", "--kbs", &url, "resource", "list"], &[&url, "cannot reach", "hint: "]);
    let other = owner.word("other.key");
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out", &other]).output();
    assert!(made.unwrap().status.success());
    for words in [&["resource", "list"][..], &["policy", "get", "resource"], &["audit"]] {
        let words = [&["kbs", "--admin-key", other.as_str()][..], words].concat();
        refused(owner, &words, &["401", "hint: is --admin-key the key"]);
    }
    let certificate = owner.word("kbs/tls.crt");
    refused(
        owner,
        &["kbs", "--admin-key", &certificate, "resource", "list"],
        &["tls.crt", "no Ed25519 private key"],
    );
    refused(
        owner,
        &["kbs", "--admin-key", "/nowhere.key", "resource", "list"],
        &["cannot read /nowhere.key"],
    );
    // A broker whose certificate nobody vouches for.
    let output = owner.command().env_remove("SEALPOD_KBS_CERTIFICATE").args(["kbs", "audit"]).output();
    failed(&output.unwrap(), 1, &["cannot reach the key broker", "--kbs-certificate"]);
    for (variable, word) in [("SEALPOD_KBS", "--kbs"), ("SEALPOD_ADMIN_KEY", "--admin-key")] {
        let output = owner.command().env_remove(variable).args(["kbs", "audit"]).output();
        failed(&output.unwrap(), 1, &[word, "hint: "]);
    }
}

fn a_registry_that_is_not_there_or_an_image_that_is_none_is_one_clear_error(owner: &Owner) {
    owner.publish("commands", &owner.root("commands"), &ImageOptions::default());
    let layout = owner.word("images/commands");
    let dead = format!("{}/web:1", nobody());
    let expected = [dead.split('/').next().unwrap(), "hint: check its name and port"];
    refused(owner, &["image", "push", "--plain-http", &layout, &dead], &expected);
    refused(owner, &["image", "inspect", "--plain-http", &dead], &expected);
    // The registry speaks plain HTTP, and is not told so.
    refused(owner, &["image", "inspect", &owner.on_host("commands")], &["hint: ", "add --plain-http"]);
    let (signing, missing) = (owner.word("signing.key"), owner.on_host("missing"));
    refused(owner, &["image", "sign", "--plain-http", "--key", &signing, &missing], &["missing", "hint: "]);
    let public = owner.word("signing.pub");
    refused(
        owner,
        &["image", "sign", "--plain-http", "--key", &public, &owner.on_host("commands")],
        &["key"],
    );
    refused(owner, &["image", "push", "/nowhere", &owner.on_host("commands")], &["/nowhere"]);
    refused(owner, &["image", "push", &layout, "registry.example/UPPER:1"], &["UPPER"]);
    let out = owner.word("images/never");
    refused(owner, &["image", "encrypt", "--recipient", "pgp:x", &layout, &out], &["pgp:x"]);
    refused(owner, &["image", "build", "/nowhere", "--output", &out], &["/nowhere"]);
    let config = file(owner, "config.json", b"[]");
    refused(
        owner,
        &["image", "build", "/var/empty", "--config", &config, "--output", &out],
        &["JSON object"],
    );
    assert!(!owner.path("images/never").exists(), "a failure leaves nothing");
    // A key pair is not replaced, nor half of one made.
    let taken = owner.word("signing");
    refused(owner, &["image", "keygen", "--output", &taken], &["signing.key", "hint: "]);
}

fn the_annotation_of_init_data_is_its_compressed_text(owner: &Owner) {
    let text = owner.init_data(&sealpod_tests::InitData::default());
    let annotation =
        owner.sealpod(["init-data", "annotation", &file(owner, "annotated.toml", text.as_bytes())]);
    let packed = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, annotation.trim());
    let mut unpacked = String::new();
    let packed = packed.unwrap();
    let mut reader = flate2::read::GzDecoder::new(packed.as_slice());
    std::io::Read::read_to_string(&mut reader, &mut unpacked).unwrap();
    assert_eq!(unpacked, text);
    refused(owner, &["init-data", "annotation", "/nowhere.toml"], &["/nowhere.toml"]);
    refused(owner, &["init-data", "digest", &file(owner, "no.toml", b"version = 1")], &["init data"]);
}

fn a_policy_is_generated_from_what_is_piped(owner: &Owner) {
    let manifest =
        b"apiVersion: v1\nkind: Pod\nmetadata: {name: piped}\nspec:\n  runtimeClassName: sealpod\n  \
        containers: [{name: main, image: registry.example/app:1}]\n";
    let named = file(owner, "piped.yaml", manifest);
    let options = ["--kbs", "http://broker.example:8080", "--allow-logs"];
    let mut piped = sealpod();
    piped.args(["policy", "generate", "-"]).args(options);
    let mut piped =
        piped.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(manifest).unwrap();
    let output = piped.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let piped = String::from_utf8(output.stdout).unwrap();
    assert!(piped.contains("cc_init_data"), "{piped}");
    assert_eq!(piped, owner.sealpod([&["policy", "generate", &named][..], &options].concat()));
}

/// docs/policy.md is true: each of its commands says there what it says here, but for digests and sizes.
fn the_page_on_policies_says_what_the_tool_says(owner: &Owner) {
    let folder = owner.path("page");
    std::fs::create_dir_all(folder.join("broker")).unwrap();
    std::fs::copy(owner.path("kbs/tls.crt"), folder.join("broker/tls.crt")).unwrap();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut commands = 0;
    // Blocks are indented; text is not.
    for block in page.split("\n\n").filter(|block| block.starts_with("    ")) {
        let block: String =
            block.lines().map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n").collect();
        match &block {
            manifest if manifest.starts_with("apiVersion") => {
                std::fs::write(folder.join("pod.yaml"), manifest).unwrap();
            }
            request if request.starts_with('{') => {
                std::fs::write(folder.join("exec.json"), request).unwrap();
            }
            _ => {}
        }
        for typed in
            block.split_inclusive('\n').collect::<Vec<_>>().chunk_by(|_, next| !next.starts_with("$ "))
        {
            let typed = typed.concat();
            let Some(typed) = typed.strip_prefix("$ ") else { continue };
            let end = typed.lines().take_while(|line| line.ends_with('\\')).count();
            let lines: Vec<&str> = typed.lines().collect();
            let (command, said) = lines.split_at(end + 1);
            let mut shell = Command::new("sh");
            let programs = program("sealpod").parent().unwrap().display().to_string();
            let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
            shell.args(["-c", &format!("{{ {}; }} 2>&1", command.join("\n"))]).env("PATH", path);
            let output = shell.current_dir(&folder).output().unwrap();
            let actual = String::from_utf8_lossy(&output.stdout).into_owned();
            if said != ["…"] {
                assert_eq!(without_digests(&actual), without_digests(&said.join("\n")), "{command:?}");
            }
            commands += 1;
        }
    }
    assert!(commands >= 5, "the page has commands");
}

/// Each digest, shortened or not, and each number of bytes as one sign.
fn without_digests(text: &str) -> String {
    let word = |word: &str| {
        let digits = word.trim_end_matches(['…', ',']);
        let is_digest = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_size = digits.strip_prefix('(').is_some_and(|size| size.parse::<u32>().is_ok());
        if is_digest || is_size { "#".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Kubernetes takes 256 KiB of all annotations of an object together.
fn a_pod_as_large_as_they_come_has_a_policy_that_kubernetes_takes(owner: &Owner) {
    const MOST: u64 = 256 << 10;
    let words = |count: usize, word: &dyn Fn(usize) -> Value| (0..count).map(word).collect::<Vec<_>>();
    let container = |container: usize| {
        // Nothing that repeats itself.
        let value = |variable: usize| {
            let half = |half: usize| {
                let mut random = DefaultHasher::new();
                (container, variable, half).hash(&mut random);
                format!("{:016x}", random.finish())
            };
            half(0) + &half(1)
        };
        json!({
            "name": format!("container-{container}"),
            "image": format!("registry.example/team/service-{container}@sha256:{}", value(1000).repeat(2)),
            "command": words(10, &|word| json!(format!("--option-{word}={}", value(2000 + word)))),
            "env": words(100, &|name| json!({"name": format!("VARIABLE_{name}"), "value": value(name)})),
            "volumeMounts": words(20, &|volume| {
                json!({"name": format!("volume-{volume}"), "mountPath": format!("/volumes/{volume}")})
            }),
            "livenessProbe": {"exec": {"command": ["/bin/check", value(3000)]}},
        })
    };
    let manifest = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large"},
        "spec": {
            "runtimeClassName": "sealpod",
            "containers": words(30, &container),
            "volumes": words(20, &|volume| {
                json!({"name": format!("volume-{volume}"), "emptyDir": {"sizeLimit": format!("{}Mi", volume + 1)}})
            }),
        },
    });
    let named = file(owner, "large.json", manifest.to_string().as_bytes());
    let sealed = owner.word("large-sealed.json");
    let options = ["--kbs", "http://broker.example:8080", "--output", &sealed, "--json"];
    let made = parsed(owner, &[&["policy", "generate", &named][..], &options].concat());
    let documents = sealpod_pod_policy::documents(&std::fs::read_to_string(&sealed).unwrap()).unwrap();
    let annotations = documents[0]["metadata"]["annotations"].as_object().unwrap();
    let lengths = annotations.iter().map(|(name, value)| (name.len() + value.as_str().unwrap().len()) as u64);
    let all: u64 = lengths.sum();
    assert!(all >= made[0]["annotation_bytes"].as_u64().unwrap());
    assert!(all < MOST * 3 / 4, "{all} bytes");
    // It is one that a guest takes and that says what the pod may.
    let explained = parsed(owner, &["policy", "explain", &sealed, "--json"]);
    assert!(explained.to_string().contains("container-29"), "{explained}");
}

/// The files below a folder, in order.
fn files(folder: &Path) -> Vec<String> {
    let output = Command::new("find").arg(folder).args(["!", "-type", "d"]).output().unwrap();
    let mut files: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    files.sort();
    files
}

fn a_node_is_installed_below_a_folder_or_only_told_what_would_be_done(owner: &Owner) {
    let (root, programs) = (owner.path("node-root"), owner.path("node-programs"));
    std::fs::create_dir_all(root.join("etc/containerd")).unwrap();
    std::fs::create_dir_all(&programs).unwrap();
    for name in ["sealpod", "containerd-shim-sealpod-v2", "sealpod-snapshotter"] {
        std::fs::copy(program(name), programs.join(name)).unwrap();
    }
    let configuration = root.join("etc/containerd/config.toml");
    std::fs::write(&configuration, "version = 2\n").unwrap();
    let before = files(&root);
    let (root_word, from, guest) =
        (owner.word("node-root"), owner.word("node-programs"), guest().display().to_string());
    let node =
        |verb: &str, more: &[&str]| owner.sealpod([&["node", verb, "--root", &root_word][..], more].concat());
    let options = [
        "--from",
        &from,
        "--guest",
        &guest,
        "--containerd-version",
        "1.6.20",
        "--images",
        "registry.example/guest/*",
    ];
    let plan = node("install", &[&options[..], &["--dry-run"]].concat());
    assert!(plan.contains("config.toml"), "{plan}");
    assert_eq!(files(&root), before, "it was only told");
    assert_eq!(std::fs::read_to_string(&configuration).unwrap(), "version = 2\n");

    node("install", &options);
    assert!(files(&root).iter().any(|file| file.ends_with("containerd-shim-sealpod-v2")));
    assert!(std::fs::read_to_string(&configuration).unwrap().contains("proxy_plugins"));
    let installed = files(&root);
    assert!(node("install", &options).contains("installed already"));
    node("uninstall", &["--dry-run"]);
    assert_eq!(files(&root), installed, "it was only told");
    node("uninstall", &[]);
    assert_eq!(std::fs::read_to_string(&configuration).unwrap(), "version = 2\n");
    assert_eq!(files(&root), before);
}

fn a_guest_is_measured_as_text_as_it_is_as_json(owner: &Owner) {
    let table = owner.sealpod(["guest", "measure"]);
    assert!(table.starts_with("ID "), "{table}");
    for (id, accepted) in owner.measurements().as_object().unwrap() {
        for value in accepted.as_array().unwrap() {
            let value = value.as_str().unwrap();
            assert!(table.lines().any(|line| line.starts_with(id) && line.ends_with(value)), "{id}: {table}");
        }
    }
    refused(owner, &["guest", "measure", "/nowhere"], &["/nowhere", "hint: "]);
}

fn the_doctor_says_the_same_to_people_and_to_programs(owner: &Owner) {
    let findings = parsed(owner, &["doctor", "--json"]);
    let text = owner.sealpod(["doctor"]);
    let names: Vec<_> = findings.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    for name in ["qemu", "accelerator", "firmware", "swtpm", "runtime folder", "memory", "guest"] {
        assert!(names.contains(&name), "{findings}");
        assert!(text.lines().any(|line| line.starts_with(&format!("ok    {name}: "))), "{text}");
    }
    let output =
        owner.command().env("SEALPOD_GUEST", "/nowhere").args(["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let guest = findings.as_array().unwrap().iter().find(|it| it["name"] == "guest").unwrap();
    assert_eq!(guest["ok"], false);
    assert!(guest["advice"].as_str().unwrap().contains("sealpod guest build"));
    let output = owner.command().env("SEALPOD_GUEST", "/nowhere").arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAIL  guest: "));
}

fn a_shell_takes_the_completions(owner: &Owner) {
    let script = owner.sealpod(["completions", "bash"]);
    let path = file(owner, "completions.bash", script.as_bytes());
    let line = format!("source {path} && complete -p sealpod");
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish"] {
        assert!(owner.sealpod(["completions", shell]).contains("reference-value"));
    }
}

fn a_reader_that_goes_away_is_no_failure_of_what_only_prints(owner: &Owner) {
    for words in [
        &["completions", "bash"][..],
        &["kbs", "resource", "list"],
        &["kbs", "resource", "get", "default/secret/word"],
        &["doctor"],
        &["ps"],
    ] {
        let mut command = owner.command();
        command.args(words);
        let output = unread(command);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stderr, b"", "{words:?}");
    }
}

fn a_demo_that_nobody_hears_does_not_pass_for_a_whole_one(owner: &Owner) {
    let temporary = owner.path("unheard");
    std::fs::create_dir(&temporary).unwrap();
    let mut demo = sealpod();
    demo.arg("demo").env("TMPDIR", &temporary).current_dir(&temporary);
    failed(&unread(demo), 1, &["half way"]);
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    sealpod_tests::assert_no_process_mentions(&temporary);
}
