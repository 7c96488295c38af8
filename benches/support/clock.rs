//! Times of compute passes: by the GPU's own timestamps where they can be trusted, else by the wall clock.

use std::time::{Duration, Instant};
use wgpu_attention::{Download, wgpu};

/// Part of one run: what is recorded, and whether it counts.
pub(crate) struct Pass<'a> {
    pub(crate) timed: bool,
    pub(crate) record: Box<dyn Fn(&mut wgpu::ComputePass<'_>) + 'a>,
}

/// Timed passes of one submission: enough to hide what a submission costs.
const BATCH: usize = 64;

/// Runs that timestamps are judged by.
const PROBES: usize = 5;

/// Measures on one queue.
pub(crate) struct Clock<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    /// Seconds of one tick, where timestamps are sane.
    tick: Option<f64>,
}

impl<'a> Clock<'a> {
    /// By the wall.
    pub(crate) fn wall(device: &'a wgpu::Device, queue: &'a wgpu::Queue) -> Self {
        Self { device, queue, tick: None }
    }

    /// By timestamps, where the device has them and they agree with the wall about `probe`, which runs long
    /// enough that what a submission costs is nothing beside it.
    pub(crate) fn trusted(self, probe: &[Pass<'_>]) -> Self {
        if !self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return self;
        }
        let tick = f64::from(self.queue.get_timestamp_period()) * 1e-9;
        let stamps = Clock { tick: Some(tick), ..self };
        // Both of the same run, so that other programs slow down both.
        let agrees = |_| {
            let start = Instant::now();
            let stamped = stamps.times(probe, 1)[0].as_secs_f64();
            (0.5..1.05).contains(&(stamped / start.elapsed().as_secs_f64()))
        };
        let agreed = (0..PROBES).filter(|&probe| agrees(probe)).count();
        if 2 * agreed > PROBES { stamps } else { self }
    }

    /// What it measures by.
    pub(crate) fn name(&self) -> &'static str {
        if self.tick.is_some() { "GPU timestamps" } else { "wall clock" }
    }

    /// How long the timed passes of each of `runs` took together.
    pub(crate) fn times(&self, passes: &[Pass<'_>], runs: u64) -> Vec<Duration> {
        let Some(tick) = self.tick else {
            return (0..runs).map(|_| self.wall_time(passes)).collect();
        };
        let timed = passes.iter().filter(|pass| pass.timed).count();
        let mut times = Vec::new();
        let mut left = usize::try_from(runs).expect("few");
        while left > 0 {
            let batch = left.min((BATCH / timed).max(1));
            left -= batch;
            let stamps = self.stamps(passes, batch, timed);
            times.extend(stamps.chunks_exact(2 * timed).map(|run| {
                let ticks: u64 =
                    run.chunks_exact(2).map(|pass| pass[1].wrapping_sub(pass[0])).sum();
                Duration::from_secs_f64(ticks as f64 * tick)
            }));
        }
        times
    }

    /// Beginning and end of every timed pass.
    fn stamps(&self, passes: &[Pass<'_>], runs: usize, timed: usize) -> Vec<u64> {
        let count = u32::try_from(2 * runs * timed).expect("few");
        let queries = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("bench"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let resolved = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("bench timestamps"),
            size: u64::from(count) * 8,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut index = 0;
        for Pass { timed, record } in (0..runs).flat_map(|_| passes) {
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(index),
                end_of_pass_write_index: Some(index + 1),
            };
            index += if *timed { 2 } else { 0 };
            record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("bench"),
                timestamp_writes: timed.then_some(writes),
            }));
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        let download = Download::encode(self.device, &mut encoder, resolved.slice(..));
        self.finish(encoder.finish());
        pollster::block_on(download.read()).expect("timestamps")
    }

    fn wall_time(&self, passes: &[Pass<'_>]) -> Duration {
        let mut time = Duration::ZERO;
        for Pass { timed, record } in passes {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            record(&mut encoder.begin_compute_pass(&Default::default()));
            let taken = self.wall_time_of(encoder.finish());
            time += if *timed { taken } else { Duration::ZERO };
        }
        time
    }

    /// By the wall, whatever the clock.
    pub(crate) fn wall_time_of(&self, commands: wgpu::CommandBuffer) -> Duration {
        let start = Instant::now();
        self.finish(commands);
        start.elapsed()
    }

    /// Submits and waits.
    fn finish(&self, commands: wgpu::CommandBuffer) {
        self.queue.submit([commands]);
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
    }
}
