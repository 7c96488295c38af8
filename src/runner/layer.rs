//! Whole layers on tensors in host memory, and their gradients.

use super::{Backend, Runner};
use crate::error::Error;
use crate::host::Transfer;
use crate::layer::{
    LayerBackward, LayerBackwardInputs, LayerGradients, LayerInputs, SelfAttention,
};
use crate::outputs::Outputs;
use crate::plan::Algorithm;

impl Runner {
    /// A whole layer by one algorithm, blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn layer(
        &self,
        layer: &SelfAttention,
        algorithm: Algorithm,
        inputs: &LayerInputs<'_>,
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_layer(layer, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_layer_with(layer, algorithm)?;
                gpu.run(&plan, &transfer, &self.watcher)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::run_layer(layer, algorithm, &transfer, &self.watcher),
        }
    }

    /// A whole layer by one algorithm, without blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    pub async fn layer_async(
        &self,
        layer: &SelfAttention,
        algorithm: Algorithm,
        inputs: &LayerInputs<'_>,
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_layer(layer, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_layer_with(layer, algorithm)?;
                gpu.run_async(&plan, &transfer, &self.watcher).await
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::run_layer(layer, algorithm, &transfer, &self.watcher),
        }
    }

    /// The gradients of a layer, blocking.
    ///
    /// ```
    /// use wgpu_attention::{Algorithm, LayerBackwardInputs, LayerInputs, Mask, Runner, SelfAttention};
    ///
    /// let layer = SelfAttention::new(1, 5, 8, 2)?.mask(Mask::CAUSAL).packed().with_saved();
    /// let (x, w_qkv, w_o) = (&[0.5; 5 * 8], &[0.1; 24 * 8], &[0.2; 8 * 8]);
    /// let inputs = LayerInputs { x, w_qkv, w_o, ..LayerInputs::default() };
    /// # let runner = Runner::cpu();
    /// let outputs = runner.layer(&layer, Algorithm::Auto, &inputs)?;
    ///
    /// // Of the sum of all outputs.
    /// let (d_out, saved) = (&[1.0; 5 * 8], &outputs.saved.expect("asked for"));
    /// let gradients =
    ///     runner.layer_backward(&layer.backward(), &inputs, &LayerBackwardInputs { d_out, saved })?;
    /// assert_eq!(gradients.w_qkv.len(), w_qkv.len());
    /// # Ok::<(), wgpu_attention::Error>(())
    /// ```
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn layer_backward(
        &self,
        backward: &LayerBackward,
        inputs: &LayerInputs<'_>,
        given: &LayerBackwardInputs<'_>,
    ) -> Result<LayerGradients, Error> {
        let transfer = Transfer::of_layer_backward(backward, inputs, given)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_layer_backward(backward)?;
                gpu.run(&plan, &transfer, &self.watcher)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::layer_backward(backward, &transfer, &self.watcher),
        }
    }

    /// As [`layer_backward`](Self::layer_backward), without blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    pub async fn layer_backward_async(
        &self,
        backward: &LayerBackward,
        inputs: &LayerInputs<'_>,
        given: &LayerBackwardInputs<'_>,
    ) -> Result<LayerGradients, Error> {
        let transfer = Transfer::of_layer_backward(backward, inputs, given)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_layer_backward(backward)?;
                gpu.run_async(&plan, &transfer, &self.watcher).await
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::layer_backward(backward, &transfer, &self.watcher),
        }
    }
}
