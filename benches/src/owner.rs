//! The owner's side of an attestation: a key broker that knows the guest, driven by the commands that an owner types.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use sealpod_agent_protocol::{Request, StartPod};
use sealpod_sandbox::Sandbox;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::relay::Relay;

/// This machine's loopback, as a guest on QEMU's user network sees it.
const LOOPBACK_IN_GUEST: &str = "10.0.2.2";
const PATIENCE: Duration = Duration::from_secs(60);

/// A key broker with reference values, and the init data of pods that attest to it.
pub(crate) struct Owner {
    _broker: Child,
    relay: Relay,
    init_data: String,
}

/// What an attestation took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attested {
    /// From the challenge on the network to the agent's word that it has the token.
    pub(crate) handshake: Duration,
    /// The whole request of the host: making keys and connecting come before the challenge.
    pub(crate) request: Duration,
}

impl Owner {
    /// Starts a broker and registers the guest in it. `ek_roots` are the certificates of the authority of TPMs.
    pub(crate) async fn start(guest: &Path, ek_roots: &[PathBuf], folder: &Path) -> anyhow::Result<Self> {
        let kbs = folder.join("kbs");
        let mut init = program("sealpod-kbs")?;
        init.arg("init").arg("--dir").arg(&kbs).args(["--listen", "127.0.0.1:0"]);
        init.args(["--host", LOOPBACK_IN_GUEST, "--host", "127.0.0.1"]);
        for root in ek_roots {
            init.arg("--tpm-ek-root").arg(root);
        }
        output_of(init).await?;
        let (broker, address) = serve(&kbs).await?;
        let relay = Relay::start(address).await?;

        let sealpod = async |words: &[OsString]| {
            let mut command = program("sealpod")?;
            command.args(words).env("SEALPOD_KBS", format!("https://{address}"));
            command.env("SEALPOD_KBS_CERTIFICATE", kbs.join("tls.crt"));
            command.env("SEALPOD_ADMIN_KEY", kbs.join("admin.key"));
            output_of(command).await
        };
        let measurements = folder.join("measurements.json");
        let measured = sealpod(&["guest".into(), "measure".into(), "--json".into(), guest.into()]).await?;
        std::fs::write(&measurements, measured).context("cannot write the measurements")?;
        let set = ["kbs", "reference-value", "set"].map(OsString::from);
        sealpod(&[&set[..], &["--from".into(), measurements.into()]].concat()).await?;

        let url = format!("https://{LOOPBACK_IN_GUEST}:{}", relay.address.port());
        let create = ["init-data", "create", "--kbs", &url, "--kbs-certificate"].map(OsString::from);
        let init_data = sealpod(&[&create[..], &[kbs.join("tls.crt").into()]].concat()).await?;
        let file = folder.join("init-data.toml");
        std::fs::write(&file, &init_data).context("cannot write the init data")?;
        let digest = sealpod(&["init-data".into(), "digest".into(), file.into()]).await?;
        sealpod(&[&set[..], &["init_data".into(), digest.trim().into()]].concat()).await?;
        Ok(Self { _broker: broker, relay, init_data })
    }

    /// Starts a pod in a fresh guest and has it attest.
    pub(crate) async fn attest(&self, sandbox: &Sandbox) -> anyhow::Result<Attested> {
        let (interfaces, dns) = sandbox.pod_network();
        let init_data = Some(self.init_data.clone());
        let start = StartPod { hostname: "bench".into(), init_data, interfaces, dns, ..StartPod::default() };
        sandbox.agent().call_with_timeout(Request::StartPod(start), PATIENCE).await?;
        self.relay.begin();
        let asked = Instant::now();
        sandbox.agent().call_with_timeout(Request::Attest, PATIENCE).await?;
        let answered = Instant::now();
        let challenged = self.relay.challenge()?;
        Ok(Attested {
            handshake: answered.saturating_duration_since(challenged),
            request: answered.saturating_duration_since(asked),
        })
    }
}

/// A program of ours, which cargo puts beside this one (or, for a test, in the folder above).
fn program(name: &str) -> anyhow::Result<Command> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let found = this.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    let mut command =
        std::process::Command::new(found.with_context(|| format!("no {name}: run `make build`"))?);
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)
        });
    }
    let mut command = Command::from(command);
    command.kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

async fn output_of(mut command: Command) -> anyhow::Result<String> {
    let output = command.output().await.with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}

/// Starts the broker and waits for the line in which it says that it listens.
async fn serve(folder: &Path) -> anyhow::Result<(Child, SocketAddr)> {
    let address_file = folder.join("address");
    let mut command = program("sealpod-kbs")?;
    command.arg("serve").arg("--config").arg(folder.join("kbs.toml"));
    command.arg("--address-file").arg(&address_file).stderr(Stdio::piped());
    let mut broker = command.spawn().context("cannot start the key broker")?;
    let mut lines = BufReader::new(broker.stderr.take().context("the broker has no stderr")?).lines();
    let mut said = String::new();
    let started = async {
        while let Some(line) = lines.next_line().await? {
            said = format!("{said}{line}\n");
            if line.contains("listening") {
                return Ok(true);
            }
        }
        std::io::Result::Ok(false)
    };
    match tokio::time::timeout(PATIENCE, started).await {
        Ok(Ok(true)) => {}
        _ => bail!("the key broker does not start: {said}"),
    }
    // A broker whose log nobody reads would stop at a full pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let address = std::fs::read_to_string(address_file).context("the broker left no address")?;
    let address = address.trim().parse().with_context(|| format!("{address:?} is no address"))?;
    Ok((broker, address))
}
