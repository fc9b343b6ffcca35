//! containerd's runtime v2 shim for pods in measured VMs: one process for a pod, started by containerd or CRI-O.
//!
//! [`command_line`] is what containerd calls, `bootstrap` how its versions differ, [`launch`] starts the process that stays, [`serve`] is that process:
//! `service` answers containerd's Task API (containerd.task.v2), `pod` has the VM and its containers, `process` one
//! process with its streams, `specification` what containerd's words mean in the guest's.
//!
//! It holds no secret: everything that passes through it, the guest's policy let out or the owner encrypted.

mod bootstrap;
mod cgroup;
pub mod command_line;
mod config;
mod error;
mod events;
mod forward;
pub mod launch;
mod metrics;
mod number;
mod pod;
mod process;
mod serve;
mod service;
mod size;
mod specification;
mod streams;
mod termination_message;
mod volumes;

pub use bootstrap::info;
pub use error::Error;
pub use serve::serve;
