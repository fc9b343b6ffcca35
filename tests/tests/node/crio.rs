//! Pods that CRI-O starts: the shim is called as CRI-O calls it, by what its source says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{ShutdownRequest, StateRequest, Status};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::{self, context::Context};
use sealpod_tests::node::{Crio, Ended, PodNetwork};
use serde_json::{Value, json};

use crate::failures::{inventory, nothing_is_left_by};
use crate::world::World;

const ANNOTATIONS: &str = "io.kubernetes.cri-o";

fn annotate(specification: &mut Value, name: &str, value: &str) {
    specification["annotations"][format!("{ANNOTATIONS}.{name}")] = value.into();
}

pub(crate) async fn runs_a_pod(world: &World) {
    let crio = world.crio();
    let image = world.image();
    let before = inventory();
    let pod = crio.run_pod(&world.init_data()).await;
    let script = "cat /etc/hostname; grep -o 192.0.2.53 /etc/resolv.conf; echo err >&2; \
                  until [ -e /tmp/go ]; do sleep 0.1; done; exit 7";
    let specification = crio.container(&pod, &image, script);
    let container = crio.spawn(&specification, Vec::new()).await;
    for task in [&pod.infra, &container] {
        let state = task.state().await.unwrap();
        assert_eq!((state.status.enum_value(), state.pid), (Ok(Status::RUNNING), task.pid));
    }
    assert!(container.statistics().await.memory.usage > 0);
    pod.infra.statistics().await;
    container.exec(&specification["process"], "touch /tmp/go", false, None).await.unwrap();
    let expected = Ended { code: 7, stdout: "web\n192.0.2.53\n".into(), stderr: "err\n".into() };
    assert_eq!(container.ended().await, expected);
    let state = container.state().await.unwrap();
    assert_eq!((state.status.enum_value(), state.exit_status), (Ok(Status::STOPPED), 7));
    // One that runs to the pod's end, and one that was never started.
    let endless = crio.spawn(&crio.container(&pod, &image, "sleep 1000"), Vec::new()).await;
    let unused = crio.container(&pod, &image, "true");
    let unused = crio.create(&unused, Vec::new()).await.unwrap();
    crio.remove_pod(pod, vec![container, endless, unused]).await;
    nothing_is_left_by(|| crio.log(), &before).await;
    assert!(!crio.log().contains("last events"), "nobody takes events, and they are waited for");
    assert!(!crio.log().contains(" ERROR "), "{}", crio.log());
}

pub(crate) async fn execs(world: &World) {
    let crio = world.crio();
    let pod = world.crio_pod().await;
    let specification = crio.container(pod, &world.image(), "sleep 1000");
    let container = crio.spawn(&specification, Vec::new()).await;
    // What an exec has is what was asked of it, whatever the container itself has.
    let mut process = specification["process"].clone();
    for terminal in [false, true] {
        process["terminal"] = terminal.into();
        let plain = container.exec(&process, "cat; echo err >&2; exit 5", false, Some("typed")).await;
        assert_eq!(plain.unwrap(), Ended { code: 5, stdout: "typed".into(), stderr: "err\n".into() });
        let script = "until stty size 2>/dev/null | grep '^11 77$'; do sleep 0.1; done; echo err >&2";
        let on_terminal = container.exec(&process, script, true, None).await.unwrap();
        let expected = Ended { code: 0, stdout: "11 77\r\nerr\r\n".into(), stderr: String::new() };
        assert_eq!(on_terminal, expected);
    }
    let refused = container.exec(&process, "forbidden", false, None).await.unwrap_err();
    assert!(refused.contains("ExecProcess"), "{refused}");
    container.stop(9).await;
    container.remove().await;
}

pub(crate) async fn asks_whether_a_container_lives(world: &World) {
    let crio = world.crio();
    let pod = world.crio_pod().await;
    let script = "trap 'exit 9' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    let specification = crio.container(pod, &world.image(), script);
    let container = crio.spawn(&specification, Vec::new()).await;
    let ready = "until [ -e /tmp/ready ]; do sleep 0.1; done";
    container.exec(&specification["process"], ready, false, None).await.unwrap();
    for task in [&pod.infra, &container] {
        task.kill(0, false).await.unwrap();
        assert_eq!(task.state().await.unwrap().status.enum_value(), Ok(Status::RUNNING));
    }
    container.stop(15).await;
    assert_eq!(container.wait().await, 9);
    // Whoever stops it a second time fails if it is an error.
    for signal in [15, 9] {
        container.kill(signal, false).await.unwrap();
    }
    let gone = container.kill(0, false).await.unwrap_err();
    assert!(gone.starts_with("NOT_FOUND"), "{gone}");
    pod.infra.kill(0, false).await.unwrap();
    container.remove().await;
}

pub(crate) async fn notes_that_a_container_was_out_of_memory(world: &World) {
    let crio = world.crio();
    let pod = world.crio_pod().await;
    let script = "head -c 60000000 /dev/zero | tail -n 1 > /dev/null";
    let mut specification = crio.container(pod, &world.image(), script);
    specification["linux"]["resources"]["memory"] = json!({"limit": 24 << 20});
    let container = crio.spawn(&specification, Vec::new()).await;
    assert_ne!(container.wait().await, 0);
    assert!(crio.bundle(&container.id).join("oom").exists(), "{}", crio.log());
    container.remove().await;
}

/// CRI-O binds the host's namespace where a pod's own would be.
pub(crate) async fn cannot_give_the_hosts_network(world: &World) {
    let crio = world.crio();
    let before = inventory();
    for (number, kind, field) in [(2, "net", "hostNetwork"), (3, "ipc", "hostIPC")] {
        let network = crio.network();
        let mut specification = crio.sandbox(&network, Some(&world.init_data()));
        let bundle = crio.bundle(Crio::id_of(&specification));
        let bound = Bound::new(&bundle.with_file_name(kind), &format!("/proc/self/ns/{kind}"));
        specification["linux"]["namespaces"][number]["path"] = json!(bound.0);
        let refused = crio.create(&specification, Vec::new()).await.unwrap_err();
        assert!(refused.contains(&format!("{field} is refused: ")), "{refused}");
    }
    nothing_is_left_by(|| crio.log(), &before).await;
}

/// A file at which another is mounted.
struct Bound(PathBuf);

impl Bound {
    fn new(path: &Path, source: &str) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        assert!(Command::new("mount").args(["--bind", source]).arg(path).status().unwrap().success());
        Self(path.into())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// All annotations of a pod come into its specification, after CRI-O's own in a sandbox's.
pub(crate) async fn pods_cannot_name_another_pod(world: &World) {
    let crio = world.crio();
    let victim = &world.crio_pod().await.infra;
    let before = inventory();
    let forged = |network: &PodNetwork, change: fn(&mut Value, &str)| {
        let mut specification = crio.sandbox(network, Some(&world.init_data()));
        change(&mut specification, &victim.id);
        specification
    };
    {
        let network = crio.network();
        let specification = forged(&network, |specification, victim| {
            specification["annotations"]["io.kubernetes.cri.container-type"] = "container".into();
            specification["annotations"]["io.kubernetes.cri.sandbox-id"] = victim.into();
        });
        let address = crio.start(&specification).unwrap();
        assert_ne!(address, std::fs::read_to_string(crio.bundle(&victim.id).join("address")).unwrap());
        // It waits for its own pod, whoever else gives one up.
        end_shim(&address, &victim.id).await;
        let client = TaskClient::new(Client::connect(&address).await.unwrap());
        for _ in 0..10 {
            let request = StateRequest { id: Crio::id_of(&specification).into(), ..StateRequest::default() };
            let answer = client.state(Context::default(), &request).await.unwrap_err();
            assert!(matches!(answer, ttrpc::Error::RpcStatus(_)), "{answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        end_shim(&address, Crio::id_of(&specification)).await;
        let specification =
            forged(&network, |specification, victim| annotate(specification, "SandboxID", victim));
        let refused = crio.start(&specification).unwrap_err();
        assert!(refused.contains(&format!("{ANNOTATIONS}.SandboxID of a pod is refused: ")), "{refused}");
        let specification = forged(&network, |specification, victim| {
            annotate(specification, "ContainerType", "container");
            annotate(specification, "SandboxID", victim);
        });
        let refused = crio.create(&specification, Vec::new()).await.unwrap_err();
        assert!(refused.contains("another pod's"), "{refused}");
    }
    victim.kill(0, false).await.unwrap();
    nothing_is_left_by(|| crio.log(), &before).await;
}

/// As CRI-O does where it gives a pod up.
async fn end_shim(address: &str, id: &str) {
    let client = TaskClient::new(Client::connect(address).await.unwrap());
    let request = ShutdownRequest { id: id.into(), ..ShutdownRequest::default() };
    // Its connection may be gone before the answer.
    let _ = client.shutdown(Context::default(), &request).await;
}

pub(crate) async fn leaves_images_to_the_guest(world: &World) {
    let crio = world.crio();
    let pod = world.crio_pod().await;
    let image = world.image();
    let by_digest = format!("{}@{}", world.owner().in_guest("guest/tools"), world.digest());
    let container = |given: Option<&str>, name: &str| {
        let mut specification = crio.container(pod, &image, "echo here");
        annotate(&mut specification, "ImageName", name);
        if let Some(given) = given {
            annotate(&mut specification, "Image", given);
        }
        specification
    };
    for (specification, rootfs) in [
        (container(None, ""), vec![Crio::left_to_the_guest(&image)]),
        (container(Some(&by_digest), "registry.invalid/other"), Vec::new()),
    ] {
        let container = crio.spawn(&specification, rootfs).await;
        let expected = Ended { code: 0, stdout: "here\n".into(), stderr: String::new() };
        assert_eq!(container.ended().await, expected);
        container.remove().await;
    }
    let nameless = container(None, "");
    let refused = crio.create(&nameless, Vec::new()).await.unwrap_err();
    assert!(refused.contains("name the image by its digest"), "{refused}");
}
