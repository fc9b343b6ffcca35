//! The JSON that ocicrypt and its key providers exchange.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Secret;
use crate::encoding::Bytes;

/// What a key provider is asked.
#[derive(Debug, Clone)]
pub enum KeyProviderInput {
    /// Wrap private options.
    Wrap(WrapParameters),
    /// Open what was wrapped.
    Unwrap(UnwrapParameters),
}

/// What to wrap, and for whom.
#[derive(Debug, Clone)]
pub struct WrapParameters {
    /// Which of the caller's recipients are this provider's.
    pub config: EncryptConfig,
    /// The private options.
    pub private_options: Secret,
}

/// What to open.
#[derive(Debug, Clone)]
pub struct UnwrapParameters {
    /// What the caller gives along, by provider.
    pub config: DecryptConfig,
    /// The annotation: a packet's JSON.
    pub annotation: Vec<u8>,
}

/// The encrypting side's parameters, by provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptConfig {
    /// By provider: what stood behind `provider:NAME:`.
    pub parameters: BTreeMap<String, Vec<Vec<u8>>>,
    /// For adding recipients to a layer that is encrypted already.
    pub decrypt: DecryptConfig,
}

/// The decrypting side's parameters, by provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecryptConfig {
    /// By provider.
    pub parameters: BTreeMap<String, Vec<Vec<u8>>>,
}

/// What a key provider answers.
#[derive(Debug, Clone)]
pub enum KeyProviderOutput {
    /// The annotation: a packet's JSON.
    Wrapped(Vec<u8>),
    /// The private options.
    Unwrapped(Secret),
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// It is not the JSON that it should be. What was found is not told, for it may be a secret.
    #[error("the key provider message is malformed (line {line}, column {column})")]
    Malformed {
        /// Where the parser stopped.
        line: usize,
        /// Where the parser stopped.
        column: usize,
    },
    /// Something is asked that is not known.
    #[error("the key provider is asked for {actual:?}, expected \"keywrap\" or \"keyunwrap\"")]
    Operation {
        /// What stands there.
        actual: String,
    },
    /// What the operation needs is not there.
    #[error("the key provider message has no {field}")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// An answer both wraps and unwraps.
    #[error("the key provider's answer has both an annotation and private options")]
    Ambiguous,
}

impl KeyProviderInput {
    /// Reads a request, as Go or Rust writes it.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn parse(json: &[u8]) -> Result<Self, ProtocolError> {
        let wire: InputWire = serde_json::from_slice(json).map_err(malformed)?;
        match wire.op.as_str() {
            "keywrap" => {
                let params = wire.keywrapparams.ok_or(ProtocolError::Missing { field: "keywrapparams" })?;
                let optsdata = params.optsdata.ok_or(ProtocolError::Missing { field: "optsdata" })?;
                let config = params.ec.map(EncryptConfig::from).unwrap_or_default();
                Ok(Self::Wrap(WrapParameters { config, private_options: optsdata.0.into() }))
            }
            "keyunwrap" => {
                let params =
                    wire.keyunwrapparams.ok_or(ProtocolError::Missing { field: "keyunwrapparams" })?;
                let annotation = params.annotation.ok_or(ProtocolError::Missing { field: "annotation" })?;
                let config = params.dc.map(DecryptConfig::from).unwrap_or_default();
                Ok(Self::Unwrap(UnwrapParameters { config, annotation: annotation.into_public() }))
            }
            actual => Err(ProtocolError::Operation { actual: actual.chars().take(100).collect() }),
        }
    }

    /// The request's JSON, byte fields as base64.
    pub fn to_json(&self) -> Secret {
        let wire = match self {
            Self::Wrap(params) => InputWire {
                op: "keywrap".into(),
                keywrapparams: Some(WrapWire {
                    ec: Some((&params.config).into()),
                    optsdata: Some(secret_bytes(&params.private_options)),
                }),
                keyunwrapparams: None,
            },
            Self::Unwrap(params) => InputWire {
                op: "keyunwrap".into(),
                keywrapparams: None,
                keyunwrapparams: Some(UnwrapWire {
                    dc: Some((&params.config).into()),
                    annotation: Some(Bytes::new(params.annotation.clone())),
                }),
            },
        };
        write(&wire)
    }
}

impl KeyProviderOutput {
    /// Reads an answer, as Go or Rust writes it.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn parse(json: &[u8]) -> Result<Self, ProtocolError> {
        let wire: OutputWire = serde_json::from_slice(json).map_err(malformed)?;
        let annotation = wire.keywrapresults.and_then(|results| results.annotation);
        let optsdata = wire.keyunwrapresults.and_then(|results| results.optsdata);
        match (annotation, optsdata) {
            (Some(annotation), None) => Ok(Self::Wrapped(annotation.into_public())),
            (None, Some(optsdata)) => Ok(Self::Unwrapped(optsdata.0.into())),
            (None, None) => Err(ProtocolError::Missing { field: "result" }),
            (Some(_), Some(_)) => Err(ProtocolError::Ambiguous),
        }
    }

    /// The answer's JSON, byte fields as base64.
    pub fn to_json(&self) -> Secret {
        let mut wire = OutputWire { keywrapresults: None, keyunwrapresults: None };
        match self {
            Self::Wrapped(annotation) => {
                wire.keywrapresults = Some(WrapResults { annotation: Some(Bytes::new(annotation.clone())) });
            }
            Self::Unwrapped(options) => {
                wire.keyunwrapresults = Some(UnwrapResults { optsdata: Some(secret_bytes(options)) });
            }
        }
        write(&wire)
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct InputWire {
    op: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    keywrapparams: Option<WrapWire>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyunwrapparams: Option<UnwrapWire>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrapWire {
    ec: Option<EncryptConfigWire>,
    optsdata: Option<Bytes>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct UnwrapWire {
    dc: Option<DecryptConfigWire>,
    annotation: Option<Bytes>,
}

/// Go writes a map that was never filled as `null`.
type ParametersWire = Option<BTreeMap<String, Option<Vec<Bytes>>>>;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct EncryptConfigWire {
    #[serde(rename = "Parameters")]
    parameters: ParametersWire,
    #[serde(rename = "DecryptConfig")]
    decrypt_config: Option<DecryptConfigWire>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DecryptConfigWire {
    #[serde(rename = "Parameters")]
    parameters: ParametersWire,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct OutputWire {
    #[serde(skip_serializing_if = "Option::is_none")]
    keywrapresults: Option<WrapResults>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyunwrapresults: Option<UnwrapResults>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrapResults {
    annotation: Option<Bytes>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct UnwrapResults {
    optsdata: Option<Bytes>,
}

impl From<EncryptConfigWire> for EncryptConfig {
    fn from(wire: EncryptConfigWire) -> Self {
        let decrypt = wire.decrypt_config.map(DecryptConfig::from).unwrap_or_default();
        Self { parameters: read_parameters(wire.parameters), decrypt }
    }
}

impl From<DecryptConfigWire> for DecryptConfig {
    fn from(wire: DecryptConfigWire) -> Self {
        Self { parameters: read_parameters(wire.parameters) }
    }
}

impl From<&EncryptConfig> for EncryptConfigWire {
    fn from(config: &EncryptConfig) -> Self {
        Self {
            parameters: write_parameters(&config.parameters),
            decrypt_config: Some((&config.decrypt).into()),
        }
    }
}

impl From<&DecryptConfig> for DecryptConfigWire {
    fn from(config: &DecryptConfig) -> Self {
        Self { parameters: write_parameters(&config.parameters) }
    }
}

fn read_parameters(wire: ParametersWire) -> BTreeMap<String, Vec<Vec<u8>>> {
    let values =
        |list: Option<Vec<Bytes>>| list.unwrap_or_default().into_iter().map(Bytes::into_public).collect();
    wire.unwrap_or_default().into_iter().map(|(name, list)| (name, values(list))).collect()
}

fn write_parameters(parameters: &BTreeMap<String, Vec<Vec<u8>>>) -> ParametersWire {
    let values = |list: &Vec<Vec<u8>>| Some(list.iter().cloned().map(Bytes::new).collect());
    Some(parameters.iter().map(|(name, list)| (name.clone(), values(list))).collect())
}

fn secret_bytes(secret: &Secret) -> Bytes {
    Bytes::new(secret.as_bytes().to_vec())
}

/// Serialises into memory of the right size at once, so that no growing leaves secrets behind.
fn write(wire: &impl Serialize) -> Secret {
    let mut size = ByteCounter(0);
    let mut json = Zeroizing::new(Vec::new());
    let written = serde_json::to_writer(&mut size, wire).and_then(|()| {
        json.reserve_exact(size.0);
        serde_json::to_writer(&mut *json, wire)
    });
    written.expect("strings, numbers and maps with string keys always serialise");
    json.into()
}

struct ByteCounter(usize);

impl io::Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn malformed(error: serde_json::Error) -> ProtocolError {
    ProtocolError::Malformed { line: error.line(), column: error.column() }
}
