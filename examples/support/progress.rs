//! How far it is, on one line of a terminal.

use std::io::{self, IsTerminal as _, Write as _};

/// Cells of the bar.
const CELLS: usize = 40;

/// Gone when it is dropped; nothing where standard error is no terminal.
pub(crate) struct Progress {
    what: &'static str,
    steps: u32,
    shown: bool,
    note: String,
}

impl Progress {
    pub(crate) fn new(what: &'static str, steps: u32) -> Self {
        Self { what, steps, shown: io::stderr().is_terminal(), note: String::new() }
    }

    pub(crate) fn show(&mut self, done: u32) {
        if self.shown {
            let full = CELLS * done as usize / self.steps as usize;
            let (bar, rest) = ("█".repeat(full), "░".repeat(CELLS - full));
            let Self { what, steps, note, .. } = self;
            // A terminal that is gone takes nothing with it.
            let _ = write!(io::stderr(), "\r{what:8}{bar}{rest} {done}/{steps} {note}\x1b[K");
        }
    }

    /// What is said behind the bar from here on.
    pub(crate) fn note(&mut self, note: String) {
        self.note = note;
    }

    /// Makes room for a line, until it is shown again.
    pub(crate) fn clear(&self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
