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
pub(crate) fn explain(entry: &AuditEntry) -> String {
    let what = match field(entry, "event").as_str() {
        "attest" => format!("attestation of a {} guest", field(entry, "tee")),
        _ => format!("request for {}", subject(entry)),
    };
    let mut lines = vec![format!("{}: {what}, {}", field(entry, "outcome"), when(entry))];
    for failure in failures(entry) {
        lines.push(format!("  {}", text(failure, "claim")));
        lines.push(format!("    expected  {}", text(failure, "expected")));
        lines.push(format!("    came      {}", text(failure, "actual")));
    }
    lines.extend(advice(entry).map(|advice| format!("hint: {advice}")));
    lines.join("\n")
}

fn advice(entry: &AuditEntry) -> Option<String> {
    let failures = failures(entry);
    let first = failures.first()?;
    let claim = text(first, "claim");
    Some(if REFERENCE_VALUES.contains(&claim.as_str()) {
        format!(
            "if you trust what came, register it beside what you accept already \
             (`sealpod kbs reference-value get {claim}`): sealpod kbs reference-value set {claim} {}",
            text(first, "actual")
        )
    } else if field(entry, "event") == "resource" {
        "the resource policy decides who gets it: sealpod kbs policy get resource".into()
    } else {
        "evidence that is not genuine or not fresh gets nothing; if the guest is yours, see its console"
            .into()
    })
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

    #[test]
    fn a_refusal_says_the_claim_what_was_expected_what_came_and_what_to_do() {
        let said = explain(&refusal());
        assert_eq!(
            said.lines().take(4).collect::<Vec<_>>(),
            [
                "denied: attestation of a tpm guest, 2026-11-24 02:10:59Z",
                "  initrd",
                "    expected  aa or bb",
                "    came      cc\u{fffd}[2J"
            ]
        );
        assert!(said.contains("sealpod kbs reference-value set initrd"), "{said}");
    }

    #[test]
    fn a_grant_needs_no_advice() {
        let granted =
            entry(json!({"event": "resource", "resource": "a/b/c", "outcome": "granted", "time": 0}));
        assert_eq!(explain(&granted), "granted: request for a/b/c, 1970-01-01 00:00:00Z");
    }

    #[test]
    fn the_table_has_a_row_for_each_entry() {
        let rows = table(&[refusal()]);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1][1..], ["5f0c", "denied", "attest", "tpm", "initrd"]);
    }
}
