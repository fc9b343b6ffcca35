//! Evidence that proves nothing, for tests without a TEE; taken only where it is named.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealpod_evidence::Tee;
use serde_json::{Value, json};

use crate::{Attester, Error};

/// As much as the longest hash, and as TEEs have.
const REPORT_DATA_LENGTH: usize = 64;

/// No TEE.
#[derive(Debug, Default)]
pub struct SampleAttester;

impl Attester for SampleAttester {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn report_data_length(&self) -> usize {
        REPORT_DATA_LENGTH
    }

    fn request_params(&mut self) -> Result<Value, Error> {
        Ok(Value::Null)
    }

    fn evidence(&mut self, report_data: &[u8], _challenge: &Value) -> Result<Value, Error> {
        let report_data = report_data.get(..REPORT_DATA_LENGTH).unwrap_or(report_data);
        Ok(json!({ "svn": "1", "report_data": STANDARD.encode(report_data) }))
    }

    fn extend_init_data(&mut self, _digest: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
