//! Builds a guest: the folder of kernel, initrd, firmware and command line that a pod's VM boots.
//!
//! The same inputs give the same bytes, so that whoever has the inputs can compute what the VM measures.
//! What firmware measures it hashes slowly, so the initrd holds little: the loader as `/init`, and the kernel modules that
//! it takes to hear the host, `/modules/*.ko`, which `/modules/boot.list` names in the order in which they load. The agent
//! and the other modules are in a file of their own, which VMs get as a ROM. The initrd says what must be in it, as
//! `sealpod_loader::rom::Entry` has it: `/agent.list`, and for each group of modules `/modules/GROUP.list`.

mod agent_rom;
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
