//! What containerd itself says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use super::settings::{CRI, CRI_IMAGES, CRI_RUNTIME, NAME, TRANSFER};
use super::sources::Sources;
use super::version::Version;
use crate::error::Error;
use crate::files;
use crate::places::Places;

/// containerd's program on this node.
#[derive(Debug)]
pub(crate) struct Containerd<'a> {
    places: &'a Places,
    program: PathBuf,
}

impl<'a> Containerd<'a> {
    /// Finds it.
    pub(crate) fn find(places: &'a Places) -> Option<Self> {
        places.program("containerd").map(|program| Self { places, program })
    }

    /// Its version.
    pub(crate) fn version(&self) -> Result<Version, Error> {
        let output = self.run(&["--version"])?;
        if !output.status.success() {
            return Err(Error::Version(said(&output)));
        }
        String::from_utf8_lossy(&output.stdout).parse()
    }

    /// What it makes of its present configuration; of its defaults if there is none.
    pub(crate) fn dump(&self) -> Result<toml::Table, Error> {
        let main = &self.places.containerd;
        let main = main.display().to_string();
        let arguments = if self.places.on_disk(&self.places.containerd).exists() {
            vec!["--config", &main, "config", "dump"]
        } else {
            vec!["config", "default"]
        };
        self.table(&arguments, "its present configuration")
    }

    /// What it would make of other files: path, text now, and text to come.
    pub(super) fn dump_of(
        &self,
        sources: &Sources,
        changes: &[(&Path, Option<&str>, Option<&str>)],
    ) -> Result<toml::Table, Error> {
        let main = &sources.main.path;
        let folder = main.parent().unwrap_or(Path::new("/"));
        let made =
            files::make_folders(&self.places.on_disk(folder)).map_err(Error::file("cannot make", folder))?;
        let mut candidates = Candidates { places: self.places, paths: Vec::new(), made };
        let mut main_text = sources.main.text.as_deref();
        let mut instead = Vec::new();
        for (path, _, after) in changes {
            if path == main {
                main_text = *after;
            } else if let Some(text) = after {
                instead.push((path.to_path_buf(), candidates.write(folder, text)?));
            } else {
                instead.push((path.to_path_buf(), candidates.write(folder, "")?));
            }
        }
        let Some(main_text) = main_text else {
            return self.table(&["config", "default"], "its defaults");
        };
        let main = candidates.write(folder, &sources.main_importing(self.places, main_text, &instead)?)?;
        self.table(&["--config", &main.display().to_string(), "config", "dump"], "the new configuration")
    }

    fn table(&self, arguments: &[&str], which: &'static str) -> Result<toml::Table, Error> {
        let output = self.run(arguments)?;
        let refused = |output: String| Error::Refused { which, output };
        if !output.status.success() {
            return Err(refused(said(&output)));
        }
        String::from_utf8_lossy(&output.stdout)
            .parse()
            .map_err(|error: toml::de::Error| refused(error.to_string()))
    }

    fn run(&self, arguments: &[&str]) -> Result<Output, Error> {
        let mut command = self.places.command(&self.program);
        command.args(arguments).current_dir("/").output().map_err(Error::file("cannot run", &self.program))
    }
}

/// Files that are there only as long as containerd reads them.
struct Candidates<'a> {
    places: &'a Places,
    paths: Vec<PathBuf>,
    made: Vec<PathBuf>,
}

impl Candidates<'_> {
    fn write(&mut self, folder: &Path, text: &str) -> Result<PathBuf, Error> {
        // No import takes a name like this for a configuration.
        let path = folder.join(format!(".config.sealpod-check-{}", self.paths.len()));
        let on_disk = self.places.on_disk(&path);
        self.paths.push(on_disk.clone());
        files::write(&on_disk, text.as_bytes(), 0o600).map_err(Error::file("cannot write", on_disk))?;
        Ok(path)
    }
}

impl Drop for Candidates<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            // The next run would write over it.
            let _ = files::remove(path);
        }
        for folder in self.made.iter().rev() {
            // It stays if somebody else has put something into it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn said(output: &Output) -> String {
    let text = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(text).trim().to_owned()
}

/// Whether the CRI plugin and our snapshotter are there in what `ctr plugins ls` prints; otherwise what is not.
pub(crate) fn ready(plugins: &str, with_snapshotter: bool) -> Result<(), String> {
    let state = |kind: &str, id: &str| {
        plugins.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some(kind) && words.next() == Some(id))
                .then(|| words.next_back().map(str::to_owned))?
        })
    };
    let cri = state("io.containerd.grpc.v1", "cri");
    if cri.as_deref() != Some("ok") {
        return Err(format!("expected its CRI plugin to be ok, got {}", cri.as_deref().unwrap_or("none")));
    }
    let snapshotter = state("io.containerd.snapshotter.v1", NAME);
    if with_snapshotter && snapshotter.as_deref() != Some("ok") {
        let got = snapshotter.as_deref().unwrap_or("none");
        return Err(format!("expected the snapshotter {NAME} to be ok, got {got}"));
    }
    Ok(())
}

/// Refuses a configuration that differs from another in anything but ours.
pub(super) fn compare(before: &toml::Table, after: &toml::Table) -> Result<(), Error> {
    let (before, after) = (leaves(before), leaves(after));
    let keys = before.keys().chain(after.keys());
    let difference = keys.filter(|path| !is_ours(path)).find(|path| before.get(*path) != after.get(*path));
    let Some(path) = difference else { return Ok(()) };
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "nothing".into());
    Err(Error::Changes(format!(
        "{} would be {} instead of {}",
        super::edit::shown(path),
        shown(after.get(path)),
        shown(before.get(path))
    )))
}

/// All values with the keys that lead to them. One that says nothing is as good as none.
fn leaves(table: &toml::Table) -> BTreeMap<Vec<String>, String> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<(Vec<String>, &toml::Table)> = vec![(Vec::new(), table)];
    while let Some((path, table)) = waiting.pop() {
        for (key, value) in table {
            let path = [path.as_slice(), std::slice::from_ref(key)].concat();
            match value {
                toml::Value::Table(table) => waiting.push((path, table)),
                toml::Value::String(text) if text.is_empty() => {}
                toml::Value::Array(array) if array.is_empty() => {}
                toml::Value::Integer(0) | toml::Value::Boolean(false) => {}
                other => drop(found.insert(path, other.to_string())),
            }
        }
    }
    found
}

fn is_ours(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path.as_slice() {
        // containerd lists the files that it has read.
        ["imports", ..] => true,
        ["proxy_plugins", name, ..] => *name == NAME,
        ["plugins", CRI, "containerd", "snapshotter" | "disable_snapshot_annotations"] => true,
        ["plugins", CRI | CRI_RUNTIME, "containerd", "runtimes", name, ..] => *name == NAME,
        ["plugins", CRI_IMAGES, "runtime_platforms", name, ..] => *name == NAME,
        ["plugins", CRI_IMAGES, "disable_snapshot_annotations"] => true,
        ["plugins", TRANSFER, "unpack_config"] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGINS: &str = "\
TYPE                            ID                       PLATFORMS      STATUS
io.containerd.snapshotter.v1    overlayfs                linux/amd64    ok
io.containerd.snapshotter.v1    sealpod                  -              ok
io.containerd.grpc.v1           cri                      linux/amd64    ok
";

    #[test]
    fn a_containerd_without_cri_or_snapshotter_is_not_ready() {
        assert_eq!(ready(PLUGINS, true), Ok(()));
        let without =
            PLUGINS.replace("cri                      linux/amd64    ok", "cri  linux/amd64  error");
        assert_eq!(ready(&without, false).unwrap_err(), "expected its CRI plugin to be ok, got error");
        let without = PLUGINS.replace("sealpod", "other");
        assert_eq!(ready(&without, true).unwrap_err(), "expected the snapshotter sealpod to be ok, got none");
        assert_eq!(ready(&without, false), Ok(()));
        assert!(ready("", false).is_err());
    }

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn only_ours_may_differ() {
        let before = table(
            "imports = [\"a\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"\nempty = \"\"\n",
        );
        let ours =
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.sealpod]\nruntime_type = \"x\"\n";
        let after = "imports = [\"b\"]\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"\n";
        compare(&before, &table(&format!("{after}{ours}"))).unwrap();
        let lost = compare(&before, &table(ours)).unwrap_err().to_string();
        assert!(
            lost.ends_with(
                "plugins.\"io.containerd.grpc.v1.cri\".sandbox_image would be nothing instead of \"pause\""
            ),
            "{lost}"
        );
        let others = ours.replace("sealpod", "runc");
        let more = compare(&before, &table(&format!("{after}{others}"))).unwrap_err().to_string();
        assert!(more.contains("runtimes.runc.runtime_type would be \"x\" instead of nothing"), "{more}");
    }
}
