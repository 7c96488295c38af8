//! Long work in parts: a dispatch as several submissions, each as short as its caller likes.

use crate::dispatch::{Dispatch, Launch};
use crate::work::Work;

/// How far work is, in the units of [`Dispatch::work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What there is to do in all.
    pub total: u64,
}

impl Progress {
    /// What is done, from 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "a share")]
    pub fn share(self) -> f64 {
        if self.total == 0 { 1.0 } else { self.done as f64 / self.total as f64 }
    }
}

impl Dispatch {
    /// An estimate of the work, in floating-point operations: more than [`Cost::flops`](crate::Cost), as a pair's
    /// softmax and the tiles at a mask's edge count too. Lengths that only a buffer tells of are not known to it.
    pub fn work(&self) -> u64 {
        to_u64(self.total())
    }

    fn total(&self) -> u128 {
        self.works().map(Work::total).fold(0, u128::saturating_add)
    }

    /// The dispatch in parts of at most `limit` units of [`work`](Self::work), to be submitted one after the other
    /// where one long submission would be taken for a device that hangs, or where progress is to be seen. All parts
    /// together do the same as the whole, bit for bit.
    ///
    /// A part is never less than one workgroup, of at most some 8 billion units: plans bring more keys than that takes,
    /// a hundred thousand or more, in ranges.
    ///
    /// ```
    /// # use wgpu_attention::{Attention, Mask, Problem, Shape, Tensors, wgpu};
    /// # let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    /// # let buffer = || device.create_buffer(&wgpu::BufferDescriptor {
    /// #     label: None,
    /// #     size: 8 * 500 * 64 * 4,
    /// #     usage: wgpu::BufferUsages::STORAGE,
    /// #     mapped_at_creation: false,
    /// # });
    /// # let (q, k, v, out) = (buffer(), buffer(), buffer(), buffer());
    /// # let attention = Attention::new(&device);
    /// # let problem = Problem::new(Shape::self_attention(1, 8, 500, 64)).mask(Mask::CAUSAL);
    /// # let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    /// # let dispatch = attention.bind(&attention.plan(&problem).unwrap(), &tensors).unwrap();
    /// # let cancelled = || false;
    /// let mut chunks = dispatch.chunks(100_000_000);
    /// while let Some(chunk) = chunks.next() {
    ///     let mut encoder = device.create_command_encoder(&Default::default());
    ///     chunk.encode(&mut encoder);
    ///     queue.submit([encoder.finish()]);
    ///     device.poll(wgpu::PollType::wait_indefinitely())?;
    ///     eprint!("\r{:3.0} %", 100.0 * chunk.progress().share());
    ///     if cancelled() {
    ///         break;
    ///     }
    ///     // A device that turned out fast takes more at a time.
    ///     chunks.set_limit(200_000_000);
    /// }
    /// # assert_eq!(chunks.progress().share(), 1.0);
    /// # Ok::<(), wgpu::PollError>(())
    /// ```
    pub fn chunks(&self, limit: u64) -> Chunks<'_> {
        Chunks { dispatch: self, limit, step: 0, first: 0, done: 0, total: self.total() }
    }
}

/// The parts of a [`Dispatch`], in order.
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    dispatch: &'a Dispatch,
    limit: u64,
    /// Where the next part starts: a step, and a workgroup of it.
    step: usize,
    first: u64,
    done: u128,
    total: u128,
}

impl Chunks<'_> {
    /// Changes the work that the parts from here on may take.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Whether every part was taken.
    #[cfg(feature = "runner")]
    pub(crate) fn is_finished(&self) -> bool {
        self.dispatch.work_of(self.step).is_none()
    }

    /// How far the parts that were taken are.
    pub fn progress(&self) -> Progress {
        Progress { done: to_u64(self.done), total: to_u64(self.total) }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Chunk;

    /// Makes the next part. A step that is cut gets a uniform and a bind group of its own here, so that recording
    /// allocates nothing.
    fn next(&mut self) -> Option<Chunk> {
        let limit = u128::from(self.limit);
        let (before, mut left) = (self.done, limit);
        let mut launches = Vec::new();
        while let Some(work) = self.dispatch.work_of(self.step) {
            let mut end = work.end(self.first, left);
            if end < work.workgroups {
                // What is more than half full is better left than filled up by a sliver of the next step.
                if !launches.is_empty() && (end == self.first || left < limit / 2) {
                    break;
                }
                end = end.max(self.first + 1);
            }
            launches.push(self.dispatch.part(self.step, self.first..end));
            let taken = work.before(end) - work.before(self.first);
            self.done += taken;
            left = left.saturating_sub(taken);
            if end < work.workgroups {
                self.first = end;
                break;
            }
            (self.step, self.first) = (self.step + 1, 0);
        }
        let progress = self.progress();
        let work = to_u64(self.done - before);
        (!launches.is_empty()).then_some(Chunk { launches, work, progress })
    }
}

/// A part of a [`Dispatch`], ready to record in its turn, as often as all the others.
#[derive(Clone, Debug)]
pub struct Chunk {
    launches: Vec<Launch>,
    work: u64,
    progress: Progress,
}

impl Chunk {
    /// Records one compute pass.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        self.record(&mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("attention"),
            timestamp_writes: None,
        }));
    }

    /// Records into a pass that the caller has open. Changes its pipeline and its bind group 0.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.launches.iter().for_each(|launch| launch.record(pass));
    }

    /// Its share of [`Dispatch::work`].
    pub fn work(&self) -> u64 {
        self.work
    }

    /// How far the work is once this part is done.
    pub fn progress(&self) -> Progress {
        self.progress
    }
}

fn to_u64(work: u128) -> u64 {
    u64::try_from(work).unwrap_or(u64::MAX)
}
