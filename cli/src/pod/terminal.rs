//! The user's own terminal while a container's terminal is shown in it.

use std::io::IsTerminal;

use rustix::termios::{self, OptionalActions, Termios};

/// Puts the terminal into raw mode, and back when dropped.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Nothing where standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Flush, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that went away.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Rows and columns of the user's terminal.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size =
        termios::tcgetwinsize(std::io::stdout()).or_else(|_| termios::tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
