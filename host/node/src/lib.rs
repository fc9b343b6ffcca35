//! Sets a Kubernetes node up so that its container runtime runs pods in measured VMs, and takes it back exactly.
//!
//! [`Installation`] and [`Removal`] are planned first: a plan says what it will do, down to the lines of containerd's
//! configuration and the services that it restarts, and changes nothing until it is carried out. What was done is kept
//! in a record in the prefix, from which [`Removal`] restores the node byte by byte where nobody else has changed a
//! file in the meantime, and takes only our keys back where somebody has.
//!
//! # What containerd is told, and how
//!
//! containerd merges files that it imports in two ways. From 2.0 on they add to a plugin's section, so a drop-in of
//! ours is enough. Before, an imported file that has anything of CRI's section **replaces the whole of it**, so the
//! file that has the section is edited, with its comments and everything else kept; and a table of runtimes replaces
//! the one of the defaults, so `runc` is written out where no runtime was named before. What containerd makes of it is
//! compared with what it made before (`containerd config dump`): nothing but ours may differ.

mod apply;
mod configuration;
mod containerd;
mod crio;
mod diff;
pub mod doctor;
mod error;
mod files;
mod install;
mod places;
mod plan;
mod record;
mod selinux;
mod services;
mod status;
mod uninstall;
mod unit;

pub use error::Error;
pub use install::{Installation, Options};
pub use places::Places;
pub use status::{Part, Status};
pub use uninstall::Removal;

/// The tool that people type.
pub(crate) const TOOL: &str = "sealpod";
/// containerd's and CRI-O's shim.
pub(crate) const SHIM: &str = "containerd-shim-sealpod-v2";
/// The snapshotter.
pub(crate) const SNAPSHOTTER: &str = "sealpod-snapshotter";
/// The SELinux policy module.
pub(crate) const SELINUX_MODULE: &str = "sealpod.pp";
/// Begins files that are wholly ours.
pub(crate) const WRITTEN: &str =
    "# Written by `sealpod node install`; `sealpod node uninstall` removes it.\n";
