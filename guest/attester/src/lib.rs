//! The attester: it collects evidence of what runs in this guest, and proves it to the owner's key broker.

mod error;
mod kbs;
mod sample;
pub mod tpm;

pub use error::Error;
pub use kbs::{KbsClient, KbsConfig, Timings, Token};
pub use sample::SampleAttester;
pub use tpm::TpmAttester;

use sealpod_evidence::Tee;
use serde_json::Value;

/// A source of evidence: one kind of TEE.
pub trait Attester: Send {
    /// Which kind.
    fn tee(&self) -> Tee;

    /// What the request to the key broker says of the TEE beforehand (`extra-params`), `null` for nothing.
    ///
    /// # Errors
    /// [`Error`], where the TEE does not say it.
    fn request_params(&mut self) -> Result<Value, Error>;

    /// How many bytes of report data its evidence binds. Longer ones are cut to that, shorter ones may be filled with
    /// zeros at the end.
    fn report_data_length(&self) -> usize;

    /// Evidence that binds report data. `challenge` is the broker's answer to the request (`extra-params`).
    ///
    /// # Errors
    /// [`Error`], where the TEE gives none, or the challenge is not of its form.
    fn evidence(&mut self, report_data: &[u8], challenge: &Value) -> Result<Value, Error>;

    /// Makes the init data's digest a part of all later evidence. Once, before anybody reads the init data.
    ///
    /// # Errors
    /// [`Error`], where the TEE does not take it. The init data must not be used then.
    fn extend_init_data(&mut self, digest: &[u8]) -> Result<(), Error>;
}
