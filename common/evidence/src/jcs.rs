//! Canonical JSON (RFC 8785, the JSON Canonicalization Scheme).

use serde_json::Value;

/// The canonical form of a JSON value: members sorted by UTF-16 code units, no white space, shortest escapes.
///
/// Numbers are written as `serde_json` writes them, which for the integers of the key broker's protocol is the
/// canonical form.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    write(value, &mut out);
    out.into_bytes()
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(left, _), (right, _)| left.encode_utf16().cmp(right.encode_utf16()));
            out.push('{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                // A string's shortest escapes (RFC 8785 §3.2.2.2) are what serde_json writes.
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(member, out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        String::from_utf8(canonical(value)).unwrap()
    }

    #[test]
    fn members_are_sorted_by_utf16_code_units() {
        // RFC 8785 §3.2.3: the emoji's surrogate (0xd83d) sorts before U+FB33.
        let value = json!({ "\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7 });
        let keys: Vec<char> = "\r1\u{80}\u{f6}\u{20ac}\u{1f600}\u{fb33}".chars().collect();
        let text = text(&value);
        let mut last = 0;
        for key in keys {
            let key = Value::from(key.to_string()).to_string();
            let position = text.find(&key).unwrap();
            assert!(position >= last, "{key} stands too early in {text}");
            last = position;
        }
    }

    #[test]
    fn strings_have_the_shortest_escapes() {
        // The string of RFC 8785 §3.2.2.
        let value = json!({ "string": "\u{20ac}$\u{000f}\nA'B\"\\\\\"/" });
        assert_eq!(text(&value), "{\"string\":\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}");
    }

    #[test]
    fn nothing_stands_between_the_tokens() {
        assert_eq!(text(&json!({ "b": [1, true, null], "a": {} })), r#"{"a":{},"b":[1,true,null]}"#);
    }
}
