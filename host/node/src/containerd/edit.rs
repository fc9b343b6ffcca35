//! Edits of a configuration file that keep everything else as it is, and that can be taken back.

use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// Stands above each table that was added.
const COMMENT: &str = "\n# Added by `sealpod node install`; `sealpod node uninstall` removes it.\n";

/// What takes an edit back, as long as nobody has changed what it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Undo {
    /// A value was set.
    Value {
        /// The keys that lead to it.
        path: Vec<String>,
        /// The value, in TOML.
        ours: String,
        /// The one before, in TOML.
        before: Option<String>,
    },
    /// A string was added to an array.
    Element {
        /// The keys that lead to the array.
        path: Vec<String>,
        /// The string.
        element: String,
        /// Whether the array was made for it.
        alone: bool,
    },
    /// A table was made.
    Table {
        /// The keys that lead to it.
        path: Vec<String>,
    },
}

impl Undo {
    /// The keys that lead to what was edited.
    pub(crate) fn path(&self) -> &[String] {
        match self {
            Self::Value { path, .. } | Self::Element { path, .. } | Self::Table { path } => path,
        }
    }
}

/// A file that is being edited.
pub(crate) struct Editor<'a> {
    document: &'a mut DocumentMut,
    undo: Vec<Undo>,
    /// Tables that were made and have a line of their own.
    headed: Vec<Vec<String>>,
}

impl<'a> Editor<'a> {
    pub(crate) fn new(document: &'a mut DocumentMut) -> Self {
        Self { document, undo: Vec::new(), headed: Vec::new() }
    }

    /// What takes the edits back.
    pub(crate) fn finish(self) -> Vec<Undo> {
        self.undo
    }

    /// Sets a value.
    ///
    /// # Errors
    /// With what was expected and what came, if something on the way is no table or the old value is none.
    pub(crate) fn set(&mut self, path: &[&str], value: impl Into<Value>) -> Result<(), String> {
        let value = value.into();
        let ours = text_of(&value);
        let Some((key, table)) = self.table_of(path)? else { return Ok(()) };
        let before = match table.get_mut(key) {
            None | Some(Item::None) => {
                insert(table, key, value);
                None
            }
            Some(Item::Value(old)) => {
                let before = text_of(old);
                if before == ours {
                    return Ok(());
                }
                replace(old, value);
                Some(before)
            }
            Some(other) => return Err(unexpected(path, "a value", other)),
        };
        self.undo.push(Undo::Value { path: owned(path), ours, before });
        Ok(())
    }

    /// Adds a string to an array, or makes one for it.
    ///
    /// # Errors
    /// As with [`Editor::set`].
    pub(crate) fn add(&mut self, path: &[&str], element: &str) -> Result<(), String> {
        let Some((key, table)) = self.table_of(path)? else { return Ok(()) };
        let alone = match table.get_mut(key) {
            None | Some(Item::None) => {
                insert(table, key, Array::from_iter([element]).into());
                true
            }
            Some(Item::Value(Value::Array(array))) => {
                if array.iter().any(|present| present.as_str() == Some(element)) {
                    return Ok(());
                }
                array.push(element);
                false
            }
            Some(other) => return Err(unexpected(path, "an array", other)),
        };
        self.undo.push(Undo::Element { path: owned(path), element: element.into(), alone });
        Ok(())
    }

    /// The last key of a path, and the table that has it; tables that are missing are made.
    fn table_of<'p>(&mut self, path: &[&'p str]) -> Result<Option<(&'p str, &mut dyn TableLike)>, String> {
        let Some((key, parents)) = path.split_last() else { return Ok(None) };
        let mut table: &mut dyn TableLike = self.document.as_table_mut();
        let mut inline = false;
        for (depth, parent) in parents.iter().enumerate() {
            let here = &path[..=depth];
            if !table.contains_key(parent) {
                let last = depth + 1 == parents.len();
                let inside = self.headed.iter().any(|path| here.iter().take(path.len()).eq(path));
                table.insert(parent, new_table(inline, last, !inside));
                if last {
                    self.headed.push(owned(here));
                }
                self.undo.push(Undo::Table { path: owned(here) });
            }
            let item = table.entry(parent).or_insert(Item::None);
            inline = item.is_inline_table();
            let kind = item.type_name();
            let problem = || format!("expected {} to be a table, got {}", shown(here), article(kind));
            table = item.as_table_like_mut().ok_or_else(problem)?;
        }
        Ok(Some((key, table)))
    }
}

/// Takes edits back, the last first. Gives what somebody has changed since, which stays as it is.
pub(crate) fn take_back(document: &mut DocumentMut, undo: &[Undo]) -> Vec<String> {
    let mut kept = Vec::new();
    for step in undo.iter().rev() {
        match step {
            Undo::Value { path, ours, before } => {
                let Some((key, table)) = find(document, path) else { continue };
                match table.get_mut(key) {
                    Some(Item::Value(value)) if text_of(value) == *ours => {
                        match before.as_ref().and_then(|before| before.parse().ok()) {
                            Some(before) => replace(value, before),
                            None => drop(table.remove(key)),
                        }
                    }
                    None | Some(Item::None) => {}
                    Some(Item::Value(value)) if Some(text_of(value)) == *before => {}
                    Some(_) => kept.push(shown(path)),
                }
            }
            Undo::Element { path, element, alone } => {
                let Some((key, table)) = find(document, path) else { continue };
                let Some(array) = table.get_mut(key).and_then(Item::as_array_mut) else { continue };
                array.retain(|present| present.as_str() != Some(element));
                if *alone && array.is_empty() {
                    table.remove(key);
                }
            }
            Undo::Table { path } => remove_table(document, path, |table| table.is_empty()),
        }
    }
    kept
}

/// Removes a table with all that is in it if it lacks a key.
pub(crate) fn remove_without(document: &mut DocumentMut, path: &[&str], key: &str) {
    remove_table(document, path, |table| !table.contains_key(key));
}

fn remove_table<S: AsRef<str>>(
    document: &mut DocumentMut,
    path: &[S],
    condition: impl Fn(&dyn TableLike) -> bool,
) {
    let Some((key, table)) = find(document, path) else { return };
    if table.get(key).and_then(Item::as_table_like).is_some_and(condition) {
        table.remove(key);
    }
}

/// The table that has the last key of a path.
fn find<'d, 'p, S: AsRef<str>>(
    document: &'d mut DocumentMut,
    path: &'p [S],
) -> Option<(&'p str, &'d mut dyn TableLike)> {
    let (key, parents) = path.split_last()?;
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for parent in parents {
        table = table.get_mut(parent.as_ref())?.as_table_like_mut()?;
    }
    Some((key.as_ref(), table))
}

/// `last`: it will have values of its own; `first`: it is in no other new one.
fn new_table(inline: bool, last: bool, first: bool) -> Item {
    if inline {
        return Item::Value(InlineTable::new().into());
    }
    let mut table = Table::new();
    table.set_implicit(!last);
    let comment = if first { COMMENT } else { "\n" };
    table.decor_mut().set_prefix(if last { comment } else { "\n" });
    Item::Table(table)
}

/// A new value looks like its neighbours.
fn insert(table: &mut dyn TableLike, key: &str, value: Value) {
    let indentation = table.iter().filter(|(_, item)| item.is_value()).last().and_then(|(neighbour, _)| {
        let prefix = table.key(neighbour)?.leaf_decor().prefix()?.as_str()?;
        Some(prefix.rsplit('\n').next().unwrap_or_default().to_owned())
    });
    table.insert(key, Item::Value(value));
    if let (Some(indentation), Some(mut key)) = (indentation, table.key_mut(key)) {
        key.leaf_decor_mut().set_prefix(indentation);
    }
}

/// The comment behind a value stays.
fn replace(old: &mut Value, new: Value) {
    let decor = old.decor().clone();
    *old = new;
    *old.decor_mut() = decor;
}

fn text_of(value: &Value) -> String {
    value.clone().decorated("", "").to_string()
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|key| (*key).to_owned()).collect()
}

fn unexpected(path: &[&str], expected: &str, actual: &Item) -> String {
    format!("expected {} to be {expected}, got {}", shown(path), article(actual.type_name()))
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A path as TOML writes it.
pub(crate) fn shown<S: AsRef<str>>(path: &[S]) -> String {
    let keys = path.iter().map(|key| toml_edit::Key::new(key.as_ref()).to_string());
    keys.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(text: &str, edit: impl FnOnce(&mut Editor) -> Result<(), String>) -> (DocumentMut, Vec<Undo>) {
        let mut document: DocumentMut = text.parse().unwrap();
        let mut editor = Editor::new(&mut document);
        edit(&mut editor).unwrap();
        let undo = editor.finish();
        document.to_string().parse::<toml::Table>().expect("it is TOML still");
        (document, undo)
    }

    /// Taking everything back gives the text again.
    fn round_trip(text: &str, change: impl FnOnce(&mut Editor) -> Result<(), String>) -> String {
        let (mut document, undo) = edit(text, change);
        let edited = document.to_string();
        assert_eq!(take_back(&mut document, &undo), [""; 0]);
        assert_eq!(document.to_string(), text);
        edited
    }

    #[test]
    fn a_value_keeps_its_comment_and_indentation() {
        let text = "[a] # table\n  # above\n  b = \"x\" # behind\n\n[z]\n";
        let edited = round_trip(text, |editor| editor.set(&["a", "b"], "y"));
        assert_eq!(edited, text.replace("\"x\"", "\"y\""));
        let edited = round_trip(text, |editor| editor.set(&["a", "c"], false));
        assert_eq!(edited, text.replace("# behind\n", "# behind\n  c = false\n"));
    }

    #[test]
    fn tables_of_every_form_can_be_extended() {
        let set = |editor: &mut Editor| editor.set(&["a", "b", "c"], 1);
        assert_eq!(round_trip("[a.b]\nx = 0\n", set), "[a.b]\nx = 0\nc = 1\n");
        assert_eq!(round_trip("a.b.x = 0\n", set), "a.b.x = 0\na.b.c = 1\n");
        assert!(round_trip("[a]\nb = {}\n", set).contains("c = 1"));
        assert!(round_trip("a = {x = {}}\n", set).contains("b = { c = 1 }"));
        assert!(round_trip("[a.x]\n", set).ends_with("[a.b]\nc = 1\n"));
        assert!(round_trip("", set).ends_with("[a.b]\nc = 1\n"));
    }

    #[test]
    fn what_is_no_table_is_said() {
        let mut document: DocumentMut = "a = 3\n[b.c]\n".parse().unwrap();
        let mut editor = Editor::new(&mut document);
        assert_eq!(editor.set(&["a", "b"], 1).unwrap_err(), "expected a to be a table, got an integer");
        assert_eq!(editor.set(&["b", "c"], 1).unwrap_err(), "expected b.c to be a value, got a table");
        assert_eq!(editor.add(&["a"], "x").unwrap_err(), "expected a to be an array, got an integer");
    }

    #[test]
    fn what_is_there_already_is_neither_changed_nor_taken_back() {
        let text = "a = [\"x\"]\nb = 'y'\n";
        let (document, undo) = edit(text, |editor| editor.add(&["a"], "x"));
        assert_eq!((document.to_string(), undo), (text.to_owned(), vec![]));
    }

    #[test]
    fn of_an_array_only_the_own_string_is_taken_back() {
        let (mut document, undo) = edit("a = [\n  \"x\", # why\n]\n", |editor| editor.add(&["a"], "ours"));
        document["a"].as_array_mut().unwrap().push("theirs");
        take_back(&mut document, &undo);
        let array: Vec<_> = document["a"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(array, ["x", "theirs"]);
        round_trip("", |editor| editor.add(&["imports"], "ours"));
    }

    #[test]
    fn what_somebody_changed_since_stays_and_is_told() {
        let (mut document, undo) = edit("a = 1\n", |editor| {
            editor.set(&["a"], 2)?;
            editor.set(&["t", "u"], 3)
        });
        document["a"] = toml_edit::value(7);
        document["t"]["theirs"] = toml_edit::value(8);
        assert_eq!(take_back(&mut document, &undo), ["a"]);
        assert_eq!(document["a"].as_integer(), Some(7));
        assert!(document["t"].get("u").is_none() && document["t"]["theirs"].as_integer() == Some(8));
    }
}
