//! Compiled pipelines, one a kernel value, shared by every clone of `Attention`.

use crate::kernels::{Access, Kernel};
use std::collections::{HashMap, HashSet};
#[cfg(not(target_arch = "wasm32"))]
use std::num::NonZeroUsize;
#[cfg(not(target_arch = "wasm32"))]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Whether wgpu adds its own checks to a shader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Checks {
    /// None: every index is guarded by a length in the params, every loop is bounded by one.
    #[default]
    Off,
    /// Bounds, loops, integer division, zeroed workgroup memory. For tests of this crate.
    On,
}

#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    compiled: Mutex<HashMap<Kernel, Arc<OnceLock<wgpu::ComputePipeline>>>>,
}

impl Pipelines {
    /// The pipeline of `kernel`; compiles it unless that was done. Threads that ask for another kernel
    /// meanwhile do not wait.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        kernel: &Kernel,
        checks: Checks,
        cache: Option<&wgpu::PipelineCache>,
    ) -> wgpu::ComputePipeline {
        let cell = {
            let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            compiled.entry(kernel.clone()).or_default().clone()
        };
        cell.get_or_init(|| compile(device, kernel, checks, cache)).clone()
    }

    /// Calls `compile` with each of `kernels` that has no pipeline yet, on as many threads as there are cores.
    pub(crate) fn fill<'a>(
        &self,
        kernels: impl Iterator<Item = &'a Kernel>,
        compile: impl Fn(&Kernel) + wgpu::WasmNotSync,
    ) {
        let missing: Vec<&Kernel> = {
            let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            let is_missing =
                |kernel: &Kernel| compiled.get(kernel).is_none_or(|cell| cell.get().is_none());
            let mut seen = HashSet::new();
            kernels.filter(|kernel| is_missing(kernel) && seen.insert(*kernel)).collect()
        };
        on_threads(&missing, compile);
    }
}

/// Calls `work` with every item, on as many threads as there are cores, of which this one is one.
#[cfg(not(target_arch = "wasm32"))]
fn on_threads<T: Copy + Sync>(items: &[T], work: impl Fn(T) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(*item);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 1..cores.min(items.len()) {
            scope.spawn(take);
        }
        take();
    });
}

/// The web has one thread.
#[cfg(target_arch = "wasm32")]
fn on_threads<T: Copy>(items: &[T], work: impl Fn(T)) {
    items.iter().copied().for_each(work);
}

/// Compiles `kernel`.
pub(crate) fn compile(
    device: &wgpu::Device,
    kernel: &Kernel,
    checks: Checks,
    cache: Option<&wgpu::PipelineCache>,
) -> wgpu::ComputePipeline {
    let label = Some(kernel.name);
    let descriptor = wgpu::ShaderModuleDescriptor {
        label,
        source: wgpu::ShaderSource::Wgsl(kernel.wgsl().into()),
    };
    // A caller's own text keeps the checks unless the caller vouches for it.
    let of_text = if kernel.source.is_checked() { Checks::On } else { checks };
    let module = match of_text {
        Checks::On => device.create_shader_module(descriptor),
        Checks::Off => {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            // SAFETY: the text is this crate's own, or a caller vouches for it. Every index is below a length in the
            // params that `bind`
            // checked against the buffer, every loop ends at one, and no divisor is 0.
            #[allow(unsafe_code, reason = "checks that can only cost time")]
            unsafe {
                device.create_shader_module_trusted(descriptor, checks)
            }
        }
    };
    let entries: Vec<_> = (0..)
        .zip(&kernel.bindings)
        .map(|(binding, wanted)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            count: None,
            ty: wgpu::BindingType::Buffer {
                has_dynamic_offset: false,
                min_binding_size: None,
                ty: match wanted.access {
                    Access::Uniform => wgpu::BufferBindingType::Uniform,
                    Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                    Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                },
            },
        })
        .collect();
    let layout = device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&layout),
        module: &module,
        entry_point: Some(&kernel.entry_point()),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: checks == Checks::On,
            ..Default::default()
        },
        cache,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Capabilities;
    use std::sync::Barrier;

    #[test]
    fn each_missing_kernel_is_compiled_once() {
        let (device, _queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        let kernels: Vec<Kernel> =
            crate::kernels::all(&Capabilities::portable()).into_iter().take(9).collect();
        let pipelines = Pipelines::default();
        pipelines.get(&device, &kernels[3], Checks::Off, None);
        let compiled = Mutex::new(Vec::new());
        pipelines.fill(kernels.iter().chain(&kernels), |kernel| {
            compiled.lock().expect("no panic").push(kernel.clone());
        });
        let compiled = compiled.into_inner().expect("no panic");
        let count = |kernel| compiled.iter().filter(|other| *other == kernel).count();
        for (index, kernel) in kernels.iter().enumerate() {
            assert_eq!(count(kernel), usize::from(index != 3), "{}", kernel.label());
        }
    }

    /// One after the other, the first would wait for the second for ever.
    #[test]
    fn work_is_done_at_once_where_there_are_cores() {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let meeting = Barrier::new(cores.min(2));
        on_threads(&[1, 2], |_| {
            meeting.wait();
        });
    }
}
