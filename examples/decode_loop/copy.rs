//! What the device moves at best: the measure of decoding, which reads much and computes little.

use std::error::Error;
use std::time::Instant;
use wgpu_attention::wgpu;

const BYTES: u64 = 64 << 20;
const TURNS: usize = 5;

/// Bytes read and written by the fastest of some large copies.
pub(crate) fn bytes_per_second(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
) -> Result<f64, Box<dyn Error>> {
    let [from, to] = [wgpu::BufferUsages::COPY_SRC, wgpu::BufferUsages::COPY_DST].map(|usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("copy"),
            size: BYTES,
            usage,
            mapped_at_creation: false,
        })
    });
    let mut seconds = f64::INFINITY;
    // The first touches the memory.
    for _ in 0..TURNS {
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, BYTES);
        let start = Instant::now();
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely())?;
        seconds = start.elapsed().as_secs_f64().min(seconds);
    }
    Ok((2 * BYTES) as f64 / seconds)
}
