//! Parts of a policy in words.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::policy::{Command, Expected, Part, Pattern, User, Variable, Word};

pub(super) fn of_command(command: &Command) -> String {
    let all = |words: &[Word]| words.iter().map(word).collect::<Vec<_>>();
    match command {
        Command::Image => "the image's own".into(),
        Command::Arguments(words) => format!("the image's entrypoint with {}", self::command(&all(words))),
        Command::Exactly(words) => self::command(&all(words)),
    }
}

/// As a shell would take it.
pub(super) fn command(words: &[String]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,+@%^".contains(&byte);
    let quoted = |word: &String| match !word.is_empty() && word.bytes().all(plain) {
        true => word.clone(),
        false => format!("'{}'", printable(&word.replace('\'', "'\\''"))),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Line ends and their like as escapes: a statement is one line.
fn printable(text: &str) -> String {
    let escape = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    };
    text.chars().map(escape).collect()
}

pub(super) fn word(word: &Word) -> String {
    match word {
        Word::Text(text) => text.clone(),
        Word::MadeOf { made_of } => parts(made_of),
    }
}

fn parts(parts: &[Part]) -> String {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Variable { variable } => format!("$({variable})"),
    };
    parts.iter().map(part).collect()
}

pub(super) fn user(user: &User) -> String {
    match (user.number, user.group) {
        (None, None) => "the image's".into(),
        (Some(number), None) => number.to_string(),
        (None, Some(group)) => format!("the image's, of group {group}"),
        (Some(number), Some(group)) => format!("{number} of group {group}"),
    }
}

/// Nothing for the usual set.
pub(super) fn capabilities(sets: &[Option<BTreeSet<String>>]) -> Option<String> {
    if sets.contains(&None) {
        return None;
    }
    let set = |set: &BTreeSet<String>| if set.is_empty() { "none".into() } else { list(set) };
    let sets: Vec<_> = sets.iter().flatten().map(set).collect();
    Some(sets.join("; or, by another engine, "))
}

pub(super) fn variable(variable: &Variable) -> String {
    let value = match &variable.value {
        Expected::Exactly(text) => format!("{text:?}"),
        Expected::MadeOf(made_of) => format!("{:?}", parts(made_of)),
        Expected::Like(Pattern::Address) => "any address".into(),
        Expected::Like(Pattern::Number) => "any number".into(),
        Expected::Like(Pattern::Name) => "any name".into(),
        Expected::Like(Pattern::Anything) => "anything".into(),
        Expected::Begins(prefix) => format!("any name that begins with {prefix:?}"),
    };
    if variable.optional { format!("{value}, or nothing") } else { value }
}

pub(super) fn list<T: Display>(items: &BTreeSet<T>) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
