//! Ctrl-C: ends an answer that is under way, and the program where there is none.

use crate::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
///
/// # Errors
/// The system does not let it.
pub fn listen() -> Result<(), Error> {
    ctrlc::set_handler(|| {
        // A second one ends the program, in case that the machine is stuck.
        if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
            crate::command::say("");
            std::process::exit(0);
        }
    })
    .map_err(Error::device)
}

/// Runs `answer`, which asks whether to go on; whether it was stopped.
pub fn while_answering<T>(answer: impl FnOnce(&dyn Fn() -> bool) -> T) -> (T, bool) {
    STOP.store(false, Ordering::SeqCst);
    ANSWERING.store(true, Ordering::SeqCst);
    let result = answer(&|| !STOP.load(Ordering::SeqCst));
    ANSWERING.store(false, Ordering::SeqCst);
    (result, STOP.load(Ordering::SeqCst))
}
