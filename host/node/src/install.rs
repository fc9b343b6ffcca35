//! Installing: what is to be done, and doing it.

mod carry_out;

use std::path::{Path, PathBuf};

use sealpod_sandbox::GuestImage;

use crate::configuration;
use crate::containerd::{self, Changes, Containerd, Version};
use crate::crio;
use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::plan::{Contents, Step, diff_lines};
use crate::record::{Record, Service};
use crate::selinux;
use crate::services::Services;
use crate::unit;

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it goes.
    pub places: Places,
    /// The folder of the programs `sealpod`, `containerd-shim-sealpod-v2` and `sealpod-snapshotter`, and of
    /// `selinux/sealpod.pp` if there is one.
    pub programs: PathBuf,
    /// The folder that `sealpod guest build` made.
    pub guest: PathBuf,
    /// Patterns of the images that are the guests'. Without any, all are, except for containerd 1.6, where they must
    /// be said.
    pub images: Vec<String>,
    /// The version of containerd that will be there, if it is not there yet.
    pub containerd_version: Option<String>,
    /// Whether services are started and restarted.
    pub restart: bool,
}

/// A planned installation.
#[derive(Debug)]
pub struct Installation {
    places: Places,
    record: Record,
    steps: Vec<Step>,
    kept: Vec<PathBuf>,
    containerd: Option<Runtime>,
    crio: Option<Step>,
    selinux: bool,
    /// Whether services can be and are to be started.
    services: bool,
    wants_restart: bool,
    notes: Vec<String>,
}

/// containerd, as it was found.
#[derive(Debug)]
struct Runtime {
    version: Version,
    changes: Changes,
    socket: String,
    /// Its folder of what lasts.
    root: PathBuf,
    was_active: bool,
}

impl Installation {
    /// Finds out what is to be done. Nothing is changed, but for files beside containerd's configuration that are there
    /// while containerd checks the new one.
    ///
    /// # Errors
    /// If something is missing, or if containerd would not take the new configuration.
    pub fn plan(options: &Options) -> Result<Self, Error> {
        let places = &options.places;
        if let Some(root) = &places.root {
            std::fs::read_dir(root).map_err(Error::file("cannot look into", root))?;
        }
        let record = Record::read(places)?.unwrap_or_default();
        let services = Services::find(places);
        let mut notes = Vec::new();

        let runtime = plan_containerd(options, &record, services.as_ref(), &mut notes)?;
        if runtime.is_none() && !crio::is_there(places) {
            return Err(Error::NoRuntime(places.root.clone()));
        }
        let mut planned = Self {
            places: places.clone(),
            steps: programs(options)?,
            kept: Vec::new(),
            containerd: runtime,
            crio: None,
            selinux: false,
            services: services.is_some(),
            wants_restart: options.restart,
            notes,
            record,
        };
        planned.plan_configuration(options)?;
        planned.plan_unit()?;
        planned.plan_image_mountpoint()?;
        if crio::is_there(places) {
            planned.crio = Some(Step::text(places, crio::path(places), crio::text(places))?);
        }
        planned.plan_selinux(options)?;
        planned.plan_notes(options);
        Ok(planned)
    }

    fn plan_configuration(&mut self, options: &Options) -> Result<(), Error> {
        let places = &options.places;
        let mut configurations = vec![(places.shim_configuration(), configuration::shim(places))];
        if let Some(runtime) = &self.containerd {
            let path = places.snapshotter_configuration();
            let present = places.on_disk(&path).exists();
            let said = !options.images.is_empty();
            if !said && !present && !runtime.version.has_snapshotter_per_runtime() {
                return Err(Error::ImagesUnknown);
            }
            // What was said at an earlier time holds until something else is said.
            if said || !present {
                configurations.push((path, configuration::snapshotter(&options.images)));
            }
        }
        for (path, contents) in configurations {
            let step = Step::text(places, path, contents)?;
            if step.is_of_others(&self.record) {
                self.kept.push(step.path);
            } else {
                self.steps.push(step);
            }
        }
        Ok(())
    }

    fn plan_unit(&mut self) -> Result<(), Error> {
        let Some(runtime) = &self.containerd else { return Ok(()) };
        let places = &self.places;
        let path = places.units.join(unit::NAME);
        self.steps.push(Step::text(places, path.clone(), unit::text(places, &runtime.socket))?);
        for target in unit::WANTED_BY {
            let link = places.units.join(format!("{target}.wants")).join(unit::NAME);
            self.steps.push(Step::new(places, link, Contents::Link(path.clone()), 0)?);
        }
        Ok(())
    }

    /// kubelet looks at the file system of the folder that CRI names for images, and fails where there is none.
    fn plan_image_mountpoint(&mut self) -> Result<(), Error> {
        let Some(runtime) = &self.containerd else { return Ok(()) };
        let path = containerd::image_mountpoint(&runtime.root);
        let snapshots = self.places.snapshots();
        let on_disk = self.places.on_disk(&path);
        let may_be_ours = on_disk.is_symlink() || !on_disk.exists();
        let link = || Step::new(&self.places, path.clone(), Contents::Link(snapshots.clone()), 0);
        let step = may_be_ours.then(link).transpose()?;
        match step.filter(|step| !step.is_of_others(&self.record)) {
            Some(step) => self.steps.push(step),
            None => self.notes.push(format!(
                "{} is there, and is no link to {}: it stays as it is, and kubelet takes its file system for that of \
                 our images",
                path.display(),
                snapshots.display()
            )),
        }
        Ok(())
    }

    fn plan_selinux(&mut self, options: &Options) -> Result<(), Error> {
        let Some(source) = selinux::source(&options.programs) else {
            if self.places.root.is_none() && selinux::state(&self.places) != selinux::State::Off {
                self.notes.push(
                    "SELinux is on, but no policy module (selinux/sealpod.pp) comes with the programs: none is loaded"
                        .into(),
                );
            }
            return Ok(());
        };
        let module = Step::new(&self.places, self.places.selinux_module(), Contents::Copy(source), 0o644)?;
        if self.places.root.is_some() {
            self.notes
                .push("the SELinux module is not loaded in an image: run this again on the node".into());
        } else if selinux::state(&self.places) == selinux::State::Off {
            self.notes.push("SELinux is off: its policy module is not loaded".into());
        } else {
            self.selinux = self.record.selinux.as_ref() != Some(&module.digest);
        }
        self.steps.push(module);
        Ok(())
    }

    fn plan_notes(&mut self, options: &Options) {
        for path in &self.kept {
            self.notes.push(format!("{} is not as it was installed: it stays as it is", path.display()));
            if *path == self.places.snapshotter_configuration() && !options.images.is_empty() {
                self.notes.push("so --images has no effect: write the patterns into that file".into());
            }
        }
        let changes = self.restarts().iter().map(|service| service.unit()).collect::<Vec<_>>().join(" ");
        if changes.is_empty() {
            return;
        }
        if self.places.root.is_some() {
            self.notes
                .push("an image: no service is touched; the snapshotter starts when the node boots".into());
        } else if !self.services {
            self.notes.push(format!(
                "systemd does not run here: start or restart yourself, in this order: {changes}"
            ));
        } else if !self.wants_restart {
            self.notes.push(format!(
                "not restarted, as asked: `systemctl daemon-reload && systemctl restart {changes}`"
            ));
        }
    }

    /// The services that something changes for, in the order in which they are restarted.
    fn restarts(&self) -> Vec<Service> {
        let changed = |path: &Path| self.steps.iter().any(|step| step.path == path && step.is_change());
        let mut services = Vec::new();
        if let Some(runtime) = &self.containerd {
            let places = &self.places;
            let of_snapshotter = [
                places.bin().join(crate::SNAPSHOTTER),
                places.snapshotter_configuration(),
                places.units.join(unit::NAME),
            ];
            let stopped =
                Services::find(places).is_some_and(|services| !services.is_active(Service::Snapshotter));
            // It enters the domain that the policy has for it when it starts.
            if stopped
                || self.selinux
                || of_snapshotter.iter().any(|path| changed(path))
                || self.is_pending(Service::Snapshotter)
            {
                services.push(Service::Snapshotter);
            }
            if !runtime.changes.is_empty() || self.is_pending(Service::Containerd) {
                services.push(Service::Containerd);
            }
        }
        if self.crio.as_ref().is_some_and(Step::is_change) || self.is_pending(Service::Crio) {
            services.push(Service::Crio);
        }
        services
    }

    fn is_pending(&self, service: Service) -> bool {
        self.record.pending.contains(&service)
    }

    fn restarts_services(&self) -> bool {
        self.services && self.wants_restart
    }

    /// Whether everything is as it would be installed.
    pub fn is_done(&self) -> bool {
        let unchanged = |runtime: &Runtime| runtime.changes.is_empty();
        !self.steps.iter().chain(&self.crio).any(Step::is_change)
            && self.containerd.as_ref().is_none_or(unchanged)
            && !self.selinux
            && (self.restarts().is_empty() || !self.restarts_services())
    }

    /// The plan for people: each file with its changes, what is restarted, and what else is to be known.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for step in self.steps.iter().chain(&self.crio).filter(|step| step.is_change()) {
            lines.extend(step.lines(&self.places));
        }
        for (path, current, after) in self.containerd.iter().flat_map(|runtime| runtime.changes.files()) {
            let verb = if current.is_some() { "edit     " } else { "write    " };
            lines.push(format!("{verb}{}", path.display()));
            lines.extend(diff_lines(path, current, after));
        }
        if self.selinux {
            lines.push(format!(
                "load     {}  into SELinux, and label our files",
                self.places.selinux_module().display()
            ));
        }
        lines.extend(self.restart_lines());
        lines.extend(self.notes.iter().map(|note| format!("note     {note}")));
        lines
    }

    /// What else is to be known.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn restart_lines(&self) -> Vec<String> {
        if !self.restarts_services() {
            return Vec::new();
        }
        self.restarts().into_iter().map(|service| format!("restart  {}", service.unit())).collect()
    }
}

fn plan_containerd(
    options: &Options,
    record: &Record,
    services: Option<&Services>,
    notes: &mut Vec<String>,
) -> Result<Option<Runtime>, Error> {
    let places = &options.places;
    let program = Containerd::find(places);
    let said = options.containerd_version.as_deref().map(str::parse::<Version>).transpose()?;
    let version = match (&program, said) {
        (_, Some(said)) => said,
        (Some(program), None) => program.version()?,
        (None, None) => return Ok(None),
    };
    // One that runs nothing may be for another architecture, or of another version than the one to come.
    let program = program.filter(|program| program.version().ok() == Some(version));
    let dump = program.as_ref().map(Containerd::dump).transpose()?;
    let names = configuration::names_images(places, &options.images)?;
    let changes = Changes::install(places, version, names, record, dump.as_ref())?;
    match (&program, &dump) {
        (Some(program), Some(dump)) => changes.check(places, program, dump, true)?,
        _ => notes
            .push(format!("containerd {version} is not there: its configuration is not checked by itself")),
    }
    if !version.has_snapshotter_per_runtime() && record.containerd.is_none() {
        notes.push(
            "containerd 1.6 has one snapshotter for all runtimes: images of others will be unpacked by ours from now \
             on, those that are there already once more when they are used"
                .into(),
        );
    }
    let was_active = services.is_some_and(|services| services.is_active(Service::Containerd));
    let root = places.containerd_root.clone().unwrap_or_else(|| changes.root(dump.as_ref()));
    Ok(Some(Runtime { version, changes, socket: containerd::socket(dump.as_ref()), root, was_active }))
}

fn programs(options: &Options) -> Result<Vec<Step>, Error> {
    let places = &options.places;
    let mut steps = Vec::new();
    for name in [crate::TOOL, crate::SHIM, crate::SNAPSHOTTER] {
        let from = options.programs.join(name);
        if !files::is_executable(&from) {
            return Err(Error::Source { path: from, problem: "expected a program".into() });
        }
        steps.push(Step::new(places, places.bin().join(name), Contents::Copy(from), 0o755)?);
    }
    GuestImage::open(&options.guest)
        .map_err(|error| Error::Source { path: options.guest.clone(), problem: error.to_string() })?;
    steps.push(Step::new(places, places.guest(), Contents::Folder(options.guest.clone()), 0o755)?);
    Ok(steps)
}
