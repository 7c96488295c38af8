//! What an application pays on its own thread: planning, binding and encoding, on a device that does nothing.
//!
//! `WGPU_ATTENTION_CLASS` is `hardware` or `software`, tiles of this class; hardware where it is not set.

#[path = "support/class.rs"]
mod class;
#[path = "support/problems.rs"]
mod problems;

use criterion::{BatchSize, Criterion};
use problems::CASES;
use std::hint::black_box;
use std::time::Duration;
use wgpu_attention::{Algorithm, Attention, DeviceClass, Plan, Problem, Tensors, wgpu};

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let (device, _) = wgpu::Device::noop(&Default::default());
    let class = class::from_env().unwrap_or(DeviceClass::Hardware);
    let attention = Attention::new(&device).with_class(class);
    for case in CASES.iter().filter(|case| !case.small) {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let problem = case.problem();
            let plan = || attention.plan_with(&problem, algorithm).expect("a plan");
            bench(&mut criterion, &case.id(&kernels(&plan())), &device, &attention, &problem, plan);
        }
        let (layer, id) = (case.layer(), case.id("layer"));
        let plan = || attention.plan_layer(black_box(&layer)).expect("a plan");
        criterion.bench_function(&format!("{id}/plan"), |bencher| bencher.iter(plan));
    }
    criterion.final_summary();
}

fn bench(
    criterion: &mut Criterion,
    id: &str,
    device: &wgpu::Device,
    attention: &Attention,
    problem: &Problem,
    plan: impl Fn() -> Plan,
) {
    criterion.bench_function(&format!("{id}/plan"), |bencher| bencher.iter(&plan));

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
    attention.compile(&plan);
    let bind = || attention.bind(&plan, &tensors).expect("buffers that fit");
    criterion.bench_function(&format!("{id}/bind"), |bencher| bencher.iter(bind));

    let dispatch = bind();
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
