//! A proxy snapshotter by which a stock containerd leaves an image's layers to the guest.
//!
//! containerd unpacks an image layer by layer: it asks its snapshotter to prepare a place for each, downloads the
//! layer, unpacks it there, and commits. A snapshotter may answer that it has the layer already. For images that run
//! in measured VMs this one always does, so the host downloads the manifest and the config only, and the guest
//! pulls, verifies and decrypts the layers itself. For all other images it is an overlay snapshotter like containerd's own.
//!
//! # What containerd must be told
//!
//! In each version, where the snapshotter is:
//!
//! ```toml
//! [proxy_plugins.sealpod]
//!   type = "snapshot"
//!   address = "/run/sealpod/snapshotter.sock"
//! ```
//!
//! **1.6** has one snapshotter for all runtimes, so that of `runc` too. [`config::Config::images`] says which images are
//! the guests'; for that containerd must pass on which image a layer is of:
//!
//! ```toml
//! version = 2
//! [plugins."io.containerd.grpc.v1.cri".containerd]
//!   snapshotter = "sealpod"
//!   disable_snapshot_annotations = false
//! ```
//!
//! **1.7** has one for each runtime as well. There all images can be the guests', as is the default, and nothing need be
//! passed on:
//!
//! ```toml
//! version = 2
//! [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.sealpod]
//!   runtime_type = "io.containerd.sealpod.v2"
//!   snapshotter = "sealpod"
//! ```
//!
//! **2.x** must be told for pulling and for running:
//!
//! ```toml
//! version = 3
//! [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.sealpod]
//!   runtime_type = "io.containerd.sealpod.v2"
//!   snapshotter = "sealpod"
//! [plugins."io.containerd.cri.v1.images".runtime_platforms.sealpod]
//!   snapshotter = "sealpod"
//! ```
//!
//! From **2.1** on the transfer service pulls. It unpacks only for the snapshotters that it lists, and for patterns
//! other than `*` it takes what the plugin exports in place of `disable_snapshot_annotations` (or set
//! `use_local_image_pull = true` in `io.containerd.cri.v1.images` to have 2.0's way):
//!
//! ```toml
//! [proxy_plugins.sealpod.exports]
//!   enable_remote_snapshot_annotations = "true"
//! [[plugins."io.containerd.transfer.v1.local".unpack_config]]
//!   platform = "linux/amd64"
//!   snapshotter = "sealpod"
//! ```
//!
//! Which runtime an image is pulled for, **1.7** and **2.x** know by the pod's annotation `io.containerd.cri.runtime-handler`
//! alone; without it they take the snapshotter of all runtimes.
//!
//! # What it relies on
//!
//! - The unpacker sends the label `containerd.io/snapshot.ref` with the chain id that the layer will have, in every
//!   version and with every setting. On ALREADY_EXISTS containerd lists the snapshots with that label and parent, and
//!   keeps the one it finds; so the record keeps the label.
//! - The labels `containerd.io/snapshot/cri.*` come only with the settings above. Of them `cri.image-ref` alone is
//!   used, and only for patterns: an image that containerd does not name is the guests' if all are.
//! - When containerd has unpacked an image, it sets `containerd.io/gc.ref.snapshot.<snapshotter>` on the image's config
//!   to the chain id. By this the configs are found whose users a container may run as. The manifest that a layer's
//!   labels name would not do: of an image whose layers another had brought already, containerd asks nothing.
//! - Keys are `<namespace>/<number>/<name>` when they come here, so snapshots of containerd's namespaces cannot meet,
//!   and nothing here depends on a namespace but the question for configs. Layers that were left to the guest have the
//!   bare chain id for a name, and all namespaces share them.
//! - containerd unpacks an image that another snapshotter had pulled under keys `extract-<unique> <chain id>` and
//!   without labels. On layers that were left to the guest it unpacks into a folder that is then thrown away.
//!
//! # What it cannot do
//!
//! Where one snapshotter serves all runtimes, an image for the host whose lower layers were left to guests before is
//! refused (FAILED_PRECONDITION): the host has no files under it, and containerd does not offer them again.

pub mod config;
mod filter;
mod folders;
mod image_user;
mod records;
mod service;
mod snapshots;

pub use image_user::USER_OF_IMAGE;
pub use service::{Error, Server};

/// containerd's API, generated from the formats in `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod api {
    /// The snapshots service.
    pub mod snapshots {
        tonic::include_proto!("containerd.services.snapshots.v1");
    }
    /// Of the content service, what finds and reads blobs.
    pub mod content {
        tonic::include_proto!("containerd.services.content.v1");
    }
}
