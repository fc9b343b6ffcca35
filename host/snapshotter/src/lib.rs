//! A proxy snapshotter by which a stock containerd leaves an image's layers to the guest.
//!
//! containerd unpacks an image layer by layer: it asks its snapshotter to prepare a place for each, downloads the
//! layer, unpacks it there, and commits. A snapshotter may answer that it has the layer already. For images that run
//! in measured VMs this one always does, so the host downloads the manifest and the config only, and the guest
//! pulls, verifies and decrypts the layers itself. For all other images it is an overlay snapshotter like containerd's own.
//!
//! What containerd's CRI plugin must be told, beside the snapshotter's name:
//! - 1.6: `disable_snapshot_annotations = false`, for the labels that say which image a layer is of; the snapshotter is
//!   that of all runtimes, so [`config::Config::images`] says which images are the guests'.
//! - 1.7 and later: `snapshotter` in the runtime's own section, where it serves the runtime's pods only.
//! - 2.1 and later: also `enable_remote_snapshot_annotations`, where the transfer service pulls.

pub mod config;
mod filter;
mod folders;
mod image_user;
mod records;
mod service;
mod snapshots;

pub use image_user::USER_OF_IMAGE;
pub use service::serve;

/// containerd's API, generated from the formats in `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod api {
    /// The snapshots service.
    pub mod snapshots {
        tonic::include_proto!("containerd.services.snapshots.v1");
    }
    /// Of the content service, what reads a blob.
    pub mod content {
        tonic::include_proto!("containerd.services.content.v1");
    }
}
