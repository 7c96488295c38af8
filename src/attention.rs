//! The entry point.

use crate::device::{Capabilities, DeviceClass};
use crate::dispatch::Dispatch;
use crate::error::{BindError, PlanError};
use crate::kernels::Kernel;
use crate::layer::SelfAttention;
use crate::pipeline::{Checks, Pipelines, compile};
use crate::plan::{Algorithm, Plan};
use crate::problem::Problem;
use crate::tensors::Tensors;
use std::sync::Arc;

/// Attention on one `wgpu` device. Cheap to clone; clones share compiled pipelines.
#[derive(Clone, Debug)]
pub struct Attention {
    device: wgpu::Device,
    capabilities: Capabilities,
    checks: Checks,
    pipelines: Arc<Pipelines>,
}

impl Attention {
    /// Uses the caller's device, of which it keeps a handle. Nothing is compiled yet; nothing is ever
    /// submitted, polled or waited for.
    pub fn new(device: &wgpu::Device) -> Self {
        Self {
            device: device.clone(),
            capabilities: Capabilities::of(device),
            checks: Checks::Off,
            pipelines: Arc::default(),
        }
    }

    /// Tiles of another class than the device's own: to measure or test one class's kernels on another.
    #[must_use]
    pub fn with_class(self, class: DeviceClass) -> Self {
        Self { capabilities: self.capabilities.with_class(class), ..self }
    }

    /// Whether wgpu adds its own checks to the shaders compiled from here on.
    #[must_use]
    pub fn with_checks(self, checks: Checks) -> Self {
        Self { checks, pipelines: Arc::default(), ..self }
    }

    /// What plans rely on.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Chooses kernels for `problem`.
    ///
    /// # Errors
    /// [`PlanError`]: the problem is ill-formed, an option is not built yet, or a limit is too small.
    pub fn plan(&self, problem: &Problem) -> Result<Plan, PlanError> {
        self.plan_with(problem, Algorithm::Auto)
    }

    /// Takes the kernels of `algorithm` for `problem`.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and [`PlanError::AlgorithmLacks`] where the algorithm cannot give an output.
    pub fn plan_with(&self, problem: &Problem, algorithm: Algorithm) -> Result<Plan, PlanError> {
        Plan::new(problem, &self.capabilities, algorithm)
    }

    /// The steps that classify the tiles of `problem` by its boolean mask, bias and mask function, into an operand
    /// `block_mask` of [`Plan::operand_bytes`]: to be given to plans of the same problem
    /// [`with_block_mask`](Problem::with_block_mask), for as long as mask, bias, lengths and the function's buffers
    /// stay as they are.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and [`PlanError::LimitExceeded`] where the mask is more than one binding holds.
    pub fn plan_block_mask(&self, problem: &Problem) -> Result<Plan, PlanError> {
        Plan::block_mask(problem, &self.capabilities)
    }

    /// Chooses kernels for a whole layer: projections, attention, projection.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_layer(&self, layer: &SelfAttention) -> Result<Plan, PlanError> {
        layer.plan(&self.capabilities, Algorithm::Auto)
    }

    /// As [`plan_layer`](Self::plan_layer), with the kernels of `algorithm` for the attention.
    ///
    /// # Errors
    /// As [`plan_with`](Self::plan_with).
    pub fn plan_layer_with(
        &self,
        layer: &SelfAttention,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        layer.plan(&self.capabilities, algorithm)
    }

    /// Compiles what `plan` needs and is not compiled yet, so that `bind` finds it.
    pub fn compile(&self, plan: &Plan) {
        for step in &plan.steps {
            self.pipelines.get(&self.device, &step.kernel, self.checks);
        }
    }

    /// Compiles one kernel, kept nowhere.
    pub fn compile_kernel(&self, kernel: &Kernel) -> wgpu::ComputePipeline {
        compile(&self.device, kernel, self.checks)
    }

    /// Checks the caller's buffers against `plan`, compiles what is not yet compiled, allocates the workspace
    /// unless it is given, and binds.
    ///
    /// The uniforms are uploaded with the caller's next submission, until which wgpu holds their staging memory.
    ///
    /// What the caller's own error handler may see: running out of memory when the workspace or the uniforms
    /// are created, and the loss of the device. Everything that this crate can check is a [`BindError`]; a
    /// validation error would be a bug of this crate.
    ///
    /// # Errors
    /// [`BindError`]: a buffer is missing, too small, misaligned, unused, overlaps an output, or lacks a usage.
    pub fn bind(&self, plan: &Plan, tensors: &Tensors<'_>) -> Result<Dispatch, BindError> {
        Dispatch::new(
            &self.device,
            |kernel| self.pipelines.get(&self.device, kernel, self.checks),
            &self.capabilities.limits,
            plan,
            tensors,
        )
    }
}
