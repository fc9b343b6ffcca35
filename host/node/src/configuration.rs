//! What the administrator may change: the configurations of the shim and of the snapshotter.

use std::path::PathBuf;

use toml_edit::{Array, Value};

use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::unit;

/// The shim's.
pub(crate) fn shim(places: &Places) -> String {
    let string = |path: PathBuf| Value::from(path.display().to_string()).to_string();
    format!(
        "\
# What this node gives pods' VMs. Written by `sealpod node install`, which leaves it alone once it was changed.
# New pods take what is here then.

# The guest image.
guest = {}
# The authority that certifies emulated TPMs.
tpm_authority = {}

# What a pod's VM has where no container has a limit; it has no less where some have none. The overhead is the guest's own
# memory, and counts where the engine does not tell that of the RuntimeClass.
#memory_mib = 512
#memory_overhead_mib = 256
#cpus = 1
# The encrypted disk for images and files, and on whose file system it is; 0: they are in the VM's memory.
#ephemeral_disk_mib = 0
#ephemeral_disk_folder = {}
# How long a guest may be silent before its pod has failed.
#silence_limit_seconds = 30
# auto, kvm or tcg.
#accelerator = \"auto\"
",
        string(places.guest()),
        string(places.data.join("tpm-authority")),
        string(places.data.join("disks")),
    )
}

/// The snapshotter's, for patterns of images.
pub(crate) fn snapshotter(images: &[String]) -> String {
    let patterns: Array =
        if images.is_empty() { Array::from_iter(["*"]) } else { images.iter().map(String::as_str).collect() };
    format!(
        "\
# Written by `sealpod node install`, which leaves it alone once it was changed. Restart {} afterwards.

# The images whose layers are left to guests; `*` stands for any text.
images = {patterns}
",
        unit::NAME
    )
}

/// Whether only some images are the guests', so that it must be known of which one a layer is.
pub(crate) fn names_images(places: &Places, images: &[String]) -> Result<bool, Error> {
    if !images.is_empty() {
        return Ok(images.iter().all(|pattern| pattern != "*"));
    }
    let path = places.on_disk(&places.snapshotter_configuration());
    let text = files::read(&path).map_err(Error::file("cannot read", path))?.unwrap_or_default();
    let table: Option<toml::Table> = String::from_utf8_lossy(&text).parse().ok();
    let patterns = table.as_ref().and_then(|table| table.get("images")?.as_array());
    Ok(patterns.is_some_and(|patterns| patterns.iter().all(|pattern| pattern.as_str() != Some("*"))))
}
