//! Evidence that proves nothing but that the guest knows the nonce.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claims::hexadecimal;
use crate::{Claims, Expected, Refusal};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evidence {
    svn: String,
    report_data: String,
}

pub(crate) fn verify(evidence: &Value, expected: &Expected<'_>) -> Result<Claims, Refusal> {
    let malformed = |error: String| Refusal::new("evidence", "svn and report_data", error);
    let evidence: Evidence =
        serde_json::from_value(evidence.clone()).map_err(|error| malformed(error.to_string()))?;
    let report_data = STANDARD.decode(&evidence.report_data).map_err(|error| malformed(error.to_string()))?;
    if report_data != expected.report_data {
        return Err(Refusal::new(
            "report_data",
            hexadecimal(expected.report_data),
            hexadecimal(&report_data),
        ));
    }
    let init_data = expected.init_data_digest.map(hexadecimal).unwrap_or_default();
    let claims = json!({ "sample": { "svn": evidence.svn }, "init_data": init_data });
    match claims {
        Value::Object(claims) => Ok(Claims(claims)),
        _ => Ok(Claims::default()),
    }
}
