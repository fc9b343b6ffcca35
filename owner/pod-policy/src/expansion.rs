//! `$(NAME)` in commands and values, as kubelet replaces it.

use crate::policy::{Part, Word};

/// What a name stands for.
pub(crate) enum Meaning {
    /// This text.
    Text(String),
    /// A value that is known on the node only.
    Variable,
    /// Nothing: the reference stays as it is.
    Unknown,
}

/// Replaces references; `$$` stands for one `$`.
pub(crate) fn expand(text: &str, meaning: impl Fn(&str) -> Meaning) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        add(&mut parts, before);
        rest = behind;
        if let Some(behind) = rest.strip_prefix('$') {
            add(&mut parts, "$");
            rest = behind;
        } else if let Some((name, behind)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match meaning(name) {
                Meaning::Text(value) => add(&mut parts, &value),
                Meaning::Variable => parts.push(Part::Variable { variable: name.into() }),
                Meaning::Unknown => add(&mut parts, &format!("$({name})")),
            }
            rest = behind;
        } else {
            add(&mut parts, "$");
        }
    }
    add(&mut parts, rest);
    parts
}

/// As [`expand`], for a word of a command line.
pub(crate) fn expand_word(text: &str, meaning: impl Fn(&str) -> Meaning) -> Word {
    match known(expand(text, meaning)) {
        Ok(text) => Word::Text(text),
        Err(made_of) => Word::MadeOf { made_of },
    }
}

/// The text, if no part of it is unknown.
pub(crate) fn known(mut parts: Vec<Part>) -> Result<String, Vec<Part>> {
    match (parts.pop(), parts.is_empty()) {
        (None, _) => Ok(String::new()),
        (Some(Part::Text(text)), true) => Ok(text),
        (Some(last), _) => {
            parts.push(last);
            Err(parts)
        }
    }
}

/// Texts that follow one another are one.
fn add(parts: &mut Vec<Part>, more: &str) {
    match parts.last_mut() {
        _ if more.is_empty() => {}
        Some(Part::Text(text)) => text.push_str(more),
        _ => parts.push(Part::Text(more.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Vec<Part> {
        expand(text, |name| match name {
            "A" => Meaning::Text("1".into()),
            "V" => Meaning::Variable,
            _ => Meaning::Unknown,
        })
    }

    #[test]
    fn references_are_replaced_as_kubelet_does_it() {
        for (text, expected) in [
            ("", ""),
            ("a$(A)b", "a1b"),
            ("$(A)$(A)", "11"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A $ $", "$A $ $"),
            ("ä$(A)ö", "ä1ö"),
        ] {
            assert_eq!(known(expanded(text)), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_here_stays_a_part() {
        let variable = Part::Variable { variable: "V".into() };
        let text = |text: &str| Part::Text(text.into());
        assert_eq!(expanded("a$(A)$(V)b"), [text("a1"), variable.clone(), text("b")]);
        assert_eq!(known(expanded("$(V)")), Err(vec![variable]));
    }
}
