//! The structures of TPM 2.0 (TCG TPM 2.0 Library, part 2) that attestation needs, and the messages that carry them.

mod attest;
pub mod codec;
mod messages;
mod public;
mod signature;
mod template;

pub use attest::{Attest, PcrSelection};
pub use messages::{ChallengeParams, Evidence, QuoteEvidence, RequestParams};
pub use public::{Curve, Parameters, Public, Symmetric, attributes};
pub use signature::Signature;
pub use template::{AK_P256, EK_P256, EK_RSA_2048};

use crate::HashAlgorithm;
use codec::Truncated;

/// The registers that our quotes cover: firmware, its configuration, boot loader, kernel, and init data.
pub const QUOTED_PCRS: std::ops::RangeInclusive<u32> = 0..=9;

/// The register that init data's digest is extended into.
pub const INIT_DATA_PCR: u32 = 8;

/// Why bytes are not the TPM structure that they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StructureError {
    /// It ends early.
    #[error("the {0} ends early")]
    Truncated(&'static str),
    /// Something follows it.
    #[error("{count} bytes follow the {structure}")]
    Trailing {
        /// What was parsed.
        structure: &'static str,
        /// How much is left.
        count: usize,
    },
    /// A field has a value that is not supported.
    #[error("{field} is {actual:#x}, which is not supported")]
    Unsupported {
        /// Which field.
        field: &'static str,
        /// What it holds.
        actual: u32,
    },
    /// The structure is not one that a TPM made.
    #[error("the attestation's magic is {0:#010x}, expected 0xff544347 (TPM_GENERATED)")]
    NotGenerated(u32),
}

impl StructureError {
    fn truncated(structure: &'static str) -> impl FnOnce(Truncated) -> Self {
        move |Truncated| Self::Truncated(structure)
    }
}

/// The hash algorithm of a `TPM_ALG_ID`.
pub fn hash_algorithm(id: u16) -> Option<HashAlgorithm> {
    match id {
        0x0004 => Some(HashAlgorithm::Sha1),
        0x000b => Some(HashAlgorithm::Sha256),
        0x000c => Some(HashAlgorithm::Sha384),
        0x000d => Some(HashAlgorithm::Sha512),
        _ => None,
    }
}

/// The `TPM_ALG_ID` of a hash algorithm.
pub fn hash_algorithm_id(algorithm: HashAlgorithm) -> u16 {
    match algorithm {
        HashAlgorithm::Sha1 => 0x0004,
        HashAlgorithm::Sha256 => 0x000b,
        HashAlgorithm::Sha384 => 0x000c,
        HashAlgorithm::Sha512 => 0x000d,
    }
}
