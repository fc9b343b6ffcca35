//! A policy wherever it stands: in a manifest's annotation, in init data, or by itself.

use sealpod_evidence::init_data::{self, AGENT_POLICY, InitData, InitDataError};

use crate::manifest::{Manifest, ManifestError};

/// What a pod is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Kind and name of the pod, where that is known.
    pub pod: Option<String>,
    /// The raw init data (TOML), if it has any.
    pub init_data: Option<String>,
    /// The agent's policy (Rego), if it has one.
    pub policy: Option<String>,
}

/// Why there is no policy to read.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// It was taken for a manifest.
    #[error(
        "this is neither a policy (\"package agent_policy\"), nor init data (version = \"0.1.0\"), nor a manifest: {0}"
    )]
    Manifest(#[from] ManifestError),
    /// It was taken for init data.
    #[error("this is no init data: {0}")]
    InitData(#[from] InitDataError),
    /// The pod's annotation holds none.
    #[error("{pod}: its annotation is no init data: {source}")]
    Annotation {
        /// Kind and name.
        pod: String,
        /// Why.
        source: InitDataError,
    },
}

impl Given {
    /// Reads a policy, init data, or a manifest with the annotation of each pod.
    ///
    /// # Errors
    /// [`GivenError`].
    pub fn read(text: &str) -> Result<Vec<Self>, GivenError> {
        let first_word = |line: &str| line.split_whitespace().next().map(str::to_owned);
        let significant =
            text.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(first_word);
        match significant.as_deref() {
            Some("package") => Ok(vec![Self { pod: None, init_data: None, policy: Some(text.into()) }]),
            Some("version" | "algorithm" | "[data]") => Ok(vec![Self::of_init_data(None, text)?]),
            _ => Self::of_manifest(text),
        }
    }

    fn of_manifest(text: &str) -> Result<Vec<Self>, GivenError> {
        let manifest = Manifest::read(text)?;
        let given = manifest.pods().iter().map(|pod| {
            let name = pod.name().to_owned();
            let Some(annotation) = pod.annotation() else {
                return Ok(Self { pod: Some(name), init_data: None, policy: None });
            };
            let read = init_data::decode_annotation(annotation)
                .and_then(|raw| Self::of_init_data(Some(name.clone()), &raw));
            read.map_err(|source| GivenError::Annotation { pod: name, source })
        });
        given.collect()
    }

    fn of_init_data(pod: Option<String>, raw: &str) -> Result<Self, InitDataError> {
        let policy = InitData::parse(raw)?.data.remove(AGENT_POLICY);
        Ok(Self { pod, init_data: Some(raw.into()), policy })
    }
}
