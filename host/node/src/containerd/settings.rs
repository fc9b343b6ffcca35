//! What containerd is told, in each version.

use std::path::PathBuf;

use toml_edit::{Array, Value};

use super::edit::{self, Editor};
use super::version::Version;
use crate::places::Places;

/// The name of the runtime, of the snapshotter, and of the proxy plugin.
pub(crate) const NAME: &str = "sealpod";
/// The runtime type: containerd makes the shim's name of it.
const RUNTIME_TYPE: &str = "io.containerd.sealpod.v2";
/// CRI's plugin, up to version 2 of the file.
pub(crate) const CRI: &str = "io.containerd.grpc.v1.cri";
/// CRI's two plugins from version 3 on.
pub(crate) const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
pub(crate) const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
pub(crate) const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// Brings init data and the limits of volumes; the shim reads nothing else of a pod's author's.
const POD_ANNOTATIONS: &str = "io.katacontainers.*";

/// Values that depend on where things are.
pub(crate) struct Settings {
    version: Version,
    /// Whether the snapshotter must be told of which image a layer is.
    names_images: bool,
    shim: String,
    shim_configuration: String,
    socket: String,
}

impl Settings {
    pub(crate) fn new(places: &Places, version: Version, names_images: bool) -> Self {
        let text = |path: PathBuf| path.display().to_string();
        Self {
            version,
            names_images,
            shim: text(places.shim()),
            shim_configuration: text(places.shim_configuration()),
            socket: text(places.socket()),
        }
    }

    /// Edits the file that has CRI's section (containerd 1.6 and 1.7, version 2 of the file).
    pub(crate) fn edit(&self, editor: &mut Editor, has_runtimes: bool) -> Result<(), String> {
        let containerd = ["plugins", CRI, "containerd"];
        if !self.version.has_snapshotter_per_runtime() {
            editor.set(&[containerd.as_slice(), &["snapshotter"]].concat(), NAME)?;
        }
        if self.names_images || !self.version.has_snapshotter_per_runtime() {
            editor.set(&[containerd.as_slice(), &["disable_snapshot_annotations"]].concat(), false)?;
        }
        if !has_runtimes {
            // With a table of runtimes, containerd forgets the one that it has by default.
            let runc = [containerd.as_slice(), &["runtimes", "runc", "runtime_type"]].concat();
            editor.set(&runc, "io.containerd.runc.v2")?;
            if self.version.has_snapshotter_per_runtime() {
                let runc = [containerd.as_slice(), &["runtimes", "runc", "sandbox_mode"]].concat();
                editor.set(&runc, "podsandbox")?;
            }
        }
        for (key, value) in self.runtime() {
            editor.set(&[containerd.as_slice(), &["runtimes", NAME], key].concat(), value)?;
        }
        editor.set(&["proxy_plugins", NAME, "type"], "snapshot")?;
        editor.set(&["proxy_plugins", NAME, "address"], self.socket.as_str())
    }

    fn runtime(&self) -> Vec<(&'static [&'static str], Value)> {
        let shim = Value::from(self.shim.as_str());
        let mut values: Vec<(&[&str], Value)> = match self.version.has_runtime_paths() {
            true => vec![(&["runtime_type"], RUNTIME_TYPE.into()), (&["runtime_path"], shim)],
            false => vec![(&["runtime_type"], shim)],
        };
        values.extend::<[(&[&str], Value); 2]>([
            (&["pod_annotations"], Array::from_iter([POD_ANNOTATIONS]).into()),
            (&["privileged_without_host_devices"], true.into()),
        ]);
        if self.version.has_snapshotter_per_runtime() {
            values.push((&["snapshotter"], NAME.into()));
        }
        values.push((&["options", "ConfigPath"], self.shim_configuration.as_str().into()));
        values
    }

    /// A file to be imported (containerd 2.x). `unpack` is what the transfer service unpacks for
    /// without it.
    pub(crate) fn drop_in(&self, file_version: i64, unpack: &[Unpack]) -> String {
        // A file must not be of a newer version than the one that imports it.
        let (file_version, runtime) = if file_version == 2 { (2, CRI) } else { (3, CRI_RUNTIME) };
        let string = |value: &str| Value::from(value).to_string();
        let runtimes = format!("[plugins.{}.containerd.runtimes.{NAME}", string(runtime));
        let mut text = format!("{}version = {file_version}\n", crate::WRITTEN);
        text +=
            &format!("\n[proxy_plugins.{NAME}]\ntype = \"snapshot\"\naddress = {}\n", string(&self.socket));
        if self.version.pulls_by_transfer_service() {
            text += "exports = { enable_remote_snapshot_annotations = \"true\" }\n";
        }
        text += &format!("\n{runtimes}]\n");
        for (key, value) in self.runtime() {
            match key {
                [key] => text += &format!("{key} = {value}\n"),
                _ => text += &format!("\n{runtimes}.options]\nConfigPath = {value}\n"),
            }
        }
        let images = string(CRI_IMAGES);
        text += &format!("\n[plugins.{images}.runtime_platforms.{NAME}]\nsnapshotter = {}\n", string(NAME));
        if self.names_images && !self.version.pulls_by_transfer_service() {
            let table =
                if file_version == 2 { format!("{}.containerd", string(CRI)) } else { images.clone() };
            text += &format!("\n[plugins.{table}]\ndisable_snapshot_annotations = false\n");
        }
        if self.version.pulls_by_transfer_service() {
            text += "\n# The list replaces containerd's own, so what it had is in it too.\n";
            let ours = Unpack { snapshotter: NAME.into(), ..Unpack::default() };
            for Unpack { platform, snapshotter, others } in unpack.iter().chain([&ours]) {
                let (platform, snapshotter) = (string(platform), string(snapshotter));
                text += &format!(
                    "[[plugins.{}.unpack_config]]\nplatform = {platform}\nsnapshotter = {snapshotter}\n",
                    string(TRANSFER)
                );
                for (key, value) in others {
                    text += &format!("{key} = {value}\n");
                }
            }
        }
        text
    }

    /// Whether a dump of containerd's configuration says all of it; otherwise what is missing.
    pub(crate) fn missing_in(&self, dump: &toml::Table) -> Option<String> {
        let runtimes = if self.version.has_drop_ins() { CRI_RUNTIME } else { CRI };
        let runtime = ["plugins", runtimes, "containerd", "runtimes", NAME];
        let mut expected: Vec<(Vec<&str>, Value)> =
            vec![(vec!["proxy_plugins", NAME, "address"], self.socket.as_str().into())];
        for (key, value) in self.runtime() {
            expected.push(([runtime.as_slice(), key].concat(), value));
        }
        if self.version.has_drop_ins() {
            expected
                .push((vec!["plugins", CRI_IMAGES, "runtime_platforms", NAME, "snapshotter"], NAME.into()));
        } else if !self.version.has_snapshotter_per_runtime() {
            expected.push((vec!["plugins", CRI, "containerd", "snapshotter"], NAME.into()));
        }
        expected.into_iter().find_map(|(path, expected)| {
            let found = lookup(dump, &path);
            let is_there = found.is_some_and(|found| Some(found) == plain(&expected).as_ref());
            let found = || found.map_or_else(|| "nothing".into(), toml::Value::to_string);
            (!is_there).then(|| format!("expected {} to be {expected}, got {}", edit::shown(&path), found()))
        })
    }
}

/// A value in a table of tables.
pub(crate) fn lookup<'t>(table: &'t toml::Table, path: &[&str]) -> Option<&'t toml::Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(table.get(*first)?, |value, key| value.get(*key))
}

fn plain(value: &Value) -> Option<toml::Value> {
    format!("value = {value}").parse::<toml::Table>().ok()?.remove("value")
}

/// For which platform and snapshotter the transfer service unpacks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unpack {
    platform: String,
    snapshotter: String,
    /// What else is said of it: the differ, kinds of layers.
    others: toml::Table,
}

/// As containerd has it without a list.
impl Default for Unpack {
    fn default() -> Self {
        Self { platform: platform(), snapshotter: "overlayfs".into(), others: toml::Table::new() }
    }
}

impl Unpack {
    /// The list of a dump, without ours.
    pub(crate) fn list(dump: Option<&toml::Table>) -> Vec<Self> {
        let list = dump.and_then(|dump| lookup(dump, &["plugins", TRANSFER, "unpack_config"])?.as_array());
        let Some(list) = list else { return vec![Self::default()] };
        let entries = list.iter().filter_map(toml::Value::as_table).map(|entry| {
            let text =
                |key: &str| entry.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
            let (platform, snapshotter) = (text("platform"), text("snapshotter"));
            let is_other = |(key, value): &(&String, &toml::Value)| {
                !["platform", "snapshotter"].contains(&key.as_str()) && !is_unset(value)
            };
            let others =
                entry.iter().filter(is_other).map(|(key, value)| (key.clone(), value.clone())).collect();
            Self { platform, snapshotter, others }
        });
        entries.filter(|entry| entry.snapshotter != NAME).collect()
    }
}

/// containerd writes down what nobody has said, too.
fn is_unset(value: &toml::Value) -> bool {
    value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// This machine, as OCI images name it.
pub(crate) fn platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_keys() {
        let table: toml::Table = "[a.b]\nc = 1\n".parse().unwrap();
        assert_eq!(lookup(&table, &["a", "b", "c"]).and_then(toml::Value::as_integer), Some(1));
        assert_eq!(lookup(&table, &["a", "x", "c"]), None);
    }

    #[test]
    fn what_the_transfer_service_unpacked_for_stays_in_its_list() {
        assert_eq!(Unpack::list(None), [Unpack::default()]);
        let entry = |snapshotter: &str| {
            format!(
                "[[plugins.\"{TRANSFER}\".unpack_config]]\nplatform = \"linux/x\"\nsnapshotter = \"{snapshotter}\"\ndiffer = \"d\"\nconfig_type = \"\"\nlayer_types = [\"l\"]\n"
            )
        };
        let dump: toml::Table = format!("{}{}", entry("stargz"), entry(NAME)).parse().unwrap();
        let others = "differ = \"d\"\nlayer_types = [\"l\"]\n".parse().unwrap();
        let stargz = Unpack { platform: "linux/x".into(), snapshotter: "stargz".into(), others };
        assert_eq!(Unpack::list(Some(&dump)), std::slice::from_ref(&stargz));
        let settings = Settings::new(&Places::default(), "2.1".parse().unwrap(), false);
        let drop_in: toml::Table = settings.drop_in(3, &[stargz]).parse().unwrap();
        let list = lookup(&drop_in, &["plugins", TRANSFER, "unpack_config"]).unwrap().as_array().unwrap();
        let names: Vec<_> = list.iter().map(|entry| entry["snapshotter"].as_str().unwrap()).collect();
        assert_eq!(names, ["stargz", NAME]);
        assert_eq!(list[0]["differ"].as_str(), Some("d"));
        assert_eq!(list[0]["layer_types"][0].as_str(), Some("l"));
    }

    #[test]
    fn each_thing_that_containerd_does_not_know_is_missing() {
        let settings = Settings::new(&Places::default(), "2.1".parse().unwrap(), false);
        let text = settings.drop_in(3, &[]);
        assert_eq!(settings.missing_in(&text.parse().unwrap()), None);
        let changes = [
            ("/run/sealpod/snapshotter.sock", "/run/other"),
            ("privileged_without_host_devices = true", ""),
            ("ConfigPath", "Config"),
            ("runtime_platforms.sealpod", "runtime_platforms.other"),
        ];
        for (from, to) in changes {
            let missing = settings.missing_in(&text.replacen(from, to, 1).parse().unwrap());
            assert!(missing.unwrap().starts_with("expected "), "{from}");
        }
    }
}
