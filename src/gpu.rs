//! One run on a device from and to host memory, with whatever goes wrong as an error.

use crate::attention::Attention;
use crate::dispatch::Dispatch;
use crate::download::Download;
use crate::encoding::decoded;
use crate::error::Error;
use crate::host::{Output, Outputs, Transfer};
use crate::plan::Plan;
use crate::tensors::{Operand, Tensors};
use crate::upload::upload;
use std::sync::{Arc, OnceLock};

/// A device and what runs on it.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) attention: Attention,
    pub(crate) lost: Arc<OnceLock<String>>,
}

/// What comes back of a submission, or why nothing was submitted.
type Downloads = Result<Vec<(Output, Download)>, Error>;

impl Gpu {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn run(&self, plan: &Plan, transfer: &Transfer<'_>) -> Result<Outputs, Error> {
        self.alive()?;
        let pending = self.submit(plan, transfer);
        // An error here is the device's loss, which `finish` reports.
        let _ = self.device.poll(wgpu::PollType::wait_indefinitely());
        pollster::block_on(self.finish(transfer, pending))
    }

    pub(crate) async fn run_async(
        &self,
        plan: &Plan,
        transfer: &Transfer<'_>,
    ) -> Result<Outputs, Error> {
        self.alive()?;
        let pending = self.submit(plan, transfer);
        #[cfg(not(target_arch = "wasm32"))]
        {
            let device = self.device.clone();
            std::thread::spawn(move || device.poll(wgpu::PollType::wait_indefinitely()));
        }
        self.finish(transfer, pending).await
    }

    fn alive(&self) -> Result<(), Error> {
        self.lost.get().map_or(Ok(()), |why| Err(Error::DeviceLost(why.clone())))
    }

    /// Everything up to the submission, with whatever wgpu says of it.
    fn submit(
        &self,
        plan: &Plan,
        transfer: &Transfer<'_>,
    ) -> (impl Future<Output = Result<(), Error>> + use<>, Downloads) {
        let scopes = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
        ]
        .map(|filter| self.device.push_error_scope(filter));
        let downloads = self.submit_unwatched(plan, transfer);
        // Scopes are popped in reverse order; what they caught is awaited later.
        let [internal, validation, memory] = scopes;
        let memory = memory.pop();
        let validation = validation.pop();
        let internal = internal.pop();
        let caught = async move {
            match memory.await.or(validation.await).or(internal.await) {
                None => Ok(()),
                Some(wgpu::Error::OutOfMemory { source }) => {
                    Err(Error::OutOfMemory(source.to_string()))
                }
                Some(
                    wgpu::Error::Validation { description, .. }
                    | wgpu::Error::Internal { description, .. },
                ) => Err(Error::Validation(description)),
            }
        };
        (caught, downloads)
    }

    fn submit_unwatched(&self, plan: &Plan, transfer: &Transfer<'_>) -> Downloads {
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
                let bytes = out.elements as u64 * out.dtype.bytes();
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
        let dispatch: Dispatch = self.attention.bind(plan, &tensors)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        dispatch.encode(&mut encoder);
        let downloads = (outputs.iter())
            .map(|(out, buffer)| {
                (*out, Download::encode(&self.device, &mut encoder, buffer.slice(..)))
            })
            .collect();
        self.queue.submit([encoder.finish()]);
        Ok(downloads)
    }

    async fn finish(
        &self,
        transfer: &Transfer<'_>,
        (caught, downloads): (impl Future<Output = Result<(), Error>>, Downloads),
    ) -> Result<Outputs, Error> {
        let caught = caught.await;
        self.alive()?;
        caught?;
        let mut outputs = transfer.empty_outputs();
        for (out, download) in downloads? {
            let bytes = download.read::<u8>().await.or_else(|error| {
                self.alive()?;
                Err(Error::from(error))
            })?;
            let data = decoded(&bytes, out.dtype, out.elements);
            match out.operand {
                Operand::Lse => outputs.lse = Some(data),
                Operand::Weights => outputs.weights = Some(data),
                Operand::Scores => outputs.scores = Some(data),
                _ => outputs.out = data,
            }
        }
        Ok(outputs)
    }
}
