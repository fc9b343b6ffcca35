//! A node whose containerd runs, with a script that stands for systemd.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Node;

/// Of Debian's own containerd.
pub(crate) const CONFIGURATION: &str = r#"# The test's own.
version = 2
root = "@/containerd/root"
state = "@/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "@/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "@/cni"
"#;

/// `fail` beside it has containerd refuse to start with our configuration.
pub(crate) const SYSTEMCTL: &str = r#"#!/bin/sh
unit=$(eval echo \$$#)
echo "$*" >> @/calls
case "$1 $unit" in
is-active*containerd.service) kill -0 "$(cat @/pid)" 2>/dev/null ;;
is-active*sealpod-snapshotter.service) test -e @/snapshotter ;;
restart*sealpod-snapshotter.service) touch @/snapshotter ;;
stop*sealpod-snapshotter.service) rm -f @/snapshotter ;;
restart*containerd.service)
  old=$(cat @/pid 2>/dev/null)
  if [ -n "$old" ]; then
    kill "$old" && while kill -0 "$old" 2>/dev/null; do sleep 0.05; done
  fi
  rm -f @/pid
  if [ -e @/fail ] && grep -q sealpod @/etc/containerd/config.toml; then
    echo 'Job for containerd.service failed.' >&2
    exit 1
  fi
  containerd --config @/etc/containerd/config.toml > @/containerd.log 2>&1 < /dev/null &
  echo $! > @/pid
  for i in $(seq 200); do
    ctr --address @/containerd/containerd.sock version > /dev/null 2>&1 && exit 0
    sleep 0.05
  done
  exit 1 ;;
is-active*crio.service) test -e @/crio ;;
restart*crio.service)
  rm -f @/crio
  if [ -e @/fail ] && [ -e @/etc/crio/crio.conf.d/60-sealpod.conf ]; then exit 1; fi
  touch @/crio ;;
*is-active*) exit 3 ;;
esac
"#;

/// Ends its containerd.
pub(crate) struct Running(pub(crate) Node);

impl Running {
    /// Starts Debian's containerd.
    pub(crate) fn start() -> Self {
        Self::with(Node::new(), CONFIGURATION, SYSTEMCTL)
    }

    /// Starts the containerd of a folder.
    pub(crate) fn of(folder: &Path, configuration: &str) -> Self {
        let mut node = Node::new();
        node.options.places.programs.extend(["containerd", "ctr"].map(|name| folder.join(name)));
        let first = format!("#!/bin/sh\nPATH={}:$PATH", folder.display());
        Self::with(node, configuration, &SYSTEMCTL.replacen("#!/bin/sh", &first, 1))
    }

    fn with(mut node: Node, configuration: &str, systemctl: &str) -> Self {
        node.write("etc/containerd/config.toml", configuration);
        // The configuration names one.
        node.options.places.containerd_root = None;
        node.write("run/systemd/system/here", "");
        node.program("bin/systemctl", systemctl);
        node.options.places.programs.push(node.path("bin/systemctl"));
        let node = Self(node);
        let started =
            Command::new(node.0.path("bin/systemctl")).args(["restart", "containerd.service"]).status();
        assert!(started.unwrap().success(), "{}", node.0.read("containerd.log"));
        std::fs::remove_file(node.0.path("calls")).unwrap();
        node
    }

    /// What was restarted or stopped since the last time.
    pub(crate) fn restarts(&self) -> Vec<String> {
        let calls = self.0.read("calls");
        std::fs::remove_file(self.0.path("calls")).unwrap();
        calls
            .lines()
            .filter(|call| call.starts_with("restart") || call.starts_with("stop"))
            .map(str::to_owned)
            .collect()
    }

    /// What containerd says of its plugins.
    pub(crate) fn plugins(&self) -> String {
        let programs = &self.0.options.places.programs;
        let ctr = programs.iter().find(|program| program.ends_with("ctr"));
        let output = Command::new(ctr.map_or(Path::new("ctr"), PathBuf::as_path))
            .arg("--address")
            .arg(self.0.path("containerd/containerd.sock"))
            .args(["plugins", "ls"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(self.0.path("pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
    }
}
