//! The guest's file systems.

use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use crate::container::POD_CGROUP;

/// Makes `/` a mount that can be pivoted away from.
///
/// The kernel refuses `pivot_root` from the initramfs itself, so `/` is bound to a new directory,
/// moved over `/`, and entered.
pub(super) fn leave_the_initramfs() -> anyhow::Result<()> {
    let root = Path::new("/.root");
    std::fs::create_dir_all(root)?;
    mount_bind("/", root).context("bind /")?;
    rustix::process::chdir(root)?;
    mount_move(".", "/").context("move onto /")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Mounts the kernel's file systems and those that the agent works in.
pub(super) fn mount_all() -> anyhow::Result<()> {
    let hard = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let with_devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    let with_programs = MountFlags::NOSUID | MountFlags::NODEV;
    for (kind, target, flags, options) in [
        ("proc", "/proc", hard, c""),
        ("sysfs", "/sys", hard, c""),
        ("devtmpfs", "/dev", with_devices, c"mode=755"),
        ("devpts", "/dev/pts", with_devices, c"gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/tmp", hard, c"mode=1777"),
        // Programs run from here: images are unpacked below /run/sealpod. Their size is bounded by
        // what the machine can give without starving the agent.
        ("tmpfs", "/run", with_programs, c"mode=755,size=85%"),
        ("cgroup2", "/sys/fs/cgroup", hard, c"nsdelegate"),
        ("securityfs", "/sys/kernel/security", hard, c""),
    ] {
        std::fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
        mount(kind, target, kind, flags, options).with_context(|| format!("mount {kind} on {target}"))?;
    }
    // The runtime would make it with the first container, and fail with two first ones at once.
    std::fs::create_dir(POD_CGROUP).with_context(|| format!("create {POD_CGROUP}"))
}
