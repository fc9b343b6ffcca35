//! A server that a test starts, and that ends with it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

const START_LIMIT: Duration = Duration::from_secs(30);

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
}

impl Service {
    /// Starts a program whose output goes to a file.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let output = std::fs::File::create(log).expect("the log can be written");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a descriptor")).stderr(output);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}; `make setup` installs it"));
        Self { name: name.to_owned(), child }
    }

    /// Waits until `ready` gives something.
    ///
    /// # Panics
    ///
    /// Where the program ends before, or takes too long.
    pub fn until<T>(&mut self, mut ready: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(value) = ready() {
                return value;
            }
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                panic!("{} ended: {status}", self.name);
            }
            assert!(Instant::now() < deadline, "{} did not get ready", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Service {
    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
