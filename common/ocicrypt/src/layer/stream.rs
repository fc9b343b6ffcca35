//! The cipher over a stream.

use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac, rand};
use zeroize::Zeroizing;

use super::options::digest_text;
use super::{KEY_LENGTH, LayerError, NONCE_LENGTH, PrivateOptions, PublicOptions};

/// Encrypts one layer under a fresh key and nonce.
pub struct Encryptor {
    key: Zeroizing<[u8; KEY_LENGTH]>,
    nonce: [u8; NONCE_LENGTH],
    keystream: Keystream,
    hmac: hmac::Context,
    digest: digest::Context,
}

impl Encryptor {
    /// Makes a fresh key and nonce.
    ///
    /// # Errors
    /// [`LayerError::Crypto`] where the library has no randomness or memory.
    pub fn new() -> Result<Self, LayerError> {
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        let mut nonce = [0; NONCE_LENGTH];
        rand::fill(&mut *key).map_err(|_| LayerError::Crypto("making a layer key"))?;
        rand::fill(&mut nonce).map_err(|_| LayerError::Crypto("making a layer nonce"))?;
        Ok(Self {
            keystream: Keystream::new(&key, nonce)?,
            hmac: hmac_context(&key),
            digest: digest::Context::new(&digest::SHA256),
            key,
            nonce,
        })
    }

    /// Encrypts the next bytes in place.
    ///
    /// # Errors
    /// [`LayerError::Crypto`]; what is in the buffer then must not be given out.
    pub fn update(&mut self, chunk: &mut [u8]) -> Result<(), LayerError> {
        self.digest.update(chunk);
        self.keystream.apply(chunk)?;
        self.hmac.update(chunk);
        Ok(())
    }

    /// Ends the layer. The private options go to [`crate::wrap`] with the public ones.
    pub fn finish(self) -> (PrivateOptions, PublicOptions) {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.digest.finish().as_ref());
        let mut hmac = [0; super::HMAC_LENGTH];
        hmac.copy_from_slice(self.hmac.sign().as_ref());
        let private = PrivateOptions { key: *self.key, nonce: self.nonce, digest };
        (private, PublicOptions { hmac, nonce: None })
    }
}

/// Decrypts one layer, and at its end checks both its HMAC and the digest of its plaintext.
pub struct Decryptor {
    keystream: Keystream,
    hmac: hmac::Context,
    digest: digest::Context,
    expected_hmac: [u8; super::HMAC_LENGTH],
    expected_digest: [u8; 32],
}

impl Decryptor {
    /// Prepares to decrypt the layer whose options these are.
    ///
    /// # Errors
    /// [`LayerError::NonceMismatch`] where both halves give a nonce and not the same.
    pub fn new(private: &PrivateOptions, public: &PublicOptions) -> Result<Self, LayerError> {
        if let Some(nonce) = public.nonce.filter(|nonce| *nonce != private.nonce) {
            return Err(LayerError::NonceMismatch {
                public: hex::encode(nonce),
                private: hex::encode(private.nonce),
            });
        }
        Ok(Self {
            keystream: Keystream::new(&private.key, private.nonce)?,
            hmac: hmac_context(&private.key),
            digest: digest::Context::new(&digest::SHA256),
            expected_hmac: public.hmac,
            expected_digest: private.digest,
        })
    }

    /// Decrypts the next bytes in place. They are unverified until [`Self::finish`].
    ///
    /// # Errors
    /// [`LayerError::Crypto`].
    pub fn update(&mut self, chunk: &mut [u8]) -> Result<(), LayerError> {
        self.hmac.update(chunk);
        self.keystream.apply(chunk)?;
        self.digest.update(chunk);
        Ok(())
    }

    /// Ends the layer: only if this succeeds was what came out the layer that was encrypted.
    ///
    /// # Errors
    /// [`LayerError::HmacMismatch`], [`LayerError::DigestMismatch`].
    pub fn finish(self) -> Result<(), LayerError> {
        verify_slices_are_equal(self.hmac.sign().as_ref(), &self.expected_hmac)
            .map_err(|_| LayerError::HmacMismatch)?;
        let actual = self.digest.finish();
        verify_slices_are_equal(actual.as_ref(), &self.expected_digest).map_err(|_| {
            LayerError::DigestMismatch {
                expected: digest_text(&self.expected_digest),
                actual: digest_text(actual.as_ref()),
            }
        })
    }
}

/// AES-256 in counter mode. Encrypting and decrypting are the same.
struct Keystream {
    key: StreamingEncryptingKey,
    /// The library does not work in place: its output lands here, in the processor's cache.
    output: Zeroizing<Vec<u8>>,
}

impl Keystream {
    const CHUNK: usize = 16 * 1024;

    fn new(key: &[u8; KEY_LENGTH], nonce: [u8; NONCE_LENGTH]) -> Result<Self, LayerError> {
        let failed = |_| LayerError::Crypto("setting up the layer cipher");
        let key = UnboundCipherKey::new(&AES_256, key).map_err(failed)?;
        // "Less safe" because a nonce may repeat under a key: here each layer has a key of its own.
        let context = EncryptionContext::Iv128(FixedLength::from(nonce));
        let key = StreamingEncryptingKey::less_safe_ctr(key, context).map_err(failed)?;
        // The library asks for a block more than it writes.
        Ok(Self { key, output: Zeroizing::new(vec![0; Self::CHUNK + AES_256.block_len()]) })
    }

    fn apply(&mut self, bytes: &mut [u8]) -> Result<(), LayerError> {
        let failed = LayerError::Crypto("applying the layer cipher");
        for chunk in bytes.chunks_mut(Self::CHUNK) {
            let update = self.key.update(chunk, &mut self.output).map_err(|_| failed.clone())?;
            if update.written().len() != chunk.len() {
                return Err(failed);
            }
            chunk.copy_from_slice(update.written());
        }
        Ok(())
    }
}

fn hmac_context(key: &[u8; KEY_LENGTH]) -> hmac::Context {
    hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key))
}
