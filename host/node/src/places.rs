//! Where everything is on a node.

use std::path::{Component, Path, PathBuf};

/// The paths of an installation, as the node's programs will see them, and the folder below which they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The folder of an image that stands for `/`; none for the machine that this runs on.
    pub root: Option<PathBuf>,
    /// Where programs, guest image and the record of the installation go.
    pub prefix: PathBuf,
    /// The folder of what the administrator may change.
    pub configuration: PathBuf,
    /// systemd's folder for units of the machine's own.
    pub units: PathBuf,
    /// What is there only while systemd runs.
    pub systemd: PathBuf,
    /// Where the kernel says whether SELinux enforces.
    pub selinux: PathBuf,
    /// containerd's main configuration file.
    pub containerd: PathBuf,
    /// containerd's folder of what lasts; none for the one that its configuration names.
    pub containerd_root: Option<PathBuf>,
    /// CRI-O's configuration folder.
    pub crio: PathBuf,
    /// Where snapshots and the emulated TPMs' authority live.
    pub data: PathBuf,
    /// Where sockets and VMs' folders live.
    pub runtime: PathBuf,
    /// The programs that are run, by name; those not here are looked for in `PATH` and the folders of system programs.
    pub programs: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            root: None,
            prefix: "/opt/sealpod".into(),
            configuration: "/etc/sealpod".into(),
            units: "/etc/systemd/system".into(),
            systemd: "/run/systemd/system".into(),
            selinux: "/sys/fs/selinux/enforce".into(),
            containerd: "/etc/containerd/config.toml".into(),
            containerd_root: None,
            crio: "/etc/crio".into(),
            data: "/var/lib/sealpod".into(),
            runtime: "/run/sealpod".into(),
            programs: Vec::new(),
        }
    }
}

/// Where distributions and containerd's own releases put programs.
const PROGRAM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Places {
    /// Where a path of the node is now.
    pub fn on_disk(&self, path: &Path) -> PathBuf {
        match &self.root {
            None => path.to_owned(),
            Some(root) => {
                // `..` must not lead out of the image.
                let inner: PathBuf =
                    path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
                root.join(inner)
            }
        }
    }

    /// The folder of the programs.
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("bin")
    }

    /// The shim, by the path that containerd is told.
    pub fn shim(&self) -> PathBuf {
        self.bin().join(crate::SHIM)
    }

    /// The shim's configuration.
    pub fn shim_configuration(&self) -> PathBuf {
        self.configuration.join("shim.toml")
    }

    /// The snapshotter's configuration.
    pub fn snapshotter_configuration(&self) -> PathBuf {
        self.configuration.join("snapshotter.toml")
    }

    /// The snapshotter's socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join("snapshotter.sock")
    }

    /// The snapshotter's data.
    pub fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }

    /// The folder of the guest image.
    pub fn guest(&self) -> PathBuf {
        self.prefix.join("guest")
    }

    /// The SELinux policy module.
    pub fn selinux_module(&self) -> PathBuf {
        self.prefix.join("selinux").join(crate::SELINUX_MODULE)
    }

    /// What was done here.
    pub(crate) fn record(&self) -> PathBuf {
        self.prefix.join("installation.json")
    }

    /// A program of the node's, by the path at which it is now.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let is_program = |path: &PathBuf| crate::files::is_executable(path);
        if self.root.is_some() {
            let mut places = PROGRAM_FOLDERS.iter().map(|folder| self.on_disk(&Path::new(folder).join(name)));
            return places.find(is_program);
        }
        if let Some(named) =
            self.programs.iter().find(|path| path.file_name().is_some_and(|file| file == name))
        {
            return Some(named.clone()).filter(is_program);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(PROGRAM_FOLDERS.map(PathBuf::from));
        folders.map(|folder| folder.join(name)).find(is_program)
    }

    /// A command that runs a program of the node's: in the image's root, if it is an image.
    pub(crate) fn command(&self, program: &Path) -> std::process::Command {
        let Some(root) = &self.root else { return std::process::Command::new(program) };
        let mut command = std::process::Command::new("chroot");
        command.arg(root).arg(Path::new("/").join(program.strip_prefix(root).unwrap_or(program)));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out_of_an_image() {
        let places = Places { root: Some("/image".into()), ..Places::default() };
        assert_eq!(places.on_disk(Path::new("/etc/../../x")), Path::new("/image/etc/x"));
        assert_eq!(Places::default().on_disk(Path::new("/etc/x")), Path::new("/etc/x"));
    }

    #[test]
    fn programs_are_those_of_the_image() {
        let image = tempfile::tempdir().unwrap();
        let places = Places { root: Some(image.path().into()), ..Places::default() };
        assert_eq!(places.program("sh"), None);
        assert!(Places::default().program("sh").is_some());
    }
}
