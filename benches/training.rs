//! How fast gradients are beside the attention that they are of: verified, then timed by turns, then one table.
//!
//! Arguments keep the problems whose names contain one: `cargo bench --bench training -- causal`. On software adapters
//! only the small ones run, unless an argument names others. Environment:
//!
//! - `WGPU_ADAPTER_NAME`: the first adapter whose name contains this, not the default.
//! - `WGPU_ATTENTION_CLASS`: `hardware` or `software`, kernels of this class, not the adapter's own.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

#[allow(dead_code, reason = "layers and roofs are the other bench's")]
mod support;

use std::time::Instant;
use support::clock::Pass;
use support::data::{Random, Tensors as Data};
use support::gpu::{self, Gpu};
use wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Algorithm, Backward, BackwardInputs, Cost, Dispatch, Download, Inputs, Mask, Problem, Runner,
    Shape, Slopes, Tensors, alibi_slopes, reference, wgpu,
};

/// Runs of each row.
const TURNS: usize = 3;
/// Largest absolute error of a gradient beside the largest gradient.
const TOLERANCE: f64 = 1e-4;
const SEED: u64 = 0xfeed_0123_4567_89ab;

struct Case {
    name: &'static str,
    problem: Problem,
    software: bool,
}

fn cases() -> Vec<Case> {
    let eight = Problem::new(Shape::self_attention(1, 8, 1024, 64));
    let causal = eight.clone().mask(Mask::CAUSAL);
    let gpt2 = Problem::new(Shape::self_attention(1, 12, 1024, 64)).mask(Mask::CAUSAL);
    let grouped = |heads, kv_heads, len| {
        let shape = Shape::self_attention(1, heads, len, 128).with_kv_heads(kv_heads);
        Problem::new(shape).mask(Mask::CAUSAL)
    };
    [
        ("full", eight.clone(), true),
        ("full, dropout", eight.clone().with_dropout(0.1), true),
        ("full, ALiBi", eight.with_alibi(Slopes::PerHead), true),
        ("causal", causal, true),
        ("128 wide", Problem::new(Shape::self_attention(1, 8, 1024, 128)), true),
        ("gpt2", gpt2, true),
        ("llama_small", grouped(8, 2, 512), true),
        ("llama", grouped(32, 8, 2048), false),
    ]
    .map(|(name, problem, software)| Case { name, problem: problem.with_lse(), software })
    .into()
}

/// The inputs of a case, as both ways take them.
struct Given {
    data: Data,
    slopes: Vec<f32>,
    d_out: Vec<f32>,
}

impl Given {
    fn of(problem: &Problem) -> Self {
        let data = Data::of(problem);
        let mut random = Random(7);
        let unit = |_| (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let d_out = (0..data.q.len()).map(unit).collect();
        let slopes = problem.alibi.map_or(Vec::new(), |_| alibi_slopes(problem.shape.heads));
        Self { data, slopes, d_out }
    }

    fn inputs(&self, problem: &Problem) -> Inputs<'_> {
        let Data { q, k, v } = &self.data;
        let inputs = Inputs::new(q, k, v).alibi_slopes(&self.slopes);
        if problem.dropout.is_some() { inputs.seed(SEED) } else { inputs }
    }
}

fn main() {
    let runner = gpu::runner();
    let Some(gpu) = Gpu::of(&runner) else { return println!("no GPU") };
    let filters: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |case: &&Case| match filters.is_empty() {
        true => case.software || !gpu.is_software(),
        false => filters.iter().any(|filter| case.name.contains(filter.as_str())),
    };
    let (class, clock) = (gpu.attention.capabilities().class, gpu.clock.name());
    println!("{} ({}), kernels of {class:?}, {clock}", gpu.info.name, gpu.info.driver_info);
    println!(
        "ms and GFLOP/s of each; backward / forward, at most 3.0 wanted where it has 2.5 times the operations"
    );
    println!(
        "{:<14}  {:<7}  {:>8}  {:>6}  {:>8}  {:>6}  {:>8}  {:>5}",
        "problem", "path", "forward", "", "backward", "", "both", "ratio"
    );
    for Case { name, problem, .. } in cases().iter().filter(wanted) {
        let given = Given::of(problem);
        let backward = Backward::new(problem);
        let mut paths = [
            ("fused", on_gpu(&runner, &gpu, &backward, &given, Algorithm::Auto)),
            ("staged", on_gpu(&runner, &gpu, &backward, &given, Algorithm::Staged)),
            ("CPU", on_cpu(&backward, &given)),
        ];
        let mut times = vec![[(); 3].map(|()| Vec::new()); paths.len()];
        for _ in 0..TURNS {
            // All in turn: other programs come and go.
            for ((_, run), times) in paths.iter_mut().zip(&mut times) {
                times
                    .iter_mut()
                    .zip([[true, false], [false, true], [true, true]])
                    .for_each(|(times, [forward, backward])| times.push(run(forward, backward)));
            }
        }
        for ((path, _), [forward, backward_times, both]) in paths.iter().zip(times) {
            let ratios = backward_times.iter().zip(&forward).map(|(b, f)| b / f).collect();
            let [f, b, both, ratio] = [forward, backward_times, both, ratios].map(median);
            let rate = |cost: Cost, seconds: f64| cost.flops as f64 / seconds * 1e-9;
            let (of_f, of_b) = (rate(Cost::of(problem), f), rate(backward.cost(), b));
            let [f, b, both] = [f, b, both].map(|seconds| seconds * 1e3);
            println!(
                "{name:<14}  {path:<7}  {f:>8.2}  {of_f:>6.1}  {b:>8.2}  {of_b:>6.1}  {both:>8.2}  {ratio:>5.2}"
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds of forward, of backward, or of both.
type Run<'a> = Box<dyn FnMut(bool, bool) -> f64 + 'a>;

/// # Panics
/// If gradients are wrong.
fn on_gpu<'a>(
    runner: &Runner,
    gpu: &'a Gpu<'_>,
    backward: &Backward,
    given: &Given,
    algorithm: Algorithm,
) -> Run<'a> {
    let (device, queue, attention) = runner.device().expect("a GPU");
    let (problem, data) = (&backward.problem, &given.data);
    let s = problem.shape;
    let buffer = |data: &[f32]| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("training"),
            contents: bytemuck::cast_slice(data),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let inputs = [&data.q, &data.k, &data.v, &given.d_out].map(|data| buffer(data));
    // NaN until they are written.
    let like = |len: usize| buffer(&vec![f32::NAN; len]);
    let lse = like((s.batch * s.heads * s.q_len) as usize);
    let outputs = [&data.q, &data.q, &data.k, &data.v].map(|data| like(data.len()));
    let [q, k, v, d_out] = inputs.each_ref().map(|buffer| buffer.slice(..));
    let [out, d_q, d_k, d_v] = outputs.each_ref().map(|buffer| buffer.slice(..));
    let small = problem.alibi.map(|_| buffer(&given.slopes));
    let seed = problem.dropout.map(|_| buffer(bytemuck::cast_slice(&[SEED])));
    let mut tensors = Tensors::new(q, k, v, out).lse(lse.slice(..));
    if let Some(slopes) = &small {
        tensors = tensors.alibi_slopes(slopes.slice(..));
    }
    if let Some(seed) = &seed {
        tensors = tensors.seed(seed.slice(..));
    }
    let plan = attention.plan_with(problem, algorithm).expect("a plan");
    let forward = attention.bind(&plan, &tensors).expect("buffers that fit");
    let plan = attention.plan_backward_with(backward, algorithm).expect("a plan");
    let tensors = tensors.d_out(d_out).d_q(d_q).d_k(d_k).d_v(d_v);
    let back = attention.bind(&plan, &tensors).expect("buffers that fit");

    let mut encoder = device.create_command_encoder(&Default::default());
    forward.encode(&mut encoder);
    back.encode(&mut encoder);
    let downloads = [d_q, d_k, d_v].map(|from| Download::encode(device, &mut encoder, from));
    queue.submit([encoder.finish()]);
    device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
    let read = |download: Download| pollster::block_on(download.read::<f32>()).expect("gradients");
    verify(backward, given, &downloads.map(read));
    Box::new(move |with_forward, with_backward| {
        let dispatches: Vec<&Dispatch> = [(&forward, with_forward), (&back, with_backward)]
            .into_iter()
            .filter_map(|(dispatch, asked)| asked.then_some(dispatch))
            .collect();
        let record = move |pass: &mut wgpu::ComputePass<'_>| {
            dispatches.iter().for_each(|dispatch| dispatch.record(pass));
        };
        gpu.clock.times(&[Pass { timed: true, record: Box::new(record) }], 1)[0].as_secs_f64()
    })
}

/// From host memory to host memory.
///
/// # Panics
/// If gradients are wrong.
fn on_cpu<'a>(backward: &'a Backward, given: &'a Given) -> Run<'a> {
    let (runner, problem) = (Runner::cpu(), &backward.problem);
    let inputs = given.inputs(problem);
    let first = runner.forward(problem, &inputs).expect("the CPU path");
    let lse = first.lse.expect("asked for");
    let gradients = |inputs: &Inputs<'_>, runner: &Runner| {
        let what = BackwardInputs { out: &first.out, lse: &lse, d_out: &given.d_out, d_lse: &[] };
        runner.backward(backward, inputs, &what).expect("the CPU path")
    };
    let got = gradients(&inputs, &runner);
    verify(backward, given, &[got.q, got.k, got.v]);
    Box::new(move |with_forward, with_backward| {
        let what = BackwardInputs { out: &first.out, lse: &lse, d_out: &given.d_out, d_lse: &[] };
        let start = Instant::now();
        if with_forward {
            std::hint::black_box(runner.forward(problem, &inputs).expect("the CPU path"));
        }
        if with_backward {
            std::hint::black_box(runner.backward(backward, &inputs, &what).expect("the CPU path"));
        }
        start.elapsed().as_secs_f64()
    })
}

/// Some rows of the first key/value head against the definition in f64.
fn verify(backward: &Backward, given: &Given, [d_q, d_k, d_v]: &[Vec<f32>; 3]) {
    let (problem, s) = (&backward.problem, backward.problem.shape);
    let (inputs, dim) = (given.inputs(problem), s.head_dim as usize);
    let scale = f64::from(problem.effective_scale());
    let line = |data: &'_ [f32], row: u32| -> Vec<f64> {
        data[row as usize * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
    };
    let add = |to: &mut Vec<f64>, factor: f64, row: &[f64]| {
        to.iter_mut().zip(row).for_each(|(to, x)| *to += factor * x);
    };
    let check = |name: &str, at: u32, got: &[f32], want: &[f64]| {
        let most = want.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
        for (got, want) in got[at as usize * dim..][..dim].iter().zip(want) {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= TOLERANCE * most, "{name} of row {at}: {got}, not {want}");
        }
    };
    let keys = [0, 1, s.kv_len / 2 + 3, s.kv_len - 1];
    let mut want = keys.map(|_| [vec![0.0; dim], vec![0.0; dim]]);
    for (head, row) in (0..s.group_size()).flat_map(|head| (0..s.q_len).map(move |row| (head, row)))
    {
        let at = head * s.q_len + row;
        let d_out = &given.d_out[at as usize * dim..][..dim];
        let of_row = reference::backward_row(backward, &inputs, (0, head, row), d_out, 0.0);
        let (query, d_out) = (line(inputs.q, at), line(&given.d_out, at));
        for (key, [d_k, d_v]) in keys.iter().zip(&mut want) {
            add(d_k, scale * of_row.d_scores[*key as usize], &query);
            add(d_v, of_row.weights[*key as usize], &d_out);
        }
        if [0, 1, s.q_len / 3, s.q_len - 1].contains(&row) {
            let mut sum = vec![0.0; dim];
            for (key, d_score) in (0..).zip(&of_row.d_scores) {
                add(&mut sum, scale * d_score, &line(inputs.k, key));
            }
            check("d_q", at, d_q, &sum);
        }
    }
    for (key, [of_k, of_v]) in keys.into_iter().zip(want) {
        check("d_k", key, d_k, &of_k);
        check("d_v", key, d_v, &of_v);
    }
}
