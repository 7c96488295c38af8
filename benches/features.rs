//! What each feature costs on the fused kernel, beside the plain attention: verified, then timed by turns, then one
//! table.
//!
//! Arguments keep the features whose names contain one: `cargo bench --bench features -- bias`. Environment:
//!
//! - `WGPU_ADAPTER_NAME`: the first adapter whose name contains this, not the default.
//! - `WGPU_ATTENTION_CLASS`: `hardware` or `software`, tiles of this class, not the adapter's own.
#![allow(clippy::print_stdout, reason = "the table is what a bench is for")]

#[allow(dead_code, reason = "layers and roofs are the other bench's")]
mod support;
#[path = "support/features.rs"]
mod catalogue;

use catalogue::{Data, Feature};
use half::{bf16, f16};
use support::clock::Pass;
use support::data::Random;
use support::gpu::{self, Gpu};
use wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Algorithm, Cost, DType, Dispatch, Download, MaskFormat, Operand, Runner, Shape, Tensors,
    reference, wgpu,
};

/// Times that a feature and the plain attention take turns.
const TURNS: usize = 15;
/// Rows looked at, besides the first and the last.
const SAMPLES: usize = 14;

fn main() {
    let runner = gpu::runner();
    let Some(gpu) = Gpu::of(&runner) else { return println!("no GPU") };
    // Ten documents of whole tiles.
    let shape = if gpu.is_software() {
        Shape::self_attention(1, 4, 640, 64)
    } else {
        Shape::self_attention(1, 8, 2560, 64)
    };
    let data = Data::of(shape);
    let features = data.features();
    let filters: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |feature: &&Feature<'_>| {
        filters.is_empty() || filters.iter().any(|filter| feature.name.contains(filter))
    };

    let (class, clock) = (gpu.attention.capabilities().class, gpu.clock.name());
    println!("{} ({}), tiles of {class:?}, {clock}", gpu.info.name, gpu.info.driver_info);
    println!("{} heads, {} tokens, head_dim {}", shape.heads, shape.q_len, shape.head_dim);
    println!("{:<32}  {:>9}  {:>6}  {:>5}  verdict", "feature", "ms", "ratio", "goal");
    let plain = bind(&runner, &features[0]);
    for feature in features.iter().filter(wanted) {
        let bound = bind(&runner, feature);
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        for turn in 0..=TURNS {
            let time = |bound: &Dispatch| gpu.clock.times(&[pass(bound)], 1)[0].as_secs_f64();
            let [one, other] = if turn % 2 == 0 { [&plain, &bound] } else { [&bound, &plain] };
            let [one, other] = [one, other].map(time);
            let [plain, this] = if turn % 2 == 0 { [one, other] } else { [other, one] };
            // The first is to warm up.
            if turn > 0 {
                times.push(this * 1e3);
                ratios.push(this / plain / feature.share);
            }
        }
        let (ms, ratio) = (median(times), median(ratios));
        let own =
            Cost::of(&feature.problem).bytes.saturating_sub(Cost::of(&features[0].problem).bytes);
        let verdict = match feature.goal {
            None => format!("{:.2} MB of its own", own as f64 * 1e-6),
            Some(goal) if ratio < goal => "good".to_owned(),
            Some(goal) => format!("{:.0} % too slow", (ratio / goal - 1.0) * 100.0),
        };
        let goal = feature.goal.map_or("-".to_owned(), |goal| format!("{goal:.2}"));
        println!("{:<32}  {ms:>9.4}  {ratio:>6.3}  {goal:>5}  {verdict}", feature.name);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pass(dispatch: &Dispatch) -> Pass<'_> {
    Pass { timed: true, record: Box::new(|pass| dispatch.record(pass)) }
}

/// Gives a buffer as an operand.
type Give<'a> = fn(Tensors<'a>, wgpu::BufferSlice<'a>) -> Tensors<'a>;

/// The fused kernel on a feature's inputs; where there is a block mask, it is made here. Checks sampled rows.
///
/// # Panics
/// If one is wrong.
fn bind(runner: &Runner, feature: &Feature<'_>) -> Dispatch {
    let (device, queue, attention) = runner.device().expect("a GPU");
    let Feature { problem, inputs, .. } = feature;
    let buffer = |contents: &[u8]| {
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some(feature.name),
            contents,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        })
    };
    let run = |dispatch: &Dispatch, read: &[&wgpu::Buffer]| {
        let mut encoder = device.create_command_encoder(&Default::default());
        dispatch.encode(&mut encoder);
        let download =
            |from: &&wgpu::Buffer| Download::encode(device, &mut encoder, from.slice(..));
        let downloads: Vec<_> = read.iter().map(download).collect();
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("the device is alive");
        let read = |download: Download| pollster::block_on(download.read::<u8>()).expect("bytes");
        downloads.into_iter().map(read).collect::<Vec<_>>()
    };

    let words = |data: &[u32]| bytemuck::cast_slice(data).to_vec();
    let mask = problem.boolean_mask.map_or(Vec::new(), |mask| match mask.format {
        MaskFormat::Bits => bits(inputs.mask),
        _ => inputs.mask.iter().map(|&shown| shown.into()).collect(),
    });
    let bias = problem.bias.map_or(Vec::new(), |bias| stored(bias.dtype, inputs.bias));
    let seed = problem.dropout.map_or(Vec::new(), |_| inputs.seed.to_le_bytes().to_vec());
    let given: [(Give<'_>, Vec<u8>); 11] = [
        (Tensors::q, stored(problem.dtype, inputs.q)),
        (Tensors::k, stored(problem.kv_dtype, inputs.k)),
        (Tensors::v, stored(problem.kv_dtype, inputs.v)),
        (Tensors::mask, mask),
        (Tensors::bias, bias),
        (Tensors::alibi_slopes, stored(DType::F32, inputs.alibi_slopes)),
        (Tensors::sinks, stored(DType::F32, inputs.sinks)),
        (Tensors::seed, seed),
        (Tensors::kv_lens, words(inputs.kv_lens)),
        (Tensors::cu_seqlens_q, words(inputs.cu_seqlens_q)),
        (Tensors::cu_seqlens_k, words(inputs.cu_seqlens_k)),
    ];
    let given = given.map(|(give, data)| (give, (!data.is_empty()).then(|| buffer(&data))));
    let named = inputs.buffers.iter().map(|(name, data)| (*name, buffer(&words(data))));
    let named: Vec<_> = named.collect();
    let tensors = |first: usize| {
        let mut tensors = Tensors::default();
        for (give, buffer) in &given[first..] {
            tensors =
                buffer.iter().fold(tensors, |tensors, buffer| give(tensors, buffer.slice(..)));
        }
        named.iter().fold(tensors, |to, (name, buffer)| to.buffer(name, buffer.slice(..)))
    };

    let plan = attention.plan_with(problem, Algorithm::Flash).expect("a plan");
    let [out, lse, block_mask] = [Operand::Out, Operand::Lse, Operand::BlockMask].map(|operand| {
        let bytes = usize::try_from(plan.operand_bytes(operand)).expect("in memory");
        // NaN until it is written.
        buffer(&vec![0xff; bytes.max(4)])
    });
    let mut all = tensors(0).out(out.slice(..));
    if problem.lse {
        all = all.lse(lse.slice(..));
    }
    if problem.block_mask {
        let plan = attention.plan_block_mask(problem).expect("a plan");
        // Of q, k and v it takes nothing.
        let tensors = tensors(3).block_mask(block_mask.slice(..));
        run(&attention.bind(&plan, &tensors).expect("buffers that fit"), &[]);
        all = all.block_mask(block_mask.slice(..));
    }
    let dispatch = attention.bind(&plan, &all).expect("buffers that fit");
    let results = run(&dispatch, &[&out, &lse]);
    verify(feature, &loaded(problem.out_dtype, &results[0]), &loaded(DType::F32, &results[1]));
    dispatch
}

/// Sampled rows against the definition in f64.
fn verify(feature: &Feature<'_>, out: &[f32], lse: &[f32]) {
    let Feature { name, problem, inputs, .. } = feature;
    let (s, strides) = (problem.shape, problem.out);
    // That of f32 is ten times what was seen; half types round values below 1 once.
    let tolerance = match problem.out_dtype {
        DType::F32 => 2e-5,
        DType::F16 => 2e-5 + 0.5f64.powi(12),
        _ => 2e-5 + 0.5f64.powi(9),
    };
    let mut random = Random(3);
    let drawn = (0..SAMPLES).map(|_| (random.below(s.heads), random.below(s.q_len)));
    let ends = [(0, 0), (s.heads - 1, s.q_len - 1)];
    for (head, row) in ends.into_iter().chain(drawn) {
        let want = reference::row(problem, inputs, (0, head, row));
        let first = u64::from(head) * strides.head + u64::from(row) * strides.row;
        let first = usize::try_from(first).expect("in memory");
        for (got, want) in out[first..].iter().zip(&want.out) {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= tolerance, "{name}: head {head}, row {row}: {got}, not {want}");
        }
        if problem.lse {
            let (got, want) = (lse[(head * s.q_len + row) as usize], want.lse);
            let error = (f64::from(got) - want).abs();
            assert!(error <= 1e-4, "{name}: lse of head {head}, row {row}: {got}, not {want}");
        }
    }
}

/// The lowest bit of a byte first.
fn bits(mask: &[bool]) -> Vec<u8> {
    let byte =
        |eight: &[bool]| eight.iter().rev().fold(0, |byte, &shown| byte << 1 | u8::from(shown));
    mask.chunks(8).map(byte).collect()
}

fn stored(dtype: DType, data: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(data).to_vec(),
        DType::F16 => data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => unreachable!("no feature of {dtype:?}"),
    }
}

fn loaded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|two| [two[0], two[1]]);
    match dtype {
        DType::F16 => halves().map(|half| f16::from_le_bytes(half).into()).collect(),
        DType::BF16 => halves().map(|half| bf16::from_le_bytes(half).into()).collect(),
        _ => bytemuck::pod_collect_to_vec(bytes),
    }
}
