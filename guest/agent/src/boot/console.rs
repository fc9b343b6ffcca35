//! What PID 1 says on the kernel's console. The host reads it, so nothing secret is ever said.

use std::fmt;
use std::io::Write;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// The first byte that a guest of ours sends: start-up times are counted from it.
pub(super) fn first_line() {
    log("starting");
}

/// Writes one line. Errors are ignored: a guest without a console works as well.
pub(super) fn log(line: &str) {
    // One write, so that lines of several threads do not mix; control characters could forge lines.
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = std::io::stderr().write_all(format!("sealpod: {line}\n").as_bytes());
}

/// A panic anywhere ends the guest: a half-dead agent would be one that no longer enforces anything.
pub(super) fn power_off_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        log(&format!("panic at {place}; powering off"));
        super::power_off();
    }));
}

/// Sends what our crates trace at `info` and above to the console.
pub(super) fn install_tracing() {
    // Only fails when a subscriber is set already, and PID 1 comes here once.
    let _ = tracing::subscriber::set_global_default(Console);
}

/// A subscriber of a few lines: the full-grown one would be a fifth of a megabyte in each boot.
struct Console;

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("sealpod")
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::INFO)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        log(&line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// An event's message, then its other fields as `name=value`.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?} "));
        } else {
            self.0.push_str(&format!("{}={value:?} ", field.name()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
