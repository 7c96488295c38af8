//! How long a dispatch takes: by the GPU's own timestamps where they can be trusted, else by the wall clock.

use crate::dispatch::Dispatch;
use crate::download::Download;
use crate::error::Error;
use crate::record::Clock;
use crate::scopes::{caught, watch};
use futures_intrusive::channel::shared;
use std::time::Duration;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Instant;

/// Who polls the device while a future waits for it. On the web the browser does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Polling {
    /// This thread, which blocks.
    #[cfg(not(target_arch = "wasm32"))]
    Here,
    /// A thread of its own.
    Elsewhere,
}

/// Runs dispatches on a queue and waits for them.
#[derive(Debug)]
pub(crate) struct Timer<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    polling: Polling,
    /// What times are taken by, once [`choose_clock`](Self::choose_clock) has looked.
    pub(crate) clock: Clock,
    #[cfg(not(target_arch = "wasm32"))]
    start: Instant,
    /// Time of all runs, by timestamps.
    stamped: Duration,
}

/// One submission.
struct Sample {
    wall: Duration,
    stamped: Option<Duration>,
}

/// A submission that is long beside what submitting costs.
const LONG: Duration = Duration::from_millis(5);
/// Most runs of one submission.
const MOST_RUNS: u32 = 64;

impl<'a> Timer<'a> {
    pub(crate) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue, polling: Polling) -> Self {
        Self {
            device,
            queue,
            polling,
            clock: Clock::Wall,
            #[cfg(not(target_arch = "wasm32"))]
            start: Instant::now(),
            stamped: Duration::ZERO,
        }
    }

    /// Time since it was made; on the web, which has no clock for us, of all runs.
    pub(crate) fn spent(&self) -> Duration {
        #[cfg(not(target_arch = "wasm32"))]
        return self.start.elapsed();
        #[cfg(target_arch = "wasm32")]
        self.stamped
    }

    /// Times by timestamps from here on, if the device has them and they agree with the wall about a long run.
    pub(crate) async fn choose_clock(&mut self, dispatch: &Dispatch) -> Result<(), Error> {
        let short = self.sample(dispatch, 1).await?;
        let runs = runs(short.wall);
        let Sample { wall, stamped } = self.sample(dispatch, runs).await?;
        let agrees = |stamped: Duration| {
            cfg!(target_arch = "wasm32") || stamped > wall / 2 && stamped < wall + wall / 20
        };
        let trusted = stamped.is_some_and(agrees);
        self.clock = if trusted { Clock::Timestamps } else { Clock::Wall };
        Ok(())
    }

    /// Seconds of one run, of as many as make a submission long.
    pub(crate) async fn seconds(
        &mut self,
        dispatch: &Dispatch,
        expected: Option<f64>,
    ) -> Result<f64, Error> {
        let runs = expected.map_or(1, |seconds| runs(Duration::from_secs_f64(seconds)));
        let Sample { wall, stamped } = self.sample(dispatch, runs).await?;
        let time = stamped.filter(|_| self.clock == Clock::Timestamps).unwrap_or(wall);
        Ok(time.as_secs_f64() / f64::from(runs))
    }

    /// What is in `buffer` after one run.
    pub(crate) async fn result(
        &mut self,
        dispatch: &Dispatch,
        buffer: &wgpu::Buffer,
    ) -> Result<Vec<u8>, Error> {
        let (download, caught) = watched(self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            dispatch.encode(&mut encoder);
            let download = Download::encode(self.device, &mut encoder, buffer.slice(..));
            self.queue.submit([encoder.finish()]);
            download
        });
        caught.await?;
        self.finished().await?;
        Ok(download.read().await?)
    }

    async fn sample(&mut self, dispatch: &Dispatch, runs: u32) -> Result<Sample, Error> {
        let stamps = self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let (submitted, caught) = watched(self.device, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let queries = stamps.then(|| Queries::new(self.device));
            let writes = queries.as_ref().map(Queries::writes);
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some("tuning"),
                    timestamp_writes: writes,
                });
                for _ in 0..runs {
                    dispatch.record(&mut pass);
                }
            }
            let download = queries.map(|queries| queries.download(self.device, &mut encoder));
            let commands = encoder.finish();
            #[cfg(not(target_arch = "wasm32"))]
            let start = Instant::now();
            self.queue.submit([commands]);
            #[cfg(not(target_arch = "wasm32"))]
            return (download, start);
            #[cfg(target_arch = "wasm32")]
            (download, ())
        });
        self.finished().await?;
        #[cfg(not(target_arch = "wasm32"))]
        let wall = submitted.1.elapsed();
        #[cfg(target_arch = "wasm32")]
        let wall = Duration::ZERO;
        caught.await?;
        let mut stamped = None;
        if let Some(download) = submitted.0 {
            let ticks: Vec<u64> = download.read().await?;
            let ticks = ticks[1].wrapping_sub(ticks[0]) as f64;
            let nanoseconds = ticks * f64::from(self.queue.get_timestamp_period());
            stamped = Duration::try_from_secs_f64(nanoseconds * 1e-9).ok();
        }
        self.stamped += stamped.unwrap_or_default();
        Ok(Sample { wall, stamped })
    }

    /// Everything submitted is done.
    async fn finished(&self) -> Result<(), Error> {
        let (sender, done) = shared::oneshot_channel();
        self.queue.on_submitted_work_done(move || {
            // A receiver that is gone wants no answer.
            let _ = sender.send(());
        });
        match self.polling {
            // An error is the device's loss, upon which the sender is dropped.
            #[cfg(not(target_arch = "wasm32"))]
            Polling::Here => {
                let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
            }
            Polling::Elsewhere => {
                #[cfg(not(target_arch = "wasm32"))]
                {
                    let device = self.device.clone();
                    std::thread::spawn(move || device.poll(wgpu::PollType::wait_indefinitely()));
                }
            }
        }
        done.receive().await.ok_or_else(|| Error::DeviceLost("during tuning".to_owned()))
    }
}

/// How many runs of this length make a submission long.
fn runs(one: Duration) -> u32 {
    let runs = LONG.as_secs_f64() / one.as_secs_f64().max(1e-9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let runs = runs.clamp(1.0, MOST_RUNS.into()) as u32;
    runs
}

/// The beginning and the end of one pass.
struct Queries {
    set: wgpu::QuerySet,
}

impl Queries {
    fn new(device: &wgpu::Device) -> Self {
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("tuning"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        Self { set }
    }

    fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    fn download(&self, device: &wgpu::Device, encoder: &mut wgpu::CommandEncoder) -> Download {
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("tuning timestamps"),
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        encoder.resolve_query_set(&self.set, 0..2, &resolved, 0);
        Download::encode(device, encoder, resolved.slice(..))
    }
}

/// Does `work`, and tells what wgpu has to say of it.
pub(crate) fn watched<T, W: FnOnce() -> T>(
    device: &wgpu::Device,
    work: W,
) -> (T, impl Future<Output = Result<(), Error>> + use<T, W>) {
    let scopes = watch(device);
    let done = work();
    (done, caught(scopes))
}
