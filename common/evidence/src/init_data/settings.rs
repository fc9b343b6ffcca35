//! What the entries of init data say. The owner's tools write it and the guest reads it, in the form that existing users
//! of confidential containers know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{InitData, InitDataError, VERSION};
use crate::HashAlgorithm;

const ATTESTATION_AGENT: &str = "aa.toml";
const DATA_HUB: &str = "cdh.toml";
/// The entry with the agent's policy.
pub const AGENT_POLICY: &str = "policy.rego";

/// What an owner says of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where the key broker is (`aa.toml`). Without one, no secret can be had.
    pub key_broker: Option<KeyBroker>,
    /// What images may run, and how they are pulled (`cdh.toml`).
    pub image: Image,
    /// The agent's policy, in Rego (`policy.rego`).
    pub agent_policy: Option<String>,
}

/// `aa.toml`'s `[token_configs.kbs]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyBroker {
    /// `https://host:port`, or `http://…` where the owner accepts that.
    pub url: String,
    /// The broker's certificate authority, or its own certificate, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
}

/// `cdh.toml`'s `[image]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// The image policy as a resource of the key broker, `kbs:///repository/type/tag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_security_policy_uri: Option<String>,
    /// The image policy itself (containers-policy.json(5)); not both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_security_policy: Option<String>,
    /// A docker `config.json` with credentials, as a resource of the key broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated_registry_credentials_uri: Option<String>,
    /// Registries (`host:port`) that are asked by plain HTTP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plain_http_registries: Vec<String>,
    /// Certificate authorities of registries, in PEM, besides the usual ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_root_certificates: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestationAgent {
    #[serde(default)]
    token_configs: TokenConfigs,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenConfigs {
    #[serde(skip_serializing_if = "Option::is_none")]
    kbs: Option<KeyBroker>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataHub {
    #[serde(default)]
    image: Image,
}

impl Settings {
    /// Reads raw init data (TOML).
    ///
    /// # Errors
    /// If it is none, has an entry or a field that nobody knows, or says what makes no sense.
    pub fn parse(raw: &str) -> Result<Self, InitDataError> {
        let mut settings = Self::default();
        for (name, text) in InitData::parse(raw)?.data {
            match name.as_str() {
                ATTESTATION_AGENT => {
                    let entry: AttestationAgent = entry(ATTESTATION_AGENT, &text)?;
                    settings.key_broker = entry.token_configs.kbs;
                }
                DATA_HUB => settings.image = entry::<DataHub>(DATA_HUB, &text)?.image,
                AGENT_POLICY => settings.agent_policy = Some(text),
                _ => return Err(InitDataError::UnknownEntry(name)),
            }
        }
        settings.check()?;
        Ok(settings)
    }

    /// The same as raw init data. The same settings always give the same bytes, of which the digest is made.
    ///
    /// # Errors
    /// If they make no sense: what this writes, [`Settings::parse`] reads.
    pub fn to_toml(&self) -> Result<String, InitDataError> {
        self.check()?;
        let token_configs = TokenConfigs { kbs: self.key_broker.clone() };
        let data_hub = DataHub { image: self.image.clone() };
        let mut data = BTreeMap::from([
            (ATTESTATION_AGENT.to_owned(), toml::to_string(&AttestationAgent { token_configs })?),
            (DATA_HUB.to_owned(), toml::to_string(&data_hub)?),
        ]);
        data.extend(self.agent_policy.clone().map(|policy| (AGENT_POLICY.to_owned(), policy)));
        let all = InitData { version: VERSION.into(), algorithm: HashAlgorithm::Sha256, data };
        // One line end, as it is printed: the digest covers every byte.
        Ok(format!("{}\n", toml::to_string(&all)?.trim_end()))
    }

    fn check(&self) -> Result<(), InitDataError> {
        let refused = |entry, reason| Err(InitDataError::Entry { entry, reason });
        if let Some(KeyBroker { url, .. }) = &self.key_broker
            && !url.starts_with("https://")
            && !url.starts_with("http://")
        {
            let reason = format!("token_configs.kbs.url is {url:?}, expected https://… or http://…");
            return refused(ATTESTATION_AGENT, reason);
        }
        if self.image.image_security_policy.is_some() && self.image.image_security_policy_uri.is_some() {
            let reason = "image_security_policy and image_security_policy_uri exclude each other".into();
            return refused(DATA_HUB, reason);
        }
        Ok(())
    }
}

fn entry<'a, T: Deserialize<'a>>(entry: &'static str, text: &'a str) -> Result<T, InitDataError> {
    toml::from_str(text).map_err(|error| InitDataError::Entry { entry, reason: error.message().into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Raw init data with one entry.
    fn with(name: &str, text: &str) -> String {
        let data = BTreeMap::from([(name.to_owned(), text.to_owned())]);
        let all = InitData { version: VERSION.into(), algorithm: HashAlgorithm::Sha256, data };
        toml::to_string(&all).unwrap()
    }

    fn settings() -> Settings {
        Settings {
            key_broker: Some(KeyBroker { url: "https://10.0.2.2:8443".into(), cert: Some("PEM\n".into()) }),
            image: Image {
                image_security_policy_uri: Some("kbs:///default/image-policy/default".into()),
                image_security_policy: None,
                authenticated_registry_credentials_uri: Some("kbs:///default/credential/registry".into()),
                plain_http_registries: vec!["10.0.2.2:5000".into()],
                extra_root_certificates: vec!["PEM".into()],
            },
            agent_policy: Some("package agent_policy\n".into()),
        }
    }

    #[test]
    fn everything_that_an_owner_says_is_read_as_it_was_written() {
        let raw = settings().to_toml().unwrap();
        assert_eq!(Settings::parse(&raw).unwrap(), settings());
        assert_eq!(settings().to_toml().unwrap(), raw);
        let nothing = Settings::default();
        assert_eq!(Settings::parse(&nothing.to_toml().unwrap()).unwrap(), nothing);
    }

    #[test]
    fn it_is_written_in_the_form_that_others_know() {
        let raw = settings().to_toml().unwrap();
        let data = InitData::parse(&raw).unwrap().data;
        let table = |name: &str| data[name].parse::<toml::Table>().unwrap();
        assert_eq!(table("aa.toml")["token_configs"]["kbs"]["url"].as_str(), Some("https://10.0.2.2:8443"));
        let uri = &table("cdh.toml")["image"]["image_security_policy_uri"];
        assert_eq!(uri.as_str(), Some("kbs:///default/image-policy/default"));
        assert_eq!(data["policy.rego"], "package agent_policy\n");
    }

    #[test]
    fn unknown_entries_and_fields_are_refused() {
        for (name, text) in [
            ("agent.toml", ""),
            ("aa.toml", "[token_configs.kbs]\nurl = \"https://h\"\ninsecure = true\n"),
            ("aa.toml", "[token_configs.coco_as]\nurl = \"https://h\"\n"),
            ("aa.toml", "[eventlog]\n"),
            ("cdh.toml", "[image]\nimage_security_polcy = \"{}\"\n"),
            ("cdh.toml", "socket = \"unix:///run/cdh.sock\"\n"),
        ] {
            Settings::parse(&with(name, text)).unwrap_err();
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_whoever_says_them() {
        for (name, text) in [
            ("aa.toml", "[token_configs.kbs]\nurl = \"ftp://h\"\n"),
            ("aa.toml", "[token_configs.kbs]\n"),
            (
                "cdh.toml",
                "[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\nimage_security_policy = \"{}\"\n",
            ),
        ] {
            let error = Settings::parse(&with(name, text)).unwrap_err();
            assert!(matches!(error, InitDataError::Entry { entry, .. } if entry == name), "{error}");
        }
        let key_broker = Some(KeyBroker { url: "ftp://h".into(), cert: None });
        Settings { key_broker, ..Settings::default() }.to_toml().unwrap_err();
    }
}
