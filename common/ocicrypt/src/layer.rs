//! The layer cipher `AES_256_CTR_HMAC_SHA256`: AES-256 in counter mode, and HMAC-SHA-256 under the same
//! key over the ciphertext.
//!
//! Both directions stream, in place, in chunks of any size. What a [`Decryptor`] gives out is
//! **unverified until [`Decryptor::finish`] returns `Ok`**: callers keep it invisible until then.

mod options;
mod stream;

pub use options::{CIPHER, HMAC_LENGTH, KEY_LENGTH, NONCE_LENGTH, PrivateOptions, PublicOptions};
pub use stream::{Decryptor, Encryptor};

/// Why a layer's options or its content were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// The options are not the JSON that they should be. What was found is not told, for it may be a key.
    #[error("the layer's {which} options are malformed (line {line}, column {column})")]
    Malformed {
        /// "private" or "public".
        which: &'static str,
        /// Where the parser stopped.
        line: usize,
        /// Where the parser stopped.
        column: usize,
    },
    /// The layer is under a cipher that is not known here.
    #[error("the layer's cipher is {actual:?}, expected {CIPHER:?}")]
    Cipher {
        /// The cipher that the public options name.
        actual: String,
    },
    /// A field does not have its one length.
    #[error("the layer's {field} has {actual} bytes, expected {expected}")]
    Length {
        /// The field: "key", "nonce", "HMAC".
        field: &'static str,
        /// In bytes.
        expected: usize,
        /// In bytes.
        actual: usize,
    },
    /// The private options, which alone are authenticated, hold no nonce.
    #[error(
        "the layer's wrapped options hold no nonce, and one from the unauthenticated public options is not \
         accepted; encrypt the image again with a current tool"
    )]
    NonceNotAuthenticated,
    /// Private and public options name different nonces.
    #[error("the layer's public options give the nonce {public}, its wrapped options {private}")]
    NonceMismatch {
        /// Hexadecimal.
        public: String,
        /// Hexadecimal.
        private: String,
    },
    /// The digest of the plaintext is not of the form `sha256:` and 64 hexadecimal digits.
    #[error(
        "the layer's plaintext digest is {actual:?}, expected \"sha256:\" and 64 lower-case hexadecimal digits"
    )]
    DigestForm {
        /// What stands there.
        actual: String,
    },
    /// The ciphertext is not what was encrypted under this key.
    #[error(
        "the encrypted layer's HMAC does not match: the layer was altered or cut, or the key is another's"
    )]
    HmacMismatch,
    /// The plaintext is not the one that the private options promise.
    #[error("the decrypted layer's digest is {actual}, expected {expected}")]
    DigestMismatch {
        /// The digest in the private options.
        expected: String,
        /// The digest of what was decrypted.
        actual: String,
    },
    /// The cryptographic library failed, for want of memory or randomness.
    #[error("the cryptographic library failed while {0}")]
    Crypto(&'static str),
}
