//! Whether this machine can run pods, and what to do if not.

use std::path::{Path, PathBuf};

use crate::accelerator::{self, Hypervisor, Verdict};
use crate::error::Error;
use crate::network::namespace::{self, NamespaceError};
use crate::process;
use crate::programs::{Program, QEMU, SWTPM, SWTPM_LOCALCA, SWTPM_SETUP, package_advice};
use crate::runtime_folder::RuntimeFolder;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether pods can run in spite of it.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do: always there if not `ok`, and where something could be better.
    pub advice: Option<String>,
}

/// The oldest QEMU that is known to do all that is asked of it.
const QEMU_VERSION: (u32, u32) = (7, 2);
/// What a pod's machine is made of, and not every distribution's QEMU has: by what others report, `qemu-kvm` of RHEL and
/// its relatives has no `ivshmem-plain`.
const DEVICES: [&str; 8] = [
    "ivshmem-plain",
    "isa-serial",
    "pcie-pci-bridge",
    "tpm-crb",
    "virtio-blk-pci",
    "virtio-net-pci",
    "virtio-serial-pci",
    "virtserialport",
];
/// What a small pod takes, with QEMU's own.
const MEMORY_MIB: u64 = 1024;
/// Where distributions put the UEFI firmware.
const FIRMWARE: [&str; 4] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
];

/// Looks at everything that a pod needs of this machine.
pub async fn check() -> Vec<Check> {
    vec![
        qemu().await,
        accelerator(),
        firmware(),
        program("swtpm", SWTPM),
        program("swtpm_setup", SWTPM_SETUP),
        program("swtpm_localca", SWTPM_LOCALCA),
        runtime_folder(),
        memory(),
        network_namespaces(),
    ]
}

fn good(name: &'static str, detail: impl Into<String>) -> Check {
    Check { name, ok: true, detail: detail.into(), advice: None }
}

fn bad(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name, ok: false, detail: detail.into(), advice: Some(advice.into()) }
}

fn program(name: &'static str, program: Program) -> Check {
    judge_program(name, program, program.find().ok())
}

fn judge_program(name: &'static str, program: Program, found: Option<PathBuf>) -> Check {
    match found {
        Some(path) => good(name, path.display().to_string()),
        None => bad(name, "not installed", program.advice()),
    }
}

async fn qemu() -> Check {
    let Ok(path) = QEMU.find() else { return program("qemu", QEMU) };
    let says = async |arguments: &[&str]| {
        let mut command = process::command(&path);
        command.args(arguments);
        let failed = |problem: String| bad("qemu", format!("{}: {problem}", path.display()), QEMU.advice());
        let (status, output) = process::run(command).await.map_err(|error| failed(error.to_string()))?;
        if status.success() { Ok(output) } else { Err(failed(output)) }
    };
    match async { Ok((says(&["--version"]).await?, says(&["-device", "help"]).await?)) }.await {
        Ok((version, devices)) => judge_qemu(&version, &devices),
        Err(check) => check,
    }
}

fn judge_qemu(version: &str, devices: &str) -> Check {
    let first = version.lines().next().unwrap_or_default();
    let missing: Vec<&str> =
        DEVICES.into_iter().filter(|name| !devices.contains(&format!("name \"{name}\""))).collect();
    let (major, minor) = QEMU_VERSION;
    match version_in(first) {
        Some(version) if version >= QEMU_VERSION && missing.is_empty() => good("qemu", first),
        Some(version) if version >= QEMU_VERSION => bad(
            "qemu",
            format!("{first} lacks {}", missing.join(", ")),
            "use QEMU as its project builds it, such as that of Debian, Ubuntu or Fedora",
        ),
        Some(_) => bad(
            "qemu",
            format!("expected {major}.{minor} or newer, got {first}"),
            "use a newer release of your system",
        ),
        None => bad("qemu", format!("its version cannot be read: {first:?}"), QEMU.advice()),
    }
}

/// The first `MAJOR.MINOR` in a text.
fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split_ascii_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn accelerator() -> Check {
    judge_accelerator(accelerator::open_kvm().map(drop), accelerator::remembered())
}

/// Pods run in any case; what makes them faster is worth a word.
fn judge_accelerator(kvm: std::io::Result<()>, remembered: Option<Verdict>) -> Check {
    const SLOW: &str = "pods run on TCG, several times slower";
    if let Err(error) = kvm {
        let advice = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "join the group kvm: `usermod -aG kvm $USER`, then log in again"
            }
            _ => "enable virtualisation in the firmware, or nested virtualisation for a VM",
        };
        let detail = format!("no KVM ({error}): {SLOW}");
        return Check { advice: Some(advice.into()), ..good("accelerator", detail) };
    }
    match remembered {
        Some(verdict) if verdict.hypervisor == Hypervisor::Tcg => {
            good("accelerator", format!("{}: {SLOW}", verdict.reason))
        }
        Some(verdict) => good("accelerator", verdict.reason),
        None => good("accelerator", "/dev/kvm opens; the first pod finds out whether it boots a kernel"),
    }
}

fn firmware() -> Check {
    judge_firmware(&FIRMWARE)
}

fn judge_firmware(places: &[&str]) -> Check {
    match places.iter().find(|path| Path::new(path).is_file()) {
        Some(path) => good("firmware", *path),
        None => bad(
            "firmware",
            format!("none of {} exists", places.join(", ")),
            package_advice("ovmf", "edk2-ovmf"),
        ),
    }
}

fn runtime_folder() -> Check {
    judge_runtime_folder(RuntimeFolder::create())
}

fn judge_runtime_folder(made: Result<RuntimeFolder, Error>) -> Check {
    match made {
        Ok(folder) => good("runtime folder", format!("{} can be made", folder.join("").display())),
        Err(error) => {
            bad("runtime folder", error.to_string(), "set XDG_RUNTIME_DIR to a folder that you can write")
        }
    }
}

fn memory() -> Check {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    judge_memory(&meminfo)
}

fn judge_memory(meminfo: &str) -> Check {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available =
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).map(|kib| kib >> 10);
    match available {
        Some(available) if available >= MEMORY_MIB => good("memory", format!("{available} MiB are free")),
        Some(available) => bad(
            "memory",
            format!("expected {MEMORY_MIB} MiB free, got {available} MiB"),
            "end something, or give pods less with --memory",
        ),
        None => good("memory", "this kernel does not say how much is free"),
    }
}

/// Only pods of Kubernetes need it.
fn network_namespaces() -> Check {
    judge_network_namespaces(namespace::probe())
}

fn judge_network_namespaces(probe: Result<(), NamespaceError>) -> Check {
    const NAME: &str = "network namespaces";
    match probe {
        Ok(()) => good(NAME, "VMs can live in those of Kubernetes"),
        Err(error) => Check {
            advice: Some(format!("only for Kubernetes: {}", error.hint())),
            ..good(NAME, format!("a new one {error}: no VM can live in those of Kubernetes"))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machine_runs_pods() {
        let checks = check().await;
        let failed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
        assert!(failed.is_empty(), "the tests need what pods need: {failed:#?}");
    }

    #[test]
    fn an_old_qemu_is_told_from_a_good_one() {
        let devices = DEVICES.map(|name| format!("name \"{name}\", bus PCI")).join("\n");
        let old = judge_qemu("QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2)\nCopyright", &devices);
        assert!(!old.ok && old.detail.contains("expected 7.2 or newer") && old.advice.is_some());
        assert!(judge_qemu("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", &devices).ok);
        assert!(judge_qemu("QEMU emulator version 10.0.2", &devices).ok);
        assert!(!judge_qemu("sh: not found", &devices).ok);
    }

    #[test]
    fn a_qemu_without_a_device_is_told_from_a_good_one() {
        let devices =
            "name \"virtio-serial-pci\", bus PCI\nname \"virtio-net-pci\"\nname \"virtio-blk-pci\"\n";
        let check = judge_qemu("QEMU emulator version 8.0.0 (qemu-kvm-8.0.0-1.el9)", devices);
        assert!(!check.ok && check.advice.is_some());
        let lacks = "lacks ivshmem-plain, isa-serial, pcie-pci-bridge, tpm-crb, virtserialport";
        assert!(check.detail.ends_with(lacks), "{}", check.detail);
    }

    #[test]
    fn what_only_kubernetes_needs_does_not_fail_the_check() {
        let missing = NamespaceError::Tun(std::io::ErrorKind::NotFound.into());
        let check = judge_network_namespaces(Err(missing));
        assert!(check.ok && check.detail.contains("/dev/net/tun"), "{check:?}");
        let advice = check.advice.unwrap();
        assert!(advice.starts_with("only for Kubernetes: ") && advice.contains("modprobe tun"), "{advice}");
        assert_eq!(judge_network_namespaces(Ok(())).advice, None);
    }

    #[test]
    fn a_missing_program_is_named_with_the_package_that_has_it() {
        for program in [SWTPM, SWTPM_SETUP, SWTPM_LOCALCA] {
            let check = judge_program("swtpm", program, None);
            assert!(!check.ok && check.detail == "not installed", "{check:?}");
            assert!(check.advice.as_ref().is_some_and(|it| it.contains("swtpm")), "{check:?}");
        }
        assert!(judge_program("swtpm", SWTPM, Some("/usr/bin/swtpm".into())).ok);
    }

    #[test]
    fn missing_firmware_is_said_with_the_places_that_were_looked_at() {
        let check = judge_firmware(&["/nowhere/OVMF_CODE.fd", "/nowhere/else.fd"]);
        assert!(!check.ok && check.detail.contains("/nowhere/OVMF_CODE.fd, /nowhere/else.fd"), "{check:?}");
        assert!(check.advice.is_some_and(|it| it.contains("ovmf")));
        // A folder is no firmware.
        assert!(!judge_firmware(&["/"]).ok);
        assert!(judge_firmware(&["/nowhere", "/proc/version"]).ok);
    }

    #[test]
    fn a_runtime_folder_that_cannot_be_made_is_said_with_the_variable_that_names_it() {
        let refused = std::io::ErrorKind::PermissionDenied.into();
        let check = judge_runtime_folder(Err(Error::io("cannot make /run/x")(refused)));
        assert!(!check.ok && check.detail.starts_with("cannot make /run/x: permission denied"), "{check:?}");
        assert!(check.advice.is_some_and(|it| it.contains("XDG_RUNTIME_DIR")));
    }

    #[test]
    fn kvm_that_cannot_be_used_is_advice_and_no_failure() {
        for (kind, advice) in [
            (std::io::ErrorKind::PermissionDenied, "usermod -aG kvm"),
            (std::io::ErrorKind::NotFound, "nested virtualisation"),
        ] {
            let check = judge_accelerator(Err(kind.into()), None);
            assert!(check.ok && check.detail.contains("TCG"), "{check:?}");
            assert!(check.advice.as_ref().is_some_and(|it| it.contains(advice)), "{check:?}");
        }
        let found = |hypervisor| accelerator::tests::verdict(hypervisor);
        let check = judge_accelerator(Ok(()), Some(found(Hypervisor::Tcg)));
        assert_eq!(check.detail, "it did: pods run on TCG, several times slower");
        assert_eq!(judge_accelerator(Ok(()), Some(found(Hypervisor::Kvm))).detail, "it did");
        assert!(judge_accelerator(Ok(()), None).detail.contains("the first pod finds out"));
    }

    #[test]
    fn too_little_memory_is_said_with_both_numbers() {
        let check = judge_memory("MemTotal: 4000000 kB\nMemAvailable:  524288 kB\n");
        assert!(!check.ok);
        assert_eq!(check.detail, "expected 1024 MiB free, got 512 MiB");
        assert!(judge_memory("MemAvailable: 2097152 kB\n").ok);
    }
}
