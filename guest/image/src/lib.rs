//! Builds a guest: the folder of kernel, initrd, firmware and command line that a pod's VM boots.
//!
//! The same inputs give the same bytes, so that whoever has the inputs can compute what the VM measures.
//! The initrd holds the loader as `/init`, the agent's digest, the kernel modules in `/modules/*.ko`, and for each group
//! of modules `/modules/GROUP.list`, which names its files in the order in which they load. The agent itself is a file
//! of its own, which VMs get as a disk.

mod build;
mod cpio;
pub mod debian;
mod error;
mod firmware;
mod lz4;
mod module;
mod module_groups;
#[cfg(test)]
mod test_elf;

pub use build::{BuildOptions, DEFAULT_CMDLINE, GuestManifest, build};
pub use error::Error;
pub use firmware::firmware;
