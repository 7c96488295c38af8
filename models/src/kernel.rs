//! Our own kernels: a value each, compiled once, bound to tensors.

use std::collections::HashMap;
use std::fmt::Write as _;
use wgpu_attention::wgpu;

/// One WGSL entry point, `NAME_kernel`: constants, declarations of what it binds, whole files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) constants: Vec<(&'static str, u32)>,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) files: Vec<&'static str>,
}

/// A storage buffer as WGSL declares it; the uniform `params` is always the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Binding {
    pub(crate) name: &'static str,
    pub(crate) element: &'static str,
    pub(crate) written: bool,
}

/// A file under `shaders/`.
macro_rules! file {
    ($path:literal) => {
        include_str!(concat!("../shaders/", $path, ".wgsl"))
    };
}
pub(crate) use file;

/// A kernel bound to buffers, with its workgroups.
#[derive(Debug)]
pub(crate) struct Launch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Kernel {
    pub(crate) fn new(name: &'static str, files: &[&'static str]) -> Self {
        let (constants, bindings) = (Vec::new(), Vec::new());
        Self { name, constants, bindings, files: files.to_vec() }
    }

    pub(crate) fn constant(mut self, name: &'static str, value: usize) -> Self {
        self.constants.push((name, u32::try_from(value).expect("widths of files are checked")));
        self
    }

    /// The whole text.
    pub(crate) fn wgsl(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        text.push_str("@group(0) @binding(0) var<uniform> params: Params;\n");
        for (index, Binding { name, element, written }) in (1..).zip(&self.bindings) {
            let access = if *written { "read_write" } else { "read" };
            let _ = writeln!(
                text,
                "@group(0) @binding({index}) var<storage, {access}> {name}: array<{element}>;"
            );
        }
        self.files.iter().for_each(|file| text.push_str(file));
        text
    }

    fn compile(&self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        let label = Some(self.name);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label,
            source: wgpu::ShaderSource::Wgsl(self.wgsl().into()),
        };
        // SAFETY: the text is this crate's own. Every index is below a length that `gpu.rs` took from the tensors, or
        // clamped where it comes from a buffer; every loop ends at such a length, and no divisor is 0.
        #[allow(unsafe_code, reason = "checks that can only cost time")]
        let module = unsafe {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            device.create_shader_module_trusted(descriptor, checks)
        };
        let kind = |written: bool| wgpu::BufferBindingType::Storage { read_only: !written };
        let kinds = self.bindings.iter().map(|binding| kind(binding.written));
        let kinds = [wgpu::BufferBindingType::Uniform].into_iter().chain(kinds);
        let entries: Vec<_> = (0..)
            .zip(kinds)
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                count: None,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
            })
            .collect();
        let entries = wgpu::BindGroupLayoutDescriptor { label, entries: &entries };
        let layout = wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&device.create_bind_group_layout(&entries))],
            immediate_size: 0,
        };
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&device.create_pipeline_layout(&layout)),
            module: &module,
            entry_point: Some(&format!("{}_kernel", self.name)),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    }

    /// Binds it to buffers, in the order of its bindings.
    pub(crate) fn launch(
        &self,
        device: &wgpu::Device,
        pipelines: &mut HashMap<Self, wgpu::ComputePipeline>,
        params: &[u32],
        buffers: &[wgpu::BufferSlice<'_>],
        workgroups: [u32; 2],
    ) -> Launch {
        assert_eq!(buffers.len(), self.bindings.len(), "{}", self.name);
        let compiled = pipelines.get(self).cloned();
        let pipeline = compiled.unwrap_or_else(|| {
            let pipeline = self.compile(device);
            pipelines.insert(self.clone(), pipeline.clone());
            pipeline
        });
        let bytes = bytemuck::cast_slice(params);
        let params = upload(device, bytes, wgpu::BufferUsages::UNIFORM);
        let resource = wgpu::BindingResource::Buffer(params.as_entire_buffer_binding());
        let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource }];
        for (binding, slice) in (1..).zip(buffers) {
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: slice.buffer(),
                offset: slice.offset(),
                size: std::num::NonZeroU64::new(slice.size()),
            });
            entries.push(wgpu::BindGroupEntry { binding, resource });
        }
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(self.name),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Launch { pipeline, bind_group, workgroups }
    }
}

impl Launch {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [x, y] = self.workgroups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
}

/// A buffer that holds `bytes`.
pub(crate) fn upload(
    device: &wgpu::Device,
    bytes: &[u8],
    usage: wgpu::BufferUsages,
) -> wgpu::Buffer {
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("weights"),
        size: (bytes.len() as u64).next_multiple_of(16).max(16),
        usage,
        mapped_at_creation: true,
    });
    if let Ok(mut view) = buffer.slice(..).get_mapped_range_mut() {
        view.slice(..bytes.len()).copy_from_slice(bytes);
    }
    buffer.unmap();
    buffer
}
