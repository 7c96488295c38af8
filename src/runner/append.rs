//! Appending to a cache in host memory, and turning rows there.

use super::{Backend, Runner};
use crate::append::{Append, AppendInputs};
use crate::append_host::{AppendOutputs, AppendTransfer, rotary_transfer};
use crate::error::Error;
use crate::outputs::Outputs;
use crate::rotary::{RotaryEmbedding, RotaryInputs};

impl Runner {
    /// Appends to a cache, blocking; gives the whole cache back, in its storage type's precision.
    ///
    /// # Errors
    /// Anything in [`Error`]; those of [`Append::check_lens`] and [`Error::NoSuchPage`] before anything is appended.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn append(
        &self,
        append: &Append,
        inputs: &AppendInputs<'_>,
    ) -> Result<AppendOutputs, Error> {
        let transfer = AppendTransfer::new(append, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => gpu.append(append, &transfer, &self.watcher),
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::append(append, inputs, &self.watcher),
        }
    }

    /// As [`append`](Self::append), without blocking.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_async(
        &self,
        append: &Append,
        inputs: &AppendInputs<'_>,
    ) -> Result<AppendOutputs, Error> {
        let transfer = AppendTransfer::new(append, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => gpu.append_async(append, &transfer, &self.watcher).await,
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::append(append, inputs, &self.watcher),
        }
    }

    /// Turns rows by their positions, blocking: `out`, as the embedding lays it out (0 in gaps between rows).
    ///
    /// # Errors
    /// Anything in [`Error`]; [`Error::PastTables`] where a row is past the tables.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn rotary_embedding(
        &self,
        embedding: &RotaryEmbedding,
        inputs: &RotaryInputs<'_>,
    ) -> Result<Vec<f32>, Error> {
        let transfer = rotary_transfer(embedding, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_rotary(embedding)?;
                gpu.run(&plan, &transfer, &self.watcher).map(|outputs: Outputs| outputs.out)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::rotary_embedding(embedding, inputs, &self.watcher),
        }
    }

    /// As [`rotary_embedding`](Self::rotary_embedding), without blocking.
    ///
    /// # Errors
    /// As [`rotary_embedding`](Self::rotary_embedding).
    pub async fn rotary_embedding_async(
        &self,
        embedding: &RotaryEmbedding,
        inputs: &RotaryInputs<'_>,
    ) -> Result<Vec<f32>, Error> {
        let transfer = rotary_transfer(embedding, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_rotary(embedding)?;
                let outputs: Outputs = gpu.run_async(&plan, &transfer, &self.watcher).await?;
                Ok(outputs.out)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::rotary_embedding(embedding, inputs, &self.watcher),
        }
    }
}
