//! What CRI-O is told: a file of its drop-in folder.

use std::path::PathBuf;

use toml_edit::Value;

use crate::places::Places;

/// The drop-in.
pub(crate) fn path(places: &Places) -> PathBuf {
    places.crio.join("crio.conf.d/60-sealpod.conf")
}

/// Whether CRI-O is there.
pub(crate) fn is_there(places: &Places) -> bool {
    places.program("crio").is_some() || places.on_disk(&places.crio).join("crio.conf").exists()
}

/// The drop-in's text.
///
/// `runtime_pull_image` leaves images to the guest, as far as the release does. `allowed_annotations` stays away: CRI-O
/// warns of a handler that names one which is not CRI-O's own and ignores the handler, and a pod's other annotations
/// come through without.
pub(crate) fn text(places: &Places) -> String {
    let string = |path: PathBuf| Value::from(path.display().to_string()).to_string();
    format!(
        "\
{}[crio.runtime.runtimes.sealpod]
runtime_type = \"vm\"
runtime_path = {}
runtime_root = {}
runtime_config_path = {}
runtime_pull_image = true
privileged_without_host_devices = true
",
        crate::WRITTEN,
        string(places.shim()),
        string(places.runtime.clone()),
        string(places.shim_configuration()),
    )
}
