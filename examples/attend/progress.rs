//! How far a long call is, where somebody looks.

use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use wgpu_attention::Runner;

/// Calls shorter than this show nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The runner, with a line on standard error that a call overwrites as it goes on, if that is a terminal.
pub(crate) fn shown(runner: Runner) -> Runner {
    if !io::stderr().is_terminal() {
        return runner;
    }
    let started = Mutex::new(Instant::now());
    runner.on_progress(move |progress| {
        if let Ok(mut started) = started.lock() {
            if progress.done == 0 {
                *started = Instant::now();
            } else if started.elapsed() > PATIENCE {
                let share = progress.share();
                // Gone once the call is done.
                let text =
                    if share < 1.0 { format!("{:3.0} %", 100.0 * share) } else { String::new() };
                let _ = write!(io::stderr(), "\r{text:5}\r");
            }
        }
        ControlFlow::Continue(())
    })
}
