//! Carrying an installation out, and the way back where a runtime does not start.

use std::path::PathBuf;

use super::Installation;
use crate::apply::{lock, remove_backups, restore_changes, write_changes};
use crate::error::Error;
use crate::files;
use crate::plan::make_folder_of;
use crate::record::Service;
use crate::selinux;
use crate::services::Services;
use crate::unit;

impl Installation {
    /// Does it. `say` hears each line of progress, and what is restarted before it is.
    ///
    /// # Errors
    /// If something cannot be done. Whatever was done is on record, and the same installation can be run again. Where
    /// containerd or CRI-O does not start with its new configuration, it is started with its old one.
    pub fn carry_out(mut self, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        for note in &self.notes {
            say(&format!("note: {note}"));
        }
        let restarts = if self.restarts_services() { self.restarts() } else { Vec::new() };
        if !restarts.is_empty() {
            let names: Vec<&str> = restarts.iter().map(|service| service.unit()).collect();
            say(&format!("this restarts {}; containers go on running", names.join(", ")));
        }

        let places = self.places.clone();
        make_folder_of(&places, &places.record(), &mut self.record)?;
        let _lock = lock(&places, &self.record)?;
        self.record.version = env!("CARGO_PKG_VERSION").into();
        self.record.containerd = self.containerd.as_ref().map(|runtime| runtime.version.to_string());
        self.record.pending.extend(self.restarts());
        self.record.write(&places)?;

        for step in &self.steps {
            if step.is_change() {
                say(&format!("writing {}", step.path.display()));
            }
            step.carry_out(&places, &mut self.record)?;
        }
        if self.selinux {
            say("loading the SELinux module");
            selinux::load(&places)?;
            self.record.selinux = self
                .steps
                .iter()
                .find(|step| step.path == places.selinux_module())
                .map(|step| step.digest.clone());
            self.record.write(&places)?;
        }
        // A program enters its domain by its label, so it has that before it is started.
        self.label(&selinux::ours(&places))?;
        self.start_snapshotter(&restarts, say)?;
        self.tell_containerd(&restarts, say)?;
        self.tell_crio(&restarts, say)?;
        if !self.services {
            // Whoever starts them has been told; they begin with what is there then.
            self.record.pending.clear();
        }
        self.record.write(&places)
    }

    /// Gives files the labels that the policy has for them, where our module is loaded.
    fn label(&self, paths: &[PathBuf]) -> Result<(), Error> {
        match self.record.selinux.is_some() && self.places.root.is_none() {
            true => selinux::label(&self.places, paths),
            false => Ok(()),
        }
    }

    fn start_snapshotter(&mut self, restarts: &[Service], say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let Some(services) = Services::find(&self.places).filter(|_| self.wants_restart) else {
            return Ok(());
        };
        services.reload()?;
        if restarts.contains(&Service::Snapshotter) {
            say(&format!("starting {}", unit::NAME));
            services.restart(Service::Snapshotter, "", false).map_err(|problem| Error::Service {
                service: unit::NAME.into(),
                problem,
                restored: "containerd's configuration was not touched".into(),
            })?;
            self.record.pending.remove(&Service::Snapshotter);
            self.record.write(&self.places)?;
        }
        Ok(())
    }

    fn tell_containerd(&mut self, restarts: &[Service], say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let Some(runtime) = &self.containerd else { return Ok(()) };
        let before = self.record.clone();
        write_changes(&self.places, &runtime.changes, &mut self.record, say)?;
        self.label(&selinux::of_containerd(&self.places))?;
        let services = Services::find(&self.places).filter(|_| restarts.contains(&Service::Containerd));
        let Some(services) = services else {
            return remove_backups(&self.places, &runtime.changes, &self.record);
        };
        if !runtime.was_active {
            say("containerd.service does not run: it stays so, and will start with the new configuration");
        } else {
            say("restarting containerd.service");
            if let Err(problem) = services.restart(Service::Containerd, &runtime.socket, true) {
                say("containerd did not start with the new configuration: restoring the old one");
                restore_changes(&self.places, &runtime.changes)?;
                self.record.edits = before.edits;
                self.record.files = before.files;
                self.record.pending.remove(&Service::Containerd);
                self.record.write(&self.places)?;
                remove_backups(&self.places, &runtime.changes, &self.record)?;
                let again = services.restart(Service::Containerd, &runtime.socket, false);
                return Err(Error::Service {
                    service: Service::Containerd.unit().into(),
                    problem,
                    restored: match again {
                        Ok(()) => "it runs again with the old one".into(),
                        Err(problem) => {
                            format!("the old one is back, but it does not start with that either: {problem}")
                        }
                    },
                });
            }
        }
        self.record.pending.remove(&Service::Containerd);
        remove_backups(&self.places, &runtime.changes, &self.record)?;
        self.record.write(&self.places)
    }

    fn tell_crio(&mut self, restarts: &[Service], say: &mut dyn FnMut(&str)) -> Result<(), Error> {
        let Some(step) = &self.crio else { return Ok(()) };
        let old =
            files::read(&self.places.on_disk(&step.path)).map_err(Error::file("cannot read", &step.path))?;
        let before = self.record.files.clone();
        step.carry_out(&self.places, &mut self.record)?;
        self.label(std::slice::from_ref(&step.path))?;
        if !restarts.contains(&Service::Crio) {
            return Ok(());
        }
        let Some(services) = Services::find(&self.places) else { return Ok(()) };
        if services.is_active(Service::Crio) {
            say("restarting crio.service");
            if let Err(problem) = services.restart(Service::Crio, "", false) {
                let restored = match old {
                    Some(old) => files::write(&step.path, &old, 0o644),
                    None => files::remove(&step.path),
                };
                restored.map_err(Error::file("cannot restore", &step.path))?;
                self.record.files = before;
                self.record.pending.remove(&Service::Crio);
                self.record.write(&self.places)?;
                let restored = match services.restart(Service::Crio, "", false) {
                    Ok(()) => "it runs again with the old one".into(),
                    Err(problem) => {
                        format!("the old one is back, but it does not start with that either: {problem}")
                    }
                };
                return Err(Error::Service { service: Service::Crio.unit().into(), problem, restored });
            }
        }
        self.record.pending.remove(&Service::Crio);
        self.record.write(&self.places)
    }
}
