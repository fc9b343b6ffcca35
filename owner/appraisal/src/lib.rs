//! Claims, reference values and a policy in; an attestation result out.

mod policy;
mod token;

pub use policy::{Appraisal, DEFAULT_POLICY, Policy, PolicyError, appraise};
pub use token::{TokenError, TokenSigner};

use std::collections::BTreeMap;

use serde_json::Value;

/// What a trustworthy guest measures to: for each id the accepted values.
pub type ReferenceValues = BTreeMap<String, Value>;
