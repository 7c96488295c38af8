//! A queue that never runs dry, and never far behind the host.

use std::error::Error;
use wgpu_attention::wgpu;

/// Submits steps, and waits for the one before: while the device runs one, the host prepares the next.
pub(crate) struct Ahead<'a> {
    pub(crate) device: &'a wgpu::Device,
    pub(crate) queue: &'a wgpu::Queue,
    last: Option<wgpu::SubmissionIndex>,
    /// Steps that were submitted.
    pub(crate) steps: usize,
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue) -> Self {
        Self { device, queue, last: None, steps: 0 }
    }

    pub(crate) fn submit(&mut self, encoder: wgpu::CommandEncoder) -> Result<(), Box<dyn Error>> {
        let before = self.last.replace(self.queue.submit([encoder.finish()]));
        self.steps += 1;
        if before.is_some() {
            let poll = wgpu::PollType::Wait { submission_index: before, timeout: None };
            self.device.poll(poll)?;
        }
        Ok(())
    }

    /// Until all steps are done.
    pub(crate) fn wait(&mut self) -> Result<(), Box<dyn Error>> {
        self.last = None;
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }
}
