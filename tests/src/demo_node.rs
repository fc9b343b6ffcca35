//! `make demo-node`: a pod from a YAML file on a private node with a stock containerd, told on the terminal.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sealpod_tests::node::namespaces::{self, ADDRESS, End};
use sealpod_tests::node::{Containerd, NodePod, RUNTIME, cri, log_lines};
use sealpod_tests::{ImageOptions, Node, Owner, repository};
use serde_json::Value;

/// What `make demo-node` applies.
const MANIFEST: &str = "deploy/examples/pod.yaml";
/// The registry's name in it.
const REGISTRY: &str = "registry.example";
const LOG_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Some(code) = namespaces::enter(End::Asked) {
        return code;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        // Whatever was started is dropped with the story, and ends.
        tokio::select! {
            ok = story() => ExitCode::from(u8::from(!ok)),
            () = namespaces::asked() => {
                eprintln!("error: interrupted");
                ExitCode::FAILURE
            }
        }
    })
}

/// Tells it; whether everything was as it must be.
async fn story() -> bool {
    let began = Instant::now();
    chapter("1. An owner: a registry, a key broker, an image");
    let owner = Owner::start_at(ADDRESS.parse().expect("an address"), ADDRESS);
    let registry = owner.registry_in_guest();
    let plain =
        ImageOptions { encrypted: false, signed: false, build: &["--cmd", "/bin/sleep", "--cmd", "1000000"] };
    let root = owner.root("hello");
    let pause = owner.publish("pause", &root, &plain);
    let image = owner.publish("guest/hello", &root, &ImageOptions::default());
    let pushed = owner.registry_log().len();
    say(&format!("{image}: encrypted for the owner's key, signed with the owner's key"));

    chapter("2. A node: a stock containerd, sealpod-snapshotter, containerd-shim-sealpod-v2");
    let node =
        Node::start(Containerd::V1_6, &owner.path("node"), &registry, &pause, &owner.path("tpm-authority"));
    node.ready().await;
    say(&node.version().await);

    chapter("3. A pod: an ordinary manifest, and what is allowed to it");
    let manifest =
        std::fs::read_to_string(repository().join(MANIFEST)).expect("the repository has a manifest");
    let manifest = manifest.replace(REGISTRY, &registry);
    say(&indent(&manifest));
    let annotated = generate(&owner, &manifest);

    chapter("4. The same calls that kubelet makes");
    let started = Instant::now();
    let (pod, id) = apply(&node, &annotated).await;
    let lines = first_lines(&node, &id, 2).await;
    for line in &lines {
        say(&format!("   hello | {line}"));
    }
    let first_output = started.elapsed();
    say(&format!("RunPodSandbox to first output: {:.1} s", first_output.as_secs_f64()));
    let mut ok = lines == ["hello from a confidential pod, green", "hello"];

    chapter("5. The node asks for a shell in it, which the policy does not allow");
    match node.exec(&id, "cat /proc/1/environ").await {
        Ok(_) => {
            say("it was allowed, which is wrong");
            ok = false;
        }
        Err(refused) => {
            say(refused.message());
            ok &= refused.message().contains("ExecProcess");
        }
    }

    chapter("6. Who asked the registry for what");
    let log = owner.registry_log();
    let log = log.get(pushed..).unwrap_or_default();
    let host = requests(log, ADDRESS);
    let guest = requests(log, &node.address(&pod).await);
    for (who, requests) in [("the node", &host), ("the guest", &guest)] {
        for request in requests {
            say(&format!("{who:9}  {request}"));
        }
    }
    let blobs = |requests: &[String]| requests.iter().filter(|request| request.contains("/blobs/")).count();
    // The config, and of the layer nothing; the guest fetches the signature besides.
    ok &= blobs(&host) == 1 && blobs(&guest) == 3;
    say("The node fetched the manifest and the config; the layer went to the guest alone.");

    node.remove(&pod).await;
    say(&format!(
        "\nremoved; {:.0} s in all, {}",
        began.elapsed().as_secs_f64(),
        if ok { "as it must be" } else { "NOT as it must be" }
    ));
    ok
}

/// `sealpod policy generate`, and what it says to do next.
fn generate(owner: &Owner, manifest: &str) -> String {
    std::fs::write(owner.path("pod.yaml"), manifest).expect("a file");
    say("$ sealpod policy generate pod.yaml --allow-logs --kbs … --image-policy … > sealed.yaml");
    let (annotated, init_data) = owner.generate_policy(&owner.path("pod.yaml"), &["--allow-logs"]);
    say(&format!("init data with the digest {init_data}, registered at the key broker"));
    std::fs::write(owner.path("sealed.yaml"), &annotated).expect("a file");
    let explained = owner.sealpod(["policy", "explain", &owner.word("sealed.yaml")]);
    say("$ sealpod policy explain sealed.yaml");
    say(&indent(&explained));
    annotated
}

/// RunPodSandbox, PullImage, CreateContainer, StartContainer.
async fn apply(node: &Node, manifest: &str) -> (NodePod, String) {
    let documents = sealpod_pod_policy::documents(manifest).expect("the manifest is YAML");
    let object = documents.first().expect("the manifest has a pod");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut config = node.pod_config(&text(&object["metadata"]["name"]), None);
    for (name, value) in object["metadata"]["annotations"].as_object().into_iter().flatten() {
        config.annotations.insert(name.clone(), text(value));
    }
    let container = &object["spec"]["containers"][0];
    let image = text(&container["image"]);
    let pod = node.try_run_pod(config, &text(&object["spec"]["runtimeClassName"])).await;
    let pod = pod.unwrap_or_else(|status| panic!("{}", status.message()));
    say(&format!("RunPodSandbox    {} with the runtime {RUNTIME}", pod.id));
    node.pull(&image).await;
    say(&format!("PullImage        {image}"));
    let words = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let variable = |value: &Value| cri::KeyValue { key: text(&value["name"]), value: text(&value["value"]) };
    let container = cri::ContainerConfig {
        command: words(&container["command"]),
        args: words(&container["args"]),
        envs: container["env"].as_array().into_iter().flatten().map(variable).collect(),
        ..node.container_config(&text(&container["name"]), &image, "")
    };
    let id = node.spawn(&pod, container).await;
    say(&format!("CreateContainer  {id}\nStartContainer"));
    (pod, id)
}

async fn first_lines(node: &Node, id: &str, count: usize) -> Vec<String> {
    let log = node.status(id).await.log_path;
    let deadline = Instant::now() + LOG_LIMIT;
    loop {
        let lines = log_lines(Path::new(&log));
        if lines.len() >= count || Instant::now() > deadline {
            return lines.into_iter().map(|line| line.text).collect();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Method and path of one client's requests for the image.
fn requests(log: &str, client: &str) -> Vec<String> {
    let ours = log.lines().filter(|line| line.starts_with(client) && line.contains("/v2/guest/hello/"));
    let request = |line: &str| line.split('"').nth(1).map(|request| request.replace(" HTTP/1.1", ""));
    ours.filter_map(request).collect()
}

fn chapter(title: &str) {
    say(&format!("\n== {title}"));
}

/// Whether or not anybody reads it.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect::<String>().trim_end().to_owned()
}
