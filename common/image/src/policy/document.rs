//! The JSON of a policy.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::identity::{Identity, IdentityDocument};
use super::{KeySource, Policy, PolicyError, Requirement, Scope};
use crate::json;
use crate::signature::VerifyingKey;

/// The transport whose scopes are names of images in registries.
const TRANSPORT: &str = "docker";
const KEY_TYPES: [&str; 4] = ["GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"];

pub(super) fn parse(text: &str) -> Result<Policy, PolicyError> {
    let document: Document = json::from_str(text).map_err(PolicyError::Malformed)?;
    let default = requirements(document.default, &Scope::Default.to_string())?;
    let mut scopes = BTreeMap::new();
    for (transport, lists) in document.transports {
        for (scope, list) in lists {
            let list = requirements(list, &format!("scope {scope:?} of transport {transport:?}"))?;
            if transport == TRANSPORT {
                scopes.insert(scope, list);
            }
        }
    }
    Ok(Policy { default, scopes, keys: BTreeMap::new() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    default: Vec<RequirementDocument>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<RequirementDocument>>>,
}

/// The variants have braces, for an unknown field beside a plain one would not be noticed.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
enum RequirementDocument {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy {
        key_type: String,
        key_path: Option<String>,
        key_paths: Option<Vec<String>>,
        key_data: Option<String>,
        signed_identity: Option<IdentityDocument>,
    },
    SignedBaseLayer {
        base_layer_identity: IdentityDocument,
    },
    SigstoreSigned(Box<SigstoreDocument>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SigstoreDocument {
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<Value>,
    pki: Option<Value>,
    rekor_public_key_path: Option<Value>,
    rekor_public_key_paths: Option<Value>,
    rekor_public_key_data: Option<Value>,
    rekor_public_key_datas: Option<Value>,
    signed_identity: Option<IdentityDocument>,
}

fn requirements(list: Vec<RequirementDocument>, scope: &str) -> Result<Vec<Requirement>, PolicyError> {
    if list.is_empty() {
        return Err(PolicyError::NoRequirements { scope: scope.into() });
    }
    let number = |(index, document)| requirement(document, scope, index + 1);
    list.into_iter().enumerate().map(number).collect()
}

fn requirement(
    document: RequirementDocument,
    scope: &str,
    number: usize,
) -> Result<Requirement, PolicyError> {
    let refused = |detail| PolicyError::Requirement { requirement: number, scope: scope.into(), detail };
    match document {
        RequirementDocument::InsecureAcceptAnything {} => Ok(Requirement::InsecureAcceptAnything),
        RequirementDocument::Reject {} => Ok(Requirement::Reject),
        RequirementDocument::SignedBy { key_type, key_path, key_paths, key_data, signed_identity } => {
            if !KEY_TYPES.contains(&key_type.as_str()) {
                return Err(refused(format!("keyType {key_type:?}, expected one of {KEY_TYPES:?}")));
            }
            let given = [key_path.is_some(), key_paths.is_some(), key_data.is_some()];
            one_of(&given, "keyPath, keyPaths, keyData").map_err(refused)?;
            Identity::new(signed_identity).map_err(refused)?;
            Ok(Requirement::Unsupported { kind: "signedBy", detail: format!("keyType {key_type}") })
        }
        RequirementDocument::SignedBaseLayer { base_layer_identity } => {
            Identity::new(Some(base_layer_identity)).map_err(refused)?;
            Ok(Requirement::Unsupported { kind: "signedBaseLayer", detail: "it".into() })
        }
        RequirementDocument::SigstoreSigned(document) => sigstore(*document, scope, number),
    }
}

fn sigstore(document: SigstoreDocument, scope: &str, number: usize) -> Result<Requirement, PolicyError> {
    let refused = |detail| PolicyError::Requirement { requirement: number, scope: scope.into(), detail };
    let given = [
        document.key_path.is_some(),
        document.key_paths.is_some(),
        document.key_data.is_some(),
        document.key_datas.is_some(),
        document.fulcio.is_some(),
        document.pki.is_some(),
    ];
    one_of(&given, "keyPath, keyPaths, keyData, keyDatas, fulcio, pki").map_err(refused)?;
    let identity = Identity::new(document.signed_identity).map_err(refused)?;
    let unsupported = [
        ("fulcio", document.fulcio.is_some()),
        ("pki", document.pki.is_some()),
        ("rekorPublicKeyPath", document.rekor_public_key_path.is_some()),
        ("rekorPublicKeyPaths", document.rekor_public_key_paths.is_some()),
        ("rekorPublicKeyData", document.rekor_public_key_data.is_some()),
        ("rekorPublicKeyDatas", document.rekor_public_key_datas.is_some()),
    ];
    if let Some((name, _)) = unsupported.into_iter().find(|(_, present)| *present) {
        return Ok(Requirement::Unsupported { kind: "sigstoreSigned", detail: name.into() });
    }
    let paths = document.key_path.into_iter().chain(document.key_paths.into_iter().flatten());
    let data = document.key_data.into_iter().chain(document.key_datas.into_iter().flatten());
    let keys = paths
        .map(|path| Ok(KeySource::Path(path)))
        .chain(data.map(|data| inline_key(&data, scope, number)))
        .collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() {
        return Err(refused("an empty list of keys".into()));
    }
    Ok(Requirement::SigstoreSigned { keys, identity })
}

fn inline_key(data: &str, scope: &str, number: usize) -> Result<KeySource, PolicyError> {
    let pem = STANDARD.decode(data).map_err(|_| PolicyError::Requirement {
        requirement: number,
        scope: scope.into(),
        detail: "the key data is not base64".into(),
    })?;
    let name = || format!("in requirement {number} for {scope}");
    let key = VerifyingKey::from_pem(&pem).map_err(|source| PolicyError::Key { name: name(), source })?;
    Ok(KeySource::Inline(key))
}

fn one_of(given: &[bool], names: &str) -> Result<(), String> {
    match given.iter().filter(|given| **given).count() {
        1 => Ok(()),
        count => Err(format!("{count} of {names} are given, expected exactly one")),
    }
}
