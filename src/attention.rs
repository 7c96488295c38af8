//! The entry point.

use crate::append::Append;
use crate::backward::Backward;
use crate::device::{Capabilities, DeviceClass};
use crate::dispatch::Dispatch;
use crate::error::{BindError, PlanError};
use crate::kernels::Kernel;
use crate::layer::{LayerBackward, SelfAttention};
use crate::matrices::Matrices;
use crate::merge::Merge;
use crate::pipeline::{Checks, Pipelines, compile};
use crate::plan::{Algorithm, Plan};
use crate::problem::Problem;
use crate::rotary::RotaryEmbedding;
use crate::tensors::Tensors;
use std::sync::Arc;

/// Attention on one `wgpu` device. Cheap to clone; clones share compiled pipelines.
#[derive(Clone, Debug)]
pub struct Attention {
    pub(crate) device: wgpu::Device,
    pub(crate) capabilities: Capabilities,
    pub(crate) checks: Checks,
    pipelines: Arc<Pipelines>,
    cache: Option<wgpu::PipelineCache>,
    #[cfg(feature = "tune")]
    pub(crate) tuned: Arc<crate::tune::Tuned>,
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
            cache: None,
            #[cfg(feature = "tune")]
            tuned: Arc::default(),
        }
    }

    /// As [`new`](Self::new), and knows which matrices the adapter's shaders may use. Kernels on them are chosen after
    /// [`self_test`](Self::self_test) only.
    pub fn with_adapter(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Self {
        let attention = Self::new(device);
        let matrices = Matrices::of(adapter, device);
        Self { capabilities: attention.capabilities.with_matrices(matrices), ..attention }
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

    /// Compiles through `cache` from here on: with what an earlier run of the program left in it, a driver has less to
    /// do. The device needs [`wgpu::Features::PIPELINE_CACHE`], which only Vulkan has; the cache has to be one of this
    /// device. Many drivers keep a cache of their own besides.
    ///
    /// ```
    /// use wgpu_attention::{Attention, wgpu};
    /// # use std::path::Path;
    ///
    /// /// Attention that compiles through what is in `file`, and the cache to save.
    /// fn cached(device: &wgpu::Device, file: &Path) -> (Attention, Option<wgpu::PipelineCache>) {
    ///     let attention = Attention::new(device);
    ///     if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
    ///         return (attention, None);
    ///     }
    ///     let data = std::fs::read(file).ok();
    ///     // SAFETY: nothing else writes this file, and `save` writes what `get_data` returned.
    ///     let cache = unsafe {
    ///         device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
    ///             label: Some("attention"),
    ///             data: data.as_deref(),
    ///             // Of another driver, or damaged: begin with an empty one.
    ///             fallback: true,
    ///         })
    ///     };
    ///     (attention.with_pipeline_cache(cache.clone()), Some(cache))
    /// }
    ///
    /// /// Once everything is compiled. A new file takes the old one's place whole or not at all.
    /// fn save(cache: &wgpu::PipelineCache, file: &Path) -> std::io::Result<()> {
    ///     let Some(data) = cache.get_data() else { return Ok(()) };
    ///     let new = file.with_extension("new");
    ///     std::fs::write(&new, data)?;
    ///     std::fs::rename(new, file)
    /// }
    /// # let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    /// # let (_attention, cache) = cached(&device, Path::new("attention.cache"));
    /// # cache.map(|cache| save(&cache, Path::new("attention.cache")));
    /// ```
    ///
    /// [`wgpu::util::pipeline_cache_key`] makes a name for the file that tells adapters apart.
    #[must_use]
    pub fn with_pipeline_cache(self, cache: wgpu::PipelineCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    pub(crate) fn set_matrices(&mut self, matrices: Option<Matrices>) {
        self.capabilities.matrices = matrices;
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
        #[cfg(feature = "tune")]
        if let Some(plan) = self.tuned_plan(problem, algorithm) {
            return Ok(plan);
        }
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

    /// Kernels for the gradients of an attention.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_backward(&self, backward: &Backward) -> Result<Plan, PlanError> {
        self.plan_backward_with(backward, Algorithm::Auto)
    }

    /// Takes the kernels of `algorithm` for the gradients of an attention: the fused ones, or five products with two
    /// matrices between them.
    ///
    /// # Errors
    /// As [`plan`](Self::plan), and [`PlanError::AlgorithmLacks`] where the algorithm does not give a gradient.
    pub fn plan_backward_with(
        &self,
        backward: &Backward,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        Plan::backward(backward, &self.capabilities, algorithm)
    }

    /// Kernels for the gradients of a layer.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_layer_backward(&self, backward: &LayerBackward) -> Result<Plan, PlanError> {
        self.plan_layer_backward_with(backward, Algorithm::Auto)
    }

    /// As [`plan_layer_backward`](Self::plan_layer_backward), with the kernels of `algorithm` for the attention.
    ///
    /// # Errors
    /// As [`plan_backward_with`](Self::plan_backward_with).
    pub fn plan_layer_backward_with(
        &self,
        backward: &LayerBackward,
        algorithm: Algorithm,
    ) -> Result<Plan, PlanError> {
        backward.plan(&self.capabilities, algorithm)
    }

    /// The steps of a merge of partial results: `out_parts` and `lse_parts` to `out`, and `lse` where it is asked for.
    ///
    /// # Errors
    /// [`PlanError`]: the merge is ill-formed, or a limit is too small.
    pub fn plan_merge(&self, merge: &Merge) -> Result<Plan, PlanError> {
        merge.plan(&self.capabilities)
    }

    /// Kernels that append rows to a cache.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_append(&self, append: &Append) -> Result<Plan, PlanError> {
        append.plan(&self.capabilities)
    }

    /// The kernel that turns rows by their positions.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_rotary(&self, embedding: &RotaryEmbedding) -> Result<Plan, PlanError> {
        embedding.plan(&self.capabilities)
    }

    /// Compiles what `plans` need and is not compiled yet, so that `bind` finds it: each kernel once, several at a
    /// time, on as many threads as there are cores; on the web one by one.
    ///
    /// What wgpu has to say of a pipeline reaches the device's error handler: error scopes are of one thread. Buffers
    /// that do not start at a multiple of 16 bytes, and inputs that share a buffer with an output, take
    /// variants that `bind` compiles.
    ///
    /// ```
    /// # use wgpu_attention::{Attention, Mask, Problem, Shape, wgpu};
    /// # let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    /// # let attention = Attention::new(&device);
    /// let widths = [64, 128].map(|width| Shape::self_attention(1, 8, 2048, width));
    /// let plans = widths.map(|shape| attention.plan(&Problem::new(shape).mask(Mask::CAUSAL)));
    /// attention.compile(plans.iter().flatten());
    /// ```
    pub fn compile<'a>(&self, plans: impl IntoIterator<Item = &'a Plan>) {
        let steps = plans.into_iter().flat_map(|plan| &plan.steps);
        self.pipelines.fill(steps.map(|step| &step.kernel), |kernel| {
            self.pipeline(kernel);
        });
    }

    /// The pipeline of `kernel`; compiles it unless that was done.
    fn pipeline(&self, kernel: &Kernel) -> wgpu::ComputePipeline {
        self.pipelines.get(&self.device, kernel, self.checks, self.cache.as_ref())
    }

    /// Compiles one kernel, kept nowhere.
    pub fn compile_kernel(&self, kernel: &Kernel) -> wgpu::ComputePipeline {
        compile(&self.device, kernel, self.checks, self.cache.as_ref())
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
            |kernel| self.pipeline(kernel),
            &self.capabilities.limits,
            plan,
            tensors,
        )
    }
}
