//! systemd, where it runs.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::containerd;
use crate::error::Error;
use crate::places::Places;
use crate::record::Service;

/// How long a service may take until it works.
const START_LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(200);

/// The node's services.
#[derive(Debug)]
pub(crate) struct Services<'a> {
    places: &'a Places,
    systemctl: PathBuf,
}

impl<'a> Services<'a> {
    /// Those of this machine, if systemd runs on it.
    pub(crate) fn find(places: &'a Places) -> Option<Self> {
        let runs = places.root.is_none() && places.systemd.exists();
        let systemctl = runs.then(|| places.program("systemctl"))??;
        Some(Self { places, systemctl })
    }

    /// Has systemd read its units again.
    pub(crate) fn reload(&self) -> Result<(), Error> {
        run(Command::new(&self.systemctl).arg("daemon-reload")).map(drop)
    }

    /// Whether a service runs.
    pub(crate) fn is_active(&self, service: Service) -> bool {
        run(Command::new(&self.systemctl).args(["is-active", "--quiet", service.unit()])).is_ok()
    }

    /// Stops a service.
    pub(crate) fn stop(&self, service: Service) -> Result<(), Error> {
        run(Command::new(&self.systemctl).args(["stop", service.unit()])).map(drop)
    }

    /// Starts a service anew, and waits until it works.
    ///
    /// # Errors
    /// With what was seen, if it does not.
    pub(crate) fn restart(
        &self,
        service: Service,
        socket: &str,
        with_snapshotter: bool,
    ) -> Result<(), String> {
        // One that has failed often is not started again otherwise; one that never has cannot be reset.
        let _ = run(Command::new(&self.systemctl).args(["reset-failed", service.unit()]));
        run(Command::new(&self.systemctl).args(["restart", service.unit()]))
            .map_err(|error| error.to_string())?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let state = match self.is_active(service) {
                true if service == Service::Containerd => self.containerd_works(socket, with_snapshotter),
                true => Ok(()),
                false => Err("it is not active".to_owned()),
            };
            if state.is_ok() || Instant::now() > deadline {
                return state;
            }
            std::thread::sleep(INTERVAL);
        }
    }

    fn containerd_works(&self, socket: &str, with_snapshotter: bool) -> Result<(), String> {
        // Every package of containerd has `ctr`; without it, that the service is active must do.
        let Some(ctr) = self.places.program("ctr") else { return Ok(()) };
        let plugins = run(Command::new(ctr).args(["--address", socket, "plugins", "ls"]));
        containerd::ready(&plugins.map_err(|error| error.to_string())?, with_snapshotter)
    }
}

/// Runs a command; gives what it prints.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words = words.join(" ".as_ref()).to_string_lossy().into_owned();
    let failed = |output: String| Error::Command { command: words.clone(), output };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(if said.is_empty() { output.status.to_string() } else { said }))
}
