//! Our own kernels: WGSL text, compiled once, bound to tensors.

use crate::error::Error;
use crate::machine::{Machine, Tensor, Weights};
use crate::matrix::Form;
use std::fmt::Write as _;
use wgpu_attention::wgpu;

/// A file under `shaders/`.
macro_rules! file {
    ($path:literal) => {
        include_str!(concat!("../shaders/", $path, ".wgsl"))
    };
}
pub(crate) use file;

/// One entry point, `NAME_kernel`: constants, declarations of what it binds, whole files.
pub(crate) struct Kernel {
    name: &'static str,
    text: String,
    tensors: Vec<Tensor>,
}

/// A kernel bound to tensors, with its workgroups.
pub(crate) struct Launch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

/// Workgroups of a dispatch along one axis, at most.
const MOST: usize = 65_535;

impl Kernel {
    pub(crate) fn new(name: &'static str, files: &[&'static str]) -> Self {
        Self { name, text: files.concat(), tensors: Vec::new() }
    }

    pub(crate) fn file(mut self, file: &str) -> Self {
        self.text.push_str(file);
        self
    }

    pub(crate) fn size(mut self, name: &str, value: usize) -> Self {
        let _ = writeln!(self.text, "const {name}: u32 = {value}u;");
        self
    }

    pub(crate) fn number(mut self, name: &str, value: f32) -> Self {
        let _ = writeln!(self.text, "const {name}: f32 = {value:?};");
        self
    }

    pub(crate) fn read(self, name: &str, element: &str, tensor: &Tensor) -> Self {
        self.bind(name, "read", element, tensor)
    }

    pub(crate) fn write(self, name: &str, element: &str, tensor: &Tensor) -> Self {
        self.bind(name, "read_write", element, tensor)
    }

    fn bind(mut self, name: &str, access: &str, element: &str, tensor: &Tensor) -> Self {
        let _ = writeln!(
            self.text,
            "@group(0) @binding({}) var<storage, {access}> {name}: array<{element}>;",
            self.tensors.len()
        );
        self.tensors.push(tensor.clone());
        self
    }

    /// Binds weights, with the file that reads them.
    pub(crate) fn weights(self, w: &Weights) -> Self {
        let sized = self.size("ROWS", w.rows).size("COLS", w.cols);
        match w.form {
            Form::F16 => sized.read("w", "vec2<u32>", &w.codes).file(file!("weight/f16")),
            Form::Blocks => (sized.read("w", "u32", &w.codes).read("ranges", "u32", &w.ranges))
                .file(file!("weight/blocks")),
            Form::Rows => (sized.read("w", "u32", &w.codes).read("factors", "f32", &w.ranges))
                .file(file!("weight/rows")),
        }
    }

    fn compile(&self, device: &wgpu::Device) -> wgpu::ComputePipeline {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(self.name),
            source: wgpu::ShaderSource::Wgsl(self.text.as_str().into()),
        };
        // SAFETY: the text is this crate's own. Every index is below a length of what is bound, or clamped where it
        // comes from a buffer; every loop ends at such a length or a constant, and no divisor is 0.
        #[allow(unsafe_code, reason = "checks that can only cost time")]
        let module = unsafe {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            device.create_shader_module_trusted(descriptor, checks)
        };
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(self.name),
            layout: None,
            module: &module,
            entry_point: Some(&format!("{}_kernel", self.name)),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        })
    }

    /// Compiles it unless that was done, and binds.
    pub(crate) fn launch(
        self,
        machine: &Machine,
        device: &wgpu::Device,
        workgroups: [usize; 2],
    ) -> Result<Launch, Error> {
        if workgroups.iter().any(|n| *n > MOST) {
            let what = format!("{workgroups:?} workgroups of {}: too many", self.name);
            return Err(Error::Device(what));
        }
        let mut pipelines = machine.pipelines.borrow_mut();
        let compiled = pipelines.get(&self.text).cloned();
        let pipeline = compiled.unwrap_or_else(|| self.compile(device));
        let mut entries = Vec::new();
        for (binding, slice) in (0..).zip(self.tensors.iter().map(Tensor::slice)) {
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
        pipelines.insert(self.text, pipeline.clone());
        let workgroups = workgroups.map(|n| u32::try_from(n).expect("at most 65,535"));
        Ok(Launch { pipeline, bind_group, workgroups })
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
