//! How fast one token a sequence attends over long caches: bytes a second beside what a copy moves, verified.
//!
//! Arguments keep the rows whose names contain one: `cargo bench --bench decode -- q8`. On software adapters only the
//! small ones run, unless an argument names others. Environment:
//!
//! - `WGPU_ADAPTER_NAME`: the first adapter whose name contains this, not the default.
//! - `WGPU_ATTENTION_CLASS`: `hardware` or `software`, kernels of this class, not the adapter's own.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

#[allow(dead_code, reason = "layers and roofs are the other bench's")]
mod support;

use half::f16;
use support::clock::Pass;
use support::data::Random;
use support::gpu::{self, Gpu};
use wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Algorithm, DType, Dispatch, Download, Inputs, Pages, Plan, Problem, Runner, Shape, Tensors,
    reference, wgpu,
};

/// Runs of each row.
const TURNS: usize = 20;
const PAGE_LEN: u32 = 32;
/// Heads of the first sequence that are checked, where there are as many.
const SAMPLES: [u32; 4] = [0, 3, 13, 31];

/// How the cache lies, and what is asked of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain(DType),
    Paged(DType),
    /// One workgroup walks all keys of its rows.
    Unsplit,
    /// Four heads share one key/value head: fewer workgroups than cores want, unless keys are split.
    OneHead,
    OneHeadUnsplit,
    /// The fused kernel of many rows.
    Flash,
    /// The mode whose results do not depend on the batch.
    Invariant,
    /// A sixteenth of the capacity is used.
    Growing,
    /// From host memory to host memory, without a GPU.
    Cpu,
}

struct Case {
    batch: u32,
    kv_len: u32,
    kind: Kind,
    software: bool,
}

impl Case {
    fn name(&self) -> String {
        let Self { batch, kv_len, kind, .. } = self;
        let kind = match kind {
            Kind::Plain(dtype) => format!("{dtype:?}").to_lowercase(),
            Kind::Paged(dtype) => format!("{dtype:?} paged").to_lowercase(),
            kind => format!("f32 {kind:?}").to_lowercase(),
        };
        format!("{batch} x {kv_len} {kind}")
    }

    fn dtype(&self) -> DType {
        match self.kind {
            Kind::Plain(dtype) | Kind::Paged(dtype) => dtype,
            _ => DType::F32,
        }
    }

    /// Keys that are in use.
    fn used(&self) -> u32 {
        if self.kind == Kind::Growing { self.kv_len / 16 } else { self.kv_len }
    }

    fn problem(&self) -> Problem {
        let shape = Shape::cross_attention(self.batch, self.heads().0, 1, self.kv_len, 128)
            .with_kv_heads(self.heads().1);
        let problem = Problem::new(shape).kv_dtype(self.dtype());
        match self.kind {
            Kind::Paged(_) => problem.with_lengths(false, true).with_pages(self.pages()),
            Kind::Unsplit | Kind::OneHeadUnsplit => problem.with_splits(1),
            Kind::Invariant => problem.batch_invariant(),
            Kind::Growing => problem.with_lengths(false, true),
            _ => problem,
        }
    }

    /// Of queries, and of keys and values.
    fn heads(&self) -> (u32, u32) {
        match self.kind {
            Kind::OneHead | Kind::OneHeadUnsplit => (4, 1),
            _ => (32, 8),
        }
    }

    fn pages(&self) -> Pages {
        Pages::new(self.batch * self.kv_len.div_ceil(PAGE_LEN), PAGE_LEN)
    }

    /// Bytes of keys and values that have to be read.
    fn bytes(&self) -> f64 {
        let elements =
            u64::from(self.batch) * u64::from(self.used()) * u64::from(self.heads().1) * 128 * 2;
        (elements * self.dtype().bits() / 8) as f64
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |batch, kv_len, kind, software| {
        cases.push(Case { batch, kv_len, kind, software });
    };
    let kinds = [
        Kind::Plain(DType::F32),
        Kind::Plain(DType::F16),
        Kind::Plain(DType::Q8),
        Kind::Plain(DType::Q4),
        Kind::Paged(DType::F32),
        Kind::Paged(DType::F16),
        Kind::Unsplit,
        Kind::Flash,
        Kind::Invariant,
        Kind::Cpu,
    ];
    for kind in kinds {
        add(1, 4096, kind, true);
    }
    for kv_len in [1024, 16 << 10, 64 << 10] {
        add(1, kv_len, Kind::Plain(DType::F32), kv_len < 64 << 10);
        add(1, kv_len, Kind::Plain(DType::F16), false);
    }
    for kind in [Kind::OneHead, Kind::OneHeadUnsplit] {
        add(1, 32 << 10, kind, true);
    }
    // The same keys, planned for as many and for sixteen times as many.
    add(1, 16 << 10, Kind::Growing, true);
    for batch in [8, 64] {
        for kv_len in [1024, 8192] {
            add(batch, kv_len, Kind::Plain(DType::F16), batch == 8 && kv_len == 1024);
            add(batch, kv_len, Kind::Paged(DType::F16), false);
            add(batch, kv_len, Kind::Plain(DType::Q8), false);
        }
    }
    cases
}

fn main() {
    let runner = gpu::runner();
    let Some(gpu) = Gpu::of(&runner) else { return println!("no GPU") };
    let filters: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |case: &&Case| match filters.is_empty() {
        true => case.software || !gpu.is_software(),
        false => filters.iter().any(|filter| case.name().contains(filter.as_str())),
    };
    let (class, clock) = (gpu.attention.capabilities().class, gpu.clock.name());
    println!("{} ({}), kernels of {class:?}, {clock}", gpu.info.name, gpu.info.driver_info);
    println!("1 query a sequence, 32 heads on 8 (onehead: 4 on 1), head_dim 128");
    println!("{:<24}  {:>8}  {:>8}  {:>6}  kernels", "batch x keys, cache", "ms", "GB/s", "copy");
    for case in cases().iter().filter(wanted) {
        let mut run = bind(&runner, &gpu, case);
        // Before and after: other programs come and go.
        let mut copy = gpu.bandwidth().unwrap_or(0.0);
        let mut times: Vec<_> = (0..TURNS).map(|_| (run.time)()).collect();
        copy = copy.max(gpu.bandwidth().unwrap_or(0.0));
        times.sort_by(f64::total_cmp);
        // The best, as of the copy.
        let (ms, rate) = (times[0] * 1e3, case.bytes() / times[0]);
        let share = 100.0 * rate / copy;
        let (name, kernels) = (case.name(), &run.kernels);
        println!("{name:<24}  {ms:>8.3}  {:>8.2}  {share:>4.0} %  {kernels}", rate * 1e-9);
    }
}

/// What is timed.
struct Run<'a> {
    time: Box<dyn FnMut() -> f64 + 'a>,
    kernels: String,
}

/// # Panics
/// If sampled rows are wrong.
fn bind<'a>(runner: &'a Runner, gpu: &'a Gpu<'_>, case: &Case) -> Run<'a> {
    let (device, queue, attention) = runner.device().expect("a GPU");
    let problem = case.problem();
    let s = problem.shape;
    let mut random = Random(5);
    let mut unit = move || (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let q: Vec<f32> = (0..s.batch * s.heads * s.head_dim).map(|_| 8.0 * unit()).collect();
    // One sequence's keys and values, the same for all: of large batches more would only take memory.
    let elements = s.kv_heads * s.kv_len * s.head_dim;
    let [(k, k_bytes), (v, v_bytes)] = [(); 2].map(|()| stored(case.dtype(), elements, &mut unit));
    let kv_lens = vec![case.used(); s.batch as usize];
    let per_sequence = s.kv_len.div_ceil(PAGE_LEN);
    // Neighbours are pages apart.
    let page = |i: u32| (i % per_sequence * 7919) % per_sequence + i / per_sequence * per_sequence;
    let coprime = !per_sequence.is_multiple_of(7919);
    let table: Vec<u32> =
        (0..s.batch * per_sequence).map(|i| if coprime { page(i) } else { i }).collect();

    let mut first = problem.clone();
    first.shape.batch = 1;
    let mut inputs = Inputs::new(&q[..(s.heads * s.head_dim) as usize], &k, &v);
    let has_lens = matches!(case.kind, Kind::Paged(_) | Kind::Growing);
    if has_lens {
        inputs = inputs.kv_lens(&kv_lens[..1]);
    }
    if matches!(case.kind, Kind::Paged(_)) {
        inputs = inputs.block_table(&table[..per_sequence as usize]);
    }
    let first = match case.kind {
        Kind::Paged(_) => first.with_pages(Pages::new(per_sequence, PAGE_LEN)),
        _ => first,
    };
    let check = |out: &[f32]| {
        for head in SAMPLES.into_iter().filter(|head| *head < s.heads) {
            let want = reference::row(&first, &inputs, (0, head, 0)).out;
            let got = &out[(head * s.v_head_dim) as usize..][..s.v_head_dim as usize];
            for (got, want) in got.iter().zip(want) {
                let error = (f64::from(*got) - want).abs();
                assert!(error <= 2e-5, "{}: head {head}: {got}, not {want}", case.name());
            }
        }
    };

    #[cfg(feature = "cpu")]
    if case.kind == Kind::Cpu {
        let cpu = Runner::cpu();
        let forward = move |q: &[f32], k: &[f32], v: &[f32]| {
            cpu.forward(&problem, &Inputs::new(q, k, v)).expect("the CPU path").out
        };
        check(&forward(&q, &k, &v));
        let time = move || {
            let start = std::time::Instant::now();
            std::hint::black_box(forward(&q, &k, &v));
            start.elapsed().as_secs_f64()
        };
        return Run { time: Box::new(time), kernels: "CPU path".to_owned() };
    }

    let upload = |contents: &[u8]| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("decode"),
            contents,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let algorithm = if case.kind == Kind::Flash { Algorithm::Flash } else { Algorithm::Auto };
    let plan = attention.plan_with(&problem, algorithm).expect("a plan");
    let q = upload(bytemuck::cast_slice(&q));
    let [k, v] = [k_bytes, v_bytes].map(|bytes| upload(&bytes.repeat(s.batch as usize)));
    let (lens, table) =
        (upload(bytemuck::cast_slice(&kv_lens)), upload(bytemuck::cast_slice(&table)));
    let out = upload(&vec![0xff; (s.batch * s.heads * s.v_head_dim * 4) as usize]);
    let mut tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    if has_lens {
        tensors = tensors.kv_lens(lens.slice(..));
    }
    if matches!(case.kind, Kind::Paged(_)) {
        tensors = tensors.block_table(table.slice(..));
    }
    let dispatch = attention.bind(&plan, &tensors).expect("buffers that fit");
    let mut encoder = device.create_command_encoder(&Default::default());
    dispatch.encode(&mut encoder);
    let download = Download::encode(device, &mut encoder, out.slice(..));
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
    check(&pollster::block_on(download.read::<f32>()).expect("out"));
    let kernels = kernels(&plan);
    let pass = move |dispatch: &Dispatch| {
        let dispatch = dispatch.clone();
        Pass { timed: true, record: Box::new(move |pass| dispatch.record(pass)) }
    };
    let time = move || gpu.clock.times(&[pass(&dispatch)], 1)[0].as_secs_f64();
    Run { time: Box::new(time), kernels }
}

/// Numbers between -1 and 1, and as the device stores them.
fn stored(dtype: DType, elements: u32, unit: &mut impl FnMut() -> f32) -> (Vec<f32>, Vec<u8>) {
    let mut data: Vec<f32> = (0..elements).map(|_| unit()).collect();
    let mut bytes = Vec::new();
    match dtype {
        DType::F32 => bytes.extend_from_slice(bytemuck::cast_slice(&data)),
        DType::F16 => {
            data.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            bytes.extend(data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
        }
        _ => {
            // A scale of 2^-7 or 2^-3, and a minimum of 0 or -1.
            let four = dtype == DType::Q4;
            let (scale, minimum) = if four { (0.125, -1.0) } else { (1.0 / 128.0, 0.0) };
            for block in data.chunks_mut(DType::BLOCK as usize) {
                bytes.extend(f16::from_f32(scale).to_le_bytes());
                bytes.extend(f16::from_f32(minimum).to_le_bytes());
                #[allow(clippy::cast_possible_truncation, reason = "between -127 and 127")]
                let codes: Vec<i8> = block
                    .iter_mut()
                    .map(|x| {
                        let most = if four { 15.0 } else { 127.0 };
                        let code = ((*x - minimum) / scale).round().min(most);
                        *x = minimum + scale * code;
                        code as i8
                    })
                    .collect();
                let code = |code: i8| code.cast_unsigned();
                if four {
                    bytes.extend(codes.chunks(2).map(|two| code(two[0]) | code(two[1]) << 4));
                } else {
                    bytes.extend(codes.into_iter().map(code));
                }
            }
        }
    }
    (data, bytes)
}

/// Kernels and their workgroups.
fn kernels(plan: &Plan) -> String {
    let text = plan.to_string();
    let steps = text.lines().filter_map(|line| line.strip_prefix("  "));
    let step = |line: &str| line.split(" workgroups").next().unwrap_or(line).to_owned();
    steps.map(step).collect::<Vec<_>>().join(", ")
}
