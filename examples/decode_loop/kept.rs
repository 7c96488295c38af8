//! What is looked at afterwards, copied aside on the device.

use crate::cache::{Cache, PER_SEQUENCE_BYTES};
use crate::check::Sample;
use crate::model::{Model, SEQUENCES};
use crate::step::Step;
use std::error::Error;
use wgpu_attention::{Download, wgpu};

/// Rows of out that are looked at afterwards, and what every append had to say.
pub(crate) struct Kept<'a> {
    samples: &'a [Sample],
    /// `[samples, heads, head_dim]`.
    rows: wgpu::Buffer,
    row_bytes: u64,
    /// `[steps, sequences]`.
    status: wgpu::Buffer,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(
        device: &wgpu::Device,
        model: &Model,
        samples: &'a [Sample],
        steps: u32,
    ) -> Self {
        let row_bytes = u64::from(model.heads * model.head_dim) * 4;
        let buffer = |size| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("kept"),
                size,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        };
        let rows = buffer(samples.len() as u64 * row_bytes);
        let status = buffer(u64::from(steps) * PER_SEQUENCE_BYTES);
        Self { samples, rows, row_bytes, status }
    }

    /// After step `index`, which appended `rows` of each sequence.
    pub(crate) fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        step: &Step,
        cache: &Cache,
        rows: &[u32; SEQUENCES],
        index: usize,
    ) {
        for (slot, sample) in (0..).zip(self.samples) {
            let end = cache.lens[sample.sequence];
            let first = end - rows[sample.sequence];
            if (first..end).contains(&sample.position) {
                let row = step.out_row(sample.sequence, sample.position - first);
                let (from, to) = (row * self.row_bytes, slot * self.row_bytes);
                encoder.copy_buffer_to_buffer(&step.out, from, &self.rows, to, self.row_bytes);
            }
        }
        let (to, bytes) = (index as u64 * PER_SEQUENCE_BYTES, PER_SEQUENCE_BYTES);
        encoder.copy_buffer_to_buffer(&cache.status, 0, &self.status, to, bytes);
    }

    /// All that comes back to the host.
    pub(crate) fn read(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
    ) -> Result<(Vec<f32>, Vec<u32>), Box<dyn Error>> {
        let mut encoder = device.create_command_encoder(&Default::default());
        let rows = Download::encode(device, &mut encoder, self.rows.slice(..));
        let status = Download::encode(device, &mut encoder, self.status.slice(..));
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok((pollster::block_on(rows.read())?, pollster::block_on(status.read())?))
    }
}
