//! Disks by the serial numbers that the host gives them.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The serial number of the disk that holds the agent.
pub const AGENT: &str = "agent";

/// The folder in sysfs of the disk with a serial number; its name is the device's in `/dev`.
///
/// # Errors
/// If sysfs cannot be read.
pub fn with_serial(serial: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/block")? {
        let folder = entry?.path();
        let found = fs::read_to_string(folder.join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}
