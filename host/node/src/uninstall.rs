//! Uninstalling: what is to be taken back, and taking it back.

use std::path::{Path, PathBuf};

use crate::apply::{lock, remove_backups, restore_changes, write_changes};
use crate::containerd::{Changes, Containerd, Version};
use crate::error::Error;
use crate::files;
use crate::places::Places;
use crate::plan::diff_lines;
use crate::record::{Record, Service};
use crate::selinux;
use crate::services::Services;
use crate::{containerd, crio, unit};

/// A planned removal.
#[derive(Debug)]
pub struct Removal {
    places: Places,
    record: Record,
    changes: Changes,
    socket: String,
    /// Ours, as they were written.
    files: Vec<PathBuf>,
    /// Ours, but changed by somebody.
    kept: Vec<PathBuf>,
    purge: bool,
    services: bool,
    restart: bool,
    /// A mount of a container of another runtime, for which the snapshotter stays.
    mount: Option<String>,
}

impl Removal {
    /// Finds out what is to be taken back. With `force`, also while pods use it; with `purge`, the snapshots and the
    /// TPMs' authority too; without `restart`, no service is touched.
    ///
    /// # Errors
    /// If nothing is installed, if pods use it, or if containerd would not take its configuration without ours.
    pub fn plan(places: &Places, force: bool, purge: bool, restart: bool) -> Result<Self, Error> {
        let record = Record::read(places)?;
        let record = record.ok_or_else(|| Error::NotInstalled(places.on_disk(&places.prefix)))?;
        let told = record.containerd.as_deref().and_then(|version| version.parse::<Version>().ok());
        let mount = user(places, told).map_or_else(|error| if force { Ok(None) } else { Err(error) }, Ok)?;
        let mount = mount.filter(|_| !force);
        let changes = Changes::remove(places, &record, mount.is_some())?;
        let mut socket = containerd::socket(None);
        if let Some(program) = Containerd::find(places)
            && !changes.is_empty()
        {
            let dump = program.dump()?;
            socket = containerd::socket(Some(&dump));
            // Another containerd than the one that was told reads the files in another way.
            if told.is_some_and(|told| Ok(told) == program.version().map_err(drop)) {
                changes.check(places, &program, &dump, false)?;
            }
        }
        let drop_in = changes.drop_in.as_ref().map(|file| file.path.clone());
        let mut files = Vec::new();
        let mut kept = Vec::new();
        let stay = mount.as_ref().map(|_| with_snapshotter(places, &record)).unwrap_or_default();
        let is_here = |path: &&PathBuf| Some(*path) != drop_in.as_ref() && !stay.contains(path);
        for path in record.files.keys().filter(is_here) {
            let may_be_of_others =
                containerd::is_image_mountpoint(path) || (is_configuration(places, path) && !purge);
            let is_there = places.on_disk(path).symlink_metadata().is_ok();
            if may_be_of_others && is_there && !record.is_ours(places, path)? {
                kept.push(path.clone());
            } else {
                files.push(path.clone());
            }
        }
        let purge = purge && mount.is_none();
        let services = Services::find(places).is_some();
        let places = places.clone();
        Ok(Self { places, record, changes, socket, files, kept, purge, services, restart, mount })
    }

    /// The plan for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, current, after) in self.changes.files() {
            let verb = if after.is_some() { "restore  " } else { "remove   " };
            lines.push(format!("{verb}{}", path.display()));
            lines.extend(diff_lines(path, current, after));
        }
        lines.extend(self.files.iter().map(|path| format!("remove   {}", path.display())));
        if self.purge {
            lines.push(format!("remove   {}/", self.places.data.display()));
        }
        if self.record.selinux.is_some() {
            lines.push("unload   the SELinux module".into());
        }
        if self.restarts_services() {
            lines.extend(self.restarts().map(|service| format!("restart  {}", service.unit())));
            if self.mount.is_none() {
                lines.push(format!("stop     {}", unit::NAME));
            }
        }
        lines.extend(self.notes().into_iter().map(|note| format!("note     {note}")));
        lines
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(mount) = &self.mount {
            notes.push(format!(
                "containers of other runtimes use the snapshotter ({mount}): it stays for them. Delete their pods, \
                 Kubernetes makes them anew without it; then run this again"
            ));
        }
        for path in &self.kept {
            let purge = if is_configuration(&self.places, path) { " (--purge removes it)" } else { "" };
            notes.push(format!("{} is not as it was installed: it stays{purge}", path.display()));
        }
        for edit in &self.changes.edits {
            for key in &edit.kept {
                notes.push(format!("{}: somebody has changed {key}: it stays as it is", edit.path.display()));
            }
        }
        if !self.purge && self.places.on_disk(&self.places.data).exists() {
            notes.push(format!(
                "{} stays: snapshots and the TPMs' authority (--purge removes it)",
                self.places.data.display()
            ));
        }
        let changed: Vec<&str> = self.restarts().map(Service::unit).collect();
        if !changed.is_empty() && self.places.root.is_none() && !self.restarts_services() {
            notes.push(format!("restart {} yourself, then stop the snapshotter", changed.join(", ")));
        }
        notes
    }

    fn restarts_services(&self) -> bool {
        self.services && self.restart
    }

    fn restarts(&self) -> impl Iterator<Item = Service> {
        let containerd = (!self.changes.is_empty()).then_some(Service::Containerd);
        let crio = self.files.contains(&crio::path(&self.places)).then_some(Service::Crio);
        containerd.into_iter().chain(crio)
    }

    /// Does it. `say` hears each line of progress.
    ///
    /// # Errors
    /// If something cannot be done; the same removal can be run again. Where containerd does not start without ours, it
    /// is started with ours again.
    pub fn carry_out(mut self, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        for note in self.notes() {
            say(&format!("note: {note}"));
        }
        let places = self.places.clone();
        let _lock = lock(&places, &self.record)?;
        self.forget_in_containerd(say)?;

        let crio = crio::path(&places);
        if self.files.contains(&crio) {
            self.remove_file(&crio, say)?;
            if let Some(services) = self.active(Service::Crio) {
                say("restarting crio.service");
                services.restart(Service::Crio, "", false).map_err(|problem| Error::Service {
                    service: Service::Crio.unit().into(),
                    problem,
                    restored: "nothing of ours is in its configuration any more".into(),
                })?;
            }
        }
        if let Some(services) = self.active(Service::Snapshotter).filter(|_| self.mount.is_none()) {
            say(&format!("stopping {}", unit::NAME));
            services.stop(Service::Snapshotter)?;
        }
        if self.record.selinux.is_some() && places.root.is_none() {
            say("unloading the SELinux module");
            selinux::unload(&places)?;
            self.record.selinux = None;
        }
        for path in std::mem::take(&mut self.files) {
            self.remove_file(&path, say)?;
        }
        if let Some(services) = Services::find(&places).filter(|_| self.restart) {
            services.reload()?;
        }
        if self.mount.is_some() {
            return self.record.write(&places);
        }
        if self.purge {
            say(&format!("removing {}", places.data.display()));
            remove(&places, &places.data)?;
        }
        remove(&places, &places.record())?;
        for folder in self.record.folders.iter().rev() {
            // It stays if somebody else has put something into it.
            let _ = std::fs::remove_dir(places.on_disk(folder));
        }
        Ok(())
    }

    fn forget_in_containerd(&mut self, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let before = self.record.clone();
        let changed = !self.changes.is_empty();
        let services = changed.then(|| self.active(Service::Containerd)).flatten().is_some();
        if services {
            say("this restarts containerd.service; containers go on running");
        }
        write_changes(&self.places, &self.changes, &mut self.record, say)?;
        let forgotten = |places: &Places| remove_backups(places, &self.changes, &self.record);
        let Some(services) = Services::find(&self.places).filter(|_| services) else {
            return forgotten(&self.places);
        };
        say("restarting containerd.service");
        let Err(problem) = services.restart(Service::Containerd, &self.socket, false) else {
            return forgotten(&self.places);
        };
        restore_changes(&self.places, &self.changes)?;
        before.write(&self.places)?;
        let restored = match services.restart(Service::Containerd, &self.socket, false) {
            Ok(()) => "it runs again with ours".into(),
            Err(problem) => format!("ours is back, but it does not start with that either: {problem}"),
        };
        Err(Error::Service { service: Service::Containerd.unit().into(), problem, restored })
    }

    fn active(&self, service: Service) -> Option<Services<'_>> {
        Services::find(&self.places).filter(|services| self.restart && services.is_active(service))
    }

    fn remove_file(&mut self, path: &Path, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        say(&format!("removing {}", path.display()));
        remove(&self.places, path)?;
        self.record.files.remove(path);
        self.record.write(&self.places)
    }
}

fn remove(places: &Places, path: &Path) -> Result<(), Error> {
    let on_disk = places.on_disk(path);
    files::remove(&on_disk).map_err(Error::file("cannot remove", on_disk))
}

/// Whether a file is one that the administrator may change.
fn is_configuration(places: &Places, path: &Path) -> bool {
    path.starts_with(&places.configuration)
}

/// What the snapshotter needs to stay, and what takes it away at last.
fn with_snapshotter(places: &Places, record: &Record) -> Vec<PathBuf> {
    let unit = places.units.join(unit::NAME);
    let links = unit::WANTED_BY.map(|target| places.units.join(format!("{target}.wants")).join(unit::NAME));
    let programs = [crate::TOOL, crate::SNAPSHOTTER].map(|name| places.bin().join(name));
    let others = [unit, places.snapshotter_configuration()];
    let mountpoints = record.files.keys().filter(|path| containerd::is_image_mountpoint(path)).cloned();
    others.into_iter().chain(links).chain(programs).chain(mountpoints).collect()
}

/// Refuses while pods in VMs run. Gives a mount from a snapshot where it is of another runtime's container, for which
/// the snapshotter must stay.
fn user(places: &Places, containerd: Option<Version>) -> Result<Option<String>, Error> {
    if places.root.is_some() {
        return Ok(None);
    }
    let shim = places.shim();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let serving = processes.map(|entry| entry.path()).find(|process| {
        // A program that was replaced since has a mark behind its path.
        std::fs::read_link(process.join("exe"))
            .is_ok_and(|exe| exe.to_string_lossy().trim_end_matches(" (deleted)") == shim.to_string_lossy())
    });
    if let Some(process) = serving {
        return Err(Error::InUse(format!("{} is a shim that serves one", process.display())));
    }
    let snapshots = format!("{}/", places.snapshots().display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let Some(mount) = mounts.lines().find(|mount| mount.contains(&snapshots)) else { return Ok(None) };
    let mount = mount.split(' ').nth(1).unwrap_or_default().to_owned();
    if containerd.is_some_and(|version| !version.has_snapshotter_per_runtime()) {
        return Ok(Some(mount));
    }
    Err(Error::InUse(format!("{mount} is mounted from a snapshot")))
}
