//! The numbers by which container engines tell containers apart where they expect the ids of processes.
//!
//! The processes themselves are in the guest, where this machine cannot name them. An engine names a container's process
//! namespace by such a number, and may look whether it is still there.

use std::sync::mpsc;

use crate::error::Error;

/// What its thread needs.
const STACK: usize = 64 << 10;

/// The number of a thread that does nothing until this is dropped: nobody else's for as long.
#[derive(Debug)]
pub(crate) struct Number {
    thread: u32,
    _end: mpsc::Sender<()>,
}

impl Number {
    pub(crate) fn take() -> Result<Self, Error> {
        let (end, ended) = mpsc::channel::<()>();
        let (number, thread) = mpsc::channel();
        let wait = move || {
            let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
            // Whoever asked may have gone.
            let _ = number.send(own);
            // An error: the other end is dropped, never used.
            let _ = ended.recv();
        };
        let cannot = || Error::io("cannot start a thread for the container");
        std::thread::Builder::new()
            .name("container".into())
            .stack_size(STACK)
            .spawn(wait)
            .map_err(cannot())?;
        let thread = thread.recv().map_err(|error| cannot()(std::io::Error::other(error)))?;
        Ok(Self { thread, _end: end })
    }

    pub(crate) fn get(&self) -> u32 {
        self.thread
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_number_is_taken_as_long_as_it_is_kept() {
        let (one, other) = (Number::take().unwrap(), Number::take().unwrap());
        assert_ne!(one.get(), other.get());
        let is_taken = |number: u32| Path::new(&format!("/proc/{number}/ns/pid")).exists();
        assert!(is_taken(one.get()) && is_taken(other.get()));
        let number = one.get();
        drop(one);
        let deadline = Instant::now() + Duration::from_secs(30);
        while is_taken(number) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(is_taken(other.get()));
    }
}
