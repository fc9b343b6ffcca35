//! Why a request is denied, in words that fit on a console.

use sealpod_agent_protocol::{Failure, FailureKind};
use serde::Serialize;
use serde_json::Value;

/// How many reasons a denial has at most: the first ones, in their order.
const MOST_REASONS: usize = 8;
/// How many of them a message has.
const MOST_IN_MESSAGE: usize = 3;
/// The longest text of each, in characters.
const LONGEST: usize = 240;

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// The request's name, which is the rule's.
    pub request: &'static str,
    /// What the rule came to.
    pub why: String,
    /// What the policy says of it. Bounded in number and length.
    pub reasons: Vec<Reason>,
}

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The request's field, as `mounts./data.read_only`.
    pub field: String,
    /// What the policy allows.
    pub expected: String,
    /// What the request has.
    pub actual: String,
}

impl Reason {
    /// Reads what a policy's set of denials holds; what is no reason is left out.
    pub(crate) fn read(said: Value) -> Vec<Self> {
        let Value::Array(said) = said else { return Vec::new() };
        let reason = |one: &Value| {
            let text = |name: &str| one.get(name).map(bounded_text);
            Some(Self { field: text("field")?, expected: text("expected")?, actual: text("actual")? })
        };
        said.iter().filter_map(reason).take(MOST_REASONS).collect()
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        let name = denial.request;
        let why = match denial.reasons.as_slice() {
            [] => denial.why.clone(),
            reasons => {
                let said: Vec<_> = reasons
                    .iter()
                    .take(MOST_IN_MESSAGE)
                    .map(|reason| {
                        format!("{}: expected {}, came {}", reason.field, reason.expected, reason.actual)
                    })
                    .collect();
                let more = match reasons.len().saturating_sub(MOST_IN_MESSAGE) {
                    0 => String::new(),
                    more => format!("; and {more} more"),
                };
                format!("{}: {}{more}", denial.why, said.join("; "))
            }
        };
        Self {
            kind: FailureKind::DeniedByPolicy,
            message: format!("the agent's policy does not allow {name}: {why}"),
            hint: Some(format!(
                "the pod's owner can allow it in policy.rego of the init data, by the rule {name}"
            )),
            denial: None,
        }
    }
}

/// A text as it is, another value as JSON. The host wrote parts of it: nothing in it may move a terminal's cursor.
fn bounded_text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    };
    let printable = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    let mut bounded: String = text.chars().take(LONGEST).map(printable).collect();
    if text.chars().nth(LONGEST).is_some() {
        bounded.push('…');
    }
    bounded
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reasons(count: usize) -> Vec<Reason> {
        let said: Vec<_> = (0..count)
            .map(|number| json!({"field": number, "expected": null, "actual": "\u{1b}[2J"}))
            .collect();
        Reason::read(said.into())
    }

    #[test]
    fn a_message_is_bounded_and_printable() {
        let long = json!([{"field": "f", "expected": vec!["x"; 1000], "actual": "y".repeat(10_000)}]);
        let denial =
            |reasons| Denial { request: "ExecProcess", why: "rule ExecProcess is false".into(), reasons };
        let failure = Failure::from(denial(Reason::read(long)));
        assert!(failure.message.chars().count() < 700, "{}", failure.message.len());
        let failure = Failure::from(denial(reasons(100)));
        assert!(!failure.message.contains('\u{1b}'), "{}", failure.message);
        assert!(failure.message.contains("0: expected nothing, came"), "{}", failure.message);
        assert!(failure.message.ends_with("; and 5 more"), "{}", failure.message);
    }

    #[test]
    fn what_is_no_reason_is_left_out() {
        assert_eq!(Reason::read(json!(true)), []);
        assert_eq!(Reason::read(json!([1, {"field": "a"}, {"field": "a", "expected": 1}])), []);
    }
}
