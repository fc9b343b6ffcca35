//! Opening the wrapped private options of a layer with whatever keys are at hand.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::annotations::{AnnotationError, EncryptionAnnotations, Scheme, WrappedKey};
use crate::keyprovider::{AnnotationPacket, PROVIDER, PacketError};
use crate::layer::{LayerError, PrivateOptions};
use crate::{Secret, jwe};

/// Finds the symmetric key that a key provider's annotation names.
///
/// The guest's asks its key broker, the command line's reads files.
pub trait KeyResolver: Send + Sync {
    /// The key under this id: a resource URI (`kbs:///default/key/1`), or in old images a bare name.
    fn key<'a>(&'a self, kid: &'a str) -> BoxFuture<'a, Result<Secret, KeyError>>;
}

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none under this id.
    #[error("there is no such key")]
    NotFound,
    /// Its owner does not grant it. The owner finds the reason in the key broker's log.
    #[error("the key broker refused it{}", denial.as_ref().map(|id| format!(" (denial {id})")).unwrap_or_default())]
    Denied {
        /// The id under which the owner finds it.
        denial: Option<String>,
    },
    /// Whoever keeps the keys could not be asked.
    #[error("the key could not be fetched: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why no private options came out.
#[derive(Debug, thiserror::Error)]
pub enum UnwrapError {
    /// The annotations are not those of an encrypted layer, or are malformed.
    #[error(transparent)]
    Annotations(#[from] AnnotationError),
    /// Nothing that the layer carries could be opened.
    #[error("no key at hand opens the encrypted layer: {}", Attempts(.0))]
    NoneOpened(Vec<Attempt>),
}

/// One wrapped key that did not open.
#[derive(Debug)]
pub struct Attempt {
    /// How it was wrapped.
    pub scheme: Scheme,
    /// Why it did not open.
    pub error: AttemptError,
}

/// Why one wrapped key did not open.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// No key for this scheme is at hand, or the scheme is not supported.
    #[error("not tried, for there is no key of this kind at hand")]
    NoKey,
    /// The JWE did not open.
    #[error(transparent)]
    Jwe(#[from] jwe::JweError),
    /// The key provider's packet is refused, or did not open under the key that it names.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The key that the packet names could not be had.
    #[error("key {kid}: {source}")]
    Key {
        /// The key's id.
        kid: String,
        /// Why.
        source: KeyError,
    },
    /// It opened, but what it holds is refused.
    #[error(transparent)]
    Options(#[from] LayerError),
}

/// The keys of one who may decrypt.
#[derive(Clone, Default)]
pub struct Unwrapper {
    private_keys: Arc<[jwe::PrivateKey]>,
    resolver: Option<Arc<dyn KeyResolver>>,
}

impl Unwrapper {
    /// With these private keys for JWE, and this source of keys for key providers' packets.
    pub fn new(private_keys: Vec<jwe::PrivateKey>, resolver: Option<Arc<dyn KeyResolver>>) -> Self {
        Self { private_keys: private_keys.into(), resolver }
    }

    /// Opens the private options of the layer with these annotations (a `&BTreeMap` or `&HashMap`).
    ///
    /// Every wrapped key is tried until one opens; those that need no asking elsewhere come first.
    ///
    /// # Errors
    /// [`UnwrapError::NoneOpened`] lists every attempt.
    pub async fn unwrap<'a>(
        &self,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)> + Send,
    ) -> Result<PrivateOptions, UnwrapError> {
        self.open(EncryptionAnnotations::parse(annotations)?).await
    }

    /// As [`Self::unwrap`], of annotations that are parsed already.
    ///
    /// # Errors
    /// [`UnwrapError::NoneOpened`] lists every attempt.
    pub async fn open(&self, annotations: EncryptionAnnotations) -> Result<PrivateOptions, UnwrapError> {
        let mut wrapped_keys = annotations.wrapped_keys;
        wrapped_keys.sort_by_key(|wrapped| matches!(wrapped.scheme, Scheme::Provider(_)));
        let mut attempts = Vec::with_capacity(wrapped_keys.len());
        for wrapped in wrapped_keys {
            match self.open_one(&wrapped).await {
                Ok(options) => return Ok(options),
                Err(error) => attempts.push(Attempt { scheme: wrapped.scheme, error }),
            }
        }
        Err(UnwrapError::NoneOpened(attempts))
    }

    async fn open_one(&self, wrapped: &WrappedKey) -> Result<PrivateOptions, AttemptError> {
        let json = match &wrapped.scheme {
            Scheme::Jwe if !self.private_keys.is_empty() => {
                jwe::unwrap(&self.private_keys, &wrapped.wrapping)?
            }
            Scheme::Provider(name) if name == PROVIDER => self.open_packet(&wrapped.wrapping).await?,
            _ => return Err(AttemptError::NoKey),
        };
        Ok(PrivateOptions::parse(json.as_bytes())?)
    }

    async fn open_packet(&self, packet: &[u8]) -> Result<Secret, AttemptError> {
        let resolver = self.resolver.as_ref().ok_or(AttemptError::NoKey)?;
        let packet = AnnotationPacket::parse(packet)?;
        let key = resolver
            .key(packet.kid())
            .await
            .map_err(|source| AttemptError::Key { kid: packet.kid().to_owned(), source })?;
        Ok(packet.open(&key)?)
    }
}

impl fmt::Debug for Unwrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwrapper")
            .field("private_keys", &self.private_keys)
            .field("resolver", &self.resolver.is_some())
            .finish()
    }
}

struct Attempts<'a>(&'a [Attempt]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, attempt) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", attempt.scheme, attempt.error)?;
        }
        Ok(())
    }
}
