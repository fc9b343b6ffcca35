//! YAML with the place of everything in it: read within bounds, and annotated without touching the rest.
//!
//! The parser gives events with positions. What is made of them here is what Kubernetes' own tools make of the same
//! text; where those allow what no two readers understand alike (merge keys, foreign tags, keys twice), it is refused.

mod annotate;
mod scalar;

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::Value;

pub use annotate::AnnotateError;
pub(crate) use annotate::{Annotation, Step, annotate};

/// The longest text, in bytes: far more than a pod with all its ConfigMaps can have.
const LONGEST_TEXT: usize = 4 << 20;
/// How deep mappings and lists may stand in one another.
const DEEPEST: usize = 64;
/// Scalars, lists and mappings, those that aliases repeat included.
const MOST_NODES: usize = 200_000;
/// What an alias of a mapping's content is written as; nobody but YAML 1.1 knows it.
const MERGE_KEY: &str = "<<";

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) content: Content,
    /// Where it begins and ends, in bytes of the text.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Where it begins in its line, in characters.
    pub(crate) column: usize,
    /// How many nodes it is made of, itself included.
    weight: usize,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) column: usize,
}

/// Why a text is refused as YAML.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    /// More than there can be reason for.
    #[error("it has {actual} bytes, at most {LONGEST_TEXT} are read")]
    TooLong {
        /// Its length.
        actual: usize,
    },
    /// No YAML.
    #[error("line {line}: {problem}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser expected.
        problem: String,
    },
    /// Mappings and lists in one another.
    #[error("line {line}: nested more than {DEEPEST} deep")]
    TooDeep {
        /// Counted from 1.
        line: usize,
    },
    /// Aliases of aliases, most likely.
    #[error("line {line}: more than {MOST_NODES} values, those that aliases repeat included")]
    TooMany {
        /// Counted from 1.
        line: usize,
    },
    /// Readers differ about which one counts.
    #[error("line {line}: the key {key:?} stands twice in one mapping")]
    DuplicateKey {
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// A key that is no word, a tag, a merge key.
    #[error("line {line}: {what} is not supported; {instead}")]
    Unsupported {
        /// Counted from 1.
        line: usize,
        /// What stands there.
        what: String,
        /// What to write.
        instead: &'static str,
    },
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        Self::Syntax { line: error.marker().line(), problem: error.info().to_owned() }
    }
}

impl Node {
    /// The value of a mapping's key.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// As [`Self::get`], through several mappings.
    pub(crate) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, name| node.get(name))
    }

    /// Its text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Without the places. Keys without a value are left out, as Kubernetes does it.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => (*value).into(),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => text.as_str().into(),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(entries) => {
                let given = entries.iter().filter(|(_, node)| node.content != Content::Null);
                Value::Object(given.map(|(key, node)| (key.name.clone(), node.to_json())).collect())
            }
        }
    }
}

/// Reads all documents of a text.
///
/// # Errors
/// [`YamlError`].
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, YamlError> {
    if text.len() > LONGEST_TEXT {
        return Err(YamlError::TooLong { actual: text.len() });
    }
    let mut composer = Composer::new(text);
    let mut parser: Parser<'_, StrInput<'_>> = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        composer.take(event, span)?;
    }
    Ok(composer.documents)
}

fn full_name(tag: &Tag) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}

/// A list or mapping whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The key that waits for its value.
    key: Option<Key>,
    keys: BTreeSet<String>,
}

struct Composer {
    documents: Vec<Node>,
    open: Vec<Open>,
    /// Complete nodes that aliases may repeat, by the parser's number.
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    /// The byte at which each character begins, where they are not the same.
    bytes: Option<Vec<usize>>,
    length: usize,
}

impl Composer {
    fn new(text: &str) -> Self {
        let bytes = (!text.is_ascii()).then(|| text.char_indices().map(|(at, _)| at).collect());
        Self {
            documents: Vec::new(),
            open: Vec::new(),
            anchors: BTreeMap::new(),
            nodes: 0,
            bytes,
            length: text.len(),
        }
    }

    fn byte(&self, character: usize) -> usize {
        match &self.bytes {
            None => character.min(self.length),
            Some(bytes) => bytes.get(character).copied().unwrap_or(self.length),
        }
    }

    fn node(&self, content: Content, span: Span) -> Node {
        Node {
            content,
            start: self.byte(span.start.index()),
            end: self.byte(span.end.index()),
            column: span.start.col(),
            weight: 1,
        }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let line = span.start.line();
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).filter(|node| self.nodes + node.weight <= MOST_NODES);
                let Some(node) = known.cloned() else { return Err(YamlError::TooMany { line }) };
                self.complete(node, 0, line)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| full_name(&tag));
                let plain = style == ScalarStyle::Plain;
                let content = scalar::resolve(&text, plain, tag.as_deref(), self.awaits_key())
                    .map_err(|(what, instead)| YamlError::Unsupported { line, what, instead })?;
                self.complete(self.node(content, span), anchor, line)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(Content::List(Vec::new()), anchor, tag.map(|tag| full_name(&tag)), span)
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(Content::Map(Vec::new()), anchor, tag.map(|tag| full_name(&tag)), span)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(mut open) = self.open.pop() else { return Ok(()) };
                open.node.end = self.byte(span.end.index());
                // It was counted when it began, and its parts since.
                self.nodes -= open.node.weight;
                self.complete(open.node, open.anchor, line)
            }
        }
    }

    fn awaits_key(&self) -> bool {
        self.open
            .last()
            .is_some_and(|open| open.key.is_none() && matches!(open.node.content, Content::Map(_)))
    }

    fn begin(
        &mut self,
        content: Content,
        anchor: usize,
        tag: Option<String>,
        span: Span,
    ) -> Result<(), YamlError> {
        let line = span.start.line();
        let unsupported = |what: String, instead| Err(YamlError::Unsupported { line, what, instead });
        if self.open.len() == DEEPEST {
            return Err(YamlError::TooDeep { line });
        }
        if self.awaits_key() {
            return unsupported("a list or mapping as a key".into(), "keys are words");
        }
        if let Some(tag) = tag {
            return unsupported(format!("the tag {tag}"), "leave it out");
        }
        let node = self.node(content, span);
        self.count(1, line)?;
        self.open.push(Open { node, anchor, key: None, keys: BTreeSet::new() });
        Ok(())
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MOST_NODES { Err(YamlError::TooMany { line }) } else { Ok(()) }
    }

    /// Puts a node where it belongs: into the innermost open list or mapping.
    fn complete(&mut self, node: Node, anchor: usize, line: usize) -> Result<(), YamlError> {
        self.count(node.weight, line)?;
        if anchor != 0 {
            // A copy of its own, which costs as much.
            self.count(node.weight, line)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        open.node.weight += node.weight;
        match (&mut open.node.content, open.key.take()) {
            (Content::List(items), _) => items.push(node),
            (Content::Map(entries), Some(key)) => entries.push((key, node)),
            (_, _) => {
                let Content::Text(name) = node.content else {
                    let what = "a key that is no word".to_owned();
                    return Err(YamlError::Unsupported { line, what, instead: "keys are words" });
                };
                if name == MERGE_KEY {
                    let what = format!("the merge key {MERGE_KEY}");
                    return Err(YamlError::Unsupported { line, what, instead: "write the keys out" });
                }
                if !open.keys.insert(name.clone()) {
                    return Err(YamlError::DuplicateKey { line, key: name });
                }
                open.key = Some(Key { name, start: node.start, end: node.end, column: node.column });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn json_of(text: &str) -> Value {
        parse(text).unwrap()[0].to_json()
    }

    #[test]
    fn values_are_what_kubernetes_takes_them_for() {
        assert_eq!(
            json_of(
                "a: 1\nb: 'x'\nc: yes\nd: ~\ne: [1.5, \"2\", 0x10, -3]\nf:\n  g: |\n    t\nh: !!str 5\n1: one\n"
            ),
            json!({"a": 1, "b": "x", "c": true, "e": [1.5, "2", 16, -3], "f": {"g": "t\n"}, "h": "5", "1": "one"})
        );
        assert_eq!(parse("a: 1\n---\nb: 2\n...\n").unwrap().len(), 2);
    }

    #[test]
    fn places_are_bytes_also_behind_letters_of_several() {
        let text = "ä: ö\nname: web\n";
        let documents = parse(text).unwrap();
        let node = documents[0].get("name").unwrap();
        assert_eq!(&text[node.start..node.end], "web");
        let Content::Map(entries) = &documents[0].content else { panic!() };
        assert_eq!(&text[entries[1].0.start..entries[1].0.end], "name");
    }

    #[test]
    fn an_alias_repeats_what_its_anchor_names() {
        assert_eq!(json_of("a: &x [1, 2]\nb: *x\n"), json!({"a": [1, 2], "b": [1, 2]}));
        assert!(parse("a: *x\n").is_err());
        assert!(parse("a: &x [*x]\n").is_err());
        assert!(parse("a: &x 1\n---\nb: *x\n").is_err());
    }

    #[test]
    fn what_two_readers_could_take_for_two_things_is_refused() {
        for (text, word) in [
            ("a: 1\na: 2\n", "twice"),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "merge key"),
            ("? [a]\n: 1\n", "as a key"),
            ("a: !!binary aGk=\n", "tag"),
            ("a: !mine x\n", "tag"),
            ("a: !mine [x]\n", "tag"),
            ("a: 0795\n", "begins with 0"),
            ("a: [1\n", "line"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn hostile_yaml_is_refused_in_time() {
        let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            let aliases = [alias.as_str(); 10].join(",");
            laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let steps: String = (0..5000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let texts = [
            laughs,
            "[".repeat(1 << 20),
            "{a: ".repeat(1 << 19),
            "- ".repeat(1 << 20),
            "? ".repeat(1 << 20),
            steps[..1 << 20].to_owned(),
            "a: 1\n".repeat(2 << 20),
            "- a\n".repeat(1 << 20),
            "x".repeat(10 << 20),
            "&a ".repeat(1 << 20),
            "!".repeat(1 << 20),
            "\"".repeat((1 << 20) + 1),
            (0..300_000).map(|number| format!("k{number}: 1\n")).collect::<String>(),
        ];
        for text in texts {
            let begin = Instant::now();
            let begins = text.chars().take(12).collect::<String>();
            assert!(parse(&text).is_err(), "{begins:?}");
            assert!(begin.elapsed() < Duration::from_secs(5), "{begins:?} took {:?}", begin.elapsed());
        }
    }
}
