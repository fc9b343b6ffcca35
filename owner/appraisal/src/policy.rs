//! Attestation policies: Rego that turns claims into a trustworthiness vector.
//!
//! A policy is a `package policy` with the rules
//!
//! - `trust_claims`: an object of AR4SI claims and their values, which decides;
//! - `extensions`, where it wants to add claims to the token: a list of `{"name", "value"}` (a `key`, the claim's number
//!   in CBOR, is ignored, because tokens are JSON);
//! - `failures`, where it wants to explain itself to the owner: a set of `{"claim", "expected", "actual"}`.
//!
//! `query_reference_value(id)` gives what was registered under an id, usually a list, and an empty list for nothing.
//! `input` are the verifier's claims: `init_data` (hexadecimal, empty for none), an object by the TEE's name with what is
//! special to it (`input.sample.svn`, `input.tpm.pcrs`), and for a measured boot `firmware`, `kernel`, `initrd`,
//! `cmdline` and `secure_boot`. The same object is the token's annotated evidence.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use regorus::Engine;
use regorus::utils::limits::ExecutionTimerConfig;
use sealpod_evidence::Tee;
use sealpod_kbs_protocol::ear::{Status, TRUSTWORTHINESS_CLAIMS, TrustworthinessVector};
use sealpod_verifier::{Claims, Refusal};
use serde::Deserialize;
use serde_json::Value;

use crate::ReferenceValues;

/// What is used where the owner set no policy.
pub const DEFAULT_POLICY: &str = include_str!("default_policy.rego");

/// No policy is longer, in bytes.
const MAX_LENGTH: usize = 256 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(2);
const CHECK_INTERVAL: u32 = 1000;
/// No appraisal explains more.
const MAX_FAILURES: usize = 64;
/// The names of claims that are not a policy's to set.
const RESERVED: [&str; 4] = [
    "ear.status",
    "ear.trustworthiness-vector",
    "ear.appraisal-policy-id",
    "ear.veraison.annotated-evidence",
];

/// A parsed policy. Parsed once, evaluated many times.
#[derive(Clone)]
pub struct Policy {
    id: String,
    engine: Engine,
}

/// What became of a guest's claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Appraisal {
    /// The worst tier of the vector.
    pub status: Status,
    /// By claim.
    pub vector: TrustworthinessVector,
    /// The policy's name.
    pub policy_id: String,
    /// What the policy adds to the token, by claim name.
    pub extensions: BTreeMap<String, Value>,
    /// Why it is not better, for the owner.
    pub failures: Vec<Refusal>,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// More than is allowed.
    #[error("the policy has {0} bytes, at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// Not Rego; the message has the line.
    #[error("the policy cannot be parsed: {0}")]
    Malformed(String),
    /// It failed on these claims.
    #[error("the policy cannot be evaluated: {0}")]
    Evaluation(String),
    /// Its result is not what it must be.
    #[error("the policy's {rule} is not as expected: {reason}")]
    Result {
        /// Which rule.
        rule: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// An item of `extensions`.
#[derive(Deserialize)]
struct Extension {
    name: String,
    value: Value,
}

impl PolicyError {
    fn malformed(error: impl std::fmt::Display) -> Self {
        Self::Malformed(error.to_string())
    }

    fn evaluation(error: impl std::fmt::Display) -> Self {
        Self::Evaluation(error.to_string())
    }
}

impl Policy {
    /// Parses a policy.
    ///
    /// # Errors
    /// [`PolicyError`]: it is too long, or no Rego.
    pub fn parse(id: &str, text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_LENGTH {
            return Err(PolicyError::TooLong(text.len()));
        }
        let mut engine = Engine::new();
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: TIME_LIMIT,
            check_interval: NonZeroU32::new(CHECK_INTERVAL).unwrap_or(NonZeroU32::MIN),
        });
        let package =
            engine.add_policy(format!("{id}.rego"), text.to_owned()).map_err(PolicyError::malformed)?;
        if package != "data.policy" {
            return Err(PolicyError::Malformed(format!("its package is {package}, expected data.policy")));
        }
        let policy = Self { id: id.to_owned(), engine };
        // A rule that is not there or cannot be compiled is found out now rather than at a guest's cost.
        policy
            .evaluator(&Claims::default(), &ReferenceValues::new())?
            .eval_rule("data.policy.trust_claims".into())
            .map_err(PolicyError::malformed)?;
        Ok(policy)
    }

    fn evaluator(&self, claims: &Claims, references: &ReferenceValues) -> Result<Engine, PolicyError> {
        let mut engine = self.engine.clone();
        let references = references.clone();
        let query = move |parameters: Vec<regorus::Value>| {
            let id = parameters.first().and_then(|id| id.as_string().ok().cloned());
            let values = id.and_then(|id| references.get(id.as_ref())).cloned();
            Ok(regorus::Value::from(values.unwrap_or_else(|| Value::Array(Vec::new()))))
        };
        engine
            .add_extension("query_reference_value".into(), 1, Box::new(query))
            .map_err(PolicyError::evaluation)?;
        engine.set_input(Value::Object(claims.0.clone()).into());
        Ok(engine)
    }
}

/// Appraises a guest's claims.
///
/// # Errors
/// [`PolicyError`]: the policy cannot be evaluated, takes too long, or decides nothing.
pub fn appraise(
    policy: &Policy,
    tee: Tee,
    claims: &Claims,
    references: &ReferenceValues,
) -> Result<Appraisal, PolicyError> {
    let mut engine = policy.evaluator(claims, references)?;
    let vector =
        vector(engine.eval_rule("data.policy.trust_claims".into()).map_err(PolicyError::evaluation)?)?;
    let status = vector.values().map(|value| Status::of(*value)).max().unwrap_or(Status::None);
    // A claim about which nothing is known does not make the others better.
    let unknown = vector.values().any(|value| Status::of(*value) == Status::None);
    let status = if status == Status::Affirming && unknown { Status::None } else { status };
    let extensions = extensions(optional(&mut engine, "extensions")?)?;
    // An explanation that cannot be had does not change the decision.
    let mut failures = failures(optional(&mut engine, "failures").unwrap_or_default());
    if status != Status::Affirming && failures.is_empty() {
        let values = serde_json::to_string(&vector).unwrap_or_default();
        failures.push(Refusal::new(&format!("policy {} for {tee}", policy.id), "affirming values", values));
    }
    Ok(Appraisal { status, vector, policy_id: policy.id.clone(), extensions, failures })
}

fn vector(value: regorus::Value) -> Result<TrustworthinessVector, PolicyError> {
    let wrong = |reason: String| PolicyError::Result { rule: "trust_claims", reason };
    let json = serde_json::to_value(value).map_err(|error| wrong(error.to_string()))?;
    let vector: TrustworthinessVector =
        serde_json::from_value(json).map_err(|error| wrong(error.to_string()))?;
    // A misspelt claim must not stand for the one that was meant.
    match vector.keys().find(|name| !TRUSTWORTHINESS_CLAIMS.contains(&name.as_str())) {
        Some(name) => {
            Err(wrong(format!("{name:?} is none of the claims {}", TRUSTWORTHINESS_CLAIMS.join(", "))))
        }
        None => Ok(vector),
    }
}

/// What a rule gives that a policy need not have.
fn optional(engine: &mut Engine, rule: &str) -> Result<Value, PolicyError> {
    let results = engine.eval_query(format!("data.policy.{rule}"), false).map_err(PolicyError::evaluation)?;
    let value = results.result.into_iter().next().and_then(|result| result.expressions.into_iter().next());
    match value.map(|expression| expression.value) {
        None | Some(regorus::Value::Undefined) => Ok(Value::Null),
        Some(value) => serde_json::to_value(value).map_err(PolicyError::evaluation),
    }
}

fn extensions(json: Value) -> Result<BTreeMap<String, Value>, PolicyError> {
    let wrong = |reason: String| PolicyError::Result { rule: "extensions", reason };
    let items: Option<Vec<Extension>> =
        serde_json::from_value(json).map_err(|error| wrong(error.to_string()))?;
    let items = items.unwrap_or_default();
    match items.iter().find(|item| RESERVED.contains(&item.name.as_str())) {
        Some(item) => Err(wrong(format!("{:?} is set by the appraisal itself", item.name))),
        None => Ok(items.into_iter().map(|item| (item.name, item.value)).collect()),
    }
}

fn failures(json: Value) -> Vec<Refusal> {
    let items = json.as_array().cloned().unwrap_or_default();
    items.into_iter().take(MAX_FAILURES).filter_map(|item| serde_json::from_value(item).ok()).collect()
}

#[cfg(test)]
mod tests;
