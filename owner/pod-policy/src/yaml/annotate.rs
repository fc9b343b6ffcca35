//! Puts an annotation into a text by inserting it: everything else stays as its author wrote it.

use serde_json::{Map, Value};

use super::{Content, Key, Node, YamlError, parse};

const METADATA: &str = "metadata";
const ANNOTATIONS: &str = "annotations";

/// An annotation for the object at a place.
#[derive(Clone, Debug)]
pub(crate) struct Annotation {
    /// Which of the text's documents, and the steps from its root to the object that has the `metadata`.
    pub(crate) document: usize,
    pub(crate) steps: Vec<Step>,
    pub(crate) name: &'static str,
    /// A text that is plain in YAML: letters, digits, `+`, `/`, `=`, and after the first `-` and single blanks.
    pub(crate) value: String,
}

/// A step into a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(&'static str),
    Item(usize),
}

/// Why an annotation cannot be put into a text.
#[derive(Debug, thiserror::Error)]
pub enum AnnotateError {
    /// The text was no YAML before, or is none afterwards.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// There is nowhere to put it.
    #[error("{what} has no place for the annotation")]
    NoPlace {
        /// `metadata` or `annotations`.
        what: String,
    },
    /// The text would say something else besides.
    #[error(
        "the annotation cannot be inserted without changing something else (anchors or aliases around metadata)"
    )]
    Entangled,
}

/// What replaces a part of the text.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

/// The text with these annotations. Read again it says the same as before, and the annotations.
///
/// # Errors
/// [`AnnotateError`].
pub(crate) fn annotate(text: &str, annotations: &[Annotation]) -> Result<String, AnnotateError> {
    let documents = parse(text)?;
    let mut expected: Vec<Value> = documents.iter().map(Node::to_json).collect();
    let mut edits = Vec::new();
    for annotation in annotations {
        let object = documents.get(annotation.document).and_then(|root| find(root, &annotation.steps));
        let object = object.ok_or_else(|| no_place("the pod's template"))?;
        edits.push(place(text, object, annotation)?);
        let value = expected.get_mut(annotation.document);
        let object = value.and_then(|value| find_json(value, &annotation.steps));
        annotate_json(object.ok_or_else(|| no_place("the pod's template"))?, annotation)?;
    }
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.start));
    let mut edited = text.to_owned();
    for edit in edits {
        if edited.get(edit.start..edit.end).is_none() {
            return Err(AnnotateError::Entangled);
        }
        edited.replace_range(edit.start..edit.end, &edit.text);
    }
    // The proof: it parses, and to what it must.
    let actual: Vec<Value> =
        parse(&edited).map_err(|_| AnnotateError::Entangled)?.iter().map(Node::to_json).collect();
    if actual == expected { Ok(edited) } else { Err(AnnotateError::Entangled) }
}

fn no_place(what: &str) -> AnnotateError {
    AnnotateError::NoPlace { what: what.into() }
}

fn find<'a>(root: &'a Node, steps: &[Step]) -> Option<&'a Node> {
    steps.iter().try_fold(root, |node, step| match (step, &node.content) {
        (Step::Key(name), _) => node.get(name),
        (Step::Item(number), Content::List(items)) => items.get(*number),
        (Step::Item(_), _) => None,
    })
}

fn find_json<'a>(root: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    steps.iter().try_fold(root, |value, step| match step {
        Step::Key(name) => value.get_mut(*name),
        Step::Item(number) => value.get_mut(*number),
    })
}

fn annotate_json(object: &mut Value, annotation: &Annotation) -> Result<(), AnnotateError> {
    let mut value = object;
    for name in [METADATA, ANNOTATIONS] {
        let map = value.as_object_mut().ok_or_else(|| no_place(name))?;
        value = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
    }
    let map = value.as_object_mut().ok_or_else(|| no_place(ANNOTATIONS))?;
    map.insert(annotation.name.into(), annotation.value.as_str().into());
    Ok(())
}

/// Finds the innermost mapping of `metadata` and `annotations` that is there, and writes what is missing into it.
fn place(text: &str, object: &Node, annotation: &Annotation) -> Result<Edit, AnnotateError> {
    let path = [METADATA, ANNOTATIONS, annotation.name];
    let mut map = object;
    for (depth, name) in path.iter().enumerate() {
        let missing = path.get(depth..).unwrap_or_default();
        let Content::Map(entries) = &map.content else { return Err(no_place(name)) };
        let Some((key, node)) = entries.iter().find(|(key, _)| key.name == *name) else {
            return insert(text, map, entries, missing, &annotation.value);
        };
        match &node.content {
            Content::Map(_) => map = node,
            Content::Null => {
                let inner = missing.get(1..).unwrap_or_default();
                return fill(text, key, node, inner, &annotation.value);
            }
            // The annotation itself, of an earlier time.
            _ if depth + 1 == path.len() => {
                return replace(text, key, node, &annotation.value);
            }
            _ => return Err(no_place(name)),
        }
    }
    Err(no_place(annotation.name))
}

/// A new entry of a mapping: before its first key, which shows how deep keys are indented.
fn insert(
    text: &str,
    map: &Node,
    entries: &[(Key, Node)],
    names: &[&str],
    value: &str,
) -> Result<Edit, AnnotateError> {
    let is_flow = text.get(map.start..).is_some_and(|rest| rest.starts_with('{'));
    if is_flow {
        let comma = if entries.is_empty() { "" } else { ", " };
        let at = map.start + 1;
        return Ok(Edit { start: at, end: at, text: format!("{}{comma}", flow_entry(names, value)) });
    }
    let (first, _) = entries.first().ok_or_else(|| no_place(METADATA))?;
    let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut block = String::new();
    for (depth, name) in names.iter().enumerate() {
        if depth > 0 {
            block.push_str(line_end);
            block.push_str(&" ".repeat(first.column + 2 * depth));
        }
        block.push_str(name);
        block.push(':');
    }
    let indent = " ".repeat(first.column);
    Ok(Edit { start: first.start, end: first.start, text: format!("{block} {value}{line_end}{indent}") })
}

/// A mapping for a key that has no value.
fn fill(text: &str, key: &Key, node: &Node, names: &[&str], value: &str) -> Result<Edit, AnnotateError> {
    let behind_key = text.get(key.end..).unwrap_or_default();
    let colon = behind_key.find(':').ok_or(AnnotateError::Entangled)?;
    let start = key.end + colon + 1;
    let mapping = match names {
        [] => format!(" {value}"),
        names => format!(" {{{}}}", flow_entry(names, value)),
    };
    // `null` and `~` go; where nothing is written, there is nothing to remove.
    let written = text.get(node.start..node.end).is_some_and(|written| !written.trim().is_empty());
    Ok(Edit { start, end: if written { node.end } else { start }, text: mapping })
}

fn flow_entry(names: &[&str], value: &str) -> String {
    let open: String = names.iter().map(|name| format!("\"{name}\": {{")).collect();
    let open = open.strip_suffix('{').unwrap_or(&open);
    format!("{open}\"{value}\"{}", "}".repeat(names.len().saturating_sub(1)))
}

/// The value in the place of an earlier one; quotes where JSON needs them. A block scalar (`|`) is replaced from the
/// colon to where the next line's first word begins.
fn replace(text: &str, key: &Key, old: &Node, value: &str) -> Result<Edit, AnnotateError> {
    let written = text.get(old.start..old.end).unwrap_or_default();
    let colon = text.get(key.end..).and_then(|behind| behind.find(':')).ok_or(AnnotateError::Entangled)?;
    let behind_colon = key.end + colon + 1;
    let before = text.get(behind_colon..old.start).unwrap_or_default();
    if !before.contains('\n') {
        let quote = if written.starts_with('"') { "\"" } else { "" };
        return Ok(Edit { start: old.start, end: old.end, text: format!("{quote}{value}{quote}") });
    }
    let indent = written.rfind('\n').and_then(|at| written.get(at..)).filter(|rest| rest.trim().is_empty());
    let text = format!(" {value}{}", indent.unwrap_or_default());
    Ok(Edit { start: behind_colon, end: old.end, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(text: &str) -> Result<String, AnnotateError> {
        annotated_at(text, &[])
    }

    fn annotated_at(text: &str, steps: &[Step]) -> Result<String, AnnotateError> {
        let annotation = Annotation {
            document: 0,
            steps: steps.to_vec(),
            name: "example.org/a",
            value: "H4sI+/==".into(),
        };
        annotate(text, &[annotation])
    }

    #[test]
    fn the_annotation_goes_into_what_is_there() {
        for (text, expected) in [
            (
                "# a pod\nmetadata:\n  name: web # its name\n  annotations:\n    b: c\nspec: {}\n",
                "# a pod\nmetadata:\n  name: web # its name\n  annotations:\n    example.org/a: H4sI+/==\n    b: c\nspec: {}\n",
            ),
            (
                "metadata:\n    name: web\nspec: {}\n",
                "metadata:\n    annotations:\n      example.org/a: H4sI+/==\n    name: web\nspec: {}\n",
            ),
            ("spec: {}\n", "metadata:\n  annotations:\n    example.org/a: H4sI+/==\nspec: {}\n"),
            (
                "metadata: {name: web}\n",
                "metadata: {\"annotations\": {\"example.org/a\": \"H4sI+/==\"}, name: web}\n",
            ),
            (
                "{\"metadata\":{\"annotations\":{}}}",
                "{\"metadata\":{\"annotations\":{\"example.org/a\": \"H4sI+/==\"}}}",
            ),
            (
                "metadata:\n  annotations:\n  name: web\n",
                "metadata:\n  annotations: {\"example.org/a\": \"H4sI+/==\"}\n  name: web\n",
            ),
            (
                "metadata:\n  annotations: null # none\n",
                "metadata:\n  annotations: {\"example.org/a\": \"H4sI+/==\"} # none\n",
            ),
            (
                "metadata: ~\nspec: {}\n",
                "metadata: {\"annotations\": {\"example.org/a\": \"H4sI+/==\"}}\nspec: {}\n",
            ),
            (
                "metadata:\n  annotations:\n    example.org/a: old # note\n",
                "metadata:\n  annotations:\n    example.org/a: H4sI+/== # note\n",
            ),
            (
                "{\"metadata\": {\"annotations\": {\"example.org/a\": \"old\"}}}",
                "{\"metadata\": {\"annotations\": {\"example.org/a\": \"H4sI+/==\"}}}",
            ),
            (
                "metadata:\r\n  name: wéb\r\n",
                "metadata:\r\n  annotations:\r\n    example.org/a: H4sI+/==\r\n  name: wéb\r\n",
            ),
        ] {
            assert_eq!(annotated(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_item_of_a_list_keeps_its_dash() {
        let steps = [Step::Key("items"), Step::Item(1)];
        assert_eq!(
            annotated_at("items:\n- kind: A\n- kind: B\n", &steps).unwrap(),
            "items:\n- kind: A\n- metadata:\n    annotations:\n      example.org/a: H4sI+/==\n  kind: B\n"
        );
    }

    #[test]
    fn an_old_value_in_a_block_is_replaced() {
        let text = "metadata:\n  annotations:\n    example.org/a: |\n      old\n      text\n    b: c\n";
        let edited = annotated(text).unwrap();
        assert_eq!(edited, "metadata:\n  annotations:\n    example.org/a: H4sI+/==\n    b: c\n");
        let text = "metadata:\n  annotations:\n    example.org/a: >-\n      old\n      text\n";
        assert_eq!(annotated(text).unwrap(), "metadata:\n  annotations:\n    example.org/a: H4sI+/==\n");
        let text = "metadata:\n  annotations:\n    example.org/a:\n      old\n    b: c\n";
        assert_eq!(
            annotated(text).unwrap(),
            "metadata:\n  annotations:\n    example.org/a: H4sI+/==\n    b: c\n"
        );
    }

    #[test]
    fn what_would_change_something_else_is_refused() {
        let shared = "other: &m\n  name: web\nmetadata: *m\n";
        assert!(matches!(annotated(shared), Err(AnnotateError::Entangled)));
        assert!(matches!(annotated("metadata: text\n"), Err(AnnotateError::NoPlace { .. })));
        assert!(matches!(annotated("- a\n"), Err(AnnotateError::NoPlace { .. })));
        let twice = "metadata:\n  annotations: &x\n    b: c\nspec:\n  labels: *x\n";
        assert!(matches!(annotated(twice), Err(AnnotateError::Entangled)));
    }
}
