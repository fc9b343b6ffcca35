//! The names of trusted execution environments, as the key broker's protocol spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of trusted execution environment, or of device with evidence of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Tee {
    /// SEV-SNP behind an Azure vTPM.
    AzSnpVtpm,
    /// TDX behind an Azure vTPM.
    AzTdxVtpm,
    /// An NVIDIA GPU.
    Nvidia,
    /// Intel SGX.
    Sgx,
    /// AMD SEV-SNP.
    Snp,
    /// AMD SEV and SEV-ES, which attest before launch.
    Sev,
    /// Intel TDX.
    Tdx,
    /// Arm CCA.
    Cca,
    /// Hygon CSV.
    Csv,
    /// IBM Secure Execution.
    Se,
    /// A Hygon DCU.
    Hygondcu,
    /// A measured boot with a TPM 2.0.
    Tpm,
    /// No TEE at all; proves nothing.
    Sample,
    /// No device at all; proves nothing.
    Sampledevice,
}

/// Every kind with its name on the wire.
const NAMES: [(Tee, &str); 14] = [
    (Tee::AzSnpVtpm, "az-snp-vtpm"),
    (Tee::AzTdxVtpm, "az-tdx-vtpm"),
    (Tee::Nvidia, "nvidia"),
    (Tee::Sgx, "sgx"),
    (Tee::Snp, "snp"),
    (Tee::Sev, "sev"),
    (Tee::Tdx, "tdx"),
    (Tee::Cca, "cca"),
    (Tee::Csv, "csv"),
    (Tee::Se, "se"),
    (Tee::Hygondcu, "hygondcu"),
    (Tee::Tpm, "tpm"),
    (Tee::Sample, "sample"),
    (Tee::Sampledevice, "sampledevice"),
];

/// A name that stands for no TEE.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no TEE that is known here")]
pub struct UnknownTee(String);

impl Tee {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(tee, _)| *tee == self).map_or("unknown", |(_, name)| name)
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Tee {
    type Err = UnknownTee;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = NAMES.iter().find(|(_, name)| *name == text).map(|(tee, _)| *tee);
        known.ok_or_else(|| UnknownTee(text.chars().take(32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_the_same_in_json_and_in_text() {
        for (tee, name) in NAMES {
            assert_eq!(serde_json::to_value(tee).unwrap(), name);
            assert_eq!(name.parse(), Ok(tee));
            assert_eq!(tee.to_string(), name);
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!("TPM".parse::<Tee>().is_err());
        assert!(serde_json::from_str::<Tee>("\"tpm2\"").is_err());
    }
}
