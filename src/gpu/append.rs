//! One append on a device, from and to host memory.

use super::{Gpu, Job, Wait};
use crate::append::Append;
use crate::append_host::{AppendOutputs, AppendTransfer};
use crate::encoding::decoded;
use crate::error::Error;
use crate::operand::Operand;
use crate::outputs::Output;
use crate::plan::Plan;
use crate::shape::DType;
use crate::tensors::Tensors;
use crate::upload::upload;
use crate::watcher::Watcher;

impl Gpu {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn append(
        &self,
        append: &Append,
        transfer: &AppendTransfer<'_>,
        watcher: &Watcher,
    ) -> Result<AppendOutputs, Error> {
        pollster::block_on(self.append_chunks(append, transfer, watcher, Wait::Here))
    }

    pub(crate) async fn append_async(
        &self,
        append: &Append,
        transfer: &AppendTransfer<'_>,
        watcher: &Watcher,
    ) -> Result<AppendOutputs, Error> {
        self.append_chunks(append, transfer, watcher, Wait::Aside).await
    }

    async fn append_chunks(
        &self,
        append: &Append,
        transfer: &AppendTransfer<'_>,
        watcher: &Watcher,
        wait: Wait,
    ) -> Result<AppendOutputs, Error> {
        let plan = self.attention.plan_append(append)?;
        let prepare = || self.prepare_append(&plan, transfer);
        let mut outputs = AppendOutputs { k: Vec::new(), v: Vec::new(), kv_lens: Vec::new() };
        for (out, bytes) in self.run_job(prepare, watcher, wait).await? {
            match out.operand {
                Operand::KvLens => outputs.kv_lens = bytemuck::pod_collect_to_vec(&bytes),
                Operand::K => outputs.k = decoded(&bytes, out.dtype, out.elements),
                _ => outputs.v = decoded(&bytes, out.dtype, out.elements),
            }
        }
        Ok(outputs)
    }

    /// Uploads and binds: caches and lengths are what comes back.
    fn prepare_append(&self, plan: &Plan, transfer: &AppendTransfer<'_>) -> Result<Job, Error> {
        transfer.check_sizes(self.device.limits().max_buffer_size)?;
        let storage = wgpu::BufferUsages::STORAGE;
        let buffer = |operand: Operand, bytes: &[u8], usage| {
            upload(&self.device, operand.name(), bytes, usage)
        };
        let inputs: Vec<_> = (transfer.inputs.iter())
            .map(|(operand, data)| (*operand, buffer(*operand, data.bytes(), storage)))
            .collect();
        let kept = storage | wgpu::BufferUsages::COPY_SRC;
        let mut outputs: Vec<_> = (transfer.caches.iter())
            .map(|(out, data)| (*out, buffer(out.operand, data.bytes(), kept)))
            .collect();
        let lens = bytemuck::cast_slice(transfer.kv_lens);
        let elements = transfer.kv_lens.len();
        let kv_lens = Output { operand: Operand::KvLens, elements, dtype: DType::F32 };
        outputs.push((kv_lens, buffer(Operand::KvLens, lens, kept)));
        outputs.retain(|(out, _)| out.elements > 0);
        // All fits, as was checked: what comes back here says nothing.
        let status = bytemuck::cast_slice(&transfer.status);
        let status = (elements > 0).then(|| buffer(Operand::AppendStatus, status, storage));
        let all = inputs.iter().map(|(operand, buffer)| (*operand, buffer));
        let all = all.chain(outputs.iter().map(|(out, buffer)| (out.operand, buffer)));
        let all = all.chain(status.iter().map(|buffer| (Operand::AppendStatus, buffer)));
        let tensors = all.fold(Tensors::default(), |tensors, (operand, buffer)| {
            tensors.with(operand, buffer.slice(..))
        });
        let dispatch = self.attention.bind(plan, &tensors)?;
        Ok(Job { dispatch, outputs })
    }
}
