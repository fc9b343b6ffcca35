//! Platforms: what an image's programs run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant, in the words of the OCI image specification (Go's).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The architecture, such as `amd64`.
    pub architecture: String,
    /// The architecture's variant, such as `v8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `offered` runs here. A variant that one side leaves open matches; `arm64` means
    /// `v8`.
    pub fn accepts(&self, offered: &Self) -> bool {
        let variants_agree = match (self.known_variant(), offered.known_variant()) {
            (Some(wanted), Some(offered)) => wanted == offered,
            _ => true,
        };
        self.os == offered.os && self.architecture == offered.architecture && variants_agree
    }

    fn known_variant(&self) -> Option<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, Some("")) | (_, None) if self.architecture == "arm64" => Some("v8"),
            (_, Some("")) => None,
            (_, variant) => variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .iter()
            .filter(|variant| !variant.is_empty())
            .try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// The text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("platform {actual:?}, expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64")]
pub struct PlatformError {
    /// What stands there.
    pub actual: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let mut parts = text.split('/').map(|part| Some(part.to_owned()).filter(|part| !part.is_empty()));
        match (parts.next().flatten(), parts.next().flatten(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), None, None) => Ok(Self { os, architecture, variant: None }),
            (Some(os), Some(architecture), Some(Some(variant)), None) => {
                Ok(Self { os, architecture, variant: Some(variant) })
            }
            _ => Err(PlatformError { actual: text.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("linux/amd64", "linux/amd64", true)]
    #[case("linux/amd64", "linux/arm64", false)]
    #[case("linux/amd64", "windows/amd64", false)]
    #[case("linux/arm64", "linux/arm64/v8", true)]
    #[case("linux/arm64", "linux/arm64/v9", false)]
    #[case("linux/arm/v7", "linux/arm/v6", false)]
    #[case("linux/arm/v7", "linux/arm", true)]
    fn platforms_match_by_system_architecture_and_variant(
        #[case] wanted: Platform,
        #[case] offered: Platform,
        #[case] accepted: bool,
    ) {
        assert_eq!(wanted.accepts(&offered), accepted);
    }

    #[rstest]
    fn what_is_no_platform_is_refused(
        #[values("", "linux", "linux/", "/amd64", "a/b/", "a/b/c/d")] text: &str,
    ) {
        assert!(text.parse::<Platform>().is_err());
    }
}
