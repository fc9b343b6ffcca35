//! Attestation policies: Rego that turns claims into a trustworthiness vector.
//!
//! A policy is a `package policy` with the rule `trust_claims` (AR4SI claims and their values) and, where it wants to
//! explain itself to the owner, the set `failures` of `{"claim", "expected", "actual"}`. Its `input` are the verifier's
//! claims; `query_reference_value(id)` gives the accepted values of an id, or an empty list.

use std::num::NonZeroU32;
use std::time::Duration;

use regorus::Engine;
use regorus::utils::limits::ExecutionTimerConfig;
use sealpod_evidence::Tee;
use sealpod_kbs_protocol::ear::{Status, TrustworthinessVector};
use sealpod_verifier::{Claims, Refusal};
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
    let mut failures =
        failures(engine.eval_rule("data.policy.failures".into()).unwrap_or(regorus::Value::Undefined));
    if status != Status::Affirming && failures.is_empty() {
        let values = serde_json::to_string(&vector).unwrap_or_default();
        failures.push(Refusal::new(&format!("policy {} for {tee}", policy.id), "affirming values", values));
    }
    Ok(Appraisal { status, vector, policy_id: policy.id.clone(), failures })
}

fn vector(value: regorus::Value) -> Result<TrustworthinessVector, PolicyError> {
    let wrong = |reason: String| PolicyError::Result { rule: "trust_claims", reason };
    let json = serde_json::to_value(value).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_value(json).map_err(|error| wrong(error.to_string()))
}

fn failures(value: regorus::Value) -> Vec<Refusal> {
    let json = serde_json::to_value(value).unwrap_or_default();
    let items = json.as_array().cloned().unwrap_or_default();
    items.into_iter().take(MAX_FAILURES).filter_map(|item| serde_json::from_value(item).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Claims {
        Claims(value.as_object().unwrap().clone())
    }

    fn measured() -> Claims {
        claims(json!({
            "tpm": {}, "firmware": "aa", "kernel": "bb", "initrd": "cc", "cmdline": "dd", "init_data": "ee" }))
    }

    fn references() -> ReferenceValues {
        let one = |id: &str, value: &str| (id.to_owned(), json!([value, "another"]));
        [
            one("firmware", "aa"),
            one("kernel", "bb"),
            one("initrd", "cc"),
            one("cmdline", "dd"),
            one("init_data", "ee"),
        ]
        .into()
    }

    fn default() -> Policy {
        Policy::parse("default", DEFAULT_POLICY).unwrap()
    }

    #[test]
    fn a_guest_of_which_everything_is_registered_is_affirmed() {
        let appraisal = appraise(&default(), Tee::Tpm, &measured(), &references()).unwrap();
        assert_eq!(appraisal.status, Status::Affirming);
        assert!(appraisal.failures.is_empty());
    }

    #[test]
    fn each_claim_that_differs_is_refused_and_explained() {
        for name in ["firmware", "kernel", "initrd", "cmdline", "init_data"] {
            let mut other = measured();
            other.0.insert(name.into(), json!("zz"));
            let appraisal = appraise(&default(), Tee::Tpm, &other, &references()).unwrap();
            assert_eq!(appraisal.status, Status::Warning, "{name}");
            let [failure] = appraisal.failures.as_slice() else { panic!("{name}: {:?}", appraisal.failures) };
            assert_eq!((failure.claim.as_str(), failure.actual.as_str()), (name, "zz"));
            assert!(failure.expected.ends_with(" or another"));
        }
    }

    #[test]
    fn nothing_registered_means_nothing_trusted() {
        let appraisal = appraise(&default(), Tee::Tpm, &measured(), &ReferenceValues::new()).unwrap();
        assert_ne!(appraisal.status, Status::Affirming);
        assert_eq!(appraisal.failures.len(), 5);
    }

    #[test]
    fn no_init_data_is_trusted_only_where_that_is_registered() {
        let mut without = measured();
        without.0.insert("init_data".into(), json!(""));
        assert_ne!(
            appraise(&default(), Tee::Tpm, &without, &references()).unwrap().status,
            Status::Affirming
        );
        let mut references = references();
        references.insert("init_data".into(), json!([""]));
        assert_eq!(appraise(&default(), Tee::Tpm, &without, &references).unwrap().status, Status::Affirming);
    }

    #[test]
    fn claims_of_no_tee_are_not_trusted() {
        let mut other = measured();
        other.0.remove("tpm");
        let appraisal = appraise(&default(), Tee::Snp, &other, &references()).unwrap();
        assert_eq!(appraisal.status, Status::Contraindicated);
    }

    #[test]
    fn a_malformed_policy_is_refused_with_its_line() {
        let error =
            Policy::parse("x", "package policy\nimport rego.v1\nallow if {").err().unwrap().to_string();
        assert!(error.contains("x.rego:3"), "{error}");
        assert!(Policy::parse("x", "package other\ntrust_claims := {}").is_err());
        assert!(Policy::parse("x", "package policy\nallow := true").is_err());
        assert!(matches!(Policy::parse("x", &"#".repeat(MAX_LENGTH + 1)), Err(PolicyError::TooLong(_))));
    }

    #[test]
    fn a_policy_that_gives_no_vector_fails_closed() {
        let policy = Policy::parse("x", "package policy\ntrust_claims := {\"hardware\": \"fine\"}").unwrap();
        assert!(matches!(
            appraise(&policy, Tee::Tpm, &measured(), &references()),
            Err(PolicyError::Result { rule: "trust_claims", .. })
        ));
        let empty = Policy::parse("x", "package policy\ntrust_claims := {}").unwrap();
        assert_eq!(appraise(&empty, Tee::Tpm, &measured(), &references()).unwrap().status, Status::None);
    }

    #[test]
    fn a_claim_about_which_nothing_is_known_is_not_affirmed() {
        let policy =
            Policy::parse("x", "package policy\ntrust_claims := {\"hardware\": 2, \"executables\": 0}")
                .unwrap();
        assert_eq!(appraise(&policy, Tee::Tpm, &measured(), &references()).unwrap().status, Status::None);
    }
}
