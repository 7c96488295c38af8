//! Gradients of tensors in host memory.

use super::{Backend, Runner};
use crate::backward::{Backward, BackwardInputs, Gradients};
use crate::error::Error;
use crate::host::Transfer;
use crate::inputs::Inputs;
#[cfg(not(target_arch = "wasm32"))]
use crate::plan::Algorithm;

impl Runner {
    /// Gradients of an attention, blocking. Slices may be longer than strides reach.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn backward(
        &self,
        backward: &Backward,
        inputs: &Inputs<'_>,
        given: &BackwardInputs<'_>,
    ) -> Result<Gradients, Error> {
        self.backward_with(backward, Algorithm::Auto, inputs, given)
    }

    /// Gradients by one algorithm, blocking. The CPU path has but one, which stands for all.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn backward_with(
        &self,
        backward: &Backward,
        algorithm: Algorithm,
        inputs: &Inputs<'_>,
        given: &BackwardInputs<'_>,
    ) -> Result<Gradients, Error> {
        let transfer = Transfer::of_backward(backward, inputs, given)?;
        backward.check(algorithm)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_backward_with(backward, algorithm)?;
                gpu.run(&plan, &transfer, &self.watcher)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::backward(backward, inputs, given, &self.watcher),
        }
    }

    /// As [`backward`](Self::backward), without blocking.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub async fn backward_async(
        &self,
        backward: &Backward,
        inputs: &Inputs<'_>,
        given: &BackwardInputs<'_>,
    ) -> Result<Gradients, Error> {
        let transfer = Transfer::of_backward(backward, inputs, given)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_backward(backward)?;
                gpu.run_async(&plan, &transfer, &self.watcher).await
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::backward(backward, inputs, given, &self.watcher),
        }
    }
}
