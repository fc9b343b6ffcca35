//! containerd's filters, as far as it sends them to snapshotters: `field==value` joined by commas, where a field is
//! `name`, `parent`, `kind` or `labels."some.label"`. A record must satisfy one filter of several.
//!
//! Quoted words have the escapes of Go, for containerd writes them with its `%q`.

use crate::records::{Kind, Record};

/// Filters of a request.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Term>>);

#[derive(Debug)]
struct Term {
    field: Field,
    operator: Operator,
    value: String,
}

#[derive(Debug)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Present,
}

impl Filters {
    /// Reads the filters; says which one is not understood.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, String> {
        let filter = |text: &String| terms(text).ok_or_else(|| format!("filter {text:?} is not understood"));
        texts.iter().filter(|text| !text.is_empty()).map(filter).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a record satisfies one of them; all do where there is none.
    pub(crate) fn take(&self, name: &str, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|terms| terms.iter().all(|term| term.holds(name, record)))
    }
}

impl Term {
    fn holds(&self, name: &str, record: &Record) -> bool {
        let actual = match &self.field {
            Field::Name => Some(name),
            Field::Parent => Some(record.parent.as_str()),
            Field::Kind => Some(match record.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Field::Label(label) => record.labels.get(label).map(String::as_str),
        };
        match self.operator {
            Operator::Present => actual.is_some_and(|actual| !actual.is_empty()),
            Operator::Equal => actual == Some(self.value.as_str()),
            Operator::NotEqual => actual != Some(self.value.as_str()),
        }
    }
}

fn terms(text: &str) -> Option<Vec<Term>> {
    let mut terms = Vec::new();
    let mut rest = text;
    loop {
        let (term, after) = term(rest)?;
        terms.push(term);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => return Some(terms),
            None => return None,
        }
    }
}

fn term(text: &str) -> Option<(Term, &str)> {
    let (field, rest) = match text.strip_prefix("labels.") {
        Some(rest) => {
            let (label, rest) = word(rest, &['=', '!', ','])?;
            (Field::Label(label), rest)
        }
        None => {
            let (name, rest) = word(text, &['=', '!', ','])?;
            let field = match name.as_str() {
                "name" => Field::Name,
                "parent" => Field::Parent,
                "kind" => Field::Kind,
                _ => return None,
            };
            (field, rest)
        }
    };
    let (operator, rest) = match (rest.strip_prefix("=="), rest.strip_prefix("!=")) {
        (Some(rest), _) => (Operator::Equal, rest),
        (_, Some(rest)) => (Operator::NotEqual, rest),
        _ => return Some((Term { field, operator: Operator::Present, value: String::new() }, rest)),
    };
    let (value, rest) = word(rest, &[','])?;
    Some((Term { field, operator, value }, rest))
}

/// A word, in quotes or up to one of the characters.
fn word<'a>(text: &'a str, ends: &[char]) -> Option<(String, &'a str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next()? {
                '"' => return Some((value, characters.as_str())),
                '\\' => value.push(escaped(&mut characters)?),
                other => value.push(other),
            }
        }
    }
    let end = text.find(ends).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

/// What stands behind a backslash. A byte that is no character on its own (`\xff`) is in no name of ours.
fn escaped(characters: &mut std::str::Chars<'_>) -> Option<char> {
    let digits = match characters.next()? {
        same @ ('\\' | '"' | '\'') => return Some(same),
        'a' => return Some('\x07'),
        'b' => return Some('\x08'),
        'f' => return Some('\x0c'),
        'n' => return Some('\n'),
        'r' => return Some('\r'),
        't' => return Some('\t'),
        'v' => return Some('\x0b'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let mut code = 0;
    for _ in 0..digits {
        code = code << 4 | characters.next()?.to_digit(16)?;
    }
    char::from_u32(code).filter(|_| digits > 2 || code < 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Place;

    fn record() -> Record {
        Record {
            number: 1,
            kind: Kind::Committed,
            parent: "below".into(),
            labels: [("containerd.io/gc.root".into(), "yes".into())].into(),
            created_ms: 0,
            updated_ms: 0,
            place: Place::Guest,
            usage: (0, 0),
        }
    }

    fn takes(filters: &[&str]) -> bool {
        let texts: Vec<_> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&texts).unwrap().take("name", &record())
    }

    #[test]
    fn one_filter_of_several_is_enough_and_all_its_terms_must_hold() {
        assert!(takes(&[]));
        assert!(takes(&["kind==committed"]));
        assert!(takes(&["kind==active", "parent==below,name==name"]));
        assert!(takes(&["labels.\"containerd.io/gc.root\"==yes"]));
        assert!(takes(&["labels.\"containerd.io/gc.root\""]));
        assert!(takes(&["name!=other"]));
        assert!(!takes(&["kind==committed,parent==other"]));
        assert!(!takes(&["labels.other==yes", "labels.other"]));
        assert!(!takes(&["labels.\"containerd.io/gc.root\"==YES"]));
        assert!(!takes(&["name==Name"]));
    }

    #[test]
    fn quoted_words_are_read_as_go_writes_them() {
        let mut record = record();
        record.parent = "a\"b\\c,d\ne\u{7f}é".into();
        let filter = r#"parent=="a\"b\\c,d\ne\x7f\u00e9""#;
        assert!(Filters::parse(&[filter.into()]).unwrap().take("name", &record));
        record.parent = String::new();
        assert!(Filters::parse(&["parent==\"\"".into()]).unwrap().take("name", &record));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for filter in [
            "size>3",
            "kind=committed",
            "labels.\"open==x",
            ",",
            "kind==a,,",
            "name~=x",
            r#"name=="\q""#,
            r#"name=="\xff""#,
            r#"name=="\"#,
            r#"name=="\U00110000""#,
        ] {
            assert!(Filters::parse(&[filter.into()]).is_err(), "{filter:?}");
        }
    }
}
