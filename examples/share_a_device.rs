//! Attention inside an application that has its own device, queue, encoder and buffers.
//!
//! One pass, one submit: a shader of the application makes q, k and v, attention follows, and another shader of the
//! application brings every row of out to length 1. Nothing but the last result leaves the device.
#![allow(clippy::print_stdout, reason = "an example talks")]

use wgpu_attention::{Attention, Download, Inputs, Mask, Problem, Shape, Tensors, reference, wgpu};

const SHAPE: Shape = Shape::self_attention(1, 4, 200, 64);
const ELEMENTS: u32 = SHAPE.heads * SHAPE.q_len * SHAPE.head_dim;
const BYTES: u64 = ELEMENTS as u64 * size_of::<f32>() as u64;

/// The application's own shaders: one invocation an element of q, k and v, one a row of out.
const WGSL: &str = "
@group(0) @binding(0) var<storage, read_write> values: array<f32>;

// An integer hash (PCG), so that the host can make the very same values.
fn noise(index: u32) -> f32 {
    let state = index * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return f32(((word >> 22u) ^ word) >> 8u) / 4194304.0 - 2.0;
}

@compute @workgroup_size(64)
fn fill(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&values) { values[id.x] = noise(id.x); }
}

const WIDTH: u32 = 64u;

@compute @workgroup_size(64)
fn normalise(@builtin(global_invocation_id) id: vec3<u32>) {
    let first = id.x * WIDTH;
    if first >= arrayLength(&values) { return; }
    var sum = 0.0;
    for (var i = 0u; i < WIDTH; i++) { sum += values[first + i] * values[first + i]; }
    let factor = inverseSqrt(sum);
    for (var i = 0u; i < WIDTH; i++) { values[first + i] *= factor; }
}
";

/// `noise` of the shader.
fn noise(index: u32) -> f32 {
    let state = index.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (((word >> 22) ^ word) >> 8) as f32 / 4_194_304.0 - 2.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What any application has.
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let hardware = |a: &&wgpu::Adapter| a.get_info().device_type != wgpu::DeviceType::Cpu;
    let adapter = adapters.iter().find(hardware).or(adapters.first());
    let adapter = adapter
        .ok_or("no GPU: install its driver, or a software one (apt install mesa-vulkan-drivers)")?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;
    let buffer = |label, size, usage| {
        let usage = usage | wgpu::BufferUsages::STORAGE;
        let mapped_at_creation = false;
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation,
        })
    };
    let qkv = buffer("q, k and v", 3 * BYTES, wgpu::BufferUsages::empty());
    let out = buffer("out", BYTES, wgpu::BufferUsages::COPY_SRC);
    let fill = Own::new(&device, "fill", &qkv, 3 * ELEMENTS);
    let normalise = Own::new(&device, "normalise", &out, ELEMENTS / SHAPE.v_head_dim);

    // What it adds for attention: once a device, once a shape, once a set of buffers.
    let problem = Problem::new(SHAPE).mask(Mask::CAUSAL);
    let attention = Attention::new(&device);
    let plan = attention.plan(&problem)?;
    let third = |index: u64| qkv.slice(index * BYTES..(index + 1) * BYTES);
    let tensors = Tensors::new(third(0), third(1), third(2), out.slice(..));
    let dispatch = attention.bind(&plan, &tensors)?;
    print!("{}: {plan}", adapter.get_info().name);

    // As often as you like.
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        fill.record(&mut pass);
        dispatch.record(&mut pass);
        normalise.record(&mut pass);
    }
    let download = Download::encode(&device, &mut encoder, out.slice(..));
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let rows: Vec<f32> = pollster::block_on(download.read())?;
    println!("one pass: the application's fill, {}, its normalise; one submit", names(&dispatch));

    let error = greatest_error(&problem, &rows);
    println!("greatest error of {} values against f64: {error:.1e}", rows.len());
    if error < 1e-4 { Ok(()) } else { Err("the result is wrong".into()) }
}

/// A shader of the application over one buffer.
struct Own {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: u32,
}

impl Own {
    fn new(device: &wgpu::Device, entry: &str, values: &wgpu::Buffer, invocations: u32) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(entry),
            source: wgpu::ShaderSource::Wgsl(WGSL.into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: None,
            module: &module,
            entry_point: Some(entry),
            compilation_options: Default::default(),
            cache: None,
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(entry),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: values.as_entire_binding() }],
        });
        Self { pipeline, bind_group, workgroups: invocations.div_ceil(64) }
    }

    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

fn names(dispatch: &wgpu_attention::Dispatch) -> String {
    dispatch.kernels().collect::<Vec<_>>().join(", ")
}

/// Against the definition, every row brought to length 1; infinite where one is not a number.
fn greatest_error(problem: &Problem, rows: &[f32]) -> f64 {
    let values: Vec<f32> = (0..3 * ELEMENTS).map(noise).collect();
    let mut parts = values.chunks(ELEMENTS as usize);
    let [q, k, v] = [(); 3].map(|()| parts.next().expect("three parts"));
    let mut greatest = 0.0;
    let mut got = rows.chunks(SHAPE.v_head_dim as usize);
    for head in 0..SHAPE.heads {
        for row in 0..SHAPE.q_len {
            let expected = reference::row(problem, &Inputs::new(q, k, v), (0, head, row)).out;
            let length = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (x, y) in got.next().expect("as many rows").iter().zip(expected) {
                let apart = (f64::from(*x) - y / length).abs();
                greatest = if apart.is_nan() { f64::INFINITY } else { apart.max(greatest) };
            }
        }
    }
    greatest
}
