//! A node whose containerd runs: Debian's own, with folders of its own. A script stands for systemd.

mod support;

use std::process::Command;

use sealpod_node::{Error, Removal, Status};
use support::Node;
use support::running::{CONFIGURATION, Running, SYSTEMCTL};

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

    // Below the root that the configuration names.
    let mountpoint = node.0.image_mountpoint("containerd/root");
    assert_eq!(std::fs::read_link(&mountpoint).unwrap(), node.0.path("lib/sealpod/snapshots"));

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

    let said = node.0.uninstall().unwrap();
    let forgotten = said.iter().position(|line| line == "restarting containerd.service");
    let removed = said.iter().position(|line| *line == format!("removing {}", mountpoint.display()));
    assert!(forgotten.unwrap() < removed.unwrap(), "{said:#?}");
    assert!(!mountpoint.is_symlink());
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
    assert!(node.0.image_mountpoint("containerd/root").is_symlink());
    assert!(node.0.path("etc/systemd/system/containerd.service.wants/sealpod-snapshotter.service").exists());

    drop(mounted);
    let removal = Removal::plan(&node.0.options.places, false, true, true).unwrap();
    removal.carry_out(&mut |_| {}).unwrap();
    assert_eq!(node.restarts(), ["restart containerd.service", "stop sealpod-snapshotter.service"]);
    assert_eq!(node.0.files("etc/containerd")["config.toml"], CONFIGURATION);
    assert!(!node.0.path("opt").exists() && !node.0.path("lib/sealpod").exists());
    assert!(!node.0.image_mountpoint("containerd/root").is_symlink());
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
fn files_have_their_labels_before_anything_is_started() {
    let mut node = Running::start();
    node.0.write("selinux/enforce", "1");
    node.0.write("from/selinux/sealpod.pp", "module");
    for file in ["etc/crio/crio.conf", "crio"] {
        node.0.write(file, "");
    }
    for program in ["semodule", "restorecon"] {
        node.0.program(&format!("bin/{program}"), &format!("#!/bin/sh\necho {program} $* >> @/calls\n"));
        let path = node.0.path("bin").join(program);
        node.0.options.places.programs.push(path);
    }
    let calls = || {
        let calls = node.0.files("calls").remove("").unwrap();
        std::fs::remove_file(node.0.path("calls")).unwrap();
        let is_of_order =
            |call: &&str| ["semodule", "restorecon", "restart"].iter().any(|word| call.starts_with(word));
        calls.lines().filter(is_of_order).map(str::to_owned).collect::<Vec<_>>()
    };
    node.0.install().unwrap();
    let ours = "restorecon -RF @/opt/sealpod @/etc/sealpod";
    let made = calls();
    let unit = "@/etc/systemd/system/sealpod-snapshotter.service";
    assert!(made[1].starts_with(ours) && made[1].contains(unit), "{made:#?}");
    let others = [&made[..1], &made[2..]].concat();
    assert_eq!(
        others,
        [
            "semodule -i @/opt/sealpod/selinux/sealpod.pp",
            "restart sealpod-snapshotter.service",
            "restorecon -RF @/etc/containerd",
            "restart containerd.service",
            "restorecon -RF @/etc/crio/crio.conf.d/60-sealpod.conf",
            "restart crio.service",
        ]
    );

    // An upgrade's program is another file.
    node.0.program("from/sealpod-snapshotter", "#!/bin/sh\n");
    node.0.install().unwrap();
    let made = calls();
    assert!(made[0].starts_with(ours), "{made:#?}");
    assert_eq!(made.iter().filter(|call| call.starts_with("restart ")).count(), 1);
    assert_eq!(made[1], "restart sealpod-snapshotter.service");

    // Where the module is new, what runs already must enter its domain.
    node.0.write("from/selinux/sealpod.pp", "newer");
    node.0.install().unwrap();
    let made = calls();
    assert_eq!(made[0], "semodule -i @/opt/sealpod/selinux/sealpod.pp");
    assert!(made[1].starts_with(ours), "{made:#?}");
    assert_eq!(made[2], "restart sealpod-snapshotter.service");
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

#[test]
fn an_upgrade_with_which_cri_o_does_not_start_can_still_be_taken_back() {
    let mut node = Node::new();
    for file in ["etc/crio/crio.conf", "run/systemd/system/here", "crio", "calls"] {
        node.write(file, "");
    }
    let systemctl = SYSTEMCTL
        .replace("[ -e @/etc/crio/crio.conf.d/60-sealpod.conf ]", "grep -qs newer @/etc/crio/crio.conf.d/*");
    assert_ne!(systemctl, SYSTEMCTL);
    node.program("bin/systemctl", &systemctl);
    node.options.places.programs = vec![node.path("bin/systemctl"), "/nowhere/containerd".into()];
    node.install().unwrap();
    let drop_in = "etc/crio/crio.conf.d/60-sealpod.conf";
    let older = node.read(drop_in);

    let runtime = node.options.places.runtime.clone();
    node.options.places.runtime = node.path("run/newer");
    node.write("fail", "");
    let error = node.install().unwrap_err().to_string();
    assert!(error.ends_with("runs again with the old one"), "{error}");
    assert_eq!(node.read(drop_in), older);
    node.options.places.runtime = runtime;
    assert!(node.plan().unwrap().is_done(), "the older one is on record");

    node.uninstall().unwrap();
    assert!(!node.path("etc/crio/crio.conf.d").exists() && node.path("crio").exists());
    assert!(!node.path("opt").exists());
}
