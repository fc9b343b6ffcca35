//! containerd's configuration as it is: the main file, and the files that it imports.

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Value};

use crate::error::Error;
use crate::files;
use crate::places::Places;

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Its path, as containerd sees it.
    pub(crate) path: PathBuf,
    /// The text, if it is there.
    pub(crate) text: Option<String>,
    /// The same, parsed.
    pub(crate) document: DocumentMut,
}

/// The main file and those that it imports.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) main: Source,
    /// The imported ones, in the order in which containerd takes them.
    pub(crate) imported: Vec<Source>,
}

const IMPORTS: &str = "imports";

impl Sources {
    pub(crate) fn read(places: &Places) -> Result<Self, Error> {
        let main = Source::read(places, &places.containerd)?;
        let imported = imported_by(places, &main.path, &main.document)?;
        let imported: Result<_, _> = imported.iter().map(|path| Source::read(places, path)).collect();
        Ok(Self { main, imported: imported? })
    }

    /// The imported folder into which a file can be put: the first of the form `FOLDER/*.toml`.
    pub(crate) fn drop_in_folder(&self) -> Option<PathBuf> {
        imports(&self.main.document).find_map(|pattern| {
            let pattern = below(&self.main.path, pattern);
            let all = pattern.file_name().is_some_and(|name| name == "*.toml" || name == "*");
            pattern
                .parent()
                .filter(|folder| all && !folder.to_string_lossy().contains('*'))
                .map(Path::to_owned)
        })
    }

    /// containerd's folder of what lasts, if a file names one. The last one counts.
    pub(crate) fn root(&self) -> Option<&str> {
        let sources = self.imported.iter().rev().chain([&self.main]);
        sources.filter_map(|source| source.document.get("root")?.as_str()).find(|root| !root.is_empty())
    }

    /// Another main file, with what it imports: `instead` has pairs of files and what to read in their place.
    pub(crate) fn main_importing(
        &self,
        places: &Places,
        main: &str,
        instead: &[(PathBuf, PathBuf)],
    ) -> Result<String, Error> {
        if instead.is_empty() {
            return Ok(main.to_owned());
        }
        let mut document = parse(&self.main.path, main)?;
        // A pattern that is new to it may mean files of others, too.
        let mut paths = imported_by(places, &self.main.path, &document)?;
        for (path, other) in instead {
            paths.retain(|present| present != path);
            paths.push(other.clone());
        }
        let array: Array = paths.iter().map(|path| Value::from(path.display().to_string())).collect();
        document[IMPORTS] = Item::Value(array.into());
        Ok(document.to_string())
    }
}

impl Source {
    fn read(places: &Places, path: &Path) -> Result<Self, Error> {
        let on_disk = places.on_disk(path);
        let text = match files::read(&on_disk).map_err(Error::file("cannot read", &on_disk))? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| broken(path, "it is not UTF-8"))?),
            None => None,
        };
        let document = parse(path, text.as_deref().unwrap_or_default())?;
        Ok(Self { path: path.to_owned(), text, document })
    }

    /// Which version of the format it is in; none if it says nothing at all.
    pub(crate) fn version(&self) -> Result<Option<i64>, Error> {
        match self.document.get("version") {
            Some(version) => version.as_integer().map(Some).ok_or_else(|| {
                broken(
                    &self.path,
                    format!("expected version to be an integer, got {}", version.to_string().trim()),
                )
            }),
            None if self.document.is_empty() => Ok(None),
            // containerd takes it so, too.
            None => Ok(Some(1)),
        }
    }
}

/// Reads TOML.
pub(crate) fn parse(path: &Path, text: &str) -> Result<DocumentMut, Error> {
    text.parse().map_err(|error: toml_edit::TomlError| broken(path, error.to_string().trim_end()))
}

fn broken(path: &Path, problem: impl Into<String>) -> Error {
    Error::Configuration {
        path: path.to_owned(),
        problem: problem.into(),
        advice: "nothing was changed; repair the file first: `containerd config dump` must succeed",
    }
}

fn imports(document: &DocumentMut) -> impl Iterator<Item = &str> {
    document.get(IMPORTS).and_then(Item::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Imports are relative to the file that has them.
fn below(main: &Path, pattern: &str) -> PathBuf {
    main.parent().unwrap_or(Path::new("/")).join(pattern)
}

/// The files that the main file imports, each once.
fn imported_by(places: &Places, main: &Path, document: &DocumentMut) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for pattern in imports(document) {
        for path in expand(places, &below(main, pattern))? {
            if path != main && !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// The files that a pattern means. Only its last part may have a `*`, as everybody writes it.
fn expand(places: &Places, pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(Vec::new());
    };
    if !name.contains('*') {
        return Ok(vec![pattern.to_owned()]);
    }
    let on_disk = places.on_disk(folder);
    let entries = match std::fs::read_dir(&on_disk) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("cannot read the folder", &on_disk))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<PathBuf> =
        names.filter(|found| matches(name, found)).map(|found| folder.join(found)).collect();
    found.sort();
    Ok(found)
}

/// `*` stands for any text, everything else for itself.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(before) else { return false };
    (0..=name.len()).any(|at| name.get(at..).is_some_and(|name| matches(rest, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path) -> Places {
        Places { containerd: folder.join("config.toml"), ..Places::default() }
    }

    #[test]
    fn imports_are_found_as_containerd_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("conf.d")).unwrap();
        write(
            "config.toml",
            "version = 2\nimports = [\"conf.d/*.toml\", \"one.toml\", \"one.toml\", \"absent/*.toml\"]\n",
        );
        for name in ["conf.d/b.toml", "conf.d/a.toml", "conf.d/a.toml.bak", "one.toml"] {
            write(name, "");
        }
        let sources = Sources::read(&places(folder.path())).unwrap();
        let paths: Vec<_> = sources.imported.iter().map(|source| source.path.clone()).collect();
        assert_eq!(
            paths,
            ["conf.d/a.toml", "conf.d/b.toml", "one.toml"].map(|name| folder.path().join(name))
        );
        assert_eq!(sources.drop_in_folder(), Some(folder.path().join("conf.d")));
    }

    #[test]
    fn the_last_file_that_names_a_root_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = |main: &str, imported: &str| {
            let main = format!("version = 2\nimports = [\"one.toml\"]\n{main}");
            std::fs::write(folder.path().join("config.toml"), main).unwrap();
            std::fs::write(folder.path().join("one.toml"), imported).unwrap();
            Sources::read(&places(folder.path())).unwrap().root().map(str::to_owned)
        };
        assert_eq!(root("", ""), None);
        assert_eq!(root("root = \"/main\"\n", "").as_deref(), Some("/main"));
        assert_eq!(root("root = \"/main\"\n", "root = \"/other\"\n").as_deref(), Some("/other"));
        assert_eq!(root("root = \"/main\"\n", "root = \"\"\n").as_deref(), Some("/main"));
    }

    #[test]
    fn a_file_that_says_nothing_has_no_version() {
        let folder = tempfile::tempdir().unwrap();
        let version = |text: &str| {
            std::fs::write(folder.path().join("config.toml"), text).unwrap();
            Sources::read(&places(folder.path())).unwrap().main.version()
        };
        assert_eq!(version("# nothing\n").unwrap(), None);
        assert_eq!(version("root = \"/x\"\n").unwrap(), Some(1));
        assert_eq!(version("version = 3\n").unwrap(), Some(3));
        let problem = version("version = \"3\"\n").unwrap_err().to_string();
        assert!(problem.ends_with("expected version to be an integer, got \"3\""), "{problem}");
    }

    #[test]
    fn names_match_as_in_a_shell() {
        assert!(matches("*.toml", "a.toml") && matches("*", "é") && matches("1*-*.x", "10-a-b.x"));
        assert!(!matches("*.toml", "a.toml.bak") && !matches("a*", "b"));
    }
}
