//! The words of remote attestation that all zones share: TEE names, what report data binds, init data, event logs,
//! and the TPM's structures. Parsing and arithmetic only; whether evidence is to be believed is the verifier's part.

pub mod event_log;
mod hash;
pub mod init_data;
pub mod jcs;
mod report_data;
mod tee;
pub mod tpm;

pub use hash::{HashAlgorithm, UnknownHashAlgorithm};
pub use report_data::{fit, report_data};
pub use tee::{Tee, UnknownTee};
