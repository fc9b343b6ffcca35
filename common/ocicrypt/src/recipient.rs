//! Who may decrypt a layer, and wrapping the private options for them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::annotations::{EncryptionAnnotations, Scheme, WrappedKey};
use crate::jwe;
use crate::keyprovider::{
    AnnotationPacket, PROVIDER, PacketError, PacketVersion, ParameterError, Parameters, WrapType,
};
use crate::layer::{PrivateOptions, PublicOptions};

/// One who may decrypt.
#[derive(Clone)]
pub enum Recipient {
    /// The holder of the private half of this key.
    Jwe(jwe::PublicKey),
    /// Whoever a key broker gives a symmetric key to: in a guest, the agent.
    KeyProvider {
        /// The key's id, a resource URI: `kbs:///default/key/1`.
        kid: String,
        /// The key itself, AES-256.
        key: Zeroizing<[u8; 32]>,
        /// How the private options are encrypted under it.
        wrap_type: WrapType,
        /// The form of the packet.
        version: PacketVersion,
    },
}

impl Recipient {
    /// Reads a recipient as people write it, and the key files that it names:
    /// `jwe:FILE` (a public key or certificate in PEM, or a JWK), or
    /// `provider:attestation-agent:keyid=kbs:///default/key/1::keypath=FILE[::algorithm=A256GCM]`
    /// (the file holds the 32 bytes of the key).
    ///
    /// # Errors
    /// [`RecipientError`] says which part is wrong and what was expected.
    pub fn parse(text: &str) -> Result<Self, RecipientError> {
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        match scheme {
            "jwe" => {
                let path = Path::new(rest);
                let key = jwe::PublicKey::parse(&read(path)?)
                    .map_err(|source| RecipientError::Key { path: path.into(), source })?;
                Ok(Self::Jwe(key))
            }
            "provider" => match rest.split_once(':') {
                Some((PROVIDER, parameters)) => Self::key_provider(&Parameters::parse(parameters)?),
                _ => Err(RecipientError::Provider { actual: rest.split(':').next().unwrap_or("").into() }),
            },
            _ => Err(RecipientError::Scheme { actual: scheme.into() }),
        }
    }

    fn key_provider(parameters: &Parameters) -> Result<Self, RecipientError> {
        let kid = parameters.key_id.clone().ok_or(ParameterError::Missing { name: "keyid" })?;
        let path = parameters.key_path.as_ref().ok_or(ParameterError::Missing { name: "keypath" })?;
        let bytes = read(path)?;
        let key = <[u8; 32]>::try_from(bytes.as_slice())
            .map_err(|_| RecipientError::KeyLength { path: path.clone(), actual: bytes.len() })?;
        Ok(Self::KeyProvider {
            kid,
            key: Zeroizing::new(key),
            wrap_type: parameters.algorithm,
            version: PacketVersion::V1,
        })
    }
}

/// The key of a key provider does not print.
impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jwe(key) => f.debug_tuple("Jwe").field(key).finish(),
            Self::KeyProvider { kid, wrap_type, version, .. } => f
                .debug_struct("KeyProvider")
                .field("kid", kid)
                .field("wrap_type", wrap_type)
                .field("version", version)
                .finish_non_exhaustive(),
        }
    }
}

/// Why a recipient is refused.
#[derive(Debug, thiserror::Error)]
pub enum RecipientError {
    /// It begins with something else than a scheme that can be written.
    #[error(
        "recipient scheme {actual:?}, expected \"jwe:FILE\" or \"provider:{PROVIDER}:keyid=URI::keypath=FILE\""
    )]
    Scheme {
        /// What stands there.
        actual: String,
    },
    /// Another key provider.
    #[error("key provider {actual:?}, expected {PROVIDER:?}")]
    Provider {
        /// What stands there.
        actual: String,
    },
    /// The parameters for the key provider are wrong.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The key's file cannot be read.
    #[error("cannot read the key file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds no public key.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: jwe::KeyFormatError,
    },
    /// The file does not hold an AES-256 key.
    #[error("the key file {} has {actual} bytes, expected 32 (make one with: head -c 32 /dev/urandom)", path.display())]
    KeyLength {
        /// The file.
        path: PathBuf,
        /// In bytes.
        actual: usize,
    },
}

/// Why private options could not be wrapped.
#[derive(Debug, thiserror::Error)]
pub enum WrapError {
    /// A layer that nobody can decrypt is of no use.
    #[error("a layer cannot be encrypted for nobody: name at least one recipient")]
    NoRecipients,
    /// Making the JWE failed.
    #[error(transparent)]
    Jwe(#[from] jwe::JweError),
    /// Making a key provider's packet failed.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

/// The annotations that let each of these recipients decrypt the layer.
///
/// # Errors
/// [`WrapError`]: no recipients, or a key that cannot encrypt.
pub fn wrap(
    recipients: &[Recipient],
    private: &PrivateOptions,
    public: &PublicOptions,
) -> Result<BTreeMap<String, String>, WrapError> {
    let json = private.to_json();
    let mut wrapped_keys = Vec::new();
    let public_keys: Vec<_> = recipients
        .iter()
        .filter_map(|recipient| match recipient {
            Recipient::Jwe(key) => Some(key.clone()),
            Recipient::KeyProvider { .. } => None,
        })
        .collect();
    if !public_keys.is_empty() {
        let wrapping = jwe::wrap(&public_keys, json.as_bytes())?.into_bytes();
        wrapped_keys.push(WrappedKey { scheme: Scheme::Jwe, wrapping });
    }
    for recipient in recipients {
        if let Recipient::KeyProvider { kid, key, wrap_type, version } = recipient {
            let packet = AnnotationPacket::seal(*version, kid, key, *wrap_type, json.as_bytes())?;
            wrapped_keys.push(WrappedKey {
                scheme: Scheme::Provider(PROVIDER.into()),
                wrapping: packet.to_json().into_bytes(),
            });
        }
    }
    if wrapped_keys.is_empty() {
        return Err(WrapError::NoRecipients);
    }
    Ok(EncryptionAnnotations { wrapped_keys, public_options: public.clone() }.emit())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, RecipientError> {
    let bytes = std::fs::read(path).map_err(|source| RecipientError::Read { path: path.into(), source })?;
    Ok(Zeroizing::new(bytes))
}
