//! Compiled pipelines, one a kernel value, shared by every clone of `Attention`.

use crate::kernels::{Access, Kernel};
use std::collections::HashMap;
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
    ) -> wgpu::ComputePipeline {
        let cell = {
            let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
            compiled.entry(kernel.clone()).or_default().clone()
        };
        cell.get_or_init(|| compile(device, kernel, checks)).clone()
    }
}

/// Compiles `kernel`.
pub(crate) fn compile(
    device: &wgpu::Device,
    kernel: &Kernel,
    checks: Checks,
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
        cache: None,
    })
}
