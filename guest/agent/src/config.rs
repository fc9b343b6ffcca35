//! The pod's configuration: what its owner says in the init data that the TPM measured, or what the measured command line
//! says where there is none.

use sealpod_evidence::init_data::{self, InitDataError, KeyBroker, Settings};
use sealpod_kbs_protocol::ResourceUri;

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

/// How images are pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    /// The image policy as a resource of the key broker.
    pub(crate) security_policy_uri: Option<ResourceUri>,
    /// The image policy itself (containers-policy.json(5)).
    pub(crate) security_policy: Option<String>,
    /// A docker `config.json` with credentials, as a resource of the key broker.
    pub(crate) credentials_uri: Option<ResourceUri>,
    /// Registries (`host:port`) that are asked by plain HTTP.
    pub(crate) plain_http_registries: Vec<String>,
    /// Certificate authorities of registries, in PEM, besides the usual ones.
    pub(crate) extra_root_certificates: Vec<String>,
}

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The init data.
    #[error(transparent)]
    InitData(#[from] InitDataError),
    /// What should be a resource of the key broker, and is not.
    #[error("cdh.toml of the init data: {field}: {reason}")]
    Uri {
        /// Where it stands.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// The configuration of a pod: its init data, or the measured command line where there is none.
    pub(crate) fn new(parameters: &Parameters, init_data: &MeasuredInitData) -> Result<Self, Error> {
        match init_data.text() {
            Some(raw) => Self::of_owner(Settings::parse(raw)?),
            None => Ok(Self {
                key_broker: parameters.key_broker.clone().map(|url| KeyBroker { url, cert: None }),
                image: Image { security_policy_uri: parameters.image_policy.clone(), ..Image::default() },
                policy: None,
            }),
        }
    }

    fn of_owner(settings: Settings) -> Result<Self, Error> {
        let Settings { key_broker, image, agent_policy } = settings;
        let init_data::Image { image_security_policy_uri, authenticated_registry_credentials_uri, .. } =
            image;
        Ok(Self {
            key_broker,
            image: Image {
                security_policy_uri: uri("image_security_policy_uri", image_security_policy_uri)?,
                security_policy: image.image_security_policy,
                credentials_uri: uri(
                    "authenticated_registry_credentials_uri",
                    authenticated_registry_credentials_uri,
                )?,
                plain_http_registries: image.plain_http_registries,
                extra_root_certificates: image.extra_root_certificates,
            },
            policy: agent_policy,
        })
    }
}

fn uri(field: &'static str, text: Option<String>) -> Result<Option<ResourceUri>, Error> {
    let parse = |text: String| text.parse().map_err(|error| Error::Uri { field, reason: format!("{error}") });
    text.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(uri: &str, credentials: &str) -> Result<Image, Error> {
        let image = init_data::Image {
            image_security_policy_uri: Some(uri.into()),
            authenticated_registry_credentials_uri: Some(credentials.into()),
            plain_http_registries: vec!["10.0.2.2:5000".into()],
            ..init_data::Image::default()
        };
        let raw = Settings { image, ..Settings::default() }.to_toml().unwrap();
        Config::of_owner(Settings::parse(&raw).unwrap()).map(|config| config.image)
    }

    #[test]
    fn what_an_owner_says_of_images_is_taken() {
        let image = image("kbs:///default/image-policy/web", "kbs:///default/credential/registry").unwrap();
        assert_eq!(image.security_policy_uri.unwrap().to_string(), "kbs:///default/image-policy/web");
        assert_eq!(image.credentials_uri.unwrap().to_string(), "kbs:///default/credential/registry");
        assert_eq!(image.plain_http_registries, ["10.0.2.2:5000"]);
    }

    #[test]
    fn what_is_no_resource_is_refused_by_its_name() {
        let good = "kbs:///default/image-policy/web";
        for (uri, credentials, field) in [
            ("file:///policy.json", good, "image_security_policy_uri"),
            (good, "config.json", "authenticated_registry_credentials_uri"),
        ] {
            let error = image(uri, credentials).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
