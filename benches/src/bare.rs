//! The guest that does nothing: the same machine and kernel, with a first process of one line.

use std::path::Path;

use anyhow::Context;
use sealpod_sandbox::GuestImage;

/// `bare_init.rs`, a static program.
const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bare-init"));
/// What it writes to the console.
pub(crate) const LINE: &str = "bare: running";

const PROGRAM: u32 = 0o100_755;

/// The guest with another initrd, which is written to the folder.
pub(crate) fn guest_of(guest: &GuestImage, folder: &Path) -> anyhow::Result<GuestImage> {
    let initrd = folder.join("bare.cpio");
    std::fs::write(&initrd, archive()).with_context(|| format!("cannot write {}", initrd.display()))?;
    Ok(GuestImage { initrd, ..guest.clone() })
}

/// A cpio archive in the "newc" format with nothing but `/init`.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, mode, content) in [("init", PROGRAM, INIT), ("TRAILER!!!", 0, &[])] {
        bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        for field in [1, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use crate::machine::Machine;

    #[tokio::test]
    async fn the_kernel_runs_the_init_that_does_nothing_beside_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::new(&crate::guest_folder(), folder.path(), "authority".into()).unwrap();
        machine.pair(false).await.unwrap().agent.stop().await;
    }
}
