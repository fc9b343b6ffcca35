//! Which kernel modules a guest loads, and in which order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, io};
use crate::module::{Module, canonical};

/// The groups that are loaded, with the modules that are wanted of each; the first is always loaded, by the loader, and
/// the others, by the agent, build on it. `ecb` is in no module's `depends=`: `xts` asks for it by name at run time.
const GROUPS: [(&str, &[&str]); 6] = [
    (BOOT, &["virtio_pci", "virtio_console"]),
    ("disks", &["virtio_blk"]),
    ("vsock", &["vmw_vsock_virtio_transport"]),
    ("network", &["virtio_net"]),
    ("overlay", &["overlay"]),
    ("encryption", &["aesni_intel", "ecb", "xts", "dm_crypt"]),
];
pub(crate) const BOOT: &str = "boot";

/// The modules of all groups.
#[derive(Debug, Default)]
pub(crate) struct ModuleGroups {
    /// For each group the file names, in the order in which they load. What is in the first is in no other.
    pub(crate) lists: BTreeMap<&'static str, Vec<String>>,
    /// The files' contents by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl ModuleGroups {
    /// Collects the groups' modules from a folder like `/lib/modules/VERSION`.
    pub(crate) fn collect(folder: &Path) -> Result<Self, Error> {
        let available = Available::scan(folder)?;
        let mut groups = Self::default();
        let mut booted = BTreeSet::new();
        for (group, roots) in GROUPS {
            let mut order =
                Order { available: &available, done: booted.clone(), open: Vec::new(), list: Vec::new() };
            for root in roots {
                order.add(root, &format!("group {group}"), &mut groups.files)?;
            }
            if group == BOOT {
                booted = order.done;
            }
            groups.lists.insert(group, order.list);
        }
        Ok(groups)
    }
}

/// What a kernel has.
struct Available {
    folder: PathBuf,
    loadable: HashMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Available {
    fn scan(folder: &Path) -> Result<Self, Error> {
        let mut loadable = HashMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(io("read", &folder))? {
                let entry = entry.map_err(io("read", &folder))?;
                let kind = entry.file_type().map_err(io("read", &folder))?;
                // Links are left alone: `build` and `source` lead to the kernel's sources.
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                    loadable.insert(name, entry.path());
                }
            }
        }
        let built_in = match fs::read_to_string(folder.join("modules.builtin")) {
            Ok(list) => list.lines().filter_map(|line| module_name(line.rsplit('/').next()?)).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(io("read", &folder.join("modules.builtin"))(error)),
        };
        Ok(Self { folder: folder.to_owned(), loadable, built_in })
    }
}

/// The name of the module that is in this file, compressed or not.
fn module_name(file: &str) -> Option<String> {
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| canonical(name))
}

/// A walk through dependencies, depth first.
struct Order<'a> {
    available: &'a Available,
    done: BTreeSet<String>,
    open: Vec<String>,
    list: Vec<String>,
}

impl Order<'_> {
    fn add(
        &mut self,
        name: &str,
        needed_by: &str,
        files: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Error> {
        if self.done.contains(name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            return Err(Error::ModuleCycle { module: name.to_owned() });
        }
        let Some(path) = self.available.loadable.get(name) else {
            if self.available.built_in.contains(name) {
                return Ok(());
            }
            return Err(Error::ModuleMissing {
                module: name.to_owned(),
                needed_by: needed_by.to_owned(),
                modules: self.available.folder.clone(),
            });
        };
        if path.extension().is_none_or(|extension| extension != "ko") {
            return Err(Error::ModuleCompressed { path: path.clone() });
        }
        let module = Module::read(path)?;
        self.open.push(name.to_owned());
        for dependency in &module.depends {
            self.add(dependency, name, files)?;
        }
        self.open.pop();
        self.done.insert(name.to_owned());
        let file = format!("{name}.ko");
        files.insert(file.clone(), module.content);
        self.list.push(file);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::test_elf;

    /// Debian's modules, with what they depend on, in their folders.
    const MODULES: [(&str, &str); 19] = [
        ("drivers/virtio/virtio", ""),
        ("drivers/virtio/virtio_ring", "virtio"),
        ("drivers/virtio/virtio_pci", "virtio,virtio_ring,virtio_pci_modern_dev"),
        ("drivers/virtio/virtio_pci_modern_dev", ""),
        ("drivers/char/virtio_console", "virtio_ring,virtio"),
        ("net/vsock", ""),
        ("net/vmw_vsock_virtio_transport_common", "vsock"),
        ("net/vmw_vsock_virtio_transport", "vmw_vsock_virtio_transport_common,vsock,virtio"),
        ("net/failover", ""),
        ("net/net_failover", "failover"),
        ("net/virtio_net", "net_failover,virtio"),
        ("fs/overlay", ""),
        ("block/virtio_blk", "virtio"),
        ("crypto/cryptd", ""),
        ("crypto/crypto_simd", "cryptd"),
        ("crypto/aesni-intel", "crypto-simd,cryptd"),
        ("crypto/ecb", ""),
        ("crypto/xts", ""),
        ("md/dm-crypt", "dm-mod"),
    ];

    pub(crate) fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, depends) in MODULES.into_iter().chain([("md/dm-mod", "")]) {
            let path = folder.path().join(format!("kernel/{name}.ko"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, test_elf::module(depends)).unwrap();
        }
        folder
    }

    #[test]
    fn each_module_stands_after_those_that_it_needs_and_once() {
        let groups = ModuleGroups::collect(folder().path()).unwrap();
        let lists: Vec<_> = groups.lists.iter().map(|(group, list)| (*group, list.join(" "))).collect();
        let expected = [
            ("boot", "virtio.ko virtio_ring.ko virtio_pci_modern_dev.ko virtio_pci.ko virtio_console.ko"),
            ("disks", "virtio_blk.ko"),
            ("encryption", "cryptd.ko crypto_simd.ko aesni_intel.ko ecb.ko xts.ko dm_mod.ko dm_crypt.ko"),
            ("network", "failover.ko net_failover.ko virtio_net.ko"),
            ("overlay", "overlay.ko"),
            ("vsock", "vsock.ko vmw_vsock_virtio_transport_common.ko vmw_vsock_virtio_transport.ko"),
        ];
        assert_eq!(lists, expected.map(|(group, list)| (group, list.to_owned())));
        assert_eq!(groups.files.len(), groups.lists.values().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn a_missing_module_is_named_with_what_needs_it() {
        let folder = folder();
        fs::remove_file(folder.path().join("kernel/md/dm-mod.ko")).unwrap();
        let message = ModuleGroups::collect(folder.path()).unwrap_err().to_string();
        assert!(message.contains("dm_mod (needed by dm_crypt)"), "{message}");
        fs::remove_file(folder.path().join("kernel/fs/overlay.ko")).unwrap();
        let message = ModuleGroups::collect(folder.path()).unwrap_err().to_string();
        assert!(message.contains("overlay (needed by group overlay)"), "{message}");
    }

    #[test]
    fn a_dependency_that_no_kernel_has_is_named() {
        let folder = folder();
        fs::write(folder.path().join("kernel/fs/overlay.ko"), test_elf::module("invented")).unwrap();
        let message = ModuleGroups::collect(folder.path()).unwrap_err().to_string();
        assert!(message.contains("invented (needed by overlay)"), "{message}");
    }

    #[test]
    fn a_module_that_is_built_in_is_left_out() {
        let folder = folder();
        fs::remove_file(folder.path().join("kernel/md/dm-mod.ko")).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/drivers/md/dm-mod.ko\n").unwrap();
        let groups = ModuleGroups::collect(folder.path()).unwrap();
        assert!(groups.lists["encryption"].join(" ").ends_with("xts.ko dm_crypt.ko"));
    }

    #[test]
    fn modules_that_need_each_other_are_refused() {
        let folder = folder();
        fs::write(folder.path().join("kernel/net/failover.ko"), test_elf::module("virtio_net")).unwrap();
        let message = ModuleGroups::collect(folder.path()).unwrap_err().to_string();
        assert!(message.contains("virtio_net depends on itself"), "{message}");
    }

    #[test]
    fn a_compressed_module_is_refused_by_name() {
        for ending in ["xz", "zst"] {
            let folder = folder();
            let plain = folder.path().join("kernel/fs/overlay.ko");
            fs::rename(&plain, plain.with_extension(format!("ko.{ending}"))).unwrap();
            let message = ModuleGroups::collect(folder.path()).unwrap_err().to_string();
            assert!(message.contains(&format!("overlay.ko.{ending} is compressed")), "{message}");
        }
    }
}
