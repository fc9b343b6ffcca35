//! What is installed, and whether it is as it was installed.

use std::path::Path;

use serde::Serialize;

use crate::containerd::{self, Containerd};
use crate::error::Error;
use crate::places::Places;
use crate::record::{Record, Service};
use crate::services::{Services, run};

/// The state of an installation.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whether there is one.
    pub installed: bool,
    /// Which release of Sealpod installed it.
    pub version: Option<String>,
    /// The version of containerd that is there.
    pub containerd: Option<String>,
    /// Each part of it.
    pub parts: Vec<Part>,
    /// Services that still wait for a restart since something of theirs was changed.
    pub pending: Vec<String>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

impl Status {
    /// Looks at everything.
    ///
    /// # Errors
    /// If the record or a file cannot be read.
    pub fn of(places: &Places) -> Result<Self, Error> {
        let program = Containerd::find(places);
        let version = program.as_ref().and_then(|program| program.version().ok());
        let containerd = version.map(|version| version.to_string());
        let Some(record) = Record::read(places)? else {
            return Ok(Self {
                installed: false,
                version: None,
                containerd,
                parts: Vec::new(),
                pending: Vec::new(),
            });
        };
        let mut parts = Vec::new();
        for path in record.files.keys() {
            parts.push(file(places, &record, path)?);
        }
        for (path, edited) in &record.edits {
            let digest =
                crate::files::digest(&places.on_disk(path)).map_err(Error::file("cannot read", path))?;
            let unchanged = digest.as_ref() == Some(&edited.digest);
            // An edit by others is nothing wrong; whether ours is still in it is asked below.
            let detail = if unchanged { "as installed" } else { "edited by others since" };
            parts.push(Part { name: path.display().to_string(), ok: true, detail: detail.into() });
        }
        parts.push(program_version(places));
        if let (Some(program), Some(version)) = (&program, version) {
            parts.push(match program.dump().map(|dump| containerd::missing(places, version, &dump)) {
                Ok(None) => Part {
                    name: "containerd's configuration".into(),
                    ok: true,
                    detail: "knows the runtime".into(),
                },
                Ok(Some(missing)) => {
                    Part { name: "containerd's configuration".into(), ok: false, detail: missing }
                }
                Err(error) => {
                    Part { name: "containerd's configuration".into(), ok: false, detail: error.to_string() }
                }
            });
            parts.extend(services(places, program));
        }
        let pending = record.pending.iter().map(|service| service.unit().to_owned()).collect();
        Ok(Self { installed: true, version: Some(record.version), containerd, parts, pending })
    }

    /// Whether there is an installation and all is well.
    pub fn is_well(&self) -> bool {
        self.installed && self.pending.is_empty() && self.parts.iter().all(|part| part.ok)
    }
}

fn part(name: impl ToString, ok: bool, good: &str, bad: &str) -> Part {
    Part { name: name.to_string(), ok, detail: if ok { good } else { bad }.into() }
}

/// A file that was written. Configurations are their administrator's to edit.
fn file(places: &Places, record: &Record, path: &Path) -> Result<Part, Error> {
    let configurations = [places.shim_configuration(), places.snapshotter_configuration()];
    let edited = configurations.iter().any(|own| own == path) && places.on_disk(path).is_file();
    let bad = if edited { "edited since" } else { "changed or missing" };
    let mut file = part(path.display(), record.is_ours(places, path)?, "as installed", bad);
    file.ok |= edited;
    Ok(file)
}

fn program_version(places: &Places) -> Part {
    let shim = places.on_disk(&places.shim());
    let said = run(places.command(&shim).arg("-v"));
    let name = "the shim's version".to_owned();
    match said {
        Ok(version) => {
            Part { name, ok: true, detail: version.lines().next().unwrap_or_default().trim().into() }
        }
        Err(error) => Part { name, ok: false, detail: error.to_string() },
    }
}

/// Whether the snapshotter and containerd run, and containerd has loaded what it was told.
fn services(places: &Places, program: &Containerd) -> Vec<Part> {
    if places.root.is_some() {
        return Vec::new();
    }
    let listens = std::os::unix::net::UnixStream::connect(places.socket()).is_ok();
    let mut parts = vec![part("the snapshotter", listens, "answers", "does not answer at its socket")];
    if let Some(services) = Services::find(places) {
        let active = services.is_active(Service::Containerd);
        parts.push(part(Service::Containerd.unit(), active, "active", "not active"));
    }
    let socket = containerd::socket(program.dump().ok().as_ref());
    if let Some(ctr) = places.program("ctr") {
        let plugins = run(std::process::Command::new(ctr).args(["--address", &socket, "plugins", "ls"]));
        let state =
            plugins.map_err(|error| error.to_string()).and_then(|list| containerd::ready(&list, true));
        let (ok, detail) = match state {
            Ok(()) => (true, "has loaded CRI and the snapshotter".to_owned()),
            Err(problem) => (false, problem),
        };
        parts.push(Part { name: "containerd".into(), ok, detail });
    }
    parts
}
