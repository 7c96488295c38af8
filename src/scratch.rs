//! Buffers of tuning's own: a problem small enough, and inputs that let every pair be seen.

use crate::candidates::Candidate;
use crate::device::Capabilities;
use crate::error::{BindError, Error, PlanError};
use crate::mask::Diagonal;
use crate::operand::Operand;
use crate::plan::Plan;
use crate::problem::{Lengths, Problem};
use crate::roofs::Roofs;
use crate::shape::DType;
use crate::tensors::{Need, Tensors};
use crate::upload::upload;
use std::time::Duration;

/// Part of a typical device's rate that slow ones reach.
const SLOW: f64 = 0.05;
/// Runs that there is to be time for.
const RUNS: f64 = 100.0;

/// The problem, or one that is like it but smaller, with the plans of its candidates.
#[derive(Debug)]
pub(crate) struct Small {
    pub(crate) problem: Problem,
    pub(crate) plans: Vec<(Candidate, Plan)>,
}

impl Small {
    /// As many sequences and heads of `problem` as run about a hundred times in `time` on a slow device and fit
    /// `memory_bytes`; of one head, if need be, the last of its queries.
    ///
    /// # Errors
    /// [`BindError::BufferTooLarge`] where a single query is too large still.
    pub(crate) fn of(
        problem: &Problem,
        capabilities: &Capabilities,
        time: Duration,
        memory_bytes: u64,
    ) -> Result<Self, Error> {
        let flops =
            Roofs::typical(capabilities.class).flops_per_s * SLOW * time.as_secs_f64() / RUNS;
        let available = memory_bytes.min(capabilities.limits.max_buffer_size);
        let mut problem = problem.clone();
        loop {
            let plans = crate::candidates::plans(&problem, capabilities);
            let Some((_, first)) = plans.first() else {
                return Err(PlanError::NotSupported { what: "tuning what no kernel solves" }.into());
            };
            let bytes = |plan: &Plan| {
                let operands = plan.operands();
                let sum = operands.iter().fold(0u64, |sum, need| sum.saturating_add(need.bytes));
                sum.saturating_add(plan.workspace_bytes())
            };
            let required = plans.iter().map(|(_, plan)| bytes(plan)).max().unwrap_or(0);
            if required <= available && (first.cost().flops as f64) <= flops {
                return Ok(Self { problem, plans });
            }
            match smaller(&problem) {
                Some(half) => problem = half,
                None if required <= available => return Ok(Self { problem, plans }),
                None => {
                    let what = "tuning".into();
                    return Err(BindError::BufferTooLarge { what, required, available }.into());
                }
            }
        }
    }
}

/// About half of a problem; the strides stay.
fn smaller(problem: &Problem) -> Option<Problem> {
    let mut half = problem.clone();
    let shape = &mut half.shape;
    let packed = problem.lengths == Lengths::Packed;
    if shape.batch > 1 {
        let whole = shape.batch;
        shape.batch /= 2;
        if packed {
            let part = |len: u32| {
                let part = u64::from(len) * u64::from(whole / 2) / u64::from(whole);
                u32::try_from(part.max(1)).expect("at most the whole")
            };
            (shape.q_len, shape.kv_len) = (part(shape.q_len), part(shape.kv_len));
        }
    } else if shape.kv_heads > 1 {
        let group = shape.group_size();
        shape.kv_heads /= 2;
        shape.heads = shape.kv_heads * group;
    } else if shape.q_len > 1 {
        shape.q_len /= 2;
    } else {
        return None;
    }
    let extents = [shape.batch, shape.heads, shape.q_len, shape.kv_len];
    let pairs = half.boolean_mask.iter_mut().map(|mask| &mut mask.pairs);
    for pairs in pairs.chain(half.bias.iter_mut().map(|bias| &mut bias.pairs)) {
        for (axis, extent) in pairs.axes.iter_mut().zip(extents) {
            // A single element has no stride.
            *axis = (*axis).min(extent);
        }
        *pairs = pairs.with_strides(pairs.strides);
    }
    Some(half)
}

/// One buffer an operand.
pub(crate) struct Scratch {
    buffers: Vec<(Operand, wgpu::Buffer)>,
    named: Vec<(String, wgpu::Buffer)>,
}

/// Of a result, before anything is written: NaN in every type.
const POISON: u8 = 0xff;
/// Bytes that repeat in an input: a prime, so that rows differ.
const PATTERN: usize = 65_521 * 4;

impl Scratch {
    pub(crate) fn new(device: &wgpu::Device, small: &Small) -> Self {
        let mut needs: Vec<Need> = Vec::new();
        for need in small.plans.iter().flat_map(|(_, plan)| plan.operands()) {
            match needs.iter_mut().find(|other| other.operand == need.operand) {
                Some(other) => other.bytes = other.bytes.max(need.bytes),
                None => needs.push(need),
            }
        }
        let plan = &small.plans[0].1;
        let (mut buffers, mut named) = (Vec::new(), Vec::new());
        for Need { operand, bytes, .. } in needs {
            let mut usage = wgpu::BufferUsages::STORAGE;
            if operand == Operand::Out {
                usage |= wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            }
            let bytes = usize::try_from(bytes.next_multiple_of(4)).expect("below `memory_bytes`");
            let buffer = upload(device, "tuning", &contents(&small.problem, operand, bytes), usage);
            match operand {
                Operand::Buffer(index) => named.push((plan.buffer_name(index).to_owned(), buffer)),
                _ => buffers.push((operand, buffer)),
            }
        }
        Self { buffers, named }
    }

    pub(crate) fn tensors(&self) -> Tensors<'_> {
        let tensors = self.buffers.iter().fold(Tensors::default(), |tensors, (operand, buffer)| {
            tensors.with(*operand, buffer.slice(..))
        });
        let named = self.named.iter();
        named.fold(tensors, |tensors, (name, buffer)| tensors.buffer(name, buffer.slice(..)))
    }

    /// The result.
    pub(crate) fn out(&self) -> &wgpu::Buffer {
        let mut buffers = self.buffers.iter();
        &buffers.find(|(operand, _)| *operand == Operand::Out).expect("every attention has one").1
    }

    /// Writes NaN over the result.
    pub(crate) fn poison(&self, queue: &wgpu::Queue) {
        let bytes = usize::try_from(self.out().size()).expect("made from as many");
        queue.write_buffer(self.out(), 0, &vec![POISON; bytes]);
    }
}

/// Values that hide nothing and overflow nowhere.
fn contents(problem: &Problem, operand: Operand, bytes: usize) -> Vec<u8> {
    let s = problem.shape;
    let repeated = |word: [u8; 4]| word.iter().copied().cycle().take(bytes).collect();
    let starts = |len: u32| {
        let start = |i: u32| u64::from(len) * u64::from(i) / u64::from(s.batch.max(1));
        let starts = (0..=s.batch).map(|i| u32::try_from(start(i)).expect("at most len"));
        let mut words: Vec<u8> = starts.flat_map(u32::to_le_bytes).collect();
        words.resize(bytes, 0);
        words
    };
    match operand {
        Operand::Q => noise(problem.dtype, bytes),
        Operand::K | Operand::V => noise(problem.kv_dtype, bytes),
        Operand::Out => vec![POISON; bytes],
        Operand::Mask | Operand::Keep => vec![0xff; bytes],
        Operand::AlibiSlopes => repeated(0.0625_f32.to_le_bytes()),
        Operand::QLens => repeated(s.q_len.to_le_bytes()),
        Operand::KvLens => repeated(s.kv_len.to_le_bytes()),
        Operand::CuSeqlensQ => starts(s.q_len),
        Operand::CuSeqlensK => starts(s.kv_len),
        Operand::DiagOffsets => {
            debug_assert_eq!(problem.mask.diagonal, Diagonal::PerSequence);
            let offset = i64::from(s.kv_len) - i64::from(s.q_len);
            repeated(i32::try_from(offset).expect("lengths are below 2^29").to_le_bytes())
        }
        // Biases, sinks, seeds, buffers of functions; results besides out.
        _ => vec![0; bytes],
    }
}

/// Values of either sign between 1/2 and 1.
fn noise(dtype: DType, bytes: usize) -> Vec<u8> {
    // Exponent and mantissa of 1/2, and the bits that may differ.
    let (half, mantissa) = match dtype {
        DType::F32 => (0x3f00_0000, 0x807f_ffff),
        DType::F16 => (0x3800_3800, 0x83ff_83ff),
        DType::BF16 => (0x3f00_3f00, 0x807f_807f),
        // A scale of 2^-9 or 2^-4, or of about half of either, in one word of nine or five: any bits of it are finite.
        DType::Q8 => (0x1800_1800, 0x03ff_03ff),
        DType::Q4 => (0x2c00_2c00, 0x03ff_03ff),
    };
    let mut state = 0x9e37_79b9_u32;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (half | state & mantissa).to_le_bytes()
    });
    let pattern: Vec<u8> = words.take(bytes.min(PATTERN).div_ceil(4)).flatten().collect();
    pattern.iter().copied().cycle().take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;
    use crate::mask::Mask;
    use crate::pairs::{MaskFormat, Pairs};
    use crate::shape::Shape;

    fn small(problem: &Problem, memory_bytes: u64) -> Result<Small, Error> {
        Small::of(problem, &Capabilities::portable(), Duration::from_secs(1), memory_bytes)
    }

    #[test]
    fn large_problems_are_cut_by_batch_then_heads_then_queries() {
        let shape = |batch, heads, len| Shape::self_attention(batch, heads, len, 64);
        let fits = Problem::new(shape(2, 4, 256).with_kv_heads(2)).mask(Mask::CAUSAL);
        assert_eq!(small(&fits, 1 << 30).expect("plans").problem, fits);

        let batch = Problem::new(shape(1024, 4, 1024).with_kv_heads(2));
        let got = small(&batch, 1 << 30).expect("plans").problem;
        assert!(got.shape.batch < 1024 && got.shape.batch >= 1, "{:?}", got.shape);
        assert_eq!((got.shape.heads, got.shape.q_len), (4, 1024));

        let heads = Problem::new(shape(1, 64, 2048).with_kv_heads(16));
        let got = small(&heads, 1 << 30).expect("plans").problem.shape;
        assert!(got.heads < 64 && got.group_size() == 4 && got.q_len == 2048, "{got:?}");

        let long = Problem::new(shape(1, 1, 1 << 18));
        let got = small(&long, 1 << 30).expect("plans").problem.shape;
        assert!(got.q_len < 1 << 18 && got.kv_len == 1 << 18, "{got:?}");
    }

    #[test]
    fn what_fits_no_memory_is_an_error() {
        let problem = Problem::new(Shape::self_attention(1, 1, 4096, 64));
        let error = small(&problem, 1 << 16).expect_err("keys alone are 1 MiB");
        assert!(matches!(error, Error::Bind(BindError::BufferTooLarge { .. })), "{error}");
    }

    #[test]
    fn masks_and_packed_sequences_shrink_along() {
        let shape = Shape::self_attention(8, 16, 2048, 64);
        let pairs = Pairs::new([8, 1, 2048, 2048]);
        let masked = Problem::new(shape).with_boolean_mask(MaskFormat::Bits, pairs);
        let got = small(&masked, 1 << 23).expect("plans").problem;
        let axes = got.boolean_mask.expect("a mask").pairs.axes;
        assert_eq!(axes, [got.shape.batch, 1, got.shape.q_len, 2048]);
        assert!(got.validate().is_ok());

        let packed = Problem::packed(Shape::self_attention(64, 8, 64 * 700, 64));
        let got = small(&packed, 1 << 26).expect("plans").problem.shape;
        assert_eq!(got.q_len, got.batch * 700);
        assert!(got.batch < 64);
    }

    #[test]
    fn noise_is_between_a_half_and_one() {
        let f32s: Vec<f32> = bytemuck::pod_collect_to_vec(&noise(DType::F32, 4000));
        assert!(f32s.iter().all(|x| (0.5..1.0).contains(&x.abs())));
        assert!(f32s.iter().any(|x| *x < 0.0) && f32s.iter().any(|x| *x > 0.0));
        let bf16s: Vec<u16> = bytemuck::pod_collect_to_vec(&noise(DType::BF16, 4000));
        let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
        assert!(bf16s.iter().all(|x| (0.5..1.0).contains(&wide(*x).abs())));
        let f16s: Vec<u16> = bytemuck::pod_collect_to_vec(&noise(DType::F16, 4000));
        // Exponent 14 of 15 is 2^-1.
        assert!(f16s.iter().all(|x| x >> 10 & 0x1f == 14));
    }

    #[test]
    fn starts_of_packed_sequences_share_the_tokens() {
        let problem = Problem::packed(Shape::self_attention(3, 1, 100, 8));
        let words: Vec<u32> =
            bytemuck::pod_collect_to_vec(&contents(&problem, Operand::CuSeqlensQ, 16));
        assert_eq!(words, [0, 33, 66, 100]);
    }

    #[test]
    fn halving_ends() {
        let mut problem = Problem::new(Shape::self_attention(7, 9, 1000, 8).with_kv_heads(3));
        let mut steps = 0;
        while let Some(half) = smaller(&problem) {
            assert!(Cost::of(&half).flops < Cost::of(&problem).flops);
            (problem, steps) = (half, steps + 1);
        }
        assert!(steps < 20);
        assert_eq!((problem.shape.batch, problem.shape.heads, problem.shape.q_len), (1, 3, 1));
    }
}
