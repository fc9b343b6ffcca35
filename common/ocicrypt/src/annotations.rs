//! The annotations and media types that mark an encrypted layer in an image manifest.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::layer::{LayerError, PublicOptions};

/// The annotation of the public options: base64 of their JSON.
pub const PUBLIC_OPTIONS: &str = "org.opencontainers.image.enc.pubopts";
/// What the annotations of wrapped private options begin with; the [`Scheme`] follows.
pub const KEYS_PREFIX: &str = "org.opencontainers.image.enc.keys.";
/// The longest annotation that is read, in bytes.
pub const MAX_ANNOTATION_LENGTH: usize = 256 * 1024;
/// The most wrapped private options (of all schemes together) that a layer may carry.
pub const MAX_WRAPPED_KEYS: usize = 32;

const ENCRYPTED_SUFFIX: &str = "+encrypted";

/// Plain layer types, and what their encrypted layers decrypt to. Docker's types have no encrypted
/// counterpart of their own: they become the OCI types of the same content.
const LAYER_TYPES: [(&str, &str); 10] = [
    ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ),
    ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

/// Whether layers of this media type are encrypted.
pub fn is_encrypted(media_type: &str) -> bool {
    decrypted_media_type(media_type).is_some()
}

/// The media type of what a layer of this type decrypts to; `None` if it is not an encrypted layer's.
pub fn decrypted_media_type(media_type: &str) -> Option<&'static str> {
    oci_layer_type(media_type.strip_suffix(ENCRYPTED_SUFFIX)?)
}

/// The media type of a layer of this type once it is encrypted; `None` if it is not a plain layer's.
pub fn encrypted_media_type(media_type: &str) -> Option<String> {
    Some(format!("{}{ENCRYPTED_SUFFIX}", oci_layer_type(media_type)?))
}

fn oci_layer_type(media_type: &str) -> Option<&'static str> {
    LAYER_TYPES.iter().find(|(name, _)| *name == media_type).map(|(_, oci)| *oci)
}

/// Why a layer's annotations were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The public options are not there.
    #[error("the encrypted layer has no annotation {PUBLIC_OPTIONS}")]
    NoPublicOptions,
    /// No wrapped private options are there.
    #[error("the encrypted layer has no annotation {KEYS_PREFIX}*: nobody can decrypt it")]
    NoWrappedKeys,
    /// An annotation is longer than [`MAX_ANNOTATION_LENGTH`].
    #[error("the annotation {name} has {actual} bytes, at most {MAX_ANNOTATION_LENGTH} are read")]
    TooLong {
        /// The annotation's name.
        name: String,
        /// In bytes.
        actual: usize,
    },
    /// There are more wrapped keys than [`MAX_WRAPPED_KEYS`].
    #[error("the encrypted layer carries {actual} wrapped keys, at most {MAX_WRAPPED_KEYS} are read")]
    TooMany {
        /// Of all schemes together.
        actual: usize,
    },
    /// An annotation is not base64.
    #[error("the annotation {name} is not base64")]
    NotBase64 {
        /// The annotation's name.
        name: String,
    },
    /// The public options are refused.
    #[error(transparent)]
    PublicOptions(#[from] LayerError),
}

/// How private options are wrapped: what follows [`KEYS_PREFIX`] in an annotation's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// JSON Web Encryption (RFC 7516).
    Jwe,
    /// Cryptographic message syntax.
    Pkcs7,
    /// OpenPGP.
    Pgp,
    /// A hardware token.
    Pkcs11,
    /// A key provider, by its name.
    Provider(String),
    /// One that is not known here.
    Other(String),
}

impl Scheme {
    /// The scheme of the annotation of this name; `None` if it wraps no key.
    pub fn of_annotation(name: &str) -> Option<Self> {
        let scheme = name.strip_prefix(KEYS_PREFIX)?;
        Some(match scheme {
            "jwe" => Self::Jwe,
            "pkcs7" => Self::Pkcs7,
            "pgp" => Self::Pgp,
            "pkcs11" => Self::Pkcs11,
            _ => match scheme.strip_prefix("provider.") {
                Some(provider) => Self::Provider(provider.into()),
                None => Self::Other(scheme.into()),
            },
        })
    }

    /// The name of this scheme's annotation.
    pub fn annotation(&self) -> String {
        format!("{KEYS_PREFIX}{self}")
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jwe => f.write_str("jwe"),
            Self::Pkcs7 => f.write_str("pkcs7"),
            Self::Pgp => f.write_str("pgp"),
            Self::Pkcs11 => f.write_str("pkcs11"),
            Self::Provider(name) => write!(f, "provider.{name}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Private options wrapped for one group of recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// How.
    pub scheme: Scheme,
    /// The wrapping, in the scheme's own form: a JWE, a key provider's packet.
    pub wrapping: Vec<u8>,
}

/// Everything that a layer's annotations say about its encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptionAnnotations {
    /// In the order of the annotations' names, and of the wrappings in each.
    pub wrapped_keys: Vec<WrappedKey>,
    /// The unauthenticated half of the options.
    pub public_options: PublicOptions,
}

impl EncryptionAnnotations {
    /// Reads a layer's annotations. Those that do not concern encryption are passed over.
    ///
    /// # Errors
    /// Where the public options or all wrapped keys are missing, something is malformed or too large.
    pub fn parse<'a>(
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, AnnotationError> {
        let mut public_options = None;
        let mut by_scheme = BTreeMap::new();
        for (name, value) in annotations {
            let scheme = Scheme::of_annotation(name);
            if scheme.is_none() && name != PUBLIC_OPTIONS {
                continue;
            }
            if value.len() > MAX_ANNOTATION_LENGTH {
                return Err(AnnotationError::TooLong { name: name.clone(), actual: value.len() });
            }
            match scheme {
                Some(scheme) => _ = by_scheme.insert(scheme, value),
                None => public_options = Some(PublicOptions::parse(&decode(name, value)?)?),
            }
        }
        let public_options = public_options.ok_or(AnnotationError::NoPublicOptions)?;
        let actual = by_scheme.values().map(|value| value.split(',').count()).sum();
        if actual > MAX_WRAPPED_KEYS {
            return Err(AnnotationError::TooMany { actual });
        }
        if actual == 0 {
            return Err(AnnotationError::NoWrappedKeys);
        }
        let mut wrapped_keys = Vec::with_capacity(actual);
        for (scheme, value) in by_scheme {
            for entry in value.split(',') {
                let wrapping = decode(&scheme.annotation(), entry)?;
                wrapped_keys.push(WrappedKey { scheme: scheme.clone(), wrapping });
            }
        }
        Ok(Self { wrapped_keys, public_options })
    }

    /// The annotations that say this, to be added to the layer's descriptor.
    pub fn emit(&self) -> BTreeMap<String, String> {
        let mut annotations =
            BTreeMap::from([(PUBLIC_OPTIONS.to_owned(), STANDARD.encode(self.public_options.to_json()))]);
        for WrappedKey { scheme, wrapping } in &self.wrapped_keys {
            let value = annotations.entry(scheme.annotation()).or_default();
            if !value.is_empty() {
                value.push(',');
            }
            STANDARD.encode_string(wrapping, value);
        }
        annotations
    }
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>, AnnotationError> {
    STANDARD.decode(value).map_err(|_| AnnotationError::NotBase64 { name: name.to_owned() })
}
