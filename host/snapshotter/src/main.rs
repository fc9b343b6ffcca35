//! The program: `sealpod-snapshotter`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sealpod_snapshotter::{config::Config, serve};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Lets a stock containerd leave an image's layers to the guest
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:
  sealpod-snapshotter --root /var/lib/sealpod/snapshots --address /run/sealpod/snapshotter.sock

In containerd's config.toml (version 2):
  [proxy_plugins.sealpod]
    type = \"snapshot\"
    address = \"/run/sealpod/snapshotter.sock\"
  [plugins.\"io.containerd.grpc.v1.cri\".containerd]
    snapshotter = \"sealpod\"
    disable_snapshot_annotations = false

The configuration file says which images are the guests':
  images = [\"registry.example/confidential/*\"]"
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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    let config = match &arguments.config {
        Some(path) => Config::load(path).map_err(|error| error.to_string())?,
        None => Config::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let ended = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        serve(&arguments.root, &arguments.address, arguments.containerd_address, config, ended).await
    })
}
