//! From the loader's `execve` of PID 1 to an agent that answers the host.
//!
//! Every millisecond here is one of each pod's start, so only what the transport needs is done
//! before the agent answers; the rest comes when the pod is started.

mod cmdline;
mod console;
mod mounts;
mod transport;

use std::sync::Arc;

use anyhow::Context;
pub(crate) use cmdline::Parameters;

use crate::api::Agent;
use crate::modules;

/// Runs PID 1 and never returns: when the agent ends, for whatever reason, the machine powers off.
pub(crate) fn run() -> ! {
    console::first_line();
    console::power_off_on_panic();
    if let Err(error) = serve() {
        console::log(&format!("cannot go on: {error:#}"));
    }
    power_off()
}

/// Ends the guest at once. Nothing in it outlives it but what containers wrote to disks of the host's, which is saved
/// before.
pub(crate) fn power_off() -> ! {
    // Only fails without CAP_SYS_BOOT, in which case PID 1's end panics the kernel: as good an end.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    std::process::exit(1)
}

fn serve() -> anyhow::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::leave_the_initramfs().context("cannot move the root file system")?;
    mounts::mount_all()?;
    forbid_core_dumps()?;
    console::install_tracing();
    let parameters = Parameters::read().context("kernel command line")?;
    if parameters.transport == cmdline::Transport::Vsock {
        modules::load(modules::VSOCK).context("kernel modules for vsock")?;
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let host = transport::Transport::open(parameters.transport).await?;
        let agent = Arc::new(Agent::new(parameters)?);
        host.serve(agent).await
    })
}

/// A core dump would hold keys.
fn forbid_core_dumps() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).context("no core dumps")
}
