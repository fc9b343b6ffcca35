//! With the containerd that this machine has, and a newer one that `make containerds` fetches: its own folders, a registry, and
//! pulls by CRI as kubelet would ask for.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, PodSandboxConfig, PullImageRequest, RemoveImageRequest};
use sealpod_snapshotter::USER_OF_IMAGE;
use sealpod_snapshotter::api::snapshots::Mount;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::support::{
    Client, Mounted, Process, SNAPSHOTTER, Snapshotter, channel, folder, labels, needs_root, until,
};

const CRI_NAMESPACE: &str = "k8s.io";
/// By this annotation of a pod newer releases know for which runtime they pull: ours has the snapshotter's name.
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";

/// A node's containerd, our snapshotter and a registry.
struct Node {
    _containerd: Process,
    snapshotter: Snapshotter,
    _registry: Process,
    registry: SocketAddr,
    cri: ImageServiceClient<Channel>,
    /// The folder of containerd's programs, which may be the system's.
    programs: PathBuf,
    // Dropped last: it has the files of all of them.
    folder: TempDir,
}

impl Node {
    /// Starts it; `config` is the snapshotter's configuration in which `REGISTRY` stands for the registry.
    fn start(config: &str) -> Self {
        Self::with("/usr/bin".into(), config, containerd_config)
    }

    /// Starts one of containerd 2.x.
    fn start_newer(config: &str) -> Self {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/containerd/2");
        assert!(programs.join("containerd").is_file(), "there is no containerd 2: run `make containerds`");
        Self::with(programs, config, newer_containerd_config)
    }

    fn with(programs: PathBuf, config: &str, containerd_config: fn(&Path, SocketAddr) -> String) -> Self {
        let folder = folder();
        let place = folder.path();
        let registry = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let registry_config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{registry}'}}\n",
            place.join("registry").display()
        );
        fs::write(place.join("registry.yml"), registry_config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(place.join("registry.yml"));
        let mut registry_process = Process::start(&mut command, &place.join("registry.log"));
        registry_process.until(|| TcpStream::connect(registry).ok());

        let config = config.replace("REGISTRY", &registry.to_string());
        let snapshotter = Snapshotter::start(place, Some(&config));
        fs::create_dir(place.join("cni")).unwrap();
        fs::write(place.join("containerd.toml"), containerd_config(place, registry)).unwrap();
        let mut command = Command::new(programs.join("containerd"));
        command.arg("--config").arg(place.join("containerd.toml"));
        let mut containerd = Process::start(&mut command, &place.join("containerd.log"));
        let mut version = Command::new(programs.join("ctr"));
        version.arg("--address").arg(place.join("containerd.sock")).arg("version");
        containerd.until(|| version.output().is_ok_and(|output| output.status.success()).then_some(()));
        Self {
            _containerd: containerd,
            snapshotter,
            _registry: registry_process,
            registry,
            cri: ImageServiceClient::new(channel(&place.join("containerd.sock"))),
            programs,
            folder,
        }
    }

    /// Puts an image into the registry; gives its reference.
    fn push(&self, repository: &str, image: &Image<'_>) -> String {
        let layout = tempfile::tempdir_in(self.folder.path()).unwrap();
        image.write(layout.path());
        let reference = format!("{}/{repository}:1", self.registry);
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--all", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:image", layout.path().display()))
            .arg(format!("docker://{reference}")));
        reference
    }

    async fn pull(&self, reference: &str) {
        let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
        let annotations = labels(&[(RUNTIME_HANDLER, SNAPSHOTTER)]);
        let pod = Some(PodSandboxConfig { annotations, ..Default::default() });
        let request = PullImageRequest { image, sandbox_config: pod, ..Default::default() };
        // CRI comes a moment after containerd's other services.
        for _ in 0..200 {
            match self.cri.clone().pull_image(request.clone()).await {
                Err(status) if status.message().contains("not initialized") => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answer => return drop(answer.unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()))),
            }
        }
        panic!("CRI does not come up\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("containerd.log")).unwrap()
    }

    /// containerd's own client, in CRI's namespace; gives what it printed.
    fn ctr(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.programs.join("ctr"));
        command.arg("--address").arg(self.folder.path().join("containerd.sock"));
        run(command.args(["--namespace", CRI_NAMESPACE]).args(arguments))
    }

    /// A blob in containerd's content store with a label.
    fn ingest(&self, bytes: &[u8], label: &str) {
        let file = self.folder.path().join("blob");
        fs::write(&file, bytes).unwrap();
        let digest = digest(&file);
        let mut command = Command::new(self.programs.join("ctr"));
        command.arg("--address").arg(self.folder.path().join("containerd.sock"));
        command.args([
            "--namespace",
            CRI_NAMESPACE,
            "content",
            "ingest",
            "--expected-digest",
            &digest,
            &digest,
        ]);
        run(command.stdin(Stdio::from(fs::File::open(&file).unwrap())));
        self.ctr(&["content", "label", &digest, "containerd.io/gc.root=kept", label]);
    }

    /// containerd's snapshots, as its own clients see them.
    fn snapshots(&self) -> Client {
        Client::connect(&self.folder.path().join("containerd.sock"), Some(CRI_NAMESPACE))
    }

    /// The root of a container that containerd makes of an image, and the number of the user it runs as.
    async fn container(&self, reference: &str, name: &str) -> (Vec<Mount>, u64, u64) {
        self.ctr(&["containers", "create", "--snapshotter", SNAPSHOTTER, reference, name]);
        let info: serde_json::Value = serde_json::from_str(&self.ctr(&["containers", "info", name])).unwrap();
        let user = &info["Spec"]["process"]["user"];
        let mounts = self.snapshots().mounts(name).await.unwrap();
        (mounts, user["uid"].as_u64().unwrap(), user["gid"].as_u64().unwrap())
    }

    /// The snapshots that the snapshotter has of layers.
    async fn layers(&self) -> Vec<String> {
        self.snapshotter.client().names(&["kind==committed"]).await
    }

    /// Manifests, an index and configs are there, and none of these layers, which the snapshotter only says to have.
    async fn assert_layers_are_left(&self, layers: &[&[(&str, &str)]]) {
        let content = self.ctr(&["content", "ls", "--quiet"]);
        for layer in layers {
            let file = self.folder.path().join("layer");
            fs::write(&file, tar(layer)).unwrap();
            assert!(!content.contains(&digest(&file)), "{content}");
        }
        assert_eq!(self.layers().await.len(), layers.len());
        assert!(self.snapshotter.folders().is_empty());
    }
}

fn containerd_config(place: &Path, registry: SocketAddr) -> String {
    let place = place.display();
    format!(
        r#"version = 2
root = "{place}/containerd"
state = "{place}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{place}/containerd.sock"
[proxy_plugins.{SNAPSHOTTER}]
  type = "snapshot"
  address = "{place}/snapshotter.sock"
[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "0ms"
  startup_delay = "0ms"
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "{place}/cni"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."{registry}"]
  endpoint = ["http://{registry}"]
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{SNAPSHOTTER}"
  disable_snapshot_annotations = false
"#
    )
}

/// As `sealpod node install` has it: the transfer service pulls.
fn newer_containerd_config(place: &Path, registry: SocketAddr) -> String {
    let place = place.display();
    let platform = format!("linux/{}", architecture());
    format!(
        r#"version = 3
root = "{place}/containerd"
state = "{place}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{place}/containerd.sock"
[debug]
  level = "debug"
[proxy_plugins.{SNAPSHOTTER}]
  type = "snapshot"
  address = "{place}/snapshotter.sock"
  exports = {{ enable_remote_snapshot_annotations = "true" }}
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{place}/registries"
[plugins."io.containerd.cri.v1.images".runtime_platforms.{SNAPSHOTTER}]
  snapshotter = "{SNAPSHOTTER}"
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = "{place}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{SNAPSHOTTER}]
  runtime_type = "io.containerd.sealpod.v2"
  snapshotter = "{SNAPSHOTTER}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "{platform}"
  snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "{platform}"
  snapshotter = "{SNAPSHOTTER}"
# {registry} is on this machine, so it is asked without TLS.
"#
    )
}

/// An image: of each layer the files (name and text), and the user.
struct Image<'a> {
    layers: &'a [&'a [(&'a str, &'a str)]],
    user: &'a str,
    /// Whether its reference leads to an index of manifests.
    index: bool,
}

impl Image<'_> {
    /// Writes an OCI layout.
    fn write(&self, folder: &Path) {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |text: &[u8], kind: &str| {
            let file = folder.join("blob");
            fs::write(&file, text).unwrap();
            let digest = digest(&file);
            fs::rename(&file, blobs.join(digest.trim_start_matches("sha256:"))).unwrap();
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{}}}"#,
                text.len()
            )
        };
        let tars: Vec<_> = self.layers.iter().map(|files| tar(files)).collect();
        let layers: Vec<_> = tars.iter().map(|tar| blob(tar, "layer.v1.tar")).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.split('"').nth(7).unwrap()).collect();
        let diff_ids = diff_ids.join("\",\"");
        let config = blob(
            format!(
                r#"{{"architecture":"{}","os":"linux","config":{{"User":"{}","Cmd":["/bin/app"]}},"rootfs":{{"type":"layers","diff_ids":["{diff_ids}"]}}}}"#,
                architecture(), self.user
            )
            .as_bytes(),
            "config.v1+json",
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{}]}}"#,
            layers.join(",")
        );
        let mut top = blob(manifest.as_bytes(), "manifest.v1+json");
        if self.index {
            let platform = format!(r#","platform":{{"architecture":"{}","os":"linux"}}}}"#, architecture());
            let entry = top.replace('}', &platform);
            let kind = "application/vnd.oci.image.index.v1+json";
            let index = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{entry}]}}"#);
            top = blob(index.as_bytes(), "index.v1+json");
        }
        let named = top.replace('}', r#","annotations":{"org.opencontainers.image.ref.name":"image"}}"#);
        fs::write(folder.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#))
            .unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    command.arg("--directory").arg(folder.path()).arg(".");
    command.output().unwrap().stdout
}

fn digest(file: &Path) -> String {
    let line = run(Command::new("sha256sum").arg(file));
    format!("sha256:{}", line.split(' ').next().unwrap())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn stand_in(mounts: &[Mount], file: &str) -> String {
    let [mount] = mounts else { panic!("{mounts:?}") };
    assert_eq!((mount.r#type.as_str(), &mount.options[1]), ("bind", &"ro".to_owned()));
    fs::read_to_string(PathBuf::from(&mount.source).join(file)).unwrap()
}

const BASE: &[(&str, &str)] = &[("etc/base", "base"), ("removed", "base")];
/// Has users, and removes a file of the layer below.
const USERS: &[(&str, &str)] = &[("etc/passwd", "app:x:7:8::/:\n"), (".wh.removed", "")];
const APP: &[(&str, &str)] = &[("bin/app", "app")];

#[tokio::test]
async fn a_pulled_image_leaves_its_layers_to_the_guest_and_its_users_name_is_found() {
    needs_root();
    let node = Node::start("");
    let named = node.push("named", &Image { layers: &[BASE, APP], user: "app:staff", index: false });
    let index = node.push("index", &Image { layers: &[BASE, APP], user: "web", index: true });
    let number = node.push("number", &Image { layers: &[BASE], user: "1000:1001", index: false });
    for reference in [&named, &index, &number] {
        node.pull(reference).await;
    }
    node.assert_layers_are_left(&[BASE, APP]).await;

    let user = u64::from(USER_OF_IMAGE);
    let (mounts, uid, gid) = node.container(&named, "one").await;
    assert_eq!((uid, gid), (user, user));
    // containerd said nothing of the second image, for the first had brought all layers.
    let passwd = stand_in(&mounts, "etc/passwd");
    assert!(
        passwd.contains("\napp:x:1397048656:1397048656:") && passwd.contains("\nweb:x:1397048656:"),
        "{passwd}"
    );
    assert!(stand_in(&mounts, "etc/group").contains("\nstaff:x:1397048656:"));
    let (_, uid, _) = node.container(&index, "two").await;
    assert_eq!(uid, user);
    let (mounts, uid, gid) = node.container(&number, "three").await;
    assert_eq!((uid, gid), (1000, 1001));
    assert_eq!(stand_in(&mounts, "etc/passwd"), "root:x:0:0::/:\n", "other layers, other users");
}

#[tokio::test]
async fn the_transfer_service_leaves_the_layers_of_the_guests_images_and_unpacks_others() {
    needs_root();
    let node = Node::start_newer("images = [\"REGISTRY/guest/*\"]");
    let guest = node.push("guest/app", &Image { layers: &[BASE, APP], user: "app", index: true });
    let host = node.push("host/app", &Image { layers: &[USERS], user: "app", index: false });
    node.pull(&guest).await;
    assert!(node.log().contains("transfer service"), "{}", node.log());
    node.assert_layers_are_left(&[BASE, APP]).await;
    let (mounts, uid, _) = node.container(&guest, "one").await;
    assert_eq!(uid, u64::from(USER_OF_IMAGE));
    assert!(stand_in(&mounts, "etc/passwd").contains("\napp:x:"));

    node.pull(&host).await;
    let (mounts, uid, gid) = node.container(&host, "two").await;
    assert_eq!((uid, gid), (7, 8));
    assert_eq!(Mounted::of(&mounts).text("etc/passwd").as_deref(), Some("app:x:7:8::/:\n"));
}

#[tokio::test]
async fn an_image_that_another_snapshotter_pulled_works_though_the_guest_has_a_layer_of_it() {
    needs_root();
    let node = Node::start("");
    let before =
        node.push("before", &Image { layers: &[BASE, &[("bin/old", "old")]], user: "old", index: false });
    let alone = node.push("alone", &Image { layers: &[USERS, BASE], user: "app", index: false });
    let now = node.push("now", &Image { layers: &[BASE, APP], user: "app", index: false });
    for reference in [&before, &alone] {
        node.ctr(&["images", "pull", "--plain-http", "--snapshotter", "overlayfs", reference]);
    }
    node.pull(&now).await;
    let user = u64::from(USER_OF_IMAGE);
    // On a layer that the guest has: left to the guest, after containerd unpacked what it had into nothing.
    let (mounts, uid, _) = node.container(&before, "one").await;
    assert_eq!(uid, user);
    assert!(stand_in(&mounts, "etc/passwd").contains("\nold:x:"));
    assert_eq!(node.snapshotter.folders().len(), 1, "the container's stand-in");
    // On nothing: unpacked here, with the image's own users.
    let (mounts, uid, gid) = node.container(&alone, "two").await;
    assert_eq!((uid, gid), (7, 8));
    assert_eq!(Mounted::of(&mounts).text("etc/base").unwrap(), "base");
}

#[tokio::test]
async fn an_image_for_the_host_is_unpacked_and_goes_when_it_is_removed() {
    needs_root();
    let node = Node::start("images = [\"REGISTRY/guest/*\"]");
    let host = node.push("host/app", &Image { layers: &[BASE, USERS, APP], user: "app", index: false });
    let guest = node.push("guest/app", &Image { layers: &[APP], user: "app", index: false });
    node.pull(&host).await;
    node.pull(&guest).await;
    let (mounts, uid, gid) = node.container(&host, "one").await;
    assert_eq!((uid, gid), (7, 8));
    let root = Mounted::of(&mounts);
    assert_eq!(root.text("etc/base").unwrap(), "base");
    assert_eq!(root.text("bin/app").unwrap(), "app");
    assert_eq!(root.text("removed"), None);
    fs::write(root.join("etc/base"), "changed").unwrap();
    drop(root);
    let (mounts, uid, _) = node.container(&guest, "two").await;
    assert_eq!(uid, u64::from(USER_OF_IMAGE));
    assert!(stand_in(&mounts, "etc/passwd").contains("\napp:x:"));
    assert_eq!(node.snapshotter.folders().len(), 5, "three layers and two containers");

    node.ctr(&["containers", "rm", "one", "two"]);
    for reference in [host, guest] {
        let image = Some(ImageSpec { image: reference, ..Default::default() });
        node.cri.clone().remove_image(RemoveImageRequest { image }).await.unwrap();
    }
    // containerd collects them by and by.
    until("all folders are removed", || node.snapshotter.folders().is_empty().then_some(()));
    assert!(node.layers().await.is_empty());
}

#[tokio::test]
async fn hostile_configs_give_no_names_and_stop_no_container() {
    needs_root();
    let node = Node::start("");
    let client = node.snapshots();
    let chain = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let noted = client.prepare_layer(chain, "", "registry/app").await.unwrap_err();
    assert_eq!(noted.code(), tonic::Code::AlreadyExists, "{noted:?}");
    assert_eq!(client.stat(chain).await.unwrap().name, chain);
    let label = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}={chain}");
    for config in [
        br#"{"config":{"User":"good"}}"#.to_vec(),
        br#"{"config":{"User":"evil\nroot:x:0:0::/:"}}"#.to_vec(),
        br#"{"config":{"User":"evil:x:0:0"}}"#.to_vec(),
        br#"{"config":{"User":"../evil"}}"#.to_vec(),
        br#"{"config":{"User":7}}"#.to_vec(),
        br#"{"config":{"User":null}}"#.to_vec(),
        br#"{"config":null}"#.to_vec(),
        b"no json".to_vec(),
        vec![b'['; 1 << 20],
        format!(r#"{{"config":{{"User":"late"}},"padding":"{}"}}"#, "x".repeat(5 << 20)).into_bytes(),
    ] {
        node.ingest(&config, &label);
    }
    let mounts = client.prepare("container", chain).await.unwrap();
    let expected = "root:x:0:0::/:\nevil:x:1397048656:1397048656::/:\ngood:x:1397048656:1397048656::/:\n";
    // Of `evil:x:0:0` the part before the colon is a name like any other.
    assert_eq!(stand_in(&mounts, "etc/passwd"), expected);
    let log = node.snapshotter.log();
    assert!(log.contains("it is longer than 4194304 bytes"), "{log}");
    assert!(log.contains("it is no image's config"), "{log}");
    let highest = fs::read_to_string(format!("/proc/{}/status", node.snapshotter.process.id())).unwrap();
    println!("{}", highest.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}
