//! A pod's namespaces, which CRI-O makes before the shim starts, and binds to files.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The namespaces of a pod, and its cable. Dropping it removes them.
#[derive(Debug)]
pub struct PodNetwork {
    name: String,
    host_end: String,
    /// The files of its IPC and UTS namespaces.
    others: [PathBuf; 2],
}

impl PodNetwork {
    /// `number` is nobody else's.
    pub(super) fn new(folder: &Path, number: u32) -> Self {
        let (name, host_end) = (format!("crio-{number}"), format!("crio{number}"));
        let others = ["ipcns", "utsns"].map(|kind| folder.join(kind).join(&name));
        for path in &others {
            std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            std::fs::write(path, "").expect("a file");
        }
        let [ipc, uts] = &others;
        run("unshare", &[&format!("--ipc={}", ipc.display()), &format!("--uts={}", uts.display()), "true"]);
        let network = Self { name, host_end, others };
        let (name, host_end) = (&network.name, &network.host_end);
        let (gateway, address) = (format!("10.89.{number}.1"), format!("10.89.{number}.2/24"));
        for words in [
            format!("netns add {name}"),
            format!("link add {host_end} type veth peer name eth0 netns {name}"),
            format!("addr add {gateway}/24 dev {host_end}"),
            format!("link set {host_end} up"),
            format!("-n {name} addr add {address} dev eth0"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {gateway}"),
        ] {
            run("ip", &words.split(' ').collect::<Vec<_>>());
        }
        network
    }

    /// The files of its network, IPC and UTS namespaces.
    pub fn paths(&self) -> [PathBuf; 3] {
        let [ipc, uts] = self.others.clone();
        [Path::new("/var/run/netns").join(&self.name), ipc, uts]
    }

    /// Removes the cable, as CNI does before the pod's containers end.
    pub fn disconnect(&self) {
        run("ip", &["link", "del", &self.host_end]);
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
        for path in &self.others {
            run("umount", &[&path.display().to_string()]);
        }
    }
}

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().expect("a program of the system");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || std::thread::panicking(), "{program} {words:?}: {error}");
}
