//! Containers' logs, as CRI writes them.

use std::path::Path;

/// A line of a container's log, in CRI's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text.
    pub text: String,
}

/// The lines of a log. Parts of long lines are put together.
pub fn log_lines(path: &Path) -> Vec<LogLine> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut lines: Vec<LogLine> = Vec::new();
    let mut continues = false;
    for line in text.lines() {
        let mut words = line.splitn(4, ' ').skip(1);
        let (Some(stream), Some(tag)) = (words.next(), words.next()) else { continue };
        let part = words.next().unwrap_or_default();
        match lines.last_mut().filter(|last| continues && last.stream == stream) {
            Some(last) => last.text.push_str(part),
            None => lines.push(LogLine { stream: stream.into(), text: part.into() }),
        }
        continues = tag == "P";
    }
    lines
}
