//! The pod's configuration: init data that the owner wrote and the TPM measured, as types.
//!
//! Unknown fields are refused: a misspelt setting that is silently ignored would be a hole.

use std::collections::BTreeMap;

use sealpod_evidence::init_data::InitData;
use sealpod_kbs_protocol::ResourceUri;
use serde::Deserialize;

use crate::attestation::MeasuredInitData;
use crate::boot::Parameters;

/// What the owner configured for this pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where the key broker is. Without one, no secret can be had.
    pub(crate) key_broker: Option<KeyBroker>,
    /// What images may run. Without it, none.
    pub(crate) image: Image,
    /// The agent's policy, in Rego.
    pub(crate) policy: Option<String>,
}

/// `aa.toml`'s `[token_configs.kbs]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyBroker {
    /// `https://host:port`, or `http://…` where the owner accepts that.
    pub(crate) url: String,
    /// The broker's certificate authority, or its own certificate, in PEM.
    #[serde(default)]
    pub(crate) cert: Option<String>,
}

/// `cdh.toml`'s `[image]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Image {
    /// The image policy as a resource of the key broker.
    #[serde(deserialize_with = "optional_uri")]
    pub(crate) image_security_policy_uri: Option<ResourceUri>,
    /// The image policy itself (containers-policy.json(5)).
    pub(crate) image_security_policy: Option<String>,
    /// A docker `config.json` with credentials, as a resource of the key broker.
    #[serde(deserialize_with = "optional_uri")]
    pub(crate) authenticated_registry_credentials_uri: Option<ResourceUri>,
    /// Registries (`host:port`) that are asked by plain HTTP.
    pub(crate) plain_http_registries: Vec<String>,
    /// Certificate authorities of registries, in PEM, besides the usual ones.
    pub(crate) extra_root_certificates: Vec<String>,
}

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The init data as a whole.
    #[error("init data: {0}")]
    InitData(String),
    /// An entry of `[data]` that we do not know.
    #[error("init data has an unknown entry {0:?}; known are aa.toml, cdh.toml and policy.rego")]
    UnknownEntry(String),
    /// One of the entries.
    #[error("init data, {entry}: {reason}")]
    Entry {
        /// Which.
        entry: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AaToml {
    #[serde(default)]
    token_configs: TokenConfigs,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenConfigs {
    kbs: Option<KeyBroker>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CdhToml {
    #[serde(default)]
    image: Image,
}

impl Config {
    /// The configuration of a pod: its init data, or the measured command line where there is none.
    pub(crate) fn new(parameters: &Parameters, init_data: &MeasuredInitData) -> Result<Self, Error> {
        match init_data.text() {
            Some(raw) => {
                let init_data = InitData::parse(raw).map_err(|error| Error::InitData(error.to_string()))?;
                Self::from_entries(init_data.data)
            }
            None => Ok(Self {
                key_broker: parameters.key_broker.clone().map(|url| KeyBroker { url, cert: None }),
                image: Image {
                    image_security_policy_uri: parameters.image_policy.clone(),
                    ..Image::default()
                },
                policy: None,
            }),
        }
    }

    fn from_entries(entries: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = Self::default();
        for (name, text) in entries {
            match name.as_str() {
                "aa.toml" => config.key_broker = parse::<AaToml>("aa.toml", &text)?.token_configs.kbs,
                "cdh.toml" => config.image = parse::<CdhToml>("cdh.toml", &text)?.image,
                "policy.rego" => config.policy = Some(text),
                _ => return Err(Error::UnknownEntry(name)),
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(broker) = &self.key_broker
            && !broker.url.starts_with("https://")
            && !broker.url.starts_with("http://")
        {
            let reason = format!("token_configs.kbs.url is {:?}, expected https://… or http://…", broker.url);
            return Err(Error::Entry { entry: "aa.toml", reason });
        }
        if self.image.image_security_policy.is_some() && self.image.image_security_policy_uri.is_some() {
            let reason = "image_security_policy and image_security_policy_uri exclude each other".into();
            return Err(Error::Entry { entry: "cdh.toml", reason });
        }
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(entry: &'static str, text: &'a str) -> Result<T, Error> {
    toml::from_str(text).map_err(|error| Error::Entry { entry, reason: error.message().into() })
}

fn optional_uri<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<ResourceUri>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(entries: &[(&str, &str)]) -> Result<Config, Error> {
        Config::from_entries(entries.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect())
    }

    #[test]
    fn everything_an_owner_may_say_is_read() {
        let config = entries(&[
            ("aa.toml", "[token_configs.kbs]\nurl = \"https://10.0.2.2:8443\"\ncert = \"PEM\"\n"),
            (
                "cdh.toml",
                "[image]\nimage_security_policy_uri = \"kbs:///default/image-policy/default\"\n\
                 authenticated_registry_credentials_uri = \"kbs:///default/credential/registry\"\n\
                 plain_http_registries = [\"10.0.2.2:5000\"]\nextra_root_certificates = [\"PEM\"]\n",
            ),
            ("policy.rego", "package agent_policy\n"),
        ])
        .unwrap();
        let broker = config.key_broker.unwrap();
        assert_eq!((broker.url.as_str(), broker.cert.as_deref()), ("https://10.0.2.2:8443", Some("PEM")));
        assert!(config.image.image_security_policy_uri.is_some());
        assert!(config.image.authenticated_registry_credentials_uri.is_some());
        assert_eq!(config.image.plain_http_registries, ["10.0.2.2:5000"]);
        assert_eq!(config.policy.as_deref(), Some("package agent_policy\n"));
    }

    #[test]
    fn unknown_entries_and_fields_are_refused() {
        for case in [
            ("agent.toml", ""),
            ("aa.toml", "[token_configs.kbs]\nurl = \"https://h\"\ninsecure = true\n"),
            ("aa.toml", "[token_configs.coco_as]\nurl = \"https://h\"\n"),
            ("aa.toml", "[eventlog]\n"),
            ("cdh.toml", "[image]\nimage_security_polcy = \"{}\"\n"),
            ("cdh.toml", "socket = \"unix:///run/cdh.sock\"\n"),
        ] {
            assert!(entries(&[case]).is_err(), "{case:?}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for case in [
            ("aa.toml", "[token_configs.kbs]\nurl = \"ftp://h\"\n"),
            ("aa.toml", "[token_configs.kbs]\n"),
            ("cdh.toml", "[image]\nimage_security_policy_uri = \"file:///policy.json\"\n"),
            (
                "cdh.toml",
                "[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\nimage_security_policy = \"{}\"\n",
            ),
        ] {
            assert!(entries(&[case]).is_err(), "{case:?}");
        }
    }
}
