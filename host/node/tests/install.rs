//! Files, records and refusals of an installation on a node without systemd.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sealpod_node::{Error, Places, Removal, Status};
use support::Node;

#[test]
fn everything_is_placed_and_taken_away_again() {
    let node = Node::new();
    node.write("etc/crio/crio.conf", "");
    let before = node.files("");
    let said = node.install().unwrap().join("\n");
    assert!(said.contains("systemd does not run here"), "{said}");
    assert!(said.contains("sealpod-snapshotter.service containerd.service crio.service"), "{said}");
    for name in ["sealpod", "containerd-shim-sealpod-v2", "sealpod-snapshotter"] {
        let path = node.path("opt/sealpod/bin").join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o755, "{name}");
    }
    assert!(sealpod_sandbox::GuestImage::open(node.path("opt/sealpod/guest")).is_ok());
    assert!(
        node.read("etc/sealpod/snapshotter.toml").contains("images = [\"registry.example/confidential/*\"]")
    );
    let wanted = node.path("etc/systemd/system/containerd.service.wants/sealpod-snapshotter.service");
    assert_eq!(
        std::fs::read_link(wanted).unwrap(),
        node.path("etc/systemd/system/sealpod-snapshotter.service")
    );
    let mountpoint = node.image_mountpoint("lib/containerd");
    assert_eq!(std::fs::read_link(&mountpoint).unwrap(), node.path("lib/sealpod/snapshots"));
    let crio: toml::Table = node.read("etc/crio/crio.conf.d/60-sealpod.conf").parse().unwrap();
    let runtime = &crio["crio"]["runtime"]["runtimes"]["sealpod"];
    assert_eq!(runtime["runtime_type"].as_str(), Some("vm"));
    assert_eq!(runtime["runtime_pull_image"].as_bool(), Some(true));
    assert!(runtime.get("allowed_annotations").is_none(), "CRI-O would ignore the whole runtime");
    assert_eq!(
        runtime["runtime_path"].as_str(),
        node.path("opt/sealpod/bin/containerd-shim-sealpod-v2").to_str()
    );

    let status = Status::of(&node.options.places).unwrap();
    assert_eq!(status.containerd.as_deref(), Some("1.6"));
    let knows = status.parts.iter().find(|part| part.name == "containerd's configuration").unwrap();
    assert!(knows.ok, "{knows:?}");
    assert!(status.parts.iter().any(|part| part.detail == "containerd-shim-sealpod-v2 0.1.0"));
    let is_link = |name: &str| name == mountpoint.display().to_string();
    assert!(status.parts.iter().any(|part| is_link(&part.name) && part.ok), "{status:?}");

    node.uninstall().unwrap();
    assert_eq!(node.files(""), before);
    assert!(
        !node.path("opt").exists()
            && !node.path("etc/sealpod").exists()
            && !node.path("etc/containerd").exists()
            && !node.path("lib").exists()
    );
    assert!(matches!(node.uninstall(), Err(Error::NotInstalled(_))));
    assert!(!Status::of(&node.options.places).unwrap().is_well());
}

#[test]
fn a_configuration_that_its_administrator_edits_is_nothing_wrong() {
    let node = Node::new();
    node.install().unwrap();
    let part = |name: &str| {
        let place = node.path(name).display().to_string();
        let status = Status::of(&node.options.places).unwrap();
        status.parts.into_iter().find(|part| part.name == place).unwrap()
    };
    let (configuration, unit) = ("etc/sealpod/shim.toml", "etc/systemd/system/sealpod-snapshotter.service");
    assert!(part(configuration).ok && part(unit).ok);
    for name in [configuration, unit] {
        node.write(name, &format!("{}# mine\n", node.read(name)));
    }
    assert!(part(configuration).ok && part(configuration).detail == "edited since");
    assert!(!part(unit).ok, "{:?}", part(unit));
    std::fs::remove_file(node.path(configuration)).unwrap();
    assert!(!part(configuration).ok, "{:?}", part(configuration));
}

#[test]
fn a_dry_run_shows_the_changes_and_makes_none() {
    let node = Node::new();
    node.write("etc/containerd/config.toml", "version = 2\n# mine\n");
    let before = node.files("");
    let lines = node.plan().unwrap().lines().join("\n");
    assert_eq!(node.files(""), before);
    assert!(lines.contains("    +snapshotter = \"sealpod\""), "{lines}");
    assert!(lines.contains("     # mine"), "{lines}");
    let mountpoint = node.image_mountpoint("lib/containerd");
    let link =
        format!("write    {}  ->  {}", mountpoint.display(), node.path("lib/sealpod/snapshots").display());
    assert!(lines.contains(&link) && !mountpoint.is_symlink(), "{lines}");
    node.install().unwrap();
    let installed = node.files("");
    let lines = Removal::plan(&node.options.places, false, false, true).unwrap().lines().join("\n");
    assert_eq!(node.files(""), installed);
    assert!(lines.contains("    -snapshotter = \"sealpod\""), "{lines}");
    assert!(lines.contains(&format!("remove   {}", mountpoint.display())), "{lines}");
}

#[test]
fn what_others_put_in_place_of_the_mountpoint_of_images_stays() {
    let make_folder = |path: &Path| {
        std::fs::create_dir_all(path.join("metadata")).unwrap();
        std::fs::write(path.join("metadata/theirs"), "").unwrap();
    };
    let make_link = |path: &Path| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/nowhere", path).unwrap();
    };
    let makers: [&dyn Fn(&Path); 2] = [&make_folder, &make_link];
    for make in makers {
        let node = Node::new();
        let mountpoint = node.image_mountpoint("lib/containerd");
        let is_theirs = || {
            let target = std::fs::read_link(&mountpoint);
            mountpoint.join("metadata/theirs").exists()
                || target.is_ok_and(|target| target == Path::new("/nowhere"))
        };
        let note = format!("{} is there, and is no link to ", mountpoint.display());
        let place = mountpoint.display().to_string();
        let purge = || Removal::plan(&node.options.places, false, true, true).unwrap();

        // It was there before.
        make(&mountpoint);
        assert!(node.install().unwrap().join("\n").contains(&note) && is_theirs());
        assert!(node.plan().unwrap().is_done());
        assert!(Status::of(&node.options.places).unwrap().parts.iter().all(|part| part.name != place));
        purge().carry_out(&mut |_| {}).unwrap();
        assert!(is_theirs() && !node.path("opt").exists());

        // It took the place of ours.
        std::fs::rename(&mountpoint, node.path("theirs")).unwrap();
        node.install().unwrap();
        std::fs::remove_file(&mountpoint).unwrap();
        std::fs::rename(node.path("theirs"), &mountpoint).unwrap();
        let status = Status::of(&node.options.places).unwrap();
        assert!(status.parts.iter().any(|part| part.name == place && !part.ok), "{status:?}");
        assert!(node.install().unwrap().join("\n").contains(&note) && is_theirs());
        let kept = format!("{place} is not as it was installed: it stays");
        assert!(purge().lines().iter().any(|line| line.ends_with(&kept)), "{:?}", purge().lines());
        purge().carry_out(&mut |_| {}).unwrap();
        assert!(is_theirs() && !node.path("opt").exists());
    }
}

#[test]
fn what_the_administrator_changed_is_not_overwritten_and_stays() {
    let mut node = Node::new();
    node.write("etc/sealpod/shim.toml", "guest = \"/mine\"\n");
    node.install().unwrap();
    assert_eq!(node.read("etc/sealpod/shim.toml"), "guest = \"/mine\"\n");
    node.write("etc/sealpod/snapshotter.toml", "images = []\n");
    node.options.images = vec!["other/*".into()];
    let plan = node.plan().unwrap();
    let lines = plan.lines().join("\n");
    assert!(lines.contains("snapshotter.toml is not as it was installed: it stays as it is"), "{lines}");
    assert!(lines.contains("so --images has no effect"), "{lines}");
    plan.carry_out(&mut |_| {}).unwrap();
    assert_eq!(node.read("etc/sealpod/snapshotter.toml"), "images = []\n");
    let said = node.uninstall().unwrap().join("\n");
    assert!(said.contains("snapshotter.toml is not as it was installed: it stays"), "{said}");
    assert_eq!(node.files("etc/sealpod").len(), 2);
}

#[test]
fn an_upgrade_replaces_what_is_new_and_keeps_the_way_back() {
    let mut node = Node::new();
    node.write("etc/containerd/config.toml", "version = 2 # mine\n");
    node.install().unwrap();
    node.program("from/sealpod-snapshotter", "#!/bin/sh\necho sealpod-snapshotter 0.2.0\n");
    node.write("from/guest/initrd", "newer");
    let plan = node.plan().unwrap();
    let lines = plan.lines();
    let changes: Vec<_> = lines.iter().filter(|line| !line.starts_with("note")).collect();
    assert_eq!(changes.len(), 2, "{changes:#?}");
    plan.carry_out(&mut |_| {}).unwrap();
    assert_eq!(node.read("opt/sealpod/guest/initrd"), "newer");

    // An earlier release made no link, and one for other data leads elsewhere.
    let mountpoint = node.image_mountpoint("lib/containerd");
    assert!(mountpoint.is_symlink());
    std::fs::remove_file(&mountpoint).unwrap();
    node.install().unwrap();
    assert!(mountpoint.is_symlink());
    node.options.places.data = node.path("lib/other");
    node.install().unwrap();
    assert_eq!(std::fs::read_link(&mountpoint).unwrap(), node.path("lib/other/snapshots"));
    node.uninstall().unwrap();
    assert_eq!(node.read("etc/containerd/config.toml"), "version = 2 # mine\n");
}

#[test]
fn a_newer_containerd_is_told_in_its_own_way() {
    let mut node = Node::new();
    let before =
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n";
    node.write("etc/containerd/config.toml", before);
    node.install().unwrap();
    assert!(node.read("etc/containerd/config.toml").contains("snapshotter = \"sealpod\""));
    node.options.containerd_version = Some("1.7".into());
    node.install().unwrap();
    let edited = node.read("etc/containerd/config.toml");
    assert!(
        edited.contains("snapshotter = \"native\"") && edited.contains("snapshotter = \"sealpod\""),
        "{edited}"
    );
    node.options.containerd_version = Some("2.1".into());
    node.install().unwrap();
    let edited = node.read("etc/containerd/config.toml");
    assert!(edited.contains("imports") && !edited.contains("sealpod"), "{edited}");
    assert!(node.path("etc/containerd/conf.d/sealpod.toml").exists());
    node.options.containerd_version = Some("1.7".into());
    node.install().unwrap();
    assert!(!node.path("etc/containerd/conf.d/sealpod.toml").exists());
    node.uninstall().unwrap();
    assert_eq!(node.read("etc/containerd/config.toml"), before);
}

#[test]
fn an_interrupted_installation_is_completed_and_undone() {
    let node = Node::new();
    node.write("etc/containerd/config.toml", "version = 2\n");
    let before = node.files("etc");
    // The unit's folder cannot be made, so the run ends before containerd is told.
    node.write("etc/systemd", "a file");
    let error = node.install().unwrap_err().to_string();
    assert!(error.contains("cannot make"), "{error}");
    assert_eq!(node.read("etc/containerd/config.toml"), "version = 2\n");
    std::fs::remove_file(node.path("etc/systemd")).unwrap();
    // What a killed run leaves.
    node.write("opt/sealpod/bin/.sealpod.sealpod-new", "half");
    std::fs::remove_file(node.path("opt/sealpod/bin/sealpod")).unwrap();
    node.install().unwrap();
    assert!(node.plan().unwrap().is_done());
    node.uninstall().unwrap();
    assert_eq!(node.files("etc"), before);
    assert!(!node.path("opt").exists());
}

#[test]
fn two_installations_do_not_meet() {
    let node = Node::new();
    let (one, other) = (node.plan().unwrap(), node.plan().unwrap());
    one.carry_out(&mut |_| {}).unwrap();
    assert!(
        matches!(other.carry_out(&mut |_| {}), Err(Error::Outdated(_))),
        "it was planned for another node"
    );
    let removal = Removal::plan(&node.options.places, false, false, true).unwrap();
    node.write("from/sealpod", "newer");
    node.install().unwrap();
    let installed = node.files("");
    assert!(matches!(removal.carry_out(&mut |_| {}), Err(Error::Outdated(_))), "it is another release");
    assert_eq!(node.files(""), installed);
    let lock = std::fs::File::open(node.path("opt/sealpod")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(matches!(node.install(), Err(Error::Busy(_))));
    assert!(matches!(node.uninstall(), Err(Error::Busy(_))));
}

#[test]
fn what_is_missing_is_said() {
    let mut node = Node::new();
    node.options.images.clear();
    assert!(matches!(node.install(), Err(Error::ImagesUnknown)));
    node.options.images.push("*".into());
    std::fs::remove_file(node.path("from/guest/initrd")).unwrap();
    assert!(matches!(node.install(), Err(Error::Source { path, .. }) if path == node.path("from/guest")));
    node.write("from/guest/initrd", "i");
    std::fs::remove_file(node.path("from/containerd-shim-sealpod-v2")).unwrap();
    let error = node.install().unwrap_err();
    assert!(error.to_string().contains("containerd-shim-sealpod-v2 is not there or not usable"), "{error}");
    assert!(error.hint().unwrap().contains("--from"));
    node.options.places.programs = vec!["/nowhere/containerd".into()];
    assert!(matches!(node.install(), Err(Error::NoRuntime(_))));
    node.options.containerd_version = Some("1.5".into());
    assert!(matches!(node.install(), Err(Error::TooOld(_))));
    assert!(!node.path("opt").exists());
    node.options.places.root = Some(node.path("no-image"));
    let error = node.install().unwrap_err().to_string();
    assert!(error.contains("cannot look into") && error.contains("no-image"), "{error}");
}

#[test]
fn without_its_backup_a_file_loses_what_is_ours_alone() {
    let node = Node::new();
    node.write("etc/containerd/config.toml", "version = 2 # mine\n");
    node.install().unwrap();
    std::fs::remove_file(node.path("etc/containerd/config.toml.before-sealpod")).unwrap();
    node.uninstall().unwrap();
    assert_eq!(node.read("etc/containerd/config.toml"), "version = 2 # mine\n");
}

#[test]
fn a_configuration_that_is_a_link_stays_one() {
    let node = Node::new();
    node.write("etc/elsewhere.toml", "version = 2 # mine\n");
    std::fs::set_permissions(node.path("etc/elsewhere.toml"), std::fs::Permissions::from_mode(0o640))
        .unwrap();
    std::fs::create_dir(node.path("etc/containerd")).unwrap();
    std::os::unix::fs::symlink("../elsewhere.toml", node.path("etc/containerd/config.toml")).unwrap();
    node.install().unwrap();
    let edited = node.path("etc/elsewhere.toml");
    assert!(std::fs::read_to_string(&edited).unwrap().contains("sealpod"));
    assert_eq!(edited.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    node.uninstall().unwrap();
    assert!(node.path("etc/containerd/config.toml").is_symlink());
    assert_eq!(node.read("etc/elsewhere.toml"), "version = 2 # mine\n");
}

#[test]
fn a_damaged_record_is_not_guessed_at() {
    let node = Node::new();
    node.install().unwrap();
    node.write("opt/sealpod/installation.json", "{");
    assert!(matches!(node.install(), Err(Error::Record { .. })));
    assert!(matches!(node.uninstall(), Err(Error::Record { .. })));
}

#[test]
fn an_image_gets_paths_as_its_own_programs_will_see_them() {
    let mut node = Node::new();
    node.options.places = Places { root: Some(node.path("image")), ..Places::default() };
    node.options.containerd_version = Some("2.1".into());
    node.options.images.clear();
    node.write("image/etc/containerd/config.toml", "version = 3\nroot = \"/data/containerd\"\n");
    let before = node.files("image");
    let said = node.install().unwrap().join("\n");
    assert!(said.contains("an image: no service is touched"), "{said}");
    assert!(said.contains("its configuration is not checked by itself"), "{said}");
    let drop_in: toml::Table = node.read("image/etc/containerd/conf.d/sealpod.toml").parse().unwrap();
    let runtime = &drop_in["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["sealpod"];
    assert_eq!(runtime["runtime_path"].as_str(), Some("/opt/sealpod/bin/containerd-shim-sealpod-v2"));
    assert!(node.read("image/etc/containerd/config.toml").contains("\"/etc/containerd/conf.d/*.toml\""));
    assert!(node.read("image/etc/sealpod/snapshotter.toml").contains("images = [\"*\"]"));
    let link = node.path("image/etc/systemd/system/multi-user.target.wants/sealpod-snapshotter.service");
    assert_eq!(
        std::fs::read_link(link).unwrap().to_str(),
        Some("/etc/systemd/system/sealpod-snapshotter.service")
    );
    let mountpoint = node.image_mountpoint("image/data/containerd");
    assert_eq!(std::fs::read_link(&mountpoint).unwrap().to_str(), Some("/var/lib/sealpod/snapshots"));
    let record = node.read("image/opt/sealpod/installation.json");
    assert!(!record.contains("image/"), "{record}");
    node.uninstall().unwrap();
    assert_eq!(node.files("image"), before);
    assert!(!node.path("image/opt").exists() && !node.path("image/data").exists());
}

#[test]
fn the_containerd_of_an_image_checks_its_own_configuration() {
    let mut node = Node::new();
    node.options.places = Places { root: Some(node.path("image")), ..Places::default() };
    node.write("image/etc/containerd/config.toml", "version = 2\nimports = [\"/etc/containerd/cri.toml\"]\n");
    node.write(
        "image/etc/containerd/cri.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"of-the-image\"\n",
    );
    let libraries = std::process::Command::new("ldd").arg("/usr/bin/containerd").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let paths = libraries.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain(["/usr/bin/containerd"]) {
        let copy = node.path("image").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(path, copy).unwrap();
    }
    let before = node.files("image/etc");
    let said = node.install().unwrap().join("\n");
    assert!(!said.contains("not checked"), "{said}");
    let edited = node.read("image/etc/containerd/cri.toml");
    assert!(edited.contains("\"/opt/sealpod/bin/containerd-shim-sealpod-v2\""), "{edited}");
    assert!(node.read("image/etc/containerd/config.toml").contains("cri.toml"));
    let mountpoint = node.image_mountpoint("image/var/lib/containerd");
    assert_eq!(std::fs::read_link(&mountpoint).unwrap().to_str(), Some("/var/lib/sealpod/snapshots"));
    assert_eq!(Status::of(&node.options.places).unwrap().containerd.as_deref(), Some("1.6"));
    node.write("image/etc/containerd/cri.toml", &edited.replace("version = 2", "version = "));
    assert!(matches!(node.install(), Err(Error::Refused { which: "its present configuration", .. })));
    node.write("image/etc/containerd/cri.toml", &edited);
    node.uninstall().unwrap();
    assert_eq!(node.files("image/etc"), before);
    assert!(!mountpoint.is_symlink());
}

#[test]
fn the_policy_module_is_loaded_once_where_selinux_is_on() {
    let mut node = Node::new();
    node.write("from/selinux/sealpod.pp", "module");
    let said = node.install().unwrap().join("\n");
    assert!(said.contains("SELinux is off: its policy module is not loaded"), "{said}");

    node.write("selinux/enforce", "1");
    for program in ["semodule", "restorecon", "swtpm_setup"] {
        node.program(&format!("bin/{program}"), &format!("#!/bin/sh\necho {program} $* >> @/calls\n"));
        node.options.places.programs.push(node.path("bin").join(program));
    }
    let calls = |node: &Node| {
        let calls = node.files("").remove("calls").unwrap_or_default();
        let _ = std::fs::remove_file(node.path("calls"));
        calls
    };
    let loads = "semodule -i @/opt/sealpod/selinux/sealpod.pp\n";
    node.install().unwrap();
    let made = calls(&node);
    assert!(made.starts_with(loads), "{made}");
    assert!(made.contains("restorecon -RF @/opt/sealpod @/etc/sealpod "), "{made}");
    assert!(made.contains(" @/bin/swtpm_setup\n"), "{made}");
    node.install().unwrap();
    assert!(!calls(&node).contains("semodule"));
    node.write("from/selinux/sealpod.pp", "newer");
    node.install().unwrap();
    assert!(calls(&node).contains(loads));
    node.uninstall().unwrap();
    assert_eq!(calls(&node), "semodule -r sealpod\n");

    std::fs::remove_dir_all(node.path("from/selinux")).unwrap();
    let said = node.install().unwrap().join("\n");
    assert!(said.contains("SELinux is on, but no policy module"), "{said}");
    node.write("from/selinux/sealpod.pp", "module");
    node.options.places.programs = vec!["/nowhere/semodule".into()];
    let error = node.install().unwrap_err().to_string();
    assert!(error.contains("`semodule` failed: not installed; it is in policycoreutils"), "{error}");
}
