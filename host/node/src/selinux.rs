//! SELinux: the policy module, and the labels of our files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::places::Places;
use crate::services::run;

/// The module's name.
const MODULE: &str = "sealpod";

/// What SELinux does on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is none.
    Off,
    /// It logs.
    Permissive,
    /// It forbids.
    Enforcing,
}

/// Asks the kernel.
pub(crate) fn state(places: &Places) -> State {
    match std::fs::read_to_string(&places.selinux).as_deref().map(str::trim) {
        Ok("1") => State::Enforcing,
        Ok(_) => State::Permissive,
        Err(_) => State::Off,
    }
}

/// The policy module that comes with the programs, if one does.
pub(crate) fn source(programs: &Path) -> Option<PathBuf> {
    let beside = programs.join("selinux").join(crate::SELINUX_MODULE);
    let above = programs.join("../selinux").join(crate::SELINUX_MODULE);
    [beside, above].into_iter().find(|path| path.is_file())
}

/// Loads the module.
pub(crate) fn load(places: &Places) -> Result<(), Error> {
    run(Command::new(program(places, "semodule")?).arg("-i").arg(places.selinux_module())).map(drop)
}

/// Unloads the module.
pub(crate) fn unload(places: &Places) -> Result<(), Error> {
    run(Command::new(program(places, "semodule")?).args(["-r", MODULE])).map(drop)
}

/// Our files and folders, and the TPM's manufacturer.
pub(crate) fn ours(places: &Places) -> Vec<PathBuf> {
    let folders = [&places.prefix, &places.configuration, &places.data, &places.runtime];
    let unit = places.units.join(crate::unit::NAME);
    folders.into_iter().cloned().chain([unit]).chain(places.program("swtpm_setup")).collect()
}

/// The folder of containerd's configuration.
pub(crate) fn of_containerd(places: &Places) -> Vec<PathBuf> {
    places.containerd.parent().map(Path::to_owned).into_iter().collect()
}

/// Gives files, and what is in folders, the labels that the policy has for them; but not what is not there.
pub(crate) fn label(places: &Places, paths: &[PathBuf]) -> Result<(), Error> {
    let there: Vec<&PathBuf> = paths.iter().filter(|path| path.exists()).collect();
    if there.is_empty() {
        return Ok(());
    }
    run(Command::new(program(places, "restorecon")?).arg("-RF").args(there)).map(drop)
}

fn program(places: &Places, name: &'static str) -> Result<PathBuf, Error> {
    places.program(name).ok_or_else(|| Error::Command {
        command: name.into(),
        output: "not installed; it is in policycoreutils (`dnf install policycoreutils`, `apt install policycoreutils`)"
            .into(),
    })
}
