//! A pod's VM from start to end: QEMU, its emulated TPM, network and console, and the connection to the agent.
//!
//! Nothing else in the project knows QEMU. [`Sandbox::start`] takes a guest's files and a configuration and
//! returns when the guest's agent answers; [`Sandbox::stop`] ends it in order, and dropping it ends it at once.
//! Whatever happens to this process, its children end with it (see `process`), and what it left in its
//! runtime folder is removed by the next start.

mod accelerator;
mod arguments;
mod config;
mod console;
mod disks;
pub mod doctor;
mod error;
mod exit;
mod guest_image;
mod network;
mod process;
mod programs;
mod qmp;
mod runtime_folder;
mod sandbox;
mod tpm;
pub mod tpm_authority;
mod transport;
mod vm;

pub use config::{Accelerator, Observer, SandboxConfig, Stage, Tpm, Transport};
pub use disks::{Disk, Disks};
pub use error::Error;
pub use exit::{Ending, ExitReason};
pub use guest_image::GuestImage;
pub use network::loopback::Loopback;
pub use network::namespace::NamespaceError;
pub use network::{Network, PortForward, PortForwardError};
pub use runtime_folder::{has_ended, remove_abandoned};
pub use sandbox::{Sandbox, Timings};
pub use vm::Vm;
