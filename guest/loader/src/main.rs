//! The first program of a guest. The measured initrd holds it, the kernel's modules, and the agent's digest; the agent
//! itself comes on a disk of the host's, and runs if it is the one that the digest names.
//!
//! Firmware hashes every byte of the initrd with each algorithm that the TPM knows, 204 instructions a byte. Here it is
//! one, BLAKE2b (RFC 7693), which takes the fewest of those that are as strong; and the agent is bound as firmly.

mod program;

use std::convert::Infallible;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::system::{RebootCommand, reboot};
use sealpod_loader::{disk, modules};

/// What `b2sum` prints of the agent's file.
const DIGEST: &str = "/agent.b2sum";
/// Where the agent goes.
const AGENT: &str = "/sealpod-agent";

fn main() {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        eprintln!("sealpod-loader is the first program of a Sealpod guest; start one with `sealpod run`");
        std::process::exit(2);
    }
    let Err(error) = load();
    eprintln!("sealpod: cannot start the agent: {error:#}");
    // Only fails without CAP_SYS_BOOT, in which case the first process's end panics the kernel: as good an end.
    let _ = reboot(RebootCommand::PowerOff);
}

fn load() -> anyhow::Result<Infallible> {
    let hard = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mounts = [("devtmpfs", "/dev"), ("sysfs", "/sys")];
    for (kind, target) in mounts {
        fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
        mount(kind, target, kind, hard, c"").with_context(|| format!("mount {target}"))?;
    }
    modules::load(modules::BOOT)?;
    let found = disk::with_serial(disk::AGENT).context("look for the agent's disk")?;
    let found = found.with_context(|| format!("there is no disk with the serial {:?}", disk::AGENT))?;
    let device = Path::new("/dev").join(found.file_name().unwrap_or_default());
    let digest = fs::read_to_string(DIGEST).context("the initrd has no agent's digest")?;

    let from = File::open(&device).context("open the agent's disk")?;
    // From here on it lies in the guest's memory, where the host cannot change it.
    let mut to = File::create(AGENT).context("create the agent's file")?;
    program::copy(from, &mut to, &digest)?;
    drop(to);
    fs::set_permissions(AGENT, Permissions::from_mode(0o700)).context("make the agent a program")?;
    for (_, target) in mounts {
        unmount(target, UnmountFlags::DETACH).with_context(|| format!("unmount {target}"))?;
    }
    // The kernel's words for the first program are the agent's.
    let arguments = std::env::args_os().skip(1);
    Err(Command::new(AGENT).args(arguments).exec()).context("run the agent")
}
