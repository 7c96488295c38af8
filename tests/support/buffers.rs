//! Attention in the caller's own buffers, on the caller's own device.

use super::case::{Tensors, extent};
use super::emulation::Got;
use super::target::runner;
use wgpu_attention::{
    Algorithm, Attention, DeviceClass, Download, Problem, Tensors as Slices, wgpu,
};

/// Which kernels, and where in their buffers the tensors start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placing {
    pub(crate) class: DeviceClass,
    pub(crate) algorithm: Algorithm,
    /// Elements before the first tensor of a buffer.
    pub(crate) first: usize,
}

/// One buffer for q, k and v; a start of `first` elements in every buffer.
///
/// # Panics
/// If the run fails.
pub(crate) fn placed(placing: &Placing, problem: &Problem, tensors: &Tensors) -> Got {
    let (device, queue, attention) = runner(placing.class).device().expect("a GPU");
    run((device, queue, attention), placing, problem, tensors)
}

/// On a device that binds at most `binding_bytes` at a time, with tiles of its own class.
///
/// # Panics
/// If the run fails, or takes but one step a kernel.
pub(crate) fn tight(
    algorithm: Algorithm,
    binding_bytes: u64,
    problem: &Problem,
    tensors: &Tensors,
) -> Got {
    let wanted = runner(DeviceClass::Software).adapter_info().expect("a GPU");
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.iter().find(|adapter| adapter.get_info() == wanted).expect("the same");
    let descriptor = wgpu::DeviceDescriptor {
        required_limits: wgpu::Limits {
            max_storage_buffer_binding_size: binding_bytes,
            ..adapter.limits()
        },
        ..Default::default()
    };
    let (device, queue) =
        pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    let attention = Attention::new(&device);
    let plan = attention.plan_with(problem, algorithm).expect("a plan");
    assert!(plan.kernels().count() > 6, "not cut: {plan}");
    let placing = Placing { class: DeviceClass::Software, algorithm, first: 0 };
    run((&device, &queue, &attention), &placing, problem, tensors)
}

fn run(
    (device, queue, attention): (&wgpu::Device, &wgpu::Queue, &Attention),
    placing: &Placing,
    problem: &Problem,
    tensors: &Tensors,
) -> Got {
    use wgpu::util::DeviceExt as _;
    let plan = attention.plan_with(problem, placing.algorithm).expect("a plan");
    let parts = [&tensors.q, &tensors.k, &tensors.v];
    let mut data = vec![f32::NAN; placing.first];
    let starts = parts.map(|part| {
        let start = data.len();
        data.extend(part);
        start
    });
    let shared = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("q, k and v"),
        contents: bytes(&data),
        usage: wgpu::BufferUsages::STORAGE,
    });
    let slice = |i: usize| {
        let first = starts[i] as u64 * 4;
        shared.slice(first..first + parts[i].len() as u64 * 4)
    };
    let s = problem.shape;
    let out_len = extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim);
    let rows = (s.batch * s.heads * s.q_len) as usize;
    // What is there before: none of it may be left.
    let output = |len: usize| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("output"),
            contents: bytes(&vec![f32::NAN; placing.first + len]),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let (out, lse) = (output(out_len), output(rows));
    let first = placing.first as u64 * 4;
    let tensors = Slices::new(slice(0), slice(1), slice(2), out.slice(first..));
    let dispatch = attention.bind(&plan, &tensors.lse(lse.slice(first..))).expect("a dispatch");
    let mut encoder = device.create_command_encoder(&Default::default());
    dispatch.encode(&mut encoder);
    let downloads =
        [&out, &lse].map(|buffer| Download::encode(device, &mut encoder, buffer.slice(first..)));
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
    let [out, lse] = downloads.map(|download| pollster::block_on(download.read()).expect("data"));
    Got { out, lse: Some(lse), weights: None, scores: None }
}

fn bytes(data: &[f32]) -> &[u8] {
    bytemuck::cast_slice(data)
}
