//! The process that stays: serves containerd's calls for one pod until nothing of it is left.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::ttrpc::asynchronous::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::bootstrap;
use crate::command_line::CommandLine;
use crate::error::Error;
use crate::events::{self, Events};
use crate::launch;
use crate::service::Service;
use crate::specification;

/// Set by containerd: where it takes events. CRI-O, which takes none, sets it to nothing.
const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";

/// How often, and how many times, there must be no sign of a pod.
const LOOK: Duration = Duration::from_secs(5);
const LOOKS: u32 = 4;

/// Serves a pod; returns when it is gone.
///
/// # Errors
/// If it cannot listen.
pub fn serve(line: &CommandLine) -> Result<(), Error> {
    // Not the filter of regular expressions: there is a shim for each pod, and its code is memory.
    let (ours, ttrpc) = if line.debug { (Level::DEBUG, Level::INFO) } else { (Level::INFO, Level::WARN) };
    let wanted =
        Targets::new().with_default(ours).with_target("ttrpc", ttrpc).with_target("yamux", Level::INFO);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(wanted).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("cannot start"))?.block_on(serve_pod(line))
}

async fn serve_pod(line: &CommandLine) -> Result<(), Error> {
    // The node's shutdown sends it to everybody; pods are ended by containerd, or by the end of all.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("cannot watch SIGTERM"))?;
    tokio::spawn(async move { while terminate.recv().await.is_some() {} });

    let given = |address: &String| !address.is_empty();
    let beside = || Some(&line.address).filter(|own| given(own)).map(|own| format!("{own}.ttrpc"));
    let address = std::env::var(TTRPC_ADDRESS).ok().filter(given).or_else(beside);
    let (events, sender) = Events::start(line.namespace.clone(), address);
    let done = Arc::new(Notify::new());
    let service = Arc::new(Service::new(line.id.clone(), events, done.clone()));
    let socket = launch::socket(&line.id);
    let address = format!("{}{}", launch::UNIX, socket.display());
    let mut server = Server::new().bind(&address)?.register_service(bootstrap::services(&service));
    server.start().await?;
    let remove_socket = || {
        // Somebody else may have been faster.
        let _ = std::fs::remove_file(&socket);
    };
    // Where `start` was killed, nobody will come.
    announce(&address).inspect_err(|_| remove_socket())?;

    tokio::select! {
        () = done.notified() => {}
        () = forsaken(&service) => {
            tracing::warn!("the engine has forgotten the pod, and nobody else would end it");
            service.end().await;
        }
    }
    // The answer to the last call is on its way.
    server.shutdown().await?;
    // Both have events to tell, of which the last ones are waited for.
    drop((server, service));
    remove_socket();
    events::finish(sender).await;
    Ok(())
}

/// Waits until it is plain that the engine, or its `start` call, was killed while the pod started, and that no call will
/// come: there is no pod although it is long due, or the bundle, which is this process's folder, is gone.
async fn forsaken(service: &Service) {
    let mut missed = 0;
    while missed < LOOKS {
        tokio::time::sleep(LOOK).await;
        let expected = Path::new(specification::FILE).exists() && !service.is_idle().await;
        missed = if expected { 0 } else { missed + 1 };
    }
}

/// Tells the `start` call, which waits for it, and lets go of its pipe.
fn announce(address: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout();
    let told = writeln!(stdout, "{address}").and_then(|()| stdout.flush());
    told.map_err(Error::io("cannot tell the address"))?;
    let null =
        std::fs::File::options().write(true).open("/dev/null").map_err(Error::io("cannot open /dev/null"))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| Error::io("cannot let go of the pipe")(error.into()))
}
