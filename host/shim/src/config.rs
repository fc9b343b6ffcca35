//! What the node's administrator says about pods' VMs.
//!
//! None of it is trusted by the guest: what of it matters is measured, or refused by the pod's own policy.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use sealpod_sandbox::Accelerator;
use serde::Deserialize;

/// Where it is looked for if containerd's configuration names no file.
pub(crate) const DEFAULT_PATH: &str = "/etc/sealpod/shim.toml";

/// The configuration file (TOML). Everything has a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The folder that `sealpod guest build` made.
    pub(crate) guest: PathBuf,
    /// The folder of the authority that certifies emulated TPMs; made if it is missing.
    pub(crate) tpm_authority: PathBuf,
    /// The VM's memory where a pod says nothing, in MiB; the least where it does not say everything.
    pub(crate) memory_mib: u32,
    /// What the guest itself takes beside the containers' limits, in MiB, where the RuntimeClass's overhead is not known.
    pub(crate) memory_overhead_mib: u32,
    /// The VM's processors where a pod says nothing.
    pub(crate) cpus: u32,
    /// The size of the encrypted disk for images and files, in MiB; 0 for none, then they are in memory.
    pub(crate) ephemeral_disk_mib: u32,
    /// The folder on whose file system that disk is, without a name; made if it is missing.
    pub(crate) ephemeral_disk_folder: PathBuf,
    /// How long a guest may be silent before its pod has failed, in seconds.
    pub(crate) silence_limit_seconds: NonZero<u32>,
    /// auto, kvm or tcg.
    accelerator: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{}: {source}", path.display())]
    Value { path: PathBuf, source: sealpod_sandbox::Error },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            guest: "/opt/sealpod/guest".into(),
            tpm_authority: "/var/lib/sealpod/tpm-authority".into(),
            memory_mib: 512,
            memory_overhead_mib: 256,
            cpus: 1,
            ephemeral_disk_mib: 0,
            ephemeral_disk_folder: "/var/lib/sealpod/disks".into(),
            silence_limit_seconds: const { NonZero::new(30).unwrap() },
            accelerator: "auto".into(),
        }
    }
}

impl Config {
    /// Reads a named file, or the default one if it is there.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, Error> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            other => other.map_err(|source| Error::Read { path: path.into(), source })?,
        };
        let config: Self =
            toml::from_str(&text).map_err(|source| Error::Parse { path: path.into(), source })?;
        config.accelerator().map_err(|source| Error::Value { path: path.into(), source })?;
        Ok(config)
    }

    /// Who executes the guest's instructions.
    pub(crate) fn accelerator(&self) -> Result<Accelerator, sealpod_sandbox::Error> {
        self.accelerator.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = load("memory_mib = 1024\naccelerator = \"tcg\"\n").unwrap();
        assert_eq!((config.memory_mib, config.cpus), (1024, 1));
        assert_eq!(config.accelerator().unwrap(), Accelerator::Tcg);
        assert_eq!(load("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_unknown_or_missing_is_refused() {
        assert!(matches!(load("memory = 1"), Err(Error::Parse { .. })));
        assert!(matches!(load("silence_limit_seconds = 0"), Err(Error::Parse { .. })));
        assert!(matches!(load("accelerator = \"hvf\""), Err(Error::Value { .. })));
        assert!(matches!(Config::load(Some(Path::new("/nowhere"))), Err(Error::Read { .. })));
    }
}
