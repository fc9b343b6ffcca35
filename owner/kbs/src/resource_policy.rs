//! Which guest gets which resource: Rego with the rule `allow` in `package policy`.
//!
//! `input` are the token's claims; `data` has `plugin`, `resource-path` (three parts) and `query`.

use std::num::NonZeroU32;
use std::time::Duration;

use regorus::Engine;
use regorus::utils::limits::ExecutionTimerConfig;
use sealpod_kbs_protocol::ResourcePath;
use sealpod_kbs_protocol::ear::Ear;
use serde_json::json;

/// What is used where the owner set no policy: every part of the guest must be affirmed.
pub(crate) const DEFAULT_POLICY: &str = include_str!("default_resource_policy.rego");

const MAX_LENGTH: usize = 256 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(2);
const CHECK_INTERVAL: u32 = 1000;

/// A parsed policy.
#[derive(Clone)]
pub(crate) struct ResourcePolicy {
    engine: Engine,
}

impl ResourcePolicy {
    /// Parses a policy; the error's words have the line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::with_time_limit(text, TIME_LIMIT)
    }

    fn with_time_limit(text: &str, limit: Duration) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("the policy has {} bytes, at most {MAX_LENGTH} are allowed", text.len()));
        }
        let mut engine = Engine::new();
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit,
            check_interval: NonZeroU32::new(CHECK_INTERVAL).unwrap_or(NonZeroU32::MIN),
        });
        let package =
            engine.add_policy("resource.rego".into(), text.to_owned()).map_err(|error| error.to_string())?;
        if package != "data.policy" {
            return Err(format!("the policy's package is {package}, expected data.policy"));
        }
        let mut probe = engine.clone();
        probe.set_input(regorus::Value::new_object());
        probe.eval_rule("data.policy.allow".into()).map_err(|error| error.to_string())?;
        Ok(Self { engine })
    }

    /// Whether the policy allows it. One that fails does not.
    pub(crate) fn allows(&self, ear: &Ear, path: &ResourcePath) -> Result<bool, String> {
        let mut engine = self.engine.clone();
        let data = json!({
            "plugin": "resource",
            "resource-path": [path.repository, path.kind, path.tag],
            "query": {},
        });
        let input = serde_json::to_value(ear).map_err(|error| error.to_string())?;
        engine.add_data(data.into()).map_err(|error| error.to_string())?;
        engine.set_input(input.into());
        let allow = engine.eval_rule("data.policy.allow".into()).map_err(|error| error.to_string())?;
        Ok(allow == regorus::Value::Bool(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ear(status: &str) -> Ear {
        serde_json::from_value(json!({
            "eat_profile": "p", "iat": 0, "exp": 1, "iss": "i",
            "ear.verifier-id": { "build": "b", "developer": "d" },
            "submods": { "cpu0": {
                "ear.status": status, "ear.trustworthiness-vector": {}, "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {} } },
        }))
        .unwrap()
    }

    fn path() -> ResourcePath {
        "default/key/1".parse().unwrap()
    }

    #[test]
    fn by_default_only_an_affirmed_guest_gets_anything() {
        let policy = ResourcePolicy::parse(DEFAULT_POLICY).unwrap();
        assert_eq!(policy.allows(&ear("affirming"), &path()), Ok(true));
        for status in ["none", "warning", "contraindicated"] {
            assert_eq!(policy.allows(&ear(status), &path()), Ok(false), "{status}");
        }
        let mut empty = ear("affirming");
        empty.submods.clear();
        assert_eq!(policy.allows(&empty, &path()), Ok(false));
    }

    #[test]
    fn a_policy_may_decide_by_path() {
        let policy = "package policy\nimport rego.v1\nallow if data[\"resource-path\"][0] == \"default\"";
        let policy = ResourcePolicy::parse(policy).unwrap();
        assert_eq!(policy.allows(&ear("none"), &path()), Ok(true));
        assert_eq!(policy.allows(&ear("none"), &"other/key/1".parse().unwrap()), Ok(false));
    }

    #[test]
    fn a_policy_that_does_not_end_allows_nothing_and_is_stopped() {
        let loops = "import rego.v1\nxs := numbers.range(1, 2000)\n\
                     endless if {\nsome a in xs\nsome b in xs\nsome c in xs\na + b + c < 0\n}\n";
        let limit = Duration::from_millis(50);
        let start = std::time::Instant::now();
        // At once, or not before a guest asks.
        let always = format!("package policy\n{loops}allow if endless\n");
        let error = ResourcePolicy::with_time_limit(&always, limit).err().unwrap();
        assert!(error.contains("time limit"), "{error}");
        let later = format!("package policy\n{loops}allow if {{\ninput.iss == \"i\"\nendless\n}}\n");
        let policy = ResourcePolicy::with_time_limit(&later, limit).unwrap();
        let error = policy.allows(&ear("affirming"), &path()).unwrap_err();
        assert!(error.contains("time limit"), "{error}");
        assert!(start.elapsed() < TIME_LIMIT, "{:?}", start.elapsed());
    }

    #[test]
    fn what_is_not_a_policy_is_refused_with_its_line() {
        assert!(ResourcePolicy::parse("package policy\nallow if {").err().unwrap().contains(":2"));
        assert!(ResourcePolicy::parse("package other\nallow := true").is_err());
        assert!(ResourcePolicy::parse("package policy\ndeny := true").is_err());
    }
}
