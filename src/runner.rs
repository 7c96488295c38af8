//! Host memory in, host memory out: picks a device, uploads, runs, reads back.

use crate::attention::Attention;
use crate::chunks::Progress;
use crate::device::{DeviceClass, device_descriptor, with_cooperative_matrices};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::host::Transfer;
use crate::inputs::Inputs;
use crate::merge::Merge;
use crate::outputs::Outputs;
use crate::pace::Pace;
use crate::pipeline::Checks;
use crate::plan::Algorithm;
use crate::problem::Problem;
use crate::watcher::Watcher;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

mod append;
mod backward;
mod layer;

/// Which device a [`Runner`] takes, and how it sets it up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunnerOptions {
    /// Take a software GPU where there is no other, before the CPU path.
    pub software: bool,
    /// Take the first adapter whose name contains this, whatever its type.
    pub adapter: Option<String>,
    /// Fail where there is no adapter: never take the CPU path.
    pub gpu_only: bool,
    /// Ask for WebGPU's default limits and no features, not for all that the adapter has.
    pub default_limits: bool,
    /// Ask for these limits, as far as the adapter has them; before `default_limits`.
    pub limits: Option<wgpu::Limits>,
    /// Whether wgpu adds its own checks to the shaders.
    pub checks: Checks,
    /// Tiles of this class, not of the adapter's own.
    pub class: Option<DeviceClass>,
    matrices: bool,
}

impl RunnerOptions {
    /// Ask for cooperative matrices too, test the kernels on them, and take those that agree with the plain ones.
    ///
    /// # Safety
    /// As of [`with_cooperative_matrices`](crate::with_cooperative_matrices).
    #[must_use]
    #[allow(unsafe_code, reason = "passed on to the caller")]
    pub unsafe fn with_cooperative_matrices(self) -> Self {
        Self { matrices: true, ..self }
    }
}

/// Attention on tensors in host memory, on a GPU or, where there is none, on the CPU.
///
/// It uploads inputs and reads results back at every call: for a program that has its tensors on a device
/// already, [`Attention`] is the way.
#[derive(Debug)]
pub struct Runner {
    options: RunnerOptions,
    backend: Backend,
    watcher: Watcher,
}

#[derive(Debug)]
enum Backend {
    Gpu(Box<Gpu>),
    #[cfg(feature = "cpu")]
    Cpu,
}

impl Runner {
    /// A hardware adapter, else the CPU path. `log::info` says which.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the adapter gives none; [`Error::NoAdapter`] where there is neither an adapter
    /// nor, without the feature `cpu`, a CPU path.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new() -> Result<Self, Error> {
        Self::with_options(RunnerOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn with_options(options: RunnerOptions) -> Result<Self, Error> {
        pollster::block_on(Self::with_options_async(options))
    }

    /// As [`with_options`](Self::with_options), without blocking.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn with_options_async(options: RunnerOptions) -> Result<Self, Error> {
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let software =
            |adapter: &wgpu::Adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        let named = |adapter: &wgpu::Adapter, text: &str| adapter.get_info().name.contains(text);
        let chosen = match &options.adapter {
            Some(text) => adapters.iter().find(|adapter| named(adapter, text)),
            None => (adapters.iter().find(|adapter| !software(adapter)))
                .or_else(|| adapters.iter().find(|adapter| options.software && software(adapter))),
        };
        if let Some(adapter) = chosen {
            return Self::on_adapter(adapter.clone(), options).await;
        }
        let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let why = match (&options.adapter, names.as_slice()) {
            (_, []) => "none was found".to_owned(),
            (Some(text), names) => format!("none of {names:?} is named {text:?}"),
            (None, names) => format!("only software was found: {names:?}"),
        };
        #[cfg(feature = "cpu")]
        if !options.gpu_only && options.adapter.is_none() {
            log::info!("attention runs on the CPU path: no adapter: {why}");
            return Ok(Self { options, backend: Backend::Cpu, watcher: Watcher::default() });
        }
        Err(Error::NoAdapter(why))
    }

    /// The CPU path, whatever adapters there are.
    #[cfg(feature = "cpu")]
    pub fn cpu() -> Self {
        let (options, watcher) = (RunnerOptions::default(), Watcher::default());
        Self { options, backend: Backend::Cpu, watcher }
    }

    /// A device of this adapter.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the adapter gives none.
    pub async fn on_adapter(adapter: wgpu::Adapter, options: RunnerOptions) -> Result<Self, Error> {
        let limits = adapter.limits();
        let all = device_descriptor(&adapter);
        let mut descriptor = wgpu::DeviceDescriptor {
            label: Some("attention runner"),
            required_features: if options.default_limits {
                wgpu::Features::empty()
            } else {
                all.required_features
            },
            required_limits: match &options.limits {
                Some(asked) => asked.clone().or_worse_values_from(&limits),
                None if options.default_limits => {
                    wgpu::Limits::default().or_worse_values_from(&limits)
                }
                None => limits,
            },
            ..all
        };
        if options.matrices {
            // SAFETY: who made the options vouched for it.
            #[allow(unsafe_code, reason = "cooperative matrices are experimental")]
            unsafe {
                descriptor = with_cooperative_matrices(descriptor, &adapter);
            }
        }
        let (device, queue) = (adapter.request_device(&descriptor).await)
            .map_err(|error| Error::NoDevice(error.to_string()))?;
        let lost = Arc::new(OnceLock::new());
        let note = Arc::clone(&lost);
        device.set_device_lost_callback(move |reason, message| {
            // Only the first loss counts.
            let _ = note.set(format!("{reason:?}: {message}"));
        });
        let mut attention = Attention::with_adapter(&adapter, &device).with_checks(options.checks);
        if let Some(class) = options.class {
            attention = attention.with_class(class);
        }
        if options.matrices {
            let record = attention.self_test_async(&queue).await?;
            log::info!("matrix kernels that agree with the plain ones: {:?}", record.agreeing());
        }
        let info = adapter.get_info();
        log::info!("attention runs on {} ({}, {})", info.name, info.backend, info.driver_info);
        let pace = Pace::new(attention.capabilities().class);
        let gpu = Gpu { adapter, device, queue, attention, pace, lost };
        let watcher = Watcher::default();
        Ok(Self { options, backend: Backend::Gpu(Box::new(gpu)), watcher })
    }

    /// Calls `callback` at the beginning of every run and after each part of it, with how far the run is. Where it
    /// breaks, the run ends with [`Error::Cancelled`] and the runner is ready for the next.
    ///
    /// A run is submitted in parts of about a tenth of a second each, by the device's measured rate; of what takes
    /// less there is one. The CPU path calls from whichever thread is done with a part, one at a time.
    ///
    /// ```
    /// # use wgpu_attention::{Error, Inputs, Problem, Runner, Shape};
    /// use std::ops::ControlFlow;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// // Set by whatever hears the user: a signal handler, a button.
    /// let cancelled = Arc::new(AtomicBool::new(false));
    /// let seen = cancelled.clone();
    /// # let runner = Runner::cpu();
    /// let runner = runner.on_progress(move |progress| {
    ///     eprint!("\r{:3.0} %", 100.0 * progress.share());
    ///     if seen.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    /// });
    /// # let (problem, data) = (Problem::new(Shape::self_attention(1, 2, 8, 4)), [0.0; 64]);
    /// let inputs = Inputs::new(&data, &data, &data);
    /// assert!(runner.forward(&problem, &inputs).is_ok());
    ///
    /// cancelled.store(true, Ordering::Relaxed);
    /// assert_eq!(runner.forward(&problem, &inputs), Err(Error::Cancelled));
    /// ```
    #[must_use]
    pub fn on_progress(
        self,
        callback: impl Fn(Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        Self { watcher: Watcher::new(callback), ..self }
    }

    /// A new runner of the same kind: after [`Error::DeviceLost`], with a new device.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn renew(&self) -> Result<Self, Error> {
        let renewed = match &self.backend {
            Backend::Gpu(gpu) => {
                Self::on_adapter(gpu.adapter.clone(), self.options.clone()).await?
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => Self { options: self.options.clone(), ..Self::cpu() },
        };
        Ok(Self { watcher: self.watcher.clone(), ..renewed })
    }

    /// The adapter it runs on; `None` is the CPU path.
    pub fn adapter_info(&self) -> Option<wgpu::AdapterInfo> {
        self.gpu().map(|gpu| gpu.adapter.get_info())
    }

    /// The device, its queue, and attention on it; `None` is the CPU path.
    pub fn device(&self) -> Option<(&wgpu::Device, &wgpu::Queue, &Attention)> {
        self.gpu().map(|gpu| (&gpu.device, &gpu.queue, &gpu.attention))
    }

    fn gpu(&self) -> Option<&Gpu> {
        match &self.backend {
            Backend::Gpu(gpu) => Some(gpu),
            #[cfg(feature = "cpu")]
            Backend::Cpu => None,
        }
    }

    /// Attention, blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn forward(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs, Error> {
        self.forward_with(problem, Algorithm::Auto, inputs)
    }

    /// Attention by one algorithm, blocking. The CPU path has but one, which stands for
    /// all: it refuses what they refuse.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn forward_with(
        &self,
        problem: &Problem,
        algorithm: Algorithm,
        inputs: &Inputs<'_>,
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_problem(problem, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_with(problem, algorithm)?;
                gpu.run(&plan, &transfer, &self.watcher)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::run(problem, algorithm, inputs, &transfer, &self.watcher),
        }
    }

    /// Attention by one algorithm, without blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    pub async fn forward_async(
        &self,
        problem: &Problem,
        algorithm: Algorithm,
        inputs: &Inputs<'_>,
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_problem(problem, inputs)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_with(problem, algorithm)?;
                gpu.run_async(&plan, &transfer, &self.watcher).await
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::run(problem, algorithm, inputs, &transfer, &self.watcher),
        }
    }

    /// Partial results into one, blocking. Both slices as the merge lays them out; they may be longer.
    ///
    /// # Errors
    /// Anything in [`Error`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn merge(
        &self,
        merge: &Merge,
        out_parts: &[f32],
        lse_parts: &[f32],
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_merge(merge, out_parts, lse_parts)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                gpu.run(&gpu.attention.plan_merge(merge)?, &transfer, &self.watcher)
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::merge(merge, out_parts, lse_parts, &self.watcher),
        }
    }

    /// Partial results into one, without blocking.
    ///
    /// # Errors
    /// Anything in [`Error`].
    pub async fn merge_async(
        &self,
        merge: &Merge,
        out_parts: &[f32],
        lse_parts: &[f32],
    ) -> Result<Outputs, Error> {
        let transfer = Transfer::of_merge(merge, out_parts, lse_parts)?;
        match &self.backend {
            Backend::Gpu(gpu) => {
                let plan = gpu.attention.plan_merge(merge)?;
                gpu.run_async(&plan, &transfer, &self.watcher).await
            }
            #[cfg(feature = "cpu")]
            Backend::Cpu => crate::cpu::merge(merge, out_parts, lse_parts, &self.watcher),
        }
    }
}
