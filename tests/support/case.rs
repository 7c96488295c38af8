//! A named problem and its inputs.

use super::At;
use super::extra::Extra;
use super::random::Random;
use half::slice::HalfFloatSliceExt as _;
use std::collections::HashSet;
use std::fmt;
use wgpu_attention::{
    DType, Inputs, Lengths, Mask, Problem, ScoreStage, Shape, Strides, reference,
};

/// A named problem.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) problem: Problem,
    /// Factor on unit-range queries: with 1, softmax is almost flat and hides errors of the scores; with 8 to
    /// 30, a few keys take all and hide errors of the sums. Cases have the one or the other.
    pub(crate) sharpness: f32,
}

impl Case {
    pub(crate) fn new(name: &str, problem: Problem) -> Self {
        Self { name: name.to_owned(), problem, sharpness: 1.0 }
    }

    pub(crate) fn sharp(self, sharpness: f32) -> Self {
        Self { sharpness, ..self }
    }

    /// The inputs of this case; those of another `draw` are others of the same kind.
    pub(crate) fn tensors(&self, draw: u64) -> Tensors {
        let problem = &self.problem;
        let s = problem.tensor_shape();
        let mut random = Random::new(draw + 1);
        let mut extra = Extra::of(problem, &mut random);
        // Diagonals are the case's own: the farthest, with slopes, make scores of which f32 keeps no digits, and a bound that
        // another draw has from them would allow anything.
        if draw > 0 {
            extra.diag_offsets = Extra::of(problem, &mut Random::new(1)).diag_offsets;
        }
        let mut tensors = Tensors { extra, ..Tensors::default() };
        let seen = seen_keys(problem, &tensors);
        let (q_axes, kv_axes) = ([s.batch, s.heads, s.q_len], [s.batch, s.kv_heads, s.kv_len]);
        let seen = |(b, h, j): At| seen[((b * s.kv_heads + h) * s.kv_len + j) as usize];
        let inputs = tensors.inputs();
        let real: Vec<bool> = positions(q_axes)
            .map(|at| !problem_has_lengths(problem) || reaches(problem, &inputs, at))
            .collect();
        let real = |(b, h, i): At| real[((b * s.heads + h) * s.q_len + i) as usize];
        let q = filled(&mut random, q_axes, s.head_dim, problem.q, real, self.sharpness);
        let [k, v] = match problem.pages {
            None => [(s.head_dim, problem.k), (s.v_head_dim, problem.v)]
                .map(|(dim, strides)| filled(&mut random, kv_axes, dim, strides, seen, 1.0)),
            Some(pages) => {
                let mut used = HashSet::new();
                for at in positions(kv_axes).filter(|at| seen(*at)) {
                    let (page, row) = tensors.extra.key_at(problem, at.0, at.2);
                    used.insert((page, at.1, row));
                }
                let axes = [pages.pages, s.kv_heads, pages.page_len];
                let used = |at: At| used.contains(&at);
                [(s.head_dim, problem.k), (s.v_head_dim, problem.v)]
                    .map(|(dim, strides)| filled(&mut random, axes, dim, strides, used, 1.0))
            }
        };
        tensors.q = rounded(q, problem.dtype);
        tensors.k = rounded(k, problem.kv_dtype);
        tensors.v = rounded(v, problem.kv_dtype);
        tensors
    }
}

/// The numbers as they are stored. Blocks: by what their own documentation says; of one with NaN in it, all are NaN.
pub(crate) fn rounded(mut data: Vec<f32>, dtype: DType) -> Vec<f32> {
    if dtype.is_quantised() {
        data.chunks_mut(DType::BLOCK as usize).for_each(|block| quantise(block, dtype));
        return data;
    }
    match dtype {
        DType::F16 => {
            let mut stored = vec![half::f16::ZERO; data.len()];
            stored.convert_from_f32_slice(&data);
            stored.convert_to_f32_slice(&mut data);
        }
        DType::BF16 => data.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32()),
        _ => {}
    }
    data
}

fn quantise(block: &mut [f32], dtype: DType) {
    // The least f16 that is not below.
    let above = |x: f32| {
        let near = half::f16::from_f32(x);
        let up = if x < 0.0 { near.to_bits() - 1 } else { near.to_bits() + 1 };
        if near.to_f32() >= x { near.to_f32() } else { half::f16::from_bits(up).to_f32() }
    };
    let largest = block.iter().copied().fold(f32::MIN, f32::max);
    let smallest = block.iter().copied().fold(f32::MAX, f32::min);
    let (minimum, scale, codes) = if dtype == DType::Q8 {
        (0.0, above(largest.max(-smallest) / 127.0), (-127.0, 127.0))
    } else {
        let minimum = -above(-smallest);
        (minimum, above((largest - minimum) / 15.0), (0.0, 15.0))
    };
    for x in block.iter_mut().filter(|x| !x.is_nan()) {
        let code = if scale == 0.0 { 0.0 } else { ((*x - minimum) / scale).round() };
        *x = minimum + scale * code.clamp(codes.0, codes.1);
    }
}

fn problem_has_lengths(problem: &Problem) -> bool {
    problem.lengths != Lengths::Full
}

/// Whether a row is one of its sequence.
fn reaches(problem: &Problem, inputs: &Inputs<'_>, (batch, _, row): At) -> bool {
    match problem.lengths {
        Lengths::PerSequence { q: true, .. } => row < inputs.q_lens[batch as usize],
        _ => true,
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, problem, sharpness } = self;
        write!(f, "{name} (q times {sharpness}): {problem:?}")
    }
}

/// Of every row of keys, whether any query sees it.
fn seen_keys(problem: &Problem, tensors: &Tensors) -> Vec<bool> {
    let s = problem.tensor_shape();
    let mut seen = vec![false; (s.batch * s.kv_heads * s.kv_len) as usize];
    // Scores before biases and masks are those of all pairs, whatever hides them.
    let mut shown = problem.clone();
    if matches!(problem.scores, Some(ScoreStage::Raw | ScoreStage::Capped)) {
        shown.mask = Mask::FULL.along(problem.mask.diagonal);
        (shown.boolean_mask, shown.bias, shown.mask_function) = (None, None, None);
    }
    let problem = &shown;
    let inputs = tensors.inputs();
    let group = s.group_size();
    // Heads see the same keys unless something tells them apart.
    let by_head = problem.boolean_mask.is_some_and(|mask| mask.pairs.axes[1] != 1)
        || problem.bias.is_some_and(|bias| bias.pairs.axes[1] != 1)
        || problem.mask_function.is_some();
    for (b, h, i) in rows(&s).filter(|at| by_head || at.1.is_multiple_of(group)) {
        let first = (b * s.kv_heads + h / group) * s.kv_len;
        let shown = reference::visible(problem, &inputs, (b, h, i));
        for (seen, shown) in seen[first as usize..].iter_mut().zip(shown) {
            *seen |= shown;
        }
    }
    seen
}

/// Random rows where `used`; NaN in all others and in gaps between rows.
fn filled(
    random: &mut Random,
    [batch, heads, len]: [u32; 3],
    dim: u32,
    strides: Strides,
    used: impl Fn(At) -> bool,
    amplitude: f32,
) -> Vec<f32> {
    let mut data = vec![f32::NAN; extent(strides, [batch, heads, len], dim)];
    for at in positions([batch, heads, len]).filter(|at| used(*at)) {
        for x in &mut data[start(strides, at)..][..dim as usize] {
            *x = random.unit() * amplitude;
        }
    }
    data
}

/// Inputs of one problem; each as long as its strides reach.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tensors {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) extra: Extra,
}

impl Tensors {
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        let e = &self.extra;
        let inputs = Inputs::new(&self.q, &self.k, &self.v)
            .mask(&e.mask)
            .bias(&e.bias)
            .alibi_slopes(&e.alibi_slopes)
            .sinks(&e.sinks)
            .diag_offsets(&e.diag_offsets)
            .q_lens(&e.q_lens)
            .kv_lens(&e.kv_lens)
            .cu_seqlens_q(&e.cu_seqlens_q)
            .cu_seqlens_k(&e.cu_seqlens_k)
            .block_table(&e.block_table)
            .seed(e.seed)
            .keep(&e.keep);
        e.buffers.iter().fold(inputs, |inputs, (name, words)| inputs.buffer(name, words))
    }
}

/// Every row of three outer axes, the last fastest.
pub(crate) fn positions([batch, heads, len]: [u32; 3]) -> impl Iterator<Item = At> {
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..len).map(move |i| (b, h, i))))
}

/// Every query row.
pub(crate) fn rows(shape: &Shape) -> impl Iterator<Item = At> + use<> {
    positions([shape.batch, shape.heads, shape.q_len])
}

/// Index of a row's first element.
pub(crate) fn start(strides: Strides, (batch, head, row): At) -> usize {
    let index = u64::from(batch) * strides.batch
        + u64::from(head) * strides.head
        + u64::from(row) * strides.row;
    usize::try_from(index).expect("in memory")
}

/// Elements from the first to one past the last.
pub(crate) fn extent(strides: Strides, [batch, heads, len]: [u32; 3], dim: u32) -> usize {
    if batch == 0 || heads == 0 || len == 0 {
        return 0;
    }
    start(strides, (batch - 1, heads - 1, len - 1)) + dim as usize
}

/// The same tensor laid out by other strides; NaN in the gaps.
pub(crate) fn relaid(
    data: &[f32],
    axes: [u32; 3],
    dim: u32,
    (from, to): (Strides, Strides),
) -> Vec<f32> {
    let mut other = vec![f32::NAN; extent(to, axes, dim)];
    for at in positions(axes) {
        let row = &data[start(from, at)..][..dim as usize];
        other[start(to, at)..][..dim as usize].copy_from_slice(row);
    }
    other
}
