//! JSON Web Encryption (RFC 7516) as image encryption uses it: the JSON serialisations, A256GCM for the
//! content, and for its key RSA-OAEP, RSA-OAEP-256 or ECDH-ES with AES key wrap (RFC 7518).

mod agreement;
mod algorithm;
mod der;
mod jwk;
mod key_wrap;
mod keys;
mod wire;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::Secret;
pub use algorithm::Algorithm;
pub use keys::{KeyFormatError, PrivateKey, PublicKey};
use wire::{Content, Message, RecipientKey};

/// The longest JWE that is read, in bytes.
pub const MAX_LENGTH: usize = 256 * 1024;
/// The most recipients of one JWE.
pub const MAX_RECIPIENTS: usize = 64;

const CONTENT_KEY_LENGTH: usize = 32;
const TAG_LENGTH: usize = 16;

type ContentKey = Zeroizing<[u8; CONTENT_KEY_LENGTH]>;

/// Why a JWE could not be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// It is not the JSON that it should be.
    #[error("the JWE is malformed: {0}")]
    Malformed(String),
    /// It is longer than [`MAX_LENGTH`].
    #[error("the JWE has {actual} bytes, at most {MAX_LENGTH} are read")]
    TooLong {
        /// In bytes.
        actual: usize,
    },
    /// It has no recipients, or more than [`MAX_RECIPIENTS`].
    #[error("the JWE has {actual} recipients, expected 1 to {MAX_RECIPIENTS}")]
    Recipients {
        /// How many.
        actual: usize,
    },
    /// A field does not have its one length.
    #[error("the JWE's {field} has {actual} bytes, expected {expected}")]
    Length {
        /// Which.
        field: &'static str,
        /// In bytes.
        expected: usize,
        /// In bytes.
        actual: usize,
    },
    /// None of the keys opens it.
    #[error("the JWE is for [{recipients}] and none of these private keys opens it: [{keys}]")]
    NotOpened {
        /// The recipients' algorithms.
        recipients: String,
        /// The private keys' kinds.
        keys: String,
    },
    /// The cryptographic library failed: a key that cannot encrypt, or no memory or randomness.
    #[error("the cryptographic library failed while {0}")]
    Crypto(&'static str),
}

/// Encrypts for all of these recipients; gives the general JSON serialisation.
///
/// # Errors
/// [`JweError::Recipients`] for none or too many; [`JweError::Crypto`].
pub fn wrap(recipients: &[PublicKey], plaintext: &[u8]) -> Result<String, JweError> {
    if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
        return Err(JweError::Recipients { actual: recipients.len() });
    }
    let mut key = ContentKey::default();
    rand::fill(&mut *key).map_err(|_| JweError::Crypto("making a content key"))?;
    let content = seal(&key, plaintext).ok_or(JweError::Crypto("encrypting the content"))?;
    let recipients = recipients
        .iter()
        .map(|recipient| recipient.wrap(&key).ok_or(JweError::Crypto("wrapping the content key")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Message { content, recipients: recipients.into_iter().map(Some).collect() }.to_json())
}

/// Opens a JWE in the general or the flattened JSON serialisation: every recipient is tried with every
/// key of its kind.
///
/// # Errors
/// [`JweError`]; [`JweError::NotOpened`] if it is for others, or was altered.
pub fn unwrap(keys: &[PrivateKey], jwe: &[u8]) -> Result<Secret, JweError> {
    let message = Message::parse(jwe)?;
    let opened = message
        .recipients
        .iter()
        .flatten()
        .flat_map(|recipient| keys.iter().filter_map(move |key| key.unwrap(recipient)))
        .find_map(|key| open(&key, &message.content));
    opened.ok_or_else(|| JweError::NotOpened {
        recipients: list(message.recipients.iter().map(describe)),
        keys: list(keys.iter().map(PrivateKey::kind)),
    })
}

fn describe(recipient: &Option<RecipientKey>) -> String {
    match recipient {
        Some(recipient) => recipient.algorithm.to_string(),
        None => "an unsupported algorithm".to_owned(),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn seal(key: &ContentKey, plaintext: &[u8]) -> Option<Content> {
    let mut iv = [0; NONCE_LEN];
    rand::fill(&mut iv).ok()?;
    let protected = wire::protected_header();
    let mut ciphertext = plaintext.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &**key).ok()?);
    let aad = Aad::from(protected.as_bytes());
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), aad, &mut ciphertext).ok()?;
    let tag = tag.as_ref().try_into().ok()?;
    Some(Content { protected, aad: None, iv, ciphertext, tag })
}

fn open(key: &ContentKey, content: &Content) -> Option<Secret> {
    let mut buffer = Zeroizing::new([content.ciphertext.as_slice(), &content.tag].concat());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &**key).ok()?);
    let aad = Aad::from(content.additional_data());
    let nonce = Nonce::assume_unique_for_key(content.iv);
    let length = key.open_in_place(nonce, aad, &mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer.into())
}
