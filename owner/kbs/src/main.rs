//! `sealpod-kbs`: the key broker's program.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use sealpod_kbs::config::Config;
use sealpod_kbs::initialise::{Options, initialise};
use sealpod_kbs::{Broker, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The owner's key broker: it gives secrets to guests that prove what they run
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
#[command(after_help = "Examples:
  sealpod-kbs init --dir /var/lib/sealpod-kbs --host broker.example
  sealpod-kbs serve --config /var/lib/sealpod-kbs/kbs.toml
  export SEALPOD_KBS=https://broker.example:8080
  export SEALPOD_ADMIN_KEY=/var/lib/sealpod-kbs/admin.key
  sealpod kbs resource list

Several brokers share a PostgreSQL database when their configurations have, instead of a path,
  [store]
  kind = \"postgres\"
  url_file = \"database-url\"
and that file has its URL:
  postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full&sslrootcert=ca.crt")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder with a configuration, an administrator's key and a certificate
    Init(InitArgs),
    /// Serve guests and owners until SIGTERM or SIGINT
    Serve {
        /// The configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Write the address there once it listens
        #[arg(long, value_name = "FILE")]
        address_file: Option<PathBuf>,
    },
    /// Check a configuration and the files that it names
    Check {
        /// The configuration (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The folder, made if need be
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// A name or address by which the broker is reached; goes into its certificate
    #[arg(long, value_name = "NAME", required = true)]
    host: Vec<String>,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Speak plain HTTP, behind a front that ends TLS
    #[arg(long)]
    plain_http: bool,
    /// A certificate (PEM) to which TPMs' endorsement key certificates chain
    #[arg(long, value_name = "FILE")]
    tpm_ek_root: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    keep_memory_private()?;
    match arguments.command {
        Command::Init(args) => {
            let options = Options {
                folder: args.dir,
                hosts: args.host,
                listen: args.listen,
                plain_http: args.plain_http,
                tpm_ek_roots: args.tpm_ek_root,
            };
            let configuration = initialise(&options)?;
            println!("{}", configuration.display());
            Ok(())
        }
        Command::Check { config } => {
            let checked = Config::read(&config)?;
            Broker::check(&checked)?;
            server::check(&checked)?;
            println!("{} is good", config.display());
            Ok(())
        }
        Command::Serve { config, address_file } => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .init();
            let config = Config::read(&config)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(serve(&config, address_file))
        }
    }
}

async fn serve(config: &Config, address_file: Option<PathBuf>) -> anyhow::Result<()> {
    let broker = Broker::open(config).await?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let ready = |address| match &address_file {
        Some(path) => server::write_address(path, address),
        None => Ok(()),
    };
    server::serve(config, broker, ready, shutdown).await
}

/// Neither a core dump nor another process of this user gets to see the secrets in memory.
fn keep_memory_private() -> anyhow::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot forbid core dumps")?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("cannot forbid core dumps")
}
