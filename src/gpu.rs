//! One run on a device from and to host memory, with whatever goes wrong as an error.

use crate::attention::Attention;
use crate::chunks::{Chunks, Progress};
use crate::dispatch::Dispatch;
use crate::download::Download;
use crate::encoding::decoded;
use crate::error::Error;
use crate::host::Transfer;
use crate::outputs::{FromOutputs, Output};
use crate::pace::{Pace, Stopwatch};
use crate::plan::Plan;
use crate::scopes::{caught, watch};
use crate::tensors::Tensors;
use crate::upload::upload;
use crate::watcher::Watcher;
use futures_intrusive::channel::shared;
use std::sync::{Arc, OnceLock};

mod append;

/// A device and what runs on it.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) attention: Attention,
    pub(crate) pace: Pace,
    pub(crate) lost: Arc<OnceLock<String>>,
}

/// What a run has on the device.
struct Job {
    dispatch: Dispatch,
    outputs: Vec<(Output, wgpu::Buffer)>,
}

/// A submission: what it does, and with the last of them what comes back.
struct Submission {
    index: wgpu::SubmissionIndex,
    progress: Progress,
    work: u64,
    downloads: Option<Vec<(Output, Download)>>,
}

/// Who waits for the device.
#[derive(Clone, Copy, PartialEq)]
enum Wait {
    /// The calling thread.
    #[cfg(not(target_arch = "wasm32"))]
    Here,
    /// Another thread, or the browser.
    Aside,
}

impl Gpu {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn run<T: FromOutputs>(
        &self,
        plan: &Plan,
        transfer: &Transfer<'_>,
        watcher: &Watcher,
    ) -> Result<T, Error> {
        pollster::block_on(self.run_chunks(plan, transfer, watcher, Wait::Here))
    }

    pub(crate) async fn run_async<T: FromOutputs>(
        &self,
        plan: &Plan,
        transfer: &Transfer<'_>,
        watcher: &Watcher,
    ) -> Result<T, Error> {
        self.run_chunks(plan, transfer, watcher, Wait::Aside).await
    }

    async fn run_chunks<T: FromOutputs>(
        &self,
        plan: &Plan,
        transfer: &Transfer<'_>,
        watcher: &Watcher,
        wait: Wait,
    ) -> Result<T, Error> {
        let prepare = || self.prepare(plan, transfer);
        let mut outputs = T::empty(transfer);
        for (out, bytes) in self.run_job(prepare, watcher, wait).await? {
            outputs.set(out.operand, decoded(&bytes, out.dtype, out.elements));
        }
        Ok(outputs)
    }

    /// Submits parts, each once the one before is done; the bytes that come back.
    async fn run_job(
        &self,
        prepare: impl FnOnce() -> Result<Job, Error>,
        watcher: &Watcher,
        wait: Wait,
    ) -> Result<Vec<(Output, Vec<u8>)>, Error> {
        self.alive()?;
        let scopes = watch(&self.device);
        let job = prepare();
        let prepared = caught(scopes);
        let job = match job {
            Ok(job) => job,
            Err(error) => {
                self.settle(prepared).await?;
                return Err(error);
            }
        };
        // Heard only after the first submission: a browser answers by way of its GPU process.
        let mut prepared = Some(prepared);
        let mut chunks = job.dispatch.chunks(self.pace.limit());
        watcher.report(chunks.progress())?;
        loop {
            let stopwatch = Stopwatch::start();
            let scopes = watch(&self.device);
            let Submission { index, progress, work, downloads } =
                self.submit(&mut chunks, &job.outputs);
            let submitted = caught(scopes);
            self.done(index, wait).await;
            if let Some(prepared) = prepared.take() {
                self.settle(prepared).await?;
            }
            self.settle(submitted).await?;
            if let Some(took) = stopwatch.elapsed() {
                self.pace.measured(work, took);
            }
            watcher.report(progress)?;
            if let Some(downloads) = downloads {
                return self.collect(downloads).await;
            }
            chunks.set_limit(self.pace.limit());
        }
    }

    fn alive(&self) -> Result<(), Error> {
        self.lost.get().map_or(Ok(()), |why| Err(Error::DeviceLost(why.clone())))
    }

    /// Uploads and binds.
    fn prepare(&self, plan: &Plan, transfer: &Transfer<'_>) -> Result<Job, Error> {
        transfer.check_sizes(self.device.limits().max_buffer_size)?;
        let storage = wgpu::BufferUsages::STORAGE;
        let inputs: Vec<_> = (transfer.inputs.iter())
            .map(|(operand, data)| {
                (*operand, upload(&self.device, operand.name(), data.bytes(), storage))
            })
            .collect();
        let named: Vec<_> = (transfer.buffers.iter())
            .map(|(name, data)| (name, upload(&self.device, name, data.bytes(), storage)))
            .collect();
        let outputs: Vec<_> = (transfer.outputs.iter())
            .filter(|out| out.elements > 0)
            .map(|out| {
                let bytes = out.bytes();
                let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(out.operand.name()),
                    size: bytes.next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT),
                    usage: storage | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                });
                (*out, buffer)
            })
            .collect();
        let all = inputs.iter().map(|(operand, buffer)| (*operand, buffer));
        let all = all.chain(outputs.iter().map(|(out, buffer)| (out.operand, buffer)));
        let tensors = all.fold(Tensors::default(), |tensors, (operand, buffer)| {
            tensors.with(operand, buffer.slice(..))
        });
        let tensors = named
            .iter()
            .fold(tensors, |tensors, (name, buffer)| tensors.buffer(name, buffer.slice(..)));
        let dispatch = self.attention.bind(plan, &tensors)?;
        Ok(Job { dispatch, outputs })
    }

    /// Submits the next part, and after the last reads back.
    fn submit(&self, chunks: &mut Chunks<'_>, outputs: &[(Output, wgpu::Buffer)]) -> Submission {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let chunk = chunks.next();
        if let Some(chunk) = &chunk {
            chunk.encode(&mut encoder);
        }
        let progress = chunks.progress();
        let downloads = chunks.is_finished().then(|| {
            let mut download = |buffer: &wgpu::Buffer| {
                Download::encode(&self.device, &mut encoder, buffer.slice(..))
            };
            outputs.iter().map(|(out, buffer)| (*out, download(buffer))).collect()
        });
        let index = self.queue.submit([encoder.finish()]);
        Submission { index, progress, work: chunk.map_or(0, |chunk| chunk.work()), downloads }
    }

    /// Once the submission is done, or the device lost.
    async fn done(&self, index: wgpu::SubmissionIndex, wait: Wait) {
        #[cfg(not(target_arch = "wasm32"))]
        {
            let device = self.device.clone();
            let poll = move || {
                let until = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
                // An error is the device's loss, which `settle` reports once its callback was called.
                device.poll(until).or_else(|_| device.poll(wgpu::PollType::Poll))
            };
            if wait == Wait::Here {
                let _ = poll();
                return;
            }
            let (sender, polled) = shared::oneshot_channel();
            std::thread::spawn(move || {
                let _ = poll();
                // A receiver that is gone has no more to wait for.
                let _ = sender.send(());
            });
            polled.receive().await;
        }
        #[cfg(target_arch = "wasm32")]
        {
            let _ = (index, wait);
            let (sender, done) = shared::oneshot_channel();
            self.queue.on_submitted_work_done(move || {
                let _ = sender.send(());
            });
            done.receive().await;
        }
    }

    /// What went wrong, if anything did.
    async fn settle(&self, caught: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let caught = caught.await;
        self.alive()?;
        caught
    }

    async fn collect(
        &self,
        downloads: Vec<(Output, Download)>,
    ) -> Result<Vec<(Output, Vec<u8>)>, Error> {
        let mut outputs = Vec::new();
        for (out, download) in downloads {
            let bytes = download.read::<u8>().await.or_else(|error| {
                self.alive()?;
                Err(Error::from(error))
            })?;
            outputs.push((out, bytes));
        }
        Ok(outputs)
    }
}
