//! The program: `sealpod-snapshotter`.

use std::error::Error;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sealpod_snapshotter::{Server, config::Config};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How many calls work on the disk at once: each takes a thread's memory, and changes wait for one another anyway.
const DISK_THREADS: usize = 4;

/// Lets a stock containerd leave an image's layers to the guest
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  sealpod-snapshotter
  sealpod-snapshotter --root /data/snapshots --config /etc/sealpod/snapshotter.toml

The configuration file says which images are left to guests; `*` stands for any text, and an unknown field is an error:
  images = [\"registry.example/confidential/*\"]

containerd 1.6 finds it by (config.toml, version 2):
  [proxy_plugins.sealpod]
    type = \"snapshot\"
    address = \"/run/sealpod/snapshotter.sock\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]
    snapshotter = \"sealpod\"
    disable_snapshot_annotations = false

SIGTERM and SIGINT end it when the calls under way are answered. RUST_LOG says how much it logs: a level, or target=level (default: info)."
)]
struct Arguments {
    /// The folder of the snapshots
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/sealpod/snapshots")]
    root: PathBuf,
    /// The socket on which containerd finds it
    #[arg(long, value_name = "SOCKET", default_value = "/run/sealpod/snapshotter.sock")]
    address: PathBuf,
    /// containerd's own socket
    #[arg(long, value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    containerd_address: PathBuf,
    /// The configuration (TOML); without one, all images are the guests'
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Without the larger filter's regular expressions, which would be memory for nothing.
    let asked = std::env::var("RUST_LOG").ok().map(|text| text.parse());
    let wanted = match &asked {
        Some(Ok(targets)) => Targets::clone(targets),
        _ => Targets::new().with_default(Level::INFO),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(wanted).init();
    if let Some(Err(error)) = asked {
        tracing::warn!(%error, "RUST_LOG is not understood: a level is, or target=level, or some with commas between");
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let config = match &arguments.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().max_blocking_threads(DISK_THREADS).build()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ended = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let server = Server::bind(&arguments.root, &arguments.address, arguments.containerd_address, config)?;
        if let Err(error) = say_ready() {
            tracing::warn!(%error, "the service manager does not hear that the socket is ready");
        }
        Ok(server.serve(ended).await?)
    })
}

/// Tells the service manager, if it wants to know (sd_notify(3)).
fn say_ready() -> std::io::Result<()> {
    let Some(address) = std::env::var("NOTIFY_SOCKET").ok().filter(|address| !address.is_empty()) else {
        return Ok(());
    };
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}
