//! What a scalar is: the words of YAML 1.1 as far as Kubernetes' tools know them.

use super::Content;

/// Resolves a scalar, or says what it is and what to write instead.
pub(super) fn resolve(
    text: &str,
    plain: bool,
    tag: Option<&str>,
    is_key: bool,
) -> Result<Content, (String, &'static str)> {
    match tag {
        // Quoted without quotes.
        Some("!" | "tag:yaml.org,2002:str") => return Ok(Content::Text(text.into())),
        Some(other) => return Err((format!("the tag {other}"), "leave it out")),
        None => {}
    }
    // Kubernetes takes every key for its text.
    if !plain || is_key {
        return Ok(Content::Text(text.into()));
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Content::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return Ok(Content::Bool(true));
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Ok(Content::Bool(false));
        }
        _ => {}
    }
    number(text)
}

fn number(text: &str) -> Result<Content, (String, &'static str)> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let has_zero = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let based = match (digits.strip_prefix("0x"), digits.strip_prefix("0o")) {
        (Some(hexadecimal), _) => Some(i64::from_str_radix(hexadecimal, 16)),
        (_, Some(octal)) => Some(i64::from_str_radix(octal, 8)),
        _ if has_zero => Some(i64::from_str_radix(digits, 8)),
        _ => None,
    };
    let integer = match based {
        Some(Ok(number)) if !text.starts_with('-') => Some(number),
        // Some take it for a decimal number, some for a text.
        Some(_) if has_zero => {
            let what = format!("the number {text}, which begins with 0");
            return Err((what, "write it without, or in quotes if it is a text"));
        }
        Some(_) => None,
        None => text.parse().ok(),
    };
    if let Some(integer) = integer {
        return Ok(Content::Number(integer.into()));
    }
    let looks_like_one = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && digits.bytes().any(|byte| byte.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let float = text.parse().ok().filter(|_| looks_like_one).and_then(serde_json::Number::from_f64);
    Ok(float.map_or_else(|| Content::Text(text.into()), Content::Number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Content {
        resolve(text, true, None, false).unwrap()
    }

    #[test]
    fn plain_words_that_are_no_texts() {
        for text in ["", "~", "null"] {
            assert_eq!(plain(text), Content::Null);
        }
        for (text, value) in [("yes", true), ("Off", false), ("true", true), ("n", false)] {
            assert_eq!(plain(text), Content::Bool(value));
        }
        for (text, value) in [
            ("1", 1),
            ("-7", -7),
            ("+7", 7),
            ("0x1f", 31),
            ("0", 0),
            ("0644", 420),
            ("00", 0),
            ("0o644", 420),
        ] {
            assert_eq!(plain(text), Content::Number(value.into()), "{text}");
        }
        assert!(matches!(plain("1.5e3"), Content::Number(_)));
    }

    #[test]
    fn everything_else_is_a_text() {
        for text in
            ["web", "1.2.3", "10m", "1Gi", "nginx:1", "-", ".", "inf", "NaN", "0x", "0o8", "2024-01-01", "e3"]
        {
            assert_eq!(plain(text), Content::Text(text.into()));
        }
        assert_eq!(resolve("yes", false, None, false).unwrap(), Content::Text("yes".into()));
        assert_eq!(resolve("on", true, None, true).unwrap(), Content::Text("on".into()));
    }

    #[test]
    fn what_readers_take_for_different_numbers_is_refused() {
        for text in ["08", "0649", "-0644"] {
            assert!(resolve(text, true, None, false).is_err(), "{text}");
        }
    }
}
