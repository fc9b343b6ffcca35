//! A signature (`TPMT_SIGNATURE`, part 2 §11.3.4).

use super::codec::{Endian, Reader};
use super::{StructureError, hash_algorithm};
use crate::HashAlgorithm;

const STRUCTURE: &str = "signature";

/// A signature by a TPM's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// ECDSA (FIPS 186-5 §6).
    Ecdsa {
        /// The hash of the message.
        hash: HashAlgorithm,
        /// Big-endian.
        r: Vec<u8>,
        /// Big-endian.
        s: Vec<u8>,
    },
    /// RSASSA-PKCS1-v1_5 (RFC 8017 §8.2).
    RsaPkcs1 {
        /// The hash of the message.
        hash: HashAlgorithm,
        /// As long as the modulus.
        signature: Vec<u8>,
    },
    /// RSASSA-PSS (RFC 8017 §8.1).
    RsaPss {
        /// The hash of the message.
        hash: HashAlgorithm,
        /// As long as the modulus.
        signature: Vec<u8>,
    },
}

impl Signature {
    /// Parses a signature with nothing after it.
    ///
    /// # Errors
    /// [`StructureError`]: it is cut, has bytes after it, or an algorithm that is not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let cut = || StructureError::truncated(STRUCTURE);
        let mut reader = Reader::new(bytes, Endian::Big);
        let algorithm = reader.u16().map_err(cut())?;
        let id = reader.u16().map_err(cut())?;
        let hash = hash_algorithm(id)
            .ok_or(StructureError::Unsupported { field: "signature's hash", actual: u32::from(id) })?;
        let mut buffer = || reader.sized().map(<[u8]>::to_vec).map_err(cut());
        let signature = match algorithm {
            0x0014 => Self::RsaPkcs1 { hash, signature: buffer()? },
            0x0016 => Self::RsaPss { hash, signature: buffer()? },
            0x0018 => Self::Ecdsa { hash, r: buffer()?, s: buffer()? },
            other => {
                return Err(StructureError::Unsupported {
                    field: "signature algorithm",
                    actual: u32::from(other),
                });
            }
        };
        match reader.rest().len() {
            0 => Ok(signature),
            count => Err(StructureError::Trailing { structure: STRUCTURE, count }),
        }
    }
}
