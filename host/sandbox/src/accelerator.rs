//! Which hypervisor executes the guest: KVM only where it has proven to boot a kernel.
//!
//! `/dev/kvm` may open, and even run a few instructions, and still hang or abort at a stock kernel (nested
//! virtualisation does that). So the guest's own kernel is booted for a moment, and what came of it is
//! remembered until this machine boots again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arguments::probe;
use crate::config::Accelerator;
use crate::error::Error;
use crate::guest_image::GuestImage;
use crate::process::{self, Process};
use crate::programs::QEMU;

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hypervisor {
    Kvm,
    Tcg,
}

const KVM_DEVICE: &str = "/dev/kvm";
/// A processor boots a kernel to its panic in less than one second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdict {
    /// The kernel's number for this machine's current boot.
    boot_id: String,
    pub(crate) hypervisor: Hypervisor,
    /// Why, for people.
    pub(crate) reason: String,
}

/// Decides for a guest.
pub(crate) async fn decide(wanted: Accelerator, guest: &GuestImage) -> Result<Hypervisor, Error> {
    match wanted {
        Accelerator::Tcg => Ok(Hypervisor::Tcg),
        Accelerator::Kvm => {
            open_kvm().map_err(Error::io(format!("cannot use {KVM_DEVICE}")))?;
            Ok(Hypervisor::Kvm)
        }
        Accelerator::Auto => {
            let verdict = examine(guest, cache_file().as_deref()).await?;
            tracing::debug!(hypervisor = ?verdict.hypervisor, reason = verdict.reason, "chose the accelerator");
            Ok(verdict.hypervisor)
        }
    }
}

/// What is remembered of this boot, if anything.
pub(crate) fn remembered() -> Option<Verdict> {
    recall(&cache_file()?, &boot_id())
}

/// Whether the device can be opened at all.
pub(crate) fn open_kvm() -> std::io::Result<File> {
    File::options().read(true).write(true).open(KVM_DEVICE)
}

/// The verdict on this machine: remembered, or found by a probe and remembered.
async fn examine(guest: &GuestImage, cache: Option<&Path>) -> Result<Verdict, Error> {
    let boot_id = boot_id();
    if let Err(error) = open_kvm() {
        let reason = format!("{KVM_DEVICE}: {error}");
        return Ok(Verdict { boot_id, hypervisor: Hypervisor::Tcg, reason });
    }
    if let Some(verdict) = cache.and_then(|cache| recall(cache, &boot_id)) {
        return Ok(verdict);
    }
    let (hypervisor, reason) = conclude(boots(guest, Hypervisor::Kvm, PROBE_LIMIT).await?);
    let verdict = Verdict { boot_id, hypervisor, reason };
    if let Some(cache) = cache
        && let Err(error) = remember(cache, &verdict)
    {
        tracing::debug!(%error, path = %cache.display(), "the verdict on KVM is not remembered");
    }
    Ok(verdict)
}

/// Who executes the guest after a probe of KVM, and why.
fn conclude(probe: Result<(), String>) -> (Hypervisor, String) {
    match probe {
        Ok(()) => (Hypervisor::Kvm, "KVM booted the guest's kernel".to_owned()),
        Err(reason) => (Hypervisor::Tcg, format!("KVM did not boot the guest's kernel: {reason}")),
    }
}

/// Boots the kernel without an initrd: where it works, the kernel panics, reboots, and QEMU ends.
async fn boots(guest: &GuestImage, by: Hypervisor, limit: Duration) -> Result<Result<(), String>, Error> {
    let mut qemu = process::command(QEMU.find()?);
    qemu.args(probe(&guest.machine, guest.low_memory_mib, &guest.kernel, by));
    let mut qemu = Process::spawn(qemu).map_err(Error::io("cannot start QEMU"))?;
    Ok(match tokio::time::timeout(limit, qemu.exited()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("QEMU ended with {status}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the kernel hung for {limit:?}")),
    })
}

fn recall(cache: &Path, boot_id: &str) -> Option<Verdict> {
    let verdict: Verdict = serde_json::from_slice(&fs::read(cache).ok()?).ok()?;
    (verdict.boot_id == boot_id).then_some(verdict)
}

fn remember(cache: &Path, verdict: &Verdict) -> std::io::Result<()> {
    let partial = cache.with_extension(format!("{}.new", std::process::id()));
    if let Some(folder) = cache.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&partial, serde_json::to_vec(verdict)?)?;
    fs::rename(partial, cache)
}

/// In this user's own cache: nobody else can plant a verdict.
fn cache_file() -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(folder.join("sealpod/accelerator.json"))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn verdict(hypervisor: Hypervisor) -> Verdict {
        Verdict { boot_id: "this".into(), hypervisor, reason: "it did".into() }
    }

    #[test]
    fn a_verdict_is_remembered_for_one_boot() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("sealpod/accelerator.json");
        assert_eq!(recall(&cache, "this"), None);
        remember(&cache, &verdict(Hypervisor::Kvm)).unwrap();
        assert_eq!(recall(&cache, "this"), Some(verdict(Hypervisor::Kvm)));
        assert_eq!(recall(&cache, "next"), None);
        fs::write(&cache, "{").unwrap();
        assert_eq!(recall(&cache, "this"), None, "a file cut short is no verdict");
    }

    #[tokio::test]
    async fn what_is_no_kernel_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        fs::write(&kernel, "no kernel").unwrap();
        let guest = GuestImage { kernel, ..crate::config::tests::config().guest };
        let outcome = boots(&guest, Hypervisor::Tcg, PROBE_LIMIT).await.unwrap();
        assert!(outcome.is_err(), "QEMU refuses it");
    }

    #[tokio::test]
    async fn a_kernel_that_hangs_proves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        // The Linux boot protocol's oldest form: real-mode code from the second sector on, which jumps to itself.
        let mut image = vec![0; 8192];
        image[0x200..0x202].copy_from_slice(&[0xeb, 0xfe]);
        fs::write(&kernel, image).unwrap();
        let guest = GuestImage { kernel, ..crate::config::tests::config().guest };
        let limit = Duration::from_secs(3);
        let outcome = boots(&guest, Hypervisor::Tcg, limit).await.unwrap();
        assert_eq!(outcome, Err("the kernel hung for 3s".into()));
    }

    #[tokio::test]
    async fn the_guests_kernel_that_boots_proves_it() {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest-image");
        let folder = std::env::var_os("SEALPOD_GUEST").map_or(built, PathBuf::from);
        let guest = GuestImage::open(folder).expect("a guest is needed: run `make guest`");
        // Emulation is slower than a processor, and other tests run beside this one.
        let outcome = boots(&guest, Hypervisor::Tcg, Duration::from_secs(60)).await.unwrap();
        assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn what_a_probe_found_decides_who_executes_the_guest() {
        assert_eq!(conclude(Ok(())).0, Hypervisor::Kvm);
        let (hypervisor, reason) = conclude(Err("the kernel hung for 5s".into()));
        assert_eq!(hypervisor, Hypervisor::Tcg);
        assert!(reason.contains("the kernel hung for 5s"), "{reason}");
    }
}
