//! The agent's policy for a Kubernetes pod: made from its manifest, said in words, compared.
//!
//! A manifest says what a pod is; the guest's agent must hear the same from the host, and nothing else. So the policy is
//! the manifest as data, in the words of the requests that a container engine leads to, and rules that are the same for
//! every pod (`rules/*.rego`).

mod build;
mod expansion;
mod explain;
mod given;
mod kubernetes;
mod manifest;
mod policy;
mod rego;
mod yaml;

pub use build::{Options, Refusal, build};
pub use explain::{Difference, Statement, differences, explain};
pub use given::{Given, GivenError};
pub use manifest::{ANNOTATION, Manifest, ManifestError, ObjectKind, Pod, PodAnnotations, RUNTIME};
pub use policy::*;
pub use rego::{read_back, render};
pub use yaml::{AnnotateError, YamlError};

/// The documents of a YAML text in JSON, read as [`Manifest::read`] reads them.
///
/// # Errors
/// [`YamlError`].
pub fn documents(text: &str) -> Result<Vec<serde_json::Value>, YamlError> {
    Ok(yaml::parse(text)?.iter().map(yaml::Node::to_json).collect())
}
