//! A guest that its owner did not make, and that speaks to the node as it likes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use sealpod_tests::node::RUNTIME;

use crate::failures::{inventory, nothing_is_left};
use crate::world::World;

/// Begins a session as an agent does (agent-protocol's `hello`), and then says anything, to the console too.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /dev /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t sysfs sys /sys
for module in $(busybox cat /modules/boot.list); do busybox insmod /modules/$module; done
until port=$(echo /dev/vport*) && [ -c "$port" ]; do busybox sleep 0.1; done
exec 3<>"$port"
say() {
    busybox printf "SEALPOD\\001$1" > /answer
    busybox tail -c 16 /message >> /answer
    busybox cat /answer >&3
}
while :; do
    busybox dd bs=1 count=25 <&3 > /message 2> /dev/null
    case $(busybox dd if=/message bs=1 skip=8 count=1 2> /dev/null) in
        h) say e ;;
        s) say r; break ;;
    esac
done
busybox yes "flood of the console" > /dev/console &
busybox yes "no frame at all" >&3
busybox sleep 1000
"#;

/// The guest under test with another first program.
fn make_guest(folder: &Path) {
    let (guest, files) = (folder.join("guest"), folder.join("files"));
    std::fs::create_dir_all(&guest).unwrap();
    std::fs::create_dir_all(files.join("bin")).unwrap();
    for entry in std::fs::read_dir(sealpod_tests::guest()).unwrap().flatten() {
        std::fs::copy(entry.path(), guest.join(entry.file_name())).unwrap();
    }
    std::fs::copy(sealpod_tests::busybox(), files.join("bin/busybox")).unwrap();
    std::fs::write(files.join("init"), INIT).unwrap();
    for program in ["init", "bin/busybox"] {
        std::fs::set_permissions(files.join(program), PermissionsExt::from_mode(0o755)).unwrap();
    }
    // The kernel unpacks what follows an archive over it; zeros end the first one.
    let script = r#"size=$(stat -c %s "$1"); truncate -s $((size / 4 * 4 + 8)) "$1"
        cd "$2" && find . | cpio --create --format=newc --quiet >> "$1""#;
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(guest.join("guest.json")).unwrap()).unwrap();
    let initrd = guest.join(manifest["initrd"].as_str().unwrap());
    let packed = Command::new("sh").args(["-c", script, "sh"]).arg(initrd).arg(files).status().unwrap();
    assert!(packed.success());
}

pub(crate) async fn a_guest_that_lies_and_floods_costs_its_own_pod_only(world: &World) {
    let node = world.node().await;
    let shared = world.pod(&node).await;
    let id = node.spawn(&shared, node.container_config("beside", &world.image(), "sleep 1000")).await;
    let before = inventory();
    let folder = node.path("hostile");
    make_guest(&folder);
    let config = std::fs::read_to_string(node.path("shim.toml")).unwrap();
    let honest = sealpod_tests::guest().display().to_string();
    let other = config.replace(&honest, folder.join("guest").to_str().unwrap());
    assert_ne!(other, config);
    std::fs::write(node.path("shim.toml"), other).unwrap();
    let refused = node.try_run_pod(node.pod_config("hostile", Some(&world.init_data())), RUNTIME).await;
    std::fs::write(node.path("shim.toml"), config).unwrap();
    let refused = refused.expect_err("the guest is none");
    assert!(refused.message().contains("StartPod"), "{}", refused.message());
    assert_eq!(node.exec(&id, "echo unmoved").await.unwrap().stdout, b"unmoved\n");
    nothing_is_left(&node, &before).await;
    let next = node.run_pod("after-hostile", &world.init_data()).await;
    node.remove(&next).await;
}
