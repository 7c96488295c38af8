//! A queue that the host fills faster than the device empties it.

use std::error::Error;
use wgpu_attention::wgpu;

/// The host is ahead of the device by so many steps at most: one runs, one waits, none is ever waited for.
const AHEAD: usize = 2;

/// Submits steps, and knows how many are done: what a progress bar, or a cancel button, needs.
pub(crate) struct Ahead<'a> {
    pub(crate) device: &'a wgpu::Device,
    pub(crate) queue: &'a wgpu::Queue,
    pub(crate) submitted: Vec<wgpu::SubmissionIndex>,
}

impl Ahead<'_> {
    pub(crate) fn submit(&mut self, encoder: wgpu::CommandEncoder) -> Result<(), Box<dyn Error>> {
        self.submitted.push(self.queue.submit([encoder.finish()]));
        if let Some(done) = self.done().checked_sub(1) {
            let submission_index = Some(self.submitted[done].clone());
            self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None })?;
        }
        Ok(())
    }

    /// Steps that are known to be done.
    pub(crate) fn done(&self) -> usize {
        self.submitted.len().saturating_sub(AHEAD)
    }

    pub(crate) fn wait(&self) -> Result<(), Box<dyn Error>> {
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }
}
