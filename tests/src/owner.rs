//! An owner with everything that is theirs: a registry, a key broker, keys, images, init data.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::service::Service;
use crate::{guest, program, sealpod};

/// This machine's loopback, as a guest on QEMU's user network sees it.
pub const LOOPBACK_IN_GUEST: &str = "10.0.2.2";
/// The path of the key under which images are encrypted.
const IMAGE_KEY: &str = "default/key/image";
/// What images may run, unless something else is said.
const IMAGE_POLICY: &str = "default/image-policy/tests";

/// The owner.
#[derive(Debug)]
pub struct Owner {
    // Declared before the folder: servers end before their files go.
    _registry: Service,
    _broker: Service,
    registry: SocketAddr,
    broker: SocketAddr,
    /// How a guest calls this machine.
    in_guest: String,
    /// Digests of init data that the broker knows.
    init_data: Mutex<Vec<String>>,
    folder: TempDir,
}

/// What an image is made with, beside its root folder.
#[derive(Clone, Debug)]
pub struct ImageOptions<'a> {
    /// More words for `sealpod image build`.
    pub build: &'a [&'a str],
    /// Whether its layers are encrypted for the owner's key.
    pub encrypted: bool,
    /// Whether the owner signs it.
    pub signed: bool,
}

impl Default for ImageOptions<'_> {
    fn default() -> Self {
        Self { build: &["--cmd", "/bin/sh"], encrypted: true, signed: true }
    }
}

/// What init data is made of.
#[derive(Clone, Debug)]
pub struct InitData<'a> {
    /// The agent's policy (Rego), if any.
    pub agent_policy: Option<&'a str>,
    /// The image policy's path in the key broker.
    pub image_policy: &'a str,
    /// The key broker's address in the guest, if not the owner's own.
    pub key_broker: Option<&'a str>,
    /// Whether the key broker learns its digest.
    pub registered: bool,
}

impl Default for InitData<'_> {
    fn default() -> Self {
        Self { agent_policy: None, image_policy: IMAGE_POLICY, key_broker: None, registered: true }
    }
}

impl Owner {
    /// Starts registry and broker on loopback, makes keys and policies, and registers the guest's measurements.
    ///
    /// # Panics
    ///
    /// Where anything of it fails, as everywhere here.
    pub fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), LOOPBACK_IN_GUEST)
    }

    /// The same on another address of this machine, which guests call by a name of theirs.
    pub fn start_at(address: IpAddr, in_guest: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path();
        std::fs::create_dir_all(path.join("tmp")).expect("a folder");
        let (registry_service, registry) = start_registry(path, address);
        let (broker_service, broker) = start_broker(path, address, in_guest);
        let owner = Self {
            _registry: registry_service,
            _broker: broker_service,
            registry,
            broker,
            in_guest: in_guest.to_owned(),
            init_data: Mutex::default(),
            folder,
        };
        owner.make_keys();
        let measurements = owner.sealpod(["guest", "measure", "--json"]);
        std::fs::write(owner.path("measurements.json"), measurements).expect("a file");
        owner.sealpod(["kbs", "reference-value", "set", "--from", &owner.word("measurements.json")]);
        owner
    }

    /// The tool as this owner uses it.
    pub fn command(&self) -> Command {
        let mut command = sealpod();
        command
            .env("SEALPOD_KBS", format!("https://{}", self.broker))
            .env("SEALPOD_KBS_CERTIFICATE", self.path("kbs/tls.crt"))
            .env("SEALPOD_ADMIN_KEY", self.path("kbs/admin.key"))
            .env("SEALPOD_TPM_AUTHORITY", self.path("tpm-authority"))
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_DATA_HOME", self.path("data"));
        command
    }

    /// What a command that must succeed prints.
    pub fn sealpod<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> String {
        let output = self.try_sealpod(words);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {complaint}", output.status);
        String::from_utf8(output.stdout).expect("the output is text")
    }

    /// How a command ends.
    pub fn try_sealpod<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Output {
        self.command().args(words).output().expect("the tool can be run")
    }

    /// A path in this owner's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as a word.
    pub fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An image's name on this machine.
    pub fn on_host(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry)
    }

    /// An image's name in a guest.
    pub fn in_guest(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry_in_guest())
    }

    /// The registry's name in a guest.
    pub fn registry_in_guest(&self) -> String {
        format!("{}:{}", self.in_guest, self.registry.port())
    }

    /// What the registry's log has: a line for each request.
    pub fn registry_log(&self) -> String {
        std::fs::read_to_string(self.path("registry.log")).expect("the registry has a log")
    }

    /// Measured values that the broker accepts.
    pub fn measurements(&self) -> Value {
        let text = std::fs::read_to_string(self.path("measurements.json")).expect("the guest was measured");
        serde_json::from_str(&text).expect("measurements are JSON")
    }

    /// A root folder with busybox, users and groups.
    pub fn root(&self, name: &str) -> PathBuf {
        let root = self.path(&format!("roots/{name}"));
        if root.exists() {
            std::fs::remove_dir_all(&root).expect("an earlier one can be removed");
        }
        for folder in ["bin", "etc", "home/app", "root", "tmp", "work"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let busybox = busybox();
        std::fs::copy(&busybox, root.join("bin/busybox")).expect("busybox can be copied");
        let applets = Command::new(&busybox).arg("--list").output().expect("busybox runs here").stdout;
        for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("a mode");
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
        )
        .expect("a file");
        // No two images have the same layer.
        std::fs::write(root.join("etc/hostname"), name).expect("a file");
        std::fs::write(root.join("etc/group"), "root:x:0:\naudio:x:29:app\napp:x:1001:\n").expect("a file");
        root
    }

    /// Makes an image and pushes it; gives its name in a guest.
    pub fn publish(&self, repository: &str, root: &Path, options: &ImageOptions<'_>) -> String {
        let layout = self.path(&format!("images/{repository}"));
        std::fs::create_dir_all(self.path("images")).expect("a folder");
        let mut build = self.command();
        build.args(["image", "build"]).arg(root).args(options.build).arg("--output").arg(&layout);
        run(build);
        let layout = if options.encrypted {
            let encrypted = self.path(&format!("images/{repository}-encrypted"));
            let recipient = format!(
                "provider:attestation-agent:keyid=kbs:///{IMAGE_KEY}::keypath={}",
                self.word("image.key")
            );
            let mut encrypt = self.command();
            encrypt.args(["image", "encrypt", "--recipient", &recipient]).arg(&layout).arg(&encrypted);
            run(encrypt);
            encrypted
        } else {
            layout
        };
        let on_host = self.on_host(repository);
        let mut push = self.command();
        push.args(["image", "push", "--plain-http"]).arg(&layout).arg(&on_host);
        run(push);
        if options.signed {
            let (key, identity) = (self.word("signing.key"), self.in_guest(repository));
            self.sealpod(["image", "sign", "--plain-http", "--key", &key, "--identity", &identity, &on_host]);
        }
        self.in_guest(repository)
    }

    /// Makes init data.
    pub fn init_data(&self, parts: &InitData<'_>) -> String {
        // One at a time: the files have fixed names.
        let mut known = self.init_data.lock().expect("no test panicked here");
        let policy = self.path("agent-policy.rego");
        let kbs = format!("https://{}:{}", self.in_guest, self.broker.port());
        let mut create = self.command();
        create
            .args(["init-data", "create", "--kbs", parts.key_broker.unwrap_or(&kbs)])
            .args(["--kbs-certificate", &self.word("kbs/tls.crt")])
            .args(["--image-policy", &format!("kbs:///{}", parts.image_policy)])
            .args(["--plain-http", &self.registry_in_guest()]);
        if let Some(rego) = parts.agent_policy {
            std::fs::write(&policy, rego).expect("a file");
            create.arg("--agent-policy").arg(&policy);
        }
        let init_data = run(create);
        if parts.registered {
            self.register(&mut known, &init_data);
        }
        init_data
    }

    /// `sealpod policy generate`: the manifest with its annotation, and the init data's digest, which the broker learns.
    pub fn generate_policy(&self, manifest: &Path, options: &[&str]) -> (String, String) {
        let mut known = self.init_data.lock().expect("no test panicked here");
        let annotated = self.path("annotated.yaml");
        let kbs = format!("https://{}:{}", self.in_guest, self.broker.port());
        let mut generate = self.command();
        generate.args(["policy", "generate", "--json", "--kbs", &kbs]).args(options);
        generate.args(["--kbs-certificate", &self.word("kbs/tls.crt")]);
        generate.args(["--image-policy", &format!("kbs:///{IMAGE_POLICY}")]);
        generate.args(["--plain-http", &self.registry_in_guest()]);
        generate.arg("--output").arg(&annotated).arg(manifest);
        let summary: Value = serde_json::from_str(&run(generate)).expect("the summary is JSON");
        let digest = summary[0]["init_data_digest"].as_str().expect("each pod has a digest").to_owned();
        self.learn(&mut known, digest.clone());
        (std::fs::read_to_string(annotated).expect("the manifest was written"), digest)
    }

    /// What the broker's log has under a denial's id.
    pub fn refusal(&self, denial: &str) -> Value {
        serde_json::from_str(&self.sealpod(["kbs", "why", denial, "--json"])).expect("the answer is JSON")
    }

    fn register(&self, known: &mut Vec<String>, init_data: &str) {
        let file = self.path("digest-of.toml");
        std::fs::write(&file, init_data).expect("a file");
        let digest = self.sealpod(["init-data", "digest", &self.word("digest-of.toml")]);
        self.learn(known, digest.trim().to_owned());
    }

    fn learn(&self, known: &mut Vec<String>, digest: String) {
        known.push(digest);
        let words = ["kbs", "reference-value", "set", "init_data"].map(str::to_owned);
        self.sealpod(words.iter().chain(known.iter()));
    }

    fn make_keys(&self) {
        let set = |path: &str, file: &str, content: &[u8]| {
            std::fs::write(self.path(file), content).expect("a file");
            self.sealpod(["kbs", "resource", "set", path, "--file", &self.word(file)]);
        };
        // Tests need no secret key.
        set(IMAGE_KEY, "image.key", &[7; 32]);
        set("default/secret/word", "word", b"a secret word");
        self.sealpod(["image", "keygen", "--output", &self.word("signing")]);
        let public = std::fs::read_to_string(self.path("signing.pub")).expect("a public key");
        set("default/key/signing", "signing.pub", public.as_bytes());
        let policy = json!({
            "default": [{ "type": "reject" }],
            "transports": { "docker": { self.registry_in_guest(): [{
                "type": "sigstoreSigned",
                "keyPath": "kbs:///default/key/signing",
                "signedIdentity": { "type": "matchRepository" },
            }] } },
        });
        set(IMAGE_POLICY, "image-policy.json", policy.to_string().as_bytes());
    }
}

/// The program that images of the tests are made of; fetched where it is not there yet.
///
/// # Panics
///
/// Where that fails.
pub fn busybox() -> PathBuf {
    let cache = crate::repository().join("target/test-packages");
    sealpod_guest_image::debian::file("busybox-static", "bin/busybox", &cache)
        .expect("busybox comes from Debian")
}

fn run(mut command: Command) -> String {
    let output = command.output().expect("the tool can be run");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).expect("the output is text")
}

fn start_registry(folder: &Path, address: IpAddr) -> (Service, SocketAddr) {
    let free = TcpListener::bind((address, 0)).expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let configuration = folder.join("registry.yml");
    let storage = folder.join("registry");
    std::fs::write(
        &configuration,
        format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n",
            storage.display()
        ),
    )
    .expect("a file");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&configuration);
    let mut service = Service::start("docker-registry", &mut command, &folder.join("registry.log"));
    service.until(|| TcpStream::connect(address).ok());
    (service, address)
}

fn start_broker(folder: &Path, address: IpAddr, in_guest: &str) -> (Service, SocketAddr) {
    let roots = sealpod_sandbox::tpm_authority::create(&folder.join("tpm-authority"))
        .expect("an authority for emulated TPMs");
    let kbs = folder.join("kbs");
    let mut init = Command::new(program("sealpod-kbs"));
    let (host, listen) = (address.to_string(), SocketAddr::new(address, 0).to_string());
    init.args(["init", "--host", in_guest, "--host", &host, "--listen", &listen]);
    init.arg("--dir").arg(&kbs);
    for root in &roots {
        init.arg("--tpm-ek-root").arg(root);
    }
    run(init);
    let address_file = folder.join("kbs.address");
    let mut serve = Command::new(program("sealpod-kbs"));
    serve.arg("serve").arg("--config").arg(kbs.join("kbs.toml")).arg("--address-file").arg(&address_file);
    let mut service = Service::start("sealpod-kbs", &mut serve, &folder.join("kbs.log"));
    let address = service.until(|| std::fs::read_to_string(&address_file).ok()?.trim().parse().ok());
    let _ = guest();
    (service, address)
}
