//! What an application pays on its own thread: planning, binding and encoding, on a device that does nothing.
//!
//! `WGPU_ATTENTION_CLASS` is `hardware` or `software`, tiles of this class; hardware where it is not set.

#[path = "support/class.rs"]
mod class;
#[allow(dead_code, reason = "what it measures is small")]
#[path = "support/problems.rs"]
mod problems;

use criterion::{BatchSize, Criterion, PlottingBackend};
use problems::{CASES, Case};
use std::hint::black_box;
use std::time::Duration;
use wgpu_attention::{Algorithm, Attention, DeviceClass, Plan, Tensors, wgpu};

fn main() {
    let mut criterion = Criterion::default()
        .plotting_backend(PlottingBackend::Plotters)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    for case in CASES.iter().filter(|case| !case.small) {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            bench(&mut criterion, case, algorithm);
        }
        let (attention, layer) = (attention(&device().0), case.layer());
        let plan = || attention.plan_layer(black_box(&layer)).expect("a plan");
        criterion.bench_function(&case.id("layer/plan"), |bencher| bencher.iter(plan));
    }
    criterion.final_summary();
}

/// Encoders are made through the queue: it has to live as long as its device is used.
fn device() -> (wgpu::Device, wgpu::Queue) {
    wgpu::Device::noop(&Default::default())
}

fn attention(device: &wgpu::Device) -> Attention {
    Attention::new(device).with_class(class::from_env().unwrap_or(DeviceClass::Hardware))
}

fn bench(criterion: &mut Criterion, case: &Case, algorithm: Algorithm) {
    let (device, queue) = device();
    let (attention, problem) = (attention(&device), case.problem());
    let plan = || attention.plan_with(black_box(&problem), algorithm).expect("a plan");
    let id = case.id(&kernels(&plan()));
    criterion.bench_function(&format!("{id}/plan"), |bencher| bencher.iter(plan));

    let s = problem.shape;
    let buffer = |elements: u64| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: elements.max(1) * 4,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let rows = |heads: u32, len: u32| u64::from(s.batch) * u64::from(heads) * u64::from(len);
    let q = buffer(rows(s.heads, s.q_len) * u64::from(s.head_dim));
    let k = buffer(rows(s.kv_heads, s.kv_len) * u64::from(s.head_dim));
    let v = buffer(rows(s.kv_heads, s.kv_len) * u64::from(s.v_head_dim));
    let out = buffer(rows(s.heads, s.q_len) * u64::from(s.v_head_dim));
    let plan = plan();
    let workspace = buffer(plan.workspace_bytes().div_ceil(4));
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..))
        .workspace(workspace.slice(..));
    attention.compile([&plan]);
    let bind = || attention.bind(&plan, &tensors).expect("buffers that fit");
    // wgpu keeps the uniforms of every bind until something is submitted.
    let flush = || {
        queue.submit([]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
    };
    criterion.bench_function(&format!("{id}/bind"), |bencher| {
        bencher.iter_batched(flush, |()| bind(), BatchSize::PerIteration);
    });

    let dispatch = bind();
    flush();
    let encoder = || device.create_command_encoder(&Default::default());
    criterion.bench_function(&format!("{id}/encode"), |bencher| {
        bencher.iter_batched_ref(encoder, |to| dispatch.encode(to), BatchSize::SmallInput);
    });
    // wgpu checks a pass when its encoder is finished: this is encoding's other half.
    criterion.bench_function(&format!("{id}/encode+finish"), |bencher| {
        let finish = |mut to: wgpu::CommandEncoder| {
            dispatch.encode(&mut to);
            to.finish()
        };
        bencher.iter_batched(encoder, finish, BatchSize::SmallInput);
    });
}

/// Kernels of one pass over the problem: chunks repeat them.
fn kernels(plan: &Plan) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in plan.kernels() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join("+")
}
