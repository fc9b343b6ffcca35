//! A node whose containerd runs: Debian's own, with folders of its own. A script stands for systemd.

mod support;

use std::process::Command;

use sealpod_node::{Error, Removal, Status};
use support::Node;

const CONFIGURATION: &str = r#"# The test's own.
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
const SYSTEMCTL: &str = r#"#!/bin/sh
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
struct Running(Node);

impl Running {
    fn start() -> Self {
        let mut node = Node::new();
        node.write("etc/containerd/config.toml", CONFIGURATION);
        node.write("run/systemd/system/here", "");
        node.program("bin/systemctl", SYSTEMCTL);
        node.options.places.programs.push(node.path("bin/systemctl"));
        let node = Self(node);
        let started =
            Command::new(node.0.path("bin/systemctl")).args(["restart", "containerd.service"]).status();
        assert!(started.unwrap().success(), "{}", node.0.read("containerd.log"));
        std::fs::remove_file(node.0.path("calls")).unwrap();
        node
    }

    fn restarts(&self) -> Vec<String> {
        let calls = self.0.read("calls");
        std::fs::remove_file(self.0.path("calls")).unwrap();
        calls
            .lines()
            .filter(|call| call.starts_with("restart") || call.starts_with("stop"))
            .map(str::to_owned)
            .collect()
    }

    fn plugins(&self) -> String {
        let output = Command::new("ctr")
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

#[test]
fn a_running_containerd_learns_of_us_and_forgets_us() {
    let node = Running::start();
    let said = node.0.install().unwrap();
    let announced = said.iter().position(|line| {
        line == "this restarts sealpod-snapshotter.service, containerd.service; containers go on running"
    });
    let restarted = said.iter().position(|line| line == "restarting containerd.service");
    assert!(announced.unwrap() < restarted.unwrap(), "{said:#?}");
    assert_eq!(node.restarts(), ["restart sealpod-snapshotter.service", "restart containerd.service"]);
    assert!(
        node.plugins().lines().any(|line| line.contains(" sealpod ") && line.trim_end().ends_with("ok")),
        "{}",
        node.plugins()
    );
    let unit = node.0.files("etc/systemd/system");
    assert!(
        unit["sealpod-snapshotter.service"].contains("--containerd-address @/containerd/containerd.sock")
    );

    assert!(node.0.plan().unwrap().is_done());
    node.0.install().unwrap();
    assert_eq!(node.restarts(), [""; 0], "nothing changed");

    // Only the snapshotter's program is new.
    node.0.program("from/sealpod-snapshotter", "#!/bin/sh\n");
    node.0.install().unwrap();
    assert_eq!(node.restarts(), ["restart sealpod-snapshotter.service"]);

    let status = Status::of(&node.0.options.places).unwrap();
    let part = |name: &str| status.parts.iter().find(|part| part.name == name).unwrap();
    assert!(part("containerd").ok && part("containerd.service").ok, "{status:?}");
    assert!(!part("the snapshotter").ok, "there is only a script that stands for it");

    node.0.uninstall().unwrap();
    assert_eq!(node.restarts(), ["restart containerd.service", "stop sealpod-snapshotter.service"]);
    assert_eq!(node.0.files("etc/containerd")["config.toml"], CONFIGURATION);
    assert!(!node.plugins().contains(" sealpod "));
}

#[test]
fn a_containerd_that_does_not_start_gets_its_old_configuration() {
    let node = Running::start();
    node.0.write("fail", "");
    let error = node.0.install().unwrap_err();
    assert!(matches!(error, Error::Service { .. }));
    let shown = error.to_string();
    assert!(
        shown.contains("Job for containerd.service failed.")
            && shown.ends_with("it runs again with the old one"),
        "{shown}"
    );
    assert_eq!(node.0.files("etc/containerd")["config.toml"], CONFIGURATION);
    assert!(node.plugins().contains("io.containerd.grpc.v1"), "it runs");

    // What was the matter is repaired.
    std::fs::remove_file(node.0.path("fail")).unwrap();
    node.0.install().unwrap();
    assert!(node.plugins().contains(" sealpod "));

    // Going back fails in the same way where containerd needs us to start.
    node.0.program("bin/systemctl", &SYSTEMCTL.replace("&& grep -q", "&& ! grep -q"));
    node.0.write("fail", "");
    let error = node.0.uninstall().unwrap_err().to_string();
    assert!(error.ends_with("it runs again with ours"), "{error}");
    assert!(node.plugins().contains(" sealpod "));
    std::fs::remove_file(node.0.path("fail")).unwrap();
    node.0.uninstall().unwrap();
    assert_eq!(
        node.0.files("etc/containerd").into_iter().collect::<Vec<_>>(),
        [("config.toml".into(), CONFIGURATION.into())]
    );
}

#[test]
fn without_restarts_they_wait_for_the_next_time() {
    let mut node = Running::start();
    node.0.options.restart = false;
    let said = node.0.install().unwrap().join("\n");
    assert!(said.contains("not restarted, as asked: `systemctl daemon-reload && systemctl restart sealpod-snapshotter.service containerd.service`"), "{said}");
    assert_eq!(node.restarts(), [""; 0]);
    let status = Status::of(&node.0.options.places).unwrap();
    assert_eq!(status.pending, ["sealpod-snapshotter.service", "containerd.service"]);
    assert!(!status.is_well());
    node.0.options.restart = true;
    assert!(!node.0.plan().unwrap().is_done());
    node.0.install().unwrap();
    assert_eq!(node.restarts(), ["restart sealpod-snapshotter.service", "restart containerd.service"]);
    assert!(Status::of(&node.0.options.places).unwrap().pending.is_empty());
}

#[test]
fn a_containerd_that_is_stopped_stays_so() {
    let node = Running::start();
    let pid = node.0.read("pid");
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
    while Command::new("kill")
        .args(["-0", pid.trim()])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        std::thread::yield_now();
    }
    let said = node.0.install().unwrap().join("\n");
    assert!(said.contains("containerd.service does not run: it stays so"), "{said}");
    assert_eq!(node.restarts(), ["restart sealpod-snapshotter.service"]);
}

#[test]
fn what_is_used_is_not_removed() {
    let node = Running::start();
    // Stands for a shim: a program of its path.
    std::fs::remove_file(node.0.path("from/containerd-shim-sealpod-v2")).unwrap();
    std::fs::copy("/bin/sleep", node.0.path("from/containerd-shim-sealpod-v2")).unwrap();
    node.0.install().unwrap();
    let mut shim = Command::new(node.0.options.places.shim()).arg("60").spawn().unwrap();
    let exe = format!("/proc/{}/exe", shim.id());
    while std::fs::read_link(&exe).is_ok_and(|exe| exe != node.0.options.places.shim()) {
        std::thread::yield_now();
    }
    let error = node.0.uninstall().unwrap_err();
    assert!(
        matches!(&error, Error::InUse(user) if user.contains(&format!("/proc/{}", shim.id()))),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("drain"));
    let forced = Removal::plan(&node.0.options.places, true, true, true);
    shim.kill().unwrap();
    shim.wait().unwrap();
    forced.unwrap().carry_out(&mut |_| {}).unwrap();
    assert!(!node.0.path("opt").exists());
}

/// Stands for what a container of runc's mounts.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn at(path: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        assert!(Command::new("mount").args(["-t", "tmpfs", "test"]).arg(&path).status().unwrap().success());
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn the_snapshotter_stays_as_long_as_containers_of_others_use_it() {
    let node = Running::start();
    node.0.install().unwrap();
    node.restarts();
    let mounted = Mounted::at(node.0.path("lib/sealpod/snapshots/snapshots/1/fs"));
    let said = node.0.uninstall().unwrap().join("\n");
    assert!(said.contains("containers of other runtimes use the snapshotter"), "{said}");
    assert_eq!(node.restarts(), ["restart containerd.service"], "the snapshotter goes on");
    let configuration = node.0.read("etc/containerd/config.toml");
    assert!(configuration.contains("[proxy_plugins.sealpod]"), "{configuration}");
    assert!(
        !configuration.contains("runtimes.sealpod") && !configuration.contains("snapshotter = "),
        "{configuration}"
    );
    assert!(node.plugins().contains(" sealpod "));
    assert!(!node.0.options.places.shim().exists());
    assert!(node.0.path("opt/sealpod/bin/sealpod-snapshotter").exists());
    assert!(node.0.path("etc/systemd/system/containerd.service.wants/sealpod-snapshotter.service").exists());

    drop(mounted);
    let removal = Removal::plan(&node.0.options.places, false, true, true).unwrap();
    removal.carry_out(&mut |_| {}).unwrap();
    assert_eq!(node.restarts(), ["restart containerd.service", "stop sealpod-snapshotter.service"]);
    assert_eq!(node.0.files("etc/containerd")["config.toml"], CONFIGURATION);
    assert!(!node.0.path("opt").exists() && !node.0.path("lib/sealpod").exists());
}

#[test]
fn a_newer_containerd_has_no_containers_of_others_on_ours() {
    let mut node = Node::new();
    node.options.containerd_version = Some("1.7".into());
    node.install().unwrap();
    let _mounted = Mounted::at(node.path("lib/sealpod/snapshots/snapshots/1/fs"));
    let error = node.uninstall().unwrap_err();
    assert!(matches!(&error, Error::InUse(user) if user.ends_with("is mounted from a snapshot")), "{error}");
    assert!(node.options.places.shim().exists());
}

#[test]
fn cri_o_learns_of_us_and_goes_back_where_it_does_not_start() {
    let mut node = Node::new();
    for file in ["etc/crio/crio.conf", "run/systemd/system/here", "crio", "fail", "calls"] {
        node.write(file, "");
    }
    node.program("bin/systemctl", SYSTEMCTL);
    node.options.places.programs = vec![node.path("bin/systemctl"), "/nowhere/containerd".into()];
    let error = node.install().unwrap_err().to_string();
    assert!(
        error.starts_with("crio.service did not start") && error.ends_with("runs again with the old one"),
        "{error}"
    );
    assert!(!node.path("etc/crio/crio.conf.d/60-sealpod.conf").exists() && node.path("crio").exists());

    std::fs::remove_file(node.path("fail")).unwrap();
    node.install().unwrap();
    assert!(node.path("etc/crio/crio.conf.d/60-sealpod.conf").exists() && node.path("crio").exists());
    assert!(node.plan().unwrap().is_done());
    assert!(!node.path("etc/systemd/system/sealpod-snapshotter.service").exists(), "CRI-O has none");
    node.uninstall().unwrap();
    assert!(!node.path("etc/crio/crio.conf.d").exists() && node.path("crio").exists());
    assert!(node.read("calls").ends_with("daemon-reload\n"));
}
