//! containerd's configuration: what is in it, what is to be in it, and whether containerd takes it.

mod check;
pub(crate) mod edit;
mod settings;
mod sources;
mod version;

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

pub(crate) use check::{Containerd, ready};
use edit::{Editor, Undo};
pub(crate) use settings::NAME;
use settings::{CRI, CRI_IMAGES, CRI_RUNTIME, Settings, Unpack, lookup};
use sources::{Source, Sources};
pub(crate) use version::Version;

use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::record::{Edited, Record};

/// The drop-in's name, and the folder that is imported for it where none is.
const DROP_IN: &str = "sealpod.toml";
const DROP_IN_FOLDER: &str = "conf.d";
/// Ends the name under which a file is kept as it was before. No import takes it for a configuration.
const BACKUP: &str = ".before-sealpod";
/// Where containerd keeps what lasts, if nothing else is said.
const ROOT: &str = "/var/lib/containerd";

/// A change to a file of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) path: PathBuf,
    /// The text now.
    pub(crate) current: Option<String>,
    /// The text to come; none for no file.
    pub(crate) after: Option<String>,
    /// The text without anything of ours.
    pub(crate) original: Option<String>,
    /// What makes the original of the text to come, if somebody edits that.
    pub(crate) undo: Vec<Undo>,
    /// What of ours somebody has changed, which stays.
    pub(crate) kept: Vec<String>,
}

impl Edit {
    pub(crate) fn backup(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(BACKUP);
        name.into()
    }
}

/// A file of ours that containerd imports.
#[derive(Clone, Debug)]
pub(crate) struct DropIn {
    pub(crate) path: PathBuf,
    /// The text now.
    pub(crate) current: Option<String>,
    /// The text to come; none for no file.
    pub(crate) after: Option<String>,
}

/// All changes to containerd's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    pub(crate) edits: Vec<Edit>,
    pub(crate) drop_in: Option<DropIn>,
    sources: Sources,
}

impl Changes {
    /// The changes by which containerd knows us. `names_images`: it must say of which image a layer is. `dump` is what it
    /// makes of its configuration now.
    pub(crate) fn install(
        places: &Places,
        version: Version,
        names_images: bool,
        record: &Record,
        dump: Option<&toml::Table>,
    ) -> Result<Self, Error> {
        let sources = Sources::read(places)?;
        check_versions(&sources, version)?;
        let settings = Settings::new(places, version, names_images);
        let mut changes = if version.has_drop_ins() {
            Self::install_drop_in(places, &settings, record, sources, dump)?
        } else {
            Self::install_edit(places, &settings, record, sources)?
        };
        // An earlier containerd may have been told in another place.
        for (path, edited) in &record.edits {
            if changes.edits.iter().all(|edit| edit.path != *path) {
                changes.edits.push(take_back(places, path, edited)?);
            }
        }
        Ok(changes)
    }

    fn install_edit(
        places: &Places,
        settings: &Settings,
        record: &Record,
        sources: Sources,
    ) -> Result<Self, Error> {
        // The last file with CRI's section is the only one whose section counts.
        let has_section = |source: &&Source| section(&source.document, CRI).is_some();
        let holder = sources.imported.iter().rev().find(has_section).unwrap_or(&sources.main);
        let edit = edit_source(places, holder, record, |document| {
            let has_runtimes = section(document, CRI)
                .and_then(|cri| cri.get("containerd")?.as_table_like()?.get("runtimes"))
                .is_some();
            if document.is_empty() {
                document["version"] = toml_edit::value(2);
            }
            let mut editor = Editor::new(document);
            settings.edit(&mut editor, has_runtimes)?;
            Ok(editor.finish())
        })?;
        let drop_in = recorded_drop_in(places, record)?;
        Ok(Self { edits: vec![edit], drop_in, sources })
    }

    fn install_drop_in(
        places: &Places,
        settings: &Settings,
        record: &Record,
        sources: Sources,
        dump: Option<&toml::Table>,
    ) -> Result<Self, Error> {
        let file_version = sources.main.version()?.unwrap_or(3);
        let folder_of_main = sources.main.path.parent().unwrap_or(Path::new("/"));
        let was_edited = record.edits.contains_key(&sources.main.path);
        let (folder, edits) = match sources.drop_in_folder() {
            Some(folder) if !was_edited => (folder, Vec::new()),
            _ => {
                let folder = folder_of_main.join(DROP_IN_FOLDER);
                let pattern = folder.join("*.toml").display().to_string();
                let edit = edit_source(places, &sources.main, record, |document| {
                    if document.is_empty() {
                        document["version"] = toml_edit::value(3);
                    }
                    let mut editor = Editor::new(document);
                    editor.add(&["imports"], &pattern)?;
                    Ok(editor.finish())
                })?;
                (folder, vec![edit])
            }
        };
        let path = folder.join(DROP_IN);
        let text = settings.drop_in(file_version, &Unpack::list(dump));
        let current = read_text(places, &path)?;
        Ok(Self { edits, drop_in: Some(DropIn { path, current, after: Some(text) }), sources })
    }

    /// The changes by which containerd forgets us; but not the snapshotter, if that is to stay.
    pub(crate) fn remove(places: &Places, record: &Record, snapshotter_stays: bool) -> Result<Self, Error> {
        let way_back = |(path, edited): (&PathBuf, &Edited)| {
            let edit = take_back(places, path, edited)?;
            if snapshotter_stays { keep_snapshotter(edit, edited) } else { Ok(edit) }
        };
        let edits: Result<Vec<_>, _> = record.edits.iter().map(way_back).collect();
        Ok(Self {
            edits: edits?,
            drop_in: recorded_drop_in(places, record)?,
            sources: Sources::read(places)?,
        })
    }

    /// The files that change: path, text now, and text to come.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, Option<&str>, Option<&str>)> {
        let edits = self.edits.iter().map(|edit| (&edit.path, &edit.current, &edit.after));
        let drop_in = self.drop_in.iter().map(|file| (&file.path, &file.current, &file.after));
        edits
            .chain(drop_in)
            .filter(|(_, current, after)| current != after)
            .map(|(path, current, after)| (path.as_path(), current.as_deref(), after.as_deref()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files().next().is_none()
    }

    /// containerd's folder of what lasts: as it says itself, or as its files do where it cannot be asked.
    pub(crate) fn root(&self, dump: Option<&toml::Table>) -> PathBuf {
        let asked = dump.and_then(|dump| dump.get("root")?.as_str());
        let root = asked.or_else(|| self.sources.root()).filter(|root| !root.is_empty());
        // Services start in `/`.
        Path::new("/").join(root.unwrap_or(ROOT))
    }

    /// Has containerd itself read the files to come.
    ///
    /// # Errors
    /// If it refuses them, or if anything but ours would differ from `before`.
    pub(crate) fn check(
        &self,
        places: &Places,
        containerd: &Containerd,
        before: &toml::Table,
        installs: bool,
    ) -> Result<(), Error> {
        let after = containerd.dump_of(&self.sources, &self.files().collect::<Vec<_>>())?;
        let version = containerd.version()?;
        if installs && let Some(missing) = Settings::new(places, version, false).missing_in(&after) {
            return Err(Error::Refused { which: "the new configuration", output: missing });
        }
        check::compare(before, &after)
    }
}

/// What containerd has been told of us that it does not say any more.
pub(crate) fn missing(places: &Places, version: Version, dump: &toml::Table) -> Option<String> {
    Settings::new(places, version, false).missing_in(dump)
}

/// The socket at which containerd listens.
pub(crate) fn socket(dump: Option<&toml::Table>) -> String {
    let server = ["plugins", "io.containerd.server.v1.grpc", "address"];
    let address = dump.and_then(|dump| lookup(dump, &["grpc", "address"]).or_else(|| lookup(dump, &server)));
    address.and_then(toml::Value::as_str).unwrap_or("/run/containerd/containerd.sock").to_owned()
}

/// The folder that CRI names as the mountpoint of our images. containerd forms it from its root and the snapshotter's
/// name, and makes none for a snapshotter that is a proxy.
pub(crate) fn image_mountpoint(root: &Path) -> PathBuf {
    root.join(image_mountpoint_name())
}

/// Whether a path is such a folder, below whichever root.
pub(crate) fn is_image_mountpoint(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == image_mountpoint_name().as_str())
}

fn image_mountpoint_name() -> String {
    format!("io.containerd.snapshotter.v1.{NAME}")
}

/// Where CNI's programs and configurations are looked for.
pub(crate) fn network_folders(dump: &toml::Table) -> (Vec<PathBuf>, PathBuf) {
    let cni = [CRI, CRI_RUNTIME].into_iter().find_map(|plugin| lookup(dump, &["plugins", plugin, "cni"]));
    let text = |key: &str| Some(cni?.get(key)?.as_str()?.to_owned()).filter(|text| !text.is_empty());
    let many = cni.and_then(|cni| cni.get("bin_dirs")?.as_array());
    let many = many.into_iter().flatten().filter_map(toml::Value::as_str).map(PathBuf::from);
    let mut programs: Vec<PathBuf> = many.chain(text("bin_dir").map(PathBuf::from)).collect();
    if programs.is_empty() {
        programs.push("/opt/cni/bin".into());
    }
    (programs, text("conf_dir").unwrap_or_else(|| "/etc/cni/net.d".into()).into())
}

fn section<'d>(document: &'d DocumentMut, plugin: &str) -> Option<&'d dyn toml_edit::TableLike> {
    document.get("plugins")?.as_table_like()?.get(plugin)?.as_table_like()
}

fn check_versions(sources: &Sources, containerd: Version) -> Result<(), Error> {
    let path = &sources.main.path;
    let refuse = |problem, advice| Err(Error::Configuration { path: path.clone(), problem, advice });
    match sources.main.version()? {
        Some(version) if version < 2 => {
            return refuse(
                format!("expected version 2 of the file or a newer one, got version {version}"),
                "a file without `version` is of version 1, which newer releases of containerd refuse. Translate it to \
                 version 2 (`containerd config migrate` of a newer release writes it, or `containerd config default` if \
                 there is nothing of yours in it), restart containerd, and run this again",
            );
        }
        Some(version) if version > containerd.newest_file_version() => {
            return refuse(
                format!(
                    "expected version {} of the file at most for containerd {containerd}, got version {version}",
                    containerd.newest_file_version()
                ),
                "write the file for the containerd that is installed, or install the one that it is for",
            );
        }
        _ => {}
    }
    for source in [&sources.main].into_iter().chain(&sources.imported) {
        let disabled = source.document.get("disabled_plugins").and_then(Item::as_array);
        let mut disabled = disabled.into_iter().flatten().filter_map(toml_edit::Value::as_str);
        if let Some(plugin) = disabled.find(|plugin| ["cri", CRI, CRI_RUNTIME, CRI_IMAGES].contains(plugin)) {
            return Err(Error::Configuration {
                path: source.path.clone(),
                problem: format!("the plugin {plugin} is disabled, so no kubelet can use this containerd"),
                advice: "remove it from disabled_plugins, restart containerd, and run this again",
            });
        }
    }
    Ok(())
}

/// A file's edit, which begins from what the file would be without any earlier one.
fn edit_source(
    places: &Places,
    source: &Source,
    record: &Record,
    edit: impl FnOnce(&mut DocumentMut) -> Result<Vec<Undo>, String>,
) -> Result<Edit, Error> {
    let original = match record.edits.get(&source.path) {
        Some(edited) => take_back(places, &source.path, edited)?.after,
        None => source.text.clone(),
    };
    let mut document = sources::parse(&source.path, original.as_deref().unwrap_or_default())?;
    let undo = edit(&mut document).map_err(|problem| Error::Configuration {
        path: source.path.clone(),
        problem,
        advice: "nothing was changed; containerd cannot use the file as it is either",
    })?;
    let mut after = document.to_string();
    if let Some(current) = source.text.as_ref().filter(|current| means_the_same(current, &after)) {
        after.clone_from(current);
    }
    let (path, current) = (source.path.clone(), source.text.clone());
    Ok(Edit { path, current, after: Some(after), original, undo, kept: Vec::new() })
}

/// The way back: the file as it was, or without ours if somebody else has edited it since.
fn take_back(places: &Places, path: &Path, edited: &Edited) -> Result<Edit, Error> {
    let current = read_text(places, path)?;
    let mut kept = Vec::new();
    let backup = edited.backup.as_ref().map(|backup| read_text(places, backup)).transpose()?;
    let is_ours = |text: &String| files::digest_of(text.as_bytes()) == edited.digest;
    let original = match (&current, backup) {
        (None, _) => None,
        (Some(text), None) if is_ours(text) => None,
        (Some(text), Some(Some(backup))) if is_ours(text) => Some(backup),
        // Somebody has edited it since, or removed the backup.
        (Some(text), _) => {
            let mut document = sources::parse(path, text)?;
            kept = edit::take_back(&mut document, &edited.undo);
            // A runtime without its type would keep containerd from starting.
            let runtime = ["plugins", CRI, "containerd", "runtimes", NAME];
            edit::remove_without(&mut document, &runtime, "runtime_type");
            Some(document.to_string())
        }
    };
    let path = path.to_owned();
    Ok(Edit { path, current, after: original.clone(), original, undo: Vec::new(), kept })
}

/// Takes back all but the proxy plugin.
fn keep_snapshotter(edit: Edit, edited: &Edited) -> Result<Edit, Error> {
    let is_of_plugin = |undo: &Undo| undo.path().first().is_some_and(|key| key == "proxy_plugins");
    let (kept, taken): (Vec<_>, Vec<_>) = edited.undo.iter().cloned().partition(is_of_plugin);
    let mut document = sources::parse(&edit.path, edit.current.as_deref().unwrap_or_default())?;
    edit::take_back(&mut document, &taken);
    Ok(Edit { after: edit.current.is_some().then(|| document.to_string()), undo: kept, ..edit })
}

/// The drop-in of an earlier time, which goes.
fn recorded_drop_in(places: &Places, record: &Record) -> Result<Option<DropIn>, Error> {
    let path = record.files.keys().find(|path| path.file_name().is_some_and(|name| name == DROP_IN));
    let Some(path) = path.cloned() else { return Ok(None) };
    Ok(Some(DropIn { current: read_text(places, &path)?, after: None, path }))
}

fn read_text(places: &Places, path: &Path) -> Result<Option<String>, Error> {
    let on_disk = places.on_disk(path);
    let bytes = files::read(&on_disk).map_err(Error::file("cannot read", &on_disk))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn means_the_same(one: &str, other: &str) -> bool {
    match (one.parse::<toml::Table>(), other.parse::<toml::Table>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
