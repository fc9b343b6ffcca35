//! Whether this node can run pods in measured VMs, and what to do if not.

use std::path::{Path, PathBuf};

pub use sealpod_sandbox::doctor::Check;

use crate::containerd::{self, Containerd};
use crate::crio;
use crate::error::Error;
use crate::places::Places;
use crate::record::Record;
use crate::selinux;

/// What VMs and containers use of the kernel that may be a module, and what for.
const MODULES: [(&str, Need); 4] = [
    ("overlay", Need::Must),
    ("tun", Need::Must),
    ("kvm", Need::Better("without it pods run on TCG, several times slower")),
    ("vhost_vsock", Need::Better("without it the guest is reached by virtio-serial, which is slower")),
];

#[derive(Clone, Copy)]
enum Need {
    Must,
    Better(&'static str),
}

/// Looks at everything that a pod of Kubernetes needs of this node.
pub async fn check(places: &Places) -> Vec<Check> {
    let mut checks: Vec<Check> =
        sealpod_sandbox::doctor::check().await.into_iter().map(needed_for_kubernetes).collect();
    let program = Containerd::find(places);
    checks.push(permissions(rustix::process::geteuid().is_root()));
    checks.push(runtime(program.as_ref().map(Containerd::version), crio::is_there(places)));
    match program.as_ref().map(Containerd::dump) {
        Some(Ok(dump)) => {
            let (programs, configurations) = containerd::network_folders(&dump);
            checks.push(network(&programs, &configurations));
        }
        Some(Err(error)) => {
            let advice = error.hint().unwrap_or_else(|| "`containerd config dump` must succeed".into());
            checks.push(bad("containerd's configuration", error.to_string(), advice));
        }
        None if crio::is_there(places) => {
            let programs = ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"].map(PathBuf::from);
            checks.push(network(&programs, Path::new("/etc/cni/net.d")));
        }
        None => {}
    }
    checks.push(modules(Path::new("/sys/module"), Path::new("/dev/net/tun")));
    let loaded = Record::read(places).ok().flatten().is_some_and(|record| record.selinux.is_some());
    checks.push(security(selinux::state(places), loaded));
    checks
}

fn good(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, ok: true, detail: detail.into(), advice: None }
}

fn bad(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, ok: false, detail: detail.into(), advice: Some(advice.into()) }
}

/// What `sealpod run` can do without fails here.
fn needed_for_kubernetes(check: Check) -> Check {
    match check.advice.as_deref().and_then(|advice| advice.strip_prefix("only for Kubernetes: ")) {
        Some(advice) => bad(check.name, check.detail, advice),
        None => check,
    }
}

fn permissions(is_root: bool) -> Check {
    if is_root {
        good("permissions", "runs as root, as containerd and its shims do")
    } else {
        bad(
            "permissions",
            "does not run as root, so not all of this holds for containerd's shims",
            "run it as root",
        )
    }
}

fn runtime(containerd: Option<Result<containerd::Version, Error>>, crio: bool) -> Check {
    const NAME: &str = "container runtime";
    match containerd {
        Some(Ok(version)) => good(NAME, format!("containerd {version}")),
        Some(Err(error)) => {
            let advice = error.hint().unwrap_or_else(|| "install containerd 1.6 or newer".into());
            bad(NAME, error.to_string(), advice)
        }
        None if crio => good(NAME, "CRI-O"),
        None => bad(
            NAME,
            "neither containerd nor CRI-O is installed",
            "install one: `apt install containerd` (Debian, Ubuntu), or as your Kubernetes distribution says",
        ),
    }
}

/// Whether CNI has a configuration, and the programs that it names.
fn network(programs: &[PathBuf], configurations: &Path) -> Check {
    const NAME: &str = "CNI";
    const ADVICE: &str = "install the network add-on of your cluster (it writes the file)";
    let entries = std::fs::read_dir(configurations).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_configuration = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known))
    };
    // The first by name is the one that counts.
    let Some(path) = entries.filter(is_configuration).min() else {
        return bad(NAME, format!("there is no configuration in {}", configurations.display()), ADVICE);
    };
    let parsed =
        std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let Some(configuration) = parsed else {
        return bad(NAME, format!("{} cannot be read as JSON", path.display()), ADVICE);
    };
    let places: Vec<String> = programs.iter().map(|folder| folder.display().to_string()).collect();
    let is_missing =
        |plugin: &&str| !programs.iter().any(|folder| crate::files::is_executable(&folder.join(plugin)));
    match plugins(&configuration).into_iter().find(is_missing) {
        Some(plugin) => bad(
            NAME,
            format!("{} names {plugin}, which is not in {}", path.display(), places.join(", ")),
            "install it: `apt install containernetworking-plugins` (Debian, Ubuntu; to /usr/lib/cni), \
             `dnf install containernetworking-plugins` (Fedora), or the add-on that it belongs to",
        ),
        None => good(NAME, path.display().to_string()),
    }
}

/// The programs that a configuration, or a list of them, names.
fn plugins(configuration: &serde_json::Value) -> Vec<&str> {
    let list = configuration.get("plugins").and_then(serde_json::Value::as_array);
    let entries = list.into_iter().flatten().chain([configuration]);
    let kinds =
        entries.flat_map(|entry| [entry.get("type"), entry.get("ipam").and_then(|ipam| ipam.get("type"))]);
    kinds.flatten().filter_map(serde_json::Value::as_str).collect()
}

/// A module may be loaded or built in; a device that is there loads its own.
fn modules(loaded: &Path, tun: &Path) -> Check {
    const NAME: &str = "kernel modules";
    let is_there = |name: &str| {
        loaded.join(name).exists()
            || (name == "tun" && tun.exists())
            || (name == "overlay" && has_file_system("overlay"))
    };
    let missing: Vec<_> = MODULES.into_iter().filter(|(name, _)| !is_there(name)).collect();
    let names =
        |missing: &[(&str, Need)]| missing.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let must: Vec<_> = missing.iter().copied().filter(|(_, need)| matches!(need, Need::Must)).collect();
    if !must.is_empty() {
        let names = names(&must);
        return bad(
            NAME,
            format!("not loaded: {names}"),
            format!("`modprobe -a {names}`, and name them in /etc/modules-load.d/sealpod.conf"),
        );
    }
    let reasons = missing.iter().filter_map(|(name, need)| match need {
        Need::Better(reason) => Some(format!("{name}: {reason}")),
        Need::Must => None,
    });
    let reasons: Vec<String> = reasons.collect();
    if reasons.is_empty() {
        return good(NAME, "all are there");
    }
    Check {
        advice: Some(format!("if the machine can: `modprobe -a {}`", names(&missing))),
        ..good(NAME, reasons.join("; "))
    }
}

fn has_file_system(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_ascii_whitespace().next_back() == Some(name))
}

fn security(state: selinux::State, loaded: bool) -> Check {
    const NAME: &str = "SELinux";
    match (state, loaded) {
        (selinux::State::Off, _) => good(NAME, "off"),
        (selinux::State::Enforcing, false) => bad(
            NAME,
            "enforcing, and our policy module is not loaded",
            "run `sealpod node install` from a folder that has selinux/sealpod.pp",
        ),
        (selinux::State::Permissive, false) => good(NAME, "permissive; our policy module is not loaded"),
        (selinux::State::Enforcing, true) => good(NAME, "enforcing, with our policy module"),
        (selinux::State::Permissive, true) => good(NAME, "permissive, with our policy module"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_kubernetes_needs_fails_on_a_node() {
        let check = Check { advice: Some("only for Kubernetes: `modprobe tun`".into()), ..good("n", "d") };
        assert_eq!(needed_for_kubernetes(check), bad("n", "d", "`modprobe tun`"));
        let other = Check { advice: Some("could be better".into()), ..good("n", "d") };
        assert!(needed_for_kubernetes(other).ok);
    }

    #[test]
    fn a_node_without_a_runtime_or_with_an_old_one_fails() {
        assert!(runtime(Some("1.6.20".parse()), false).ok && runtime(None, true).ok);
        let old = runtime(Some("1.5.0".parse()), false);
        assert!(!old.ok && old.detail.contains("expected containerd 1.6 or newer") && old.advice.is_some());
        assert!(!runtime(None, false).ok && !permissions(false).ok);
    }

    #[test]
    fn cni_must_have_a_configuration_and_its_programs() {
        let folder = tempfile::tempdir().unwrap();
        let programs = [folder.path().join("bin")];
        let check = || network(&programs, folder.path());
        assert!(check().detail.contains("no configuration"));
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("20.conf", "{}");
        write("10.conflist", "no JSON");
        assert!(check().detail.contains("10.conflist cannot be read as JSON"));
        write("10.conflist", r#"{"plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}"#);
        assert!(check().detail.contains("10.conflist names bridge, which is not in"));
        std::fs::create_dir(&programs[0]).unwrap();
        crate::files::write(&programs[0].join("bridge"), b"", 0o755).unwrap();
        assert!(check().detail.contains("names host-local"));
        crate::files::write(&programs[0].join("host-local"), b"", 0o755).unwrap();
        assert!(check().ok);
    }

    #[test]
    fn modules_that_are_a_must_are_told_from_those_that_are_better() {
        let folder = tempfile::tempdir().unwrap();
        let check = || modules(folder.path(), Path::new("/nowhere"));
        std::fs::create_dir(folder.path().join("overlay")).unwrap();
        assert_eq!(
            check().advice.unwrap(),
            "`modprobe -a tun`, and name them in /etc/modules-load.d/sealpod.conf"
        );
        std::fs::create_dir(folder.path().join("tun")).unwrap();
        assert!(check().ok && check().detail.contains("vhost_vsock") && check().detail.contains("TCG"));
        for name in ["kvm", "vhost_vsock"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(check(), good("kernel modules", "all are there"));
    }

    #[test]
    fn an_enforcing_node_needs_the_module() {
        assert!(!security(selinux::State::Enforcing, false).ok);
        assert!(
            security(selinux::State::Enforcing, true).ok && security(selinux::State::Permissive, false).ok
        );
        assert!(security(selinux::State::Off, false).ok);
    }
}
