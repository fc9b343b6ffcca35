//! Releases of containerd, and how each is told of our runtime and snapshotter.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::RUNTIME;
use crate::repository;

/// A stock containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containerd {
    /// 1.6, which this distribution has.
    V1_6,
    /// 1.7, which `make containerds` fetches.
    V1_7,
    /// 2.x, which it fetches too.
    V2,
}

/// How long releases that know it wait for the output of a process whose end they have seen.
const DRAIN: &str = "drain_exec_sync_io_timeout = \"3s\"";

impl Containerd {
    /// The folder with its programs; nothing for those of the system.
    pub(super) fn folder(self) -> Option<PathBuf> {
        let name = match self {
            Self::V1_6 => return None,
            Self::V1_7 => "1.7",
            Self::V2 => "2",
        };
        let folder = repository().join("target/containerd").join(name);
        assert!(folder.join("containerd").is_file(), "there is no containerd {name}: run `make containerds`");
        Some(folder)
    }

    pub(super) fn command(self, program: &str) -> Command {
        Command::new(self.folder().map_or_else(|| program.into(), |folder| folder.join(program)))
    }

    /// Its configuration, with everything in a folder.
    pub(super) fn config(self, folder: &Path, registry: &str, pause: &str) -> String {
        let place = folder.display();
        let head = format!(
            r#"root = "{place}/root"
state = "{place}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{place}/containerd.sock"
[proxy_plugins.sealpod]
  type = "snapshot"
  address = "{place}/snapshotter.sock"
"#
        );
        let runtime = format!(
            r#"runtime_type = "io.containerd.sealpod.v2"
pod_annotations = ["io.katacontainers.*"]
privileged_without_host_devices = true
options = {{ ConfigPath = "{place}/shim.toml" }}
"#
        );
        match self {
            Self::V1_6 | Self::V1_7 => {
                // Each has what it has: one snapshotter for all runtimes, or one for each.
                let (more, global, own) = match self {
                    Self::V1_6 => {
                        ("", "snapshotter = \"sealpod\"\ndisable_snapshot_annotations = false\n", "")
                    }
                    _ => (DRAIN, "snapshotter = \"native\"\n", "snapshotter = \"sealpod\"\n"),
                };
                format!(
                    r#"version = 2
{head}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # runc lowers the sandbox's score, which root without CAP_SYS_RESOURCE may not.
  restrict_oom_score_adj = true
  {more}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{place}/cni"
  # A pod is in all of them.
  max_conf_num = 0
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."{registry}"]
  endpoint = ["http://{registry}"]
[plugins."io.containerd.grpc.v1.cri".containerd]
{global}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{RUNTIME}]
{runtime}{own}
"#
                )
            }
            Self::V2 => format!(
                r#"version = 3
{head}
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[proxy_plugins.sealpod.exports]
  enable_remote_snapshot_annotations = "true"
# As the installer has the transfer service pull: its list replaces containerd's own.
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "native"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "sealpod"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{place}/registries"
[plugins."io.containerd.cri.v1.images".runtime_platforms.{RUNTIME}]
  snapshotter = "sealpod"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  {DRAIN}
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{place}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{RUNTIME}]
{runtime}snapshotter = "sealpod"
"#
            ),
        }
    }
}
