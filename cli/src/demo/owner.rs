//! The owner's side of the demo: keys, policies, an image, and what the key broker must know.

use std::path::{Path, PathBuf};

use super::recorder::{RecordedRequest, Recorder};
use super::services::{KeyBroker, Registry, output_of};
use super::shell::{PodWords, Shell, words};
use crate::error::{Context, Error, Result};
use crate::kbs::{AuditEntry, Client};

/// This machine's loopback, as a guest on QEMU's user network sees it.
const LOOPBACK_IN_GUEST: &str = "10.0.2.2";

/// The image's key in the broker.
pub(crate) const IMAGE_KEY: &str = "default/key/demo";

/// What the host may do with the demo's pods: read their output, and nothing else.
const AGENT_POLICY: &str = "\
package agent_policy

# The image as it is, and what it prints. No exec, no input.
CreateContainer if input.overrides_image == false

ReadStdout := true

ReadStderr := true
";

/// The container's only program.
const SERVE: &str = "\
#!/bin/sh
trap 'kill $server; exit 0' TERM
echo \"hello from $(hostname), a container in a measured VM\"
echo \"the key broker gave this pod a secret of $(wget -q -O - http://127.0.0.1:8006/cdh/resource/default/secret/demo | wc -c) bytes\"
httpd -f -p 8080 -h /www &
server=$!
echo \"serving HTTP on port 8080\"
wait $server
";

/// The owner with everything that is theirs.
pub(crate) struct Owner {
    registry: Registry,
    broker: KeyBroker,
    front: Recorder,
    client: Client,
    folder: PathBuf,
    tpm_authority: PathBuf,
}

/// An image in the registry.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// As a guest names it.
    pub(crate) in_guest: String,
    /// The first layer's digest, as the registry has it.
    pub(crate) layer: String,
}

impl Owner {
    pub(crate) async fn start(shell: &mut Shell, kbs_program: Option<&Path>, folder: &Path) -> Result<Self> {
        let program = kbs_program.map_or_else(beside_this_program, Path::to_owned);
        let tpm_authority = folder.join("tpm-authority");
        let ek_roots = sealpod_sandbox::tpm_authority::create(&tpm_authority)
            .context("cannot make an authority for emulated TPMs")?;

        let kbs = folder.join("kbs");
        initialise(&program, &kbs, &ek_roots).await?;
        let broker = KeyBroker::start(&program, &kbs.join("kbs.toml"), folder).await?;
        let certificate = std::fs::read(kbs.join("tls.crt")).context("the broker has no certificate")?;
        let key = std::fs::read(kbs.join("tls.key")).context("the broker has no TLS key")?;
        let front = Recorder::start(&certificate, &key, broker.address).await?;
        let url = format!("https://{}", front.address);
        shell.say(&format!("It listens on {url} with an embedded store and a self-signed certificate."))?;
        shell.set("SEALPOD_KBS", &url);
        shell.set("SEALPOD_KBS_CERTIFICATE", kbs.join("tls.crt"));
        shell.set("SEALPOD_ADMIN_KEY", kbs.join("admin.key"));
        let client = Client::new(&url, Some(&kbs.join("tls.crt")), &kbs.join("admin.key"))?;

        let registry = Registry::start(folder).await?;
        let owner = Self { registry, broker, front, client, folder: folder.to_owned(), tpm_authority };
        owner.fill_broker(shell).await?;
        Ok(owner)
    }

    /// Keys, the image policy, the agent policy: all that a new owner makes once.
    async fn fill_broker(&self, shell: &Shell) -> Result<()> {
        let file = |name: &str| self.folder.join(name);
        write_private(&file("image.key"), &random_bytes()?)?;
        shell.sealpod(&words!["kbs", "resource", "set", IMAGE_KEY, "--file", &file("image.key")]).await?;
        write_private(&file("secret"), b"a secret that only an attested pod may read")?;
        shell
            .sealpod(&words!["kbs", "resource", "set", "default/secret/demo", "--file", &file("secret")])
            .await?;

        shell.sealpod(&words!["image", "keygen", "--output", &file("signing")]).await?;
        let public = std::fs::read(file("signing.pub")).context("no public key was made")?;
        let policy = serde_json::json!({
            "default": [{ "type": "reject" }],
            "transports": { "docker": { self.in_guest(""): [{
                "type": "sigstoreSigned",
                "keyData": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, public),
                "signedIdentity": { "type": "matchRepository" },
            }] } },
        });
        std::fs::write(file("image-policy.json"), serde_json::to_vec_pretty(&policy)?)?;
        shell
            .sealpod(&words![
                "kbs",
                "resource",
                "set",
                "default/image-policy/demo",
                "--file",
                &file("image-policy.json")
            ])
            .await?;

        std::fs::write(file("agent-policy.rego"), AGENT_POLICY)?;
        let kbs = format!("https://{LOOPBACK_IN_GUEST}:{}", self.front.address.port());
        let registry = self.in_guest("");
        let certificate = file("kbs").join("tls.crt");
        let init_data = shell
            .sealpod(&words![
                "init-data",
                "create",
                "--kbs",
                &kbs,
                "--kbs-certificate",
                &certificate,
                "--image-policy",
                "kbs:///default/image-policy/demo",
                "--agent-policy",
                &file("agent-policy.rego"),
                "--plain-http",
                registry.trim_end_matches('/'),
            ])
            .await?;
        std::fs::write(self.init_data(), init_data)?;
        Ok(())
    }

    pub(crate) async fn publish_image(&self, shell: &mut Shell, folder: &Path) -> Result<Image> {
        let root = folder.join("root");
        make_root(&root).await?;
        shell.say("A root folder with busybox and a script becomes an image:")?;
        let plain = folder.join("plain");
        shell.sealpod(&words!["image", "build", &root, "--cmd", "/app/serve", "--output", &plain]).await?;
        let image = self.publish(shell, &plain, "demo", true).await?;
        shell.say("What the node, the registry and the network can see of it:")?;
        let host_reference = self.on_host("demo");
        let inspection = shell.sealpod(&words!["image", "inspect", "--plain-http", &host_reference]).await?;
        shell.say(inspection.trim_end())?;
        Ok(image)
    }

    /// Encrypts, pushes and, where wanted, signs.
    pub(crate) async fn publish(
        &self,
        shell: &Shell,
        plain: &Path,
        repository: &str,
        signed: bool,
    ) -> Result<Image> {
        let layout = self.folder.join(format!("{repository}-encrypted"));
        let recipient = format!(
            "provider:attestation-agent:keyid=kbs:///{IMAGE_KEY}::keypath={}",
            self.folder.join("image.key").display()
        );
        shell.sealpod(&words!["image", "encrypt", "--recipient", &recipient, &plain, &layout]).await?;
        let on_host = self.on_host(repository);
        shell.sealpod(&words!["image", "push", "--plain-http", &layout, &on_host]).await?;
        let in_guest = self.in_guest(repository);
        if signed {
            let key = self.folder.join("signing.key");
            shell
                .sealpod(&words![
                    "image",
                    "sign",
                    "--plain-http",
                    "--key",
                    &key,
                    "--identity",
                    &in_guest,
                    &on_host,
                ])
                .await?;
        }
        let inspection = shell.quietly(&words!["image", "inspect", "--json", &layout]).await?;
        let inspection: serde_json::Value = serde_json::from_str(&inspection)?;
        let layer = inspection
            .pointer("/layers/0/digest")
            .and_then(serde_json::Value::as_str)
            .ok_or_else(|| Error::new("the image has no layer"))?
            .to_owned();
        Ok(Image { in_guest, layer })
    }

    pub(crate) async fn register_guest(&self, shell: &mut Shell, guest: &Path) -> Result<()> {
        let measurements = shell.sealpod(&words!["guest", "measure", "--json", &guest]).await?;
        let file = self.folder.join("measurements.json");
        shell.say(measurements.trim_end())?;
        std::fs::write(&file, measurements)?;
        shell.sealpod(&words!["kbs", "reference-value", "set", "--from", &file]).await?;
        let init_data = self.init_data();
        let digest = shell.sealpod(&words!["init-data", "digest", &init_data]).await?;
        shell.sealpod(&words!["kbs", "reference-value", "set", "init_data", digest.trim()]).await?;
        Ok(())
    }

    pub(crate) fn pod(&self, guest: &Path, image: &Image) -> PodWords {
        PodWords {
            guest: guest.to_owned(),
            image: image.in_guest.clone(),
            init_data: self.init_data(),
            tpm_authority: self.tpm_authority.clone(),
        }
    }

    /// How many times the broker gave out the image's key.
    pub(crate) async fn grants(&self) -> Result<usize> {
        let entries = self.client.audit(None, 1000).await?;
        Ok(entries.iter().filter(|entry| is_grant_of(entry, IMAGE_KEY)).count())
    }

    /// The audit log's entry of a refusal.
    pub(crate) async fn refusal(&self, id: &str) -> Result<AuditEntry> {
        let mut entries = self.client.audit(Some(id), 1).await?;
        entries.pop().ok_or_else(|| Error::new(format!("the audit log has no entry {id}")))
    }

    /// What guests sent to the broker, out of TLS.
    pub(crate) fn recorded(&self, route: &str) -> Vec<RecordedRequest> {
        self.front.requests().into_iter().filter(|request| request.path == route).collect()
    }

    /// The broker itself, behind its front.
    pub(crate) fn broker_url(&self) -> String {
        format!("http://{}", self.broker.address)
    }

    /// The registry's file of a blob.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.registry.blob(digest)
    }

    pub(crate) async fn stop(self) {
        self.registry.stop().await;
        self.broker.stop().await;
    }

    fn init_data(&self) -> PathBuf {
        self.folder.join("init-data.toml")
    }

    fn on_host(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry.address)
    }

    fn in_guest(&self, repository: &str) -> String {
        let port = self.registry.address.port();
        if repository.is_empty() {
            format!("{LOOPBACK_IN_GUEST}:{port}")
        } else {
            format!("{LOOPBACK_IN_GUEST}:{port}/{repository}:1")
        }
    }
}

/// A fresh configuration, administrator's key and certificate, by the broker's own command.
async fn initialise(program: &Path, folder: &Path, ek_roots: &[PathBuf]) -> Result<()> {
    let mut command = std::process::Command::new(program);
    command.arg("init").arg("--dir").arg(folder).args(["--host", LOOPBACK_IN_GUEST, "--host", "127.0.0.1"]);
    // The demo's front ends TLS; the broker itself answers on loopback.
    command.args(["--listen", "127.0.0.1:0", "--plain-http"]);
    for root in ek_roots {
        command.arg("--tpm-ek-root").arg(root);
    }
    let output = output_of(command)
        .await
        .context(format!("cannot run {}", program.display()))
        .hint("`make build` builds it; --kbs-program names another")?;
    if !output.status.success() {
        return Err(Error::new(format!(
            "sealpod-kbs init failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(())
}

/// A root folder with Debian's static busybox, a page and a script.
async fn make_root(root: &Path) -> Result<()> {
    for folder in ["bin", "app", "www", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(folder)).context("cannot make the image's root folder")?;
    }
    let cache = crate::guest::cache_folder();
    let progress = crate::output::Progress::start("fetching busybox");
    let busybox = tokio::task::spawn_blocking(move || {
        sealpod_guest_image::debian::file("busybox-static", "bin/busybox", &cache)
    })
    .await?
    .context("cannot get busybox")?;
    drop(progress);
    std::fs::copy(&busybox, root.join("bin/busybox")).context("cannot copy busybox")?;
    for applet in ["sh", "hostname", "wget", "wc", "httpd", "kill", "cat", "id", "ls"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
            .context("cannot link an applet")?;
    }
    std::fs::write(root.join("www/index.html"), "Hello from a measured VM.\n")?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/www:/bin/sh\n")?;
    std::fs::write(root.join("app/serve"), SERVE)?;
    std::fs::set_permissions(root.join("app/serve"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

fn is_grant_of(entry: &AuditEntry, resource: &str) -> bool {
    let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    text("outcome") == "granted" && text("resource") == resource
}

fn beside_this_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("sealpod-kbs"));
    beside.filter(|program| program.exists()).unwrap_or_else(|| PathBuf::from("sealpod-kbs"))
}

fn random_bytes() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new("this machine gives no random numbers"))?;
    Ok(bytes)
}

/// A file that only its owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sealpod_agent_policy::Policy;
    use sealpod_agent_protocol::{
        CreateContainer, Device, ExecProcess, HostEntry, Mount, MountSource, ProcessRef, Request,
        SharedProcesses, StartPod,
    };

    use super::*;

    fn allows(request: &Request) -> bool {
        Policy::new(Some(AGENT_POLICY)).unwrap().examine(request, None).is_ok()
    }

    fn elsewhere() -> HostEntry {
        HostEntry { address: "192.0.2.7".into(), names: vec!["database".into()] }
    }

    #[test]
    fn the_demos_policy_allows_the_image_as_it_is_and_nothing_beside_it() {
        let create =
            || CreateContainer { id: "main".into(), image: "registry/demo:1".into(), ..Default::default() };
        assert!(allows(&Request::CreateContainer(Box::new(create()))));
        let additions: [fn(&mut CreateContainer); 9] = [
            |create| create.command = Some(vec!["/bin/sh".into()]),
            |create| create.environment.extend([("LD_PRELOAD".into(), "/evil.so".into())]),
            |create| create.user = Some("0".into()),
            |create| create.privileged = true,
            |create| create.capabilities = Some(["CAP_SYS_ADMIN".into()].into()),
            |create| create.process_namespace = Some(SharedProcesses::Pod),
            |create| create.hosts.push(elsewhere()),
            |create| {
                create.devices.push(Device {
                    path: "/dev/sda".into(),
                    disk: "evil".into(),
                    read_only: false,
                    user: 0,
                    group: 0,
                });
            },
            |create| {
                create.mounts.push(Mount {
                    destination: "/app".into(),
                    read_only: false,
                    source: MountSource::Files { volume: "evil".into(), file: None },
                });
            },
        ];
        for add in additions {
            let mut create = create();
            add(&mut create);
            assert!(!allows(&Request::CreateContainer(Box::new(create.clone()))), "{create:?}");
        }
        assert!(!allows(&Request::StartPod(StartPod { hosts: vec![elsewhere()], ..StartPod::default() })));
    }

    #[test]
    fn the_demos_policy_lets_the_host_read_and_do_nothing_else() {
        let process = ProcessRef { container: "main".into(), exec: None };
        assert!(allows(&Request::ReadStdout(process.clone())));
        assert!(!allows(&Request::WriteStdin(process)));
        let exec =
            ExecProcess { container: "main".into(), command: vec!["/bin/cat".into()], ..Default::default() };
        assert!(!allows(&Request::ExecProcess(Box::new(exec))));
    }
}
