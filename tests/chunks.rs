//! A dispatch in parts does what the whole does, bit for bit, however small the parts. On a GPU or a software GPU.

#![cfg(feature = "cpu")]

use crate::device;
use crate::device::{CLASSES, Gpu, bits, classes};
use crate::support;
use crate::support::random::Random;
use crate::support::target::{TIGHT_BYTES, TIGHT_WORKGROUPS};
use std::sync::LazyLock;
use wgpu_attention::{
    Algorithm, Attention, DType, DeviceClass, Dispatch, Mask, MaskFormat, Operand, Pairs, Plan,
    Problem, SelfAttention, Shape, Slopes, Tensors, wgpu,
};

static GPU: LazyLock<Gpu> = LazyLock::new(|| Gpu::new(|_| {}));

/// Binds so little that keys come in ranges.
static TIGHT: LazyLock<Gpu> =
    LazyLock::new(|| Gpu::new(|limits| limits.max_storage_buffer_binding_size = TIGHT_BYTES));

/// Grids of which most are folded.
static NARROW: LazyLock<Gpu> = LazyLock::new(|| {
    Gpu::new(|limits| limits.max_compute_workgroups_per_dimension = TIGHT_WORKGROUPS)
});

/// Operands that are read; all hold numbers but those at the end.
const INPUTS: [Operand; 15] = [
    Operand::Q,
    Operand::K,
    Operand::V,
    Operand::Bias,
    Operand::AlibiSlopes,
    Operand::Sinks,
    Operand::X,
    Operand::WQ,
    Operand::WK,
    Operand::WV,
    Operand::WO,
    Operand::Mask,
    Operand::KvLens,
    Operand::CuSeqlensQ,
    Operand::CuSeqlensK,
];

const OUTPUTS: [Operand; 3] = [Operand::Out, Operand::Lse, Operand::Weights];

fn give<'a>(to: Tensors<'a>, operand: Operand, slice: wgpu::BufferSlice<'a>) -> Tensors<'a> {
    match operand {
        Operand::Q => to.q(slice),
        Operand::K => to.k(slice),
        Operand::V => to.v(slice),
        Operand::Bias => to.bias(slice),
        Operand::AlibiSlopes => to.alibi_slopes(slice),
        Operand::Sinks => to.sinks(slice),
        Operand::X => to.x(slice),
        Operand::WQ => to.w_q(slice),
        Operand::WK => to.w_k(slice),
        Operand::WV => to.w_v(slice),
        Operand::WO => to.w_o(slice),
        Operand::Mask => to.mask(slice),
        Operand::KvLens => to.kv_lens(slice),
        Operand::CuSeqlensQ => to.cu_seqlens_q(slice),
        Operand::CuSeqlensK => to.cu_seqlens_k(slice),
        Operand::Out => to.out(slice),
        Operand::Lse => to.lse(slice),
        Operand::Weights => to.weights(slice),
        other => panic!("{other:?} is in neither list"),
    }
}

/// A plan and what it reads.
struct Bench<'g> {
    gpu: &'g Gpu,
    attention: &'g Attention,
    plan: Plan,
    inputs: Vec<(Operand, wgpu::Buffer)>,
}

impl<'g> Bench<'g> {
    /// `words`: entries of lengths, where the problem has any.
    fn new(gpu: &'g Gpu, class: DeviceClass, plan: Plan, words: &[u32]) -> Self {
        let mut random = Random::new(7);
        let mut inputs = Vec::new();
        for operand in INPUTS {
            let len = usize::try_from(plan.operand_bytes(operand).div_ceil(4)).expect("small");
            let data: Vec<f32> = match operand {
                _ if len == 0 => continue,
                // A byte a pair.
                Operand::Mask => (0..len)
                    .map(|_| f32::from_bits((0..4).fold(0, |word, _| word << 8 | random.below(2))))
                    .collect(),
                Operand::KvLens | Operand::CuSeqlensQ | Operand::CuSeqlensK => {
                    words.iter().map(|word| f32::from_bits(*word)).collect()
                }
                _ => (0..len).map(|_| 4.0 * random.unit()).collect(),
            };
            inputs.push((operand, gpu.input(&data)));
        }
        Self { gpu, attention: gpu.attention(class), plan, inputs }
    }

    /// The bits of every output, poisoned before `run`.
    fn outputs(&self, run: impl FnOnce(&Dispatch)) -> Vec<Vec<u32>> {
        let mut outputs = Vec::new();
        for operand in OUTPUTS {
            let len = usize::try_from(self.plan.operand_bytes(operand).div_ceil(4));
            let len = len.expect("small");
            if len > 0 {
                outputs.push((operand, self.gpu.output(len)));
            }
        }
        let all = self.inputs.iter().chain(&outputs);
        let tensors =
            all.fold(Tensors::default(), |all, (operand, b)| give(all, *operand, b.slice(..)));
        let dispatch = self.attention.bind(&self.plan, &tensors).expect("buffers that fit");
        run(&dispatch);
        outputs.iter().map(|(_, buffer)| bits(&self.gpu.read(buffer))).collect()
    }

    /// The same in parts of at most `limit`, each a submission; how many there are.
    fn in_parts(&self, limit: impl Fn(u64) -> u64, whole: &[Vec<u32>]) -> usize {
        let mut parts = 0;
        let got = self.outputs(|dispatch| {
            let (total, limit) = (dispatch.work(), limit(dispatch.work()));
            assert!(total >= self.plan.cost().flops, "{}", self.plan);
            let (mut sum, mut shares) = (0, 0.0);
            for chunk in dispatch.chunks(limit) {
                parts += 1;
                sum += chunk.work();
                shares += chunk.work() as f64 / total as f64;
                assert!(chunk.work() > 0);
                assert_eq!((chunk.progress().done, chunk.progress().total), (sum, total));
                let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
                chunk.encode(&mut encoder);
                self.gpu.queue.submit([encoder.finish()]);
            }
            assert_eq!(sum, total, "{}", self.plan);
            assert!((shares - 1.0).abs() < 1e-9, "{shares}");
        });
        assert_eq!(got.len(), whole.len());
        for (got, whole) in got.iter().zip(whole) {
            assert!(got == whole, "parts of {} give other bits: {}", limit(0), self.plan);
        }
        parts
    }
}

/// One workgroup at a time, a few parts, two, and one give the same.
fn is_the_same_in_parts(gpu: &Gpu, class: DeviceClass, plan: Plan, words: &[u32]) {
    let bench = Bench::new(gpu, class, plan, words);
    let whole = bench.outputs(|dispatch| gpu.run(&[dispatch]));
    // What no test would notice: nothing written at all.
    assert!(whole.iter().any(|words| words.iter().any(|word| *word != device::POISON)));
    let workgroups = workgroups(&bench.plan);
    assert_eq!(bench.in_parts(|_| 0, &whole), workgroups, "{}", bench.plan);
    let few = bench.in_parts(|total| total / 9 + 1, &whole);
    assert!(few > 3 && few <= workgroups, "{few}: {}", bench.plan);
    assert!((1..few).contains(&bench.in_parts(|total| total / 2 + 1, &whole)), "{}", bench.plan);
    assert_eq!(bench.in_parts(|_| u64::MAX, &whole), 1, "{}", bench.plan);
}

/// As the plan prints them.
fn workgroups(plan: &Plan) -> usize {
    let text = plan.to_string();
    let grids = text.lines().filter(|line| line.contains(" workgroups of ")).map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let size = |at: usize| words[at].parse::<usize>().expect("a number");
        size(1) * size(3)
    });
    grids.sum()
}

fn by_every_kernel(gpu: &Gpu, problem: &Problem, words: &[u32]) {
    let algorithms = [Algorithm::Staged, Algorithm::Flash];
    for (i, class) in CLASSES.into_iter().enumerate() {
        for (j, algorithm) in algorithms.into_iter().enumerate() {
            // Where drivers are slow, each algorithm with tiles of one class.
            let other = support::small() && i == j;
            if other || algorithm == Algorithm::Flash && problem.weights {
                continue;
            }
            let plan = gpu.attention(class).plan_with(problem, algorithm).expect("a plan");
            is_the_same_in_parts(gpu, class, plan, words);
        }
    }
}

#[test]
fn parts_of_a_causal_attention_give_the_bits_of_the_whole() {
    let shape = Shape::cross_attention(2, 6, 141, 173, 32).with_kv_heads(2);
    by_every_kernel(&GPU, &Problem::new(shape).mask(Mask::CAUSAL).with_lse(), &[]);
    let problem = Problem::new(shape).mask(Mask::window(20)).with_weights().with_lse();
    by_every_kernel(&GPU, &problem, &[]);
}

#[test]
fn parts_of_gathered_and_classified_inputs_give_the_bits_of_the_whole() {
    // Rows of an odd number of 16-bit elements: neighbours share words.
    let mut shape = Shape::cross_attention(2, 3, 70, 132, 32);
    shape.v_head_dim = 31;
    let problem = Problem::new(shape)
        .mask(Mask::CAUSAL)
        .out_dtype(DType::F16)
        .with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 3, 70, 132]))
        .with_bias(DType::F32, Pairs::new([2, 1, 70, 132]))
        .with_alibi(Slopes::PerHead)
        .with_sinks()
        .with_lengths(false, true)
        .with_lse();
    by_every_kernel(&GPU, &problem, &[132, 77]);
}

#[test]
fn parts_of_packed_sequences_give_the_bits_of_the_whole() {
    let mut shape = Shape::self_attention(1, 4, 150, 32);
    shape.batch = 3;
    let problem = Problem::packed(shape).mask(Mask::CAUSAL).with_lse();
    by_every_kernel(&GPU, &problem, &[0, 1, 120, 150]);
}

#[test]
fn parts_of_keys_in_ranges_give_the_bits_of_the_whole() {
    let shape = Shape::cross_attention(1, 2, 70, 600, 32);
    let problem = Problem::new(shape).mask(Mask::CAUSAL).out_dtype(DType::F16).with_lse();
    let kernels = |algorithm| {
        let plan = TIGHT.attention(DeviceClass::Hardware).plan_with(&problem, algorithm);
        plan.expect("a plan").kernels().collect::<Vec<_>>()
    };
    assert!(kernels(Algorithm::Flash).contains(&"merge"));
    assert!(kernels(Algorithm::Staged).contains(&"convert"));
    by_every_kernel(&TIGHT, &problem, &[]);
}

#[test]
fn parts_of_a_layer_give_the_bits_of_the_whole() {
    let layer = SelfAttention::new(2, 99, 64, 4).expect("even heads").mask(Mask::CAUSAL);
    for class in classes() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let plan = GPU.attention(class).plan_layer_with(&layer, algorithm).expect("a plan");
            is_the_same_in_parts(&GPU, class, plan, &[]);
        }
    }
}

#[test]
fn parts_of_a_folded_grid_give_the_bits_of_the_whole() {
    // 700 sequences and heads: at least one workgroup each.
    let shape = Shape::cross_attention(7, 100, 1, 3, 4);
    let problem = Problem::new(shape).mask(Mask::window(1)).with_lse();
    for class in CLASSES {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let plan = NARROW.attention(class).plan_with(&problem, algorithm).expect("a plan");
            assert!(
                plan.to_string().contains(&format!("{TIGHT_WORKGROUPS} x 12 workgroups")),
                "{plan}"
            );
            let bench = Bench::new(&NARROW, class, plan, &[]);
            let whole = bench.outputs(|dispatch| NARROW.run(&[dispatch]));
            // Parts of less than an axis and of more, in which what is left of a row of the grid is nobody's.
            for share in [3, 30, 97] {
                let parts = bench.in_parts(|total| total / 100 * share, &whole);
                assert!(parts > 1, "{}", bench.plan);
            }
        }
    }
}

#[test]
fn parts_can_be_recorded_again_and_the_limit_can_change() {
    let problem = Problem::new(Shape::self_attention(1, 4, 200, 32)).mask(Mask::CAUSAL).with_lse();
    let plan = GPU.attention(DeviceClass::Software).plan(&problem).expect("a plan");
    let bench = Bench::new(&GPU, DeviceClass::Software, plan, &[]);
    let whole = bench.outputs(|dispatch| GPU.run(&[dispatch]));
    let twice = bench.outputs(|dispatch| {
        let mut rest = dispatch.chunks(0);
        let mut chunks = vec![rest.next().expect("a part")];
        rest.set_limit(dispatch.work() / 3);
        chunks.extend(rest);
        assert!((3..=5).contains(&chunks.len()), "{}", chunks.len());
        for _ in 0..2 {
            let mut encoder = GPU.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            chunks.iter().for_each(|chunk| chunk.record(&mut pass));
            drop(pass);
            GPU.queue.submit([encoder.finish()]);
        }
    });
    assert!(whole == twice);
}
