//! Memory that the guests of a benchmark have in turn.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};

const MIB: usize = 1 << 20;

/// A guest's memory, which this process holds from one boot to the next.
///
/// Where this machine is a virtual one itself, what is free for some seconds may go back to its host, and a page that
/// has gone costs many times its first use when it comes back (free page reporting of virtio's balloon). A boot takes
/// hundreds of MiB: without this, it took up to two seconds longer by chance.
#[derive(Debug)]
pub(crate) struct Memory {
    file: File,
    mib: u32,
}

impl Memory {
    /// Memory of a guest of this size.
    pub(crate) fn hold(mib: u32) -> anyhow::Result<Self> {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).context("cannot create a file in memory")?;
        let memory = Self { file: file.into(), mib };
        memory.clear()?;
        Ok(memory)
    }

    /// Zeroes, as a VM finds its memory; they stay in this machine's.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let zeroes = vec![0; MIB];
        for at in 0..u64::from(self.mib) {
            self.file.write_all_at(&zeroes, at << 20).context("cannot fill the guest's memory")?;
        }
        Ok(())
    }

    /// Where QEMU finds it while this process runs.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_find_it_by_its_path_and_it_can_be_cleared() {
        let memory = Memory::hold(2).unwrap();
        assert_eq!(std::fs::read(memory.path()).unwrap(), vec![0; 2 * MIB]);
        let file = File::options().write(true).open(memory.path()).unwrap();
        file.write_all_at(b"what a guest wrote", (2 * MIB - 18) as u64).unwrap();
        assert!(std::fs::read(memory.path()).unwrap().ends_with(b"what a guest wrote"));
        memory.clear().unwrap();
        assert_eq!(std::fs::read(memory.path()).unwrap(), vec![0; 2 * MIB]);
    }
}
