//! The rate at which an adapter moves bytes: a kernel that copies, four floats an invocation, and the queue's own copy.

use super::clock::Pass;
use wgpu_attention::wgpu;

const WGSL: &str = "
@group(0) @binding(0) var<storage, read> from_here: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> to_there: array<vec4<f32>>;

@compute @workgroup_size(256)
fn copy_kernel(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (group.y * 4096u + group.x) * 256u + lane;
    if i < arrayLength(&from_here) { to_there[i] = from_here[i]; }
}
";
const ELEMENT_BYTES: u64 = 16;
const WORKGROUP_SIZE: u64 = 256;
/// Workgroups along x; as `WGSL` has it.
const WIDTH: u64 = 4096;

/// A copy from one large buffer to another.
pub(crate) struct Copy {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    buffers: [wgpu::Buffer; 2],
    /// Of one buffer.
    bytes: u64,
}

impl Copy {
    /// Of 64 MiB, more than caches hold; of 256 MiB on a GPU, or of what it allows.
    pub(crate) fn new(device: &wgpu::Device, software: bool) -> Self {
        let limits = device.limits();
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let wanted: u64 = if software { 64 << 20 } else { 256 << 20 };
        let step = ELEMENT_BYTES * WORKGROUP_SIZE * WIDTH;
        let bytes = (wanted.min(most) / step).max(1) * step;
        let buffers = [(); 2].map(|()| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("copy"),
                size: bytes,
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("copy"),
            source: wgpu::ShaderSource::Wgsl(WGSL.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("copy"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let entries = [0, 1].map(|i| wgpu::BindGroupEntry {
            binding: i,
            resource: buffers[i as usize].as_entire_binding(),
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("copy"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self { pipeline, bind_group, buffers, bytes }
    }

    pub(crate) fn passes(&self) -> [Pass<'_>; 1] {
        let width = u32::try_from(WIDTH).expect("a constant");
        let height = self.bytes / (ELEMENT_BYTES * WORKGROUP_SIZE * WIDTH);
        let height = u32::try_from(height).expect("256 MiB at most");
        let record = move |pass: &mut wgpu::ComputePass<'_>| {
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &self.bind_group, &[]);
            pass.dispatch_workgroups(width, height, 1);
        };
        [Pass { timed: true, record: Box::new(record) }]
    }

    /// The same bytes by a copy command.
    pub(crate) fn commands(&self, device: &wgpu::Device) -> wgpu::CommandBuffer {
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&self.buffers[0], 0, &self.buffers[1], 0, self.bytes);
        encoder.finish()
    }

    /// Read and written.
    pub(crate) fn bytes(&self) -> f64 {
        (2 * self.bytes) as f64
    }
}
