//! The first program of a guest. The measured initrd holds it, the modules that the kernel needs to hear the host, and
//! the agent's digest; the agent itself comes in a ROM of the host's, and runs if it is the one that the digest names.
//!
//! Firmware hashes every byte of the initrd with each algorithm that the TPM knows, 204 instructions a byte. Here it is
//! one, BLAKE2b (RFC 7693), which takes the fewest of those that are as strong; and the agent is bound as firmly. For
//! the same reason this program does without the standard library and C's in a guest: it is a twentieth of what it would
//! be with them.

#![cfg_attr(panic = "abort", no_std, no_main)]

#[cfg(panic = "abort")]
mod freestanding;
#[cfg(any(panic = "abort", test))]
mod memory;
mod program;
mod system;

use core::convert::Infallible;
use core::fmt;

use rustix::fs::{Mode, OFlags, mkdir, open};
use rustix::io::{Errno, read};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use sealpod_loader::modules;
use sealpod_loader::rom::{Entry, Mapping, Rom};

use program::Digest;
use system::{Console, execute};

/// Where in the ROM the agent is, and its digest: a line as [`Entry`] has it.
const LIST: &str = "/agent.list";
/// More than that.
const LIST_BYTES: usize = 512;
/// Where the agent goes.
const AGENT: &core::ffi::CStr = c"/sealpod-agent";

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
#[expect(clippy::large_enum_variant, reason = "it is made once, and there is no heap")]
enum Error {
    #[error("cannot {doing}: {why}")]
    System { doing: &'static str, why: Errno },
    #[error("this guest's processor lacks BMI2, which any that has a TEE has")]
    Processor,
    #[error(transparent)]
    Modules(#[from] modules::Error),
    #[error("{LIST} of the initrd does not say what it should be")]
    NoEntry,
    #[error(transparent)]
    Other(#[from] program::Other),
}

#[cfg(not(panic = "abort"))]
fn main() {
    run()
}

/// Loads and runs the agent; never returns.
fn run() -> ! {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        say(format_args!(
            "sealpod-loader is the first program of a Sealpod guest; start one with `sealpod run`"
        ));
        system::exit(2);
    }
    let Err(error) = load();
    say(format_args!("sealpod: cannot start the agent: {error}"));
    // Only fails without CAP_SYS_BOOT, in which case the first process's end panics the kernel: as good an end.
    let _ = reboot(RebootCommand::PowerOff);
    system::exit(1)
}

/// Writes a line to the console.
fn say(words: fmt::Arguments<'_>) {
    let _ = fmt::write(&mut Console, format_args!("{words}\n"));
}

fn load() -> Result<Infallible, Error> {
    if !system::has_bmi2() {
        return Err(Error::Processor);
    }
    let hard = MountFlags::NOSUID | MountFlags::NOEXEC;
    // The agent leaves this root with what is mounted on it.
    for (kind, target) in [("devtmpfs", "/dev"), ("sysfs", "/sys")] {
        match mkdir(target, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(why) => return Err(Error::System { doing: "create a folder to mount on", why }),
        }
        mount(kind, target, kind, hard, c"").map_err(while_("mount the kernel's file systems"))?;
    }
    modules::load()?;
    take()?;
    Err(Error::System { doing: "run the agent", why: execute(AGENT) })
}

/// Takes the agent from the ROM into the guest's memory, where the host cannot change it.
fn take() -> Result<(), Error> {
    let mut line = [0; LIST_BYTES];
    let file = open(LIST, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let length = read(file.map_err(while_("open the agent's digest"))?, &mut line);
    let line = line.get(..length.map_err(while_("read the agent's digest"))?);
    let line = line.and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let Entry { offset, length, digest, .. } = Entry::of_line(line.trim_ascii_end()).ok_or(Error::NoEntry)?;

    let rom = Rom::open().map_err(while_("open the agent's ROM"))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let agent = open(AGENT, flags, Mode::from_raw_mode(0o700)).map_err(while_("create the agent's file"))?;
    rom.append(offset, length, &agent).map_err(while_("copy the agent"))?;
    let copy = Mapping::of(&agent, 0, length).map_err(while_("map the agent's file"))?;
    // SAFETY: as many bytes were written to it, and this is the only program.
    program::check(unsafe { copy.bytes() }, Digest::of_digits(digest))?;
    // Unmapped and closed: a file that somebody could write to is no program to execve(2).
    Ok(())
}

fn while_(doing: &'static str) -> impl FnOnce(Errno) -> Error {
    move |why| Error::System { doing, why }
}
