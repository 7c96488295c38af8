//! Who sees how far a run is, and may end it.

use crate::chunks::Progress;
use crate::error::Error;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
#[cfg(feature = "cpu")]
use std::sync::{Mutex, PoisonError};

/// Sees the progress of every run of a runner, if anyone does.
#[derive(Clone, Default)]
pub(crate) struct Watcher {
    callback: Option<Arc<Callback>>,
}

type Callback = dyn Fn(Progress) -> ControlFlow<()> + Send + Sync;

impl Watcher {
    pub(crate) fn new(
        callback: impl Fn(Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        Self { callback: Some(Arc::new(callback)) }
    }

    /// Says how far the run is; an error if it is to end.
    pub(crate) fn report(&self, progress: Progress) -> Result<(), Error> {
        match self.callback.as_ref().map(|callback| callback(progress)) {
            Some(ControlFlow::Break(())) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// How far a run on several threads is, and that it is to end.
#[cfg(feature = "cpu")]
pub(crate) struct Meter<'a> {
    watcher: &'a Watcher,
    total: u64,
    /// What is done; an error from when it is to end.
    done: Mutex<Result<u64, Error>>,
}

#[cfg(feature = "cpu")]
impl<'a> Meter<'a> {
    /// Of a run that has just begun, with so much to do.
    pub(crate) fn start(watcher: &'a Watcher, total: u64) -> Result<Self, Error> {
        watcher.report(Progress { done: 0, total })?;
        Ok(Self { watcher, total, done: Mutex::new(Ok(0)) })
    }

    /// Some more is done; an error if the run is to end.
    pub(crate) fn add(&self, work: u64) -> Result<(), Error> {
        if self.watcher.callback.is_none() {
            return Ok(());
        }
        // A callback that panicked ends the run by itself.
        let mut state = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let done = state.clone()?.saturating_add(work).min(self.total);
        let reported = self.watcher.report(Progress { done, total: self.total });
        *state = reported.clone().map(|()| done);
        reported
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("callback", &self.callback.is_some()).finish()
    }
}
