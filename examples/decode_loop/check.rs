//! The same tokens again, each sequence as a whole, in f64.

use crate::cache::PAGE_LEN;
use crate::model::Model;
use std::fmt;
use wgpu_attention::{DType, Inputs, Layout, Mask, Problem, Shape, reference};

/// A token that is compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sample {
    pub(crate) sequence: usize,
    pub(crate) position: u32,
}

/// Of every sequence: its first token, two on either side of a page's end, and the last of the prompt; the first that is
/// decoded, two on either side of a page's end, and the last.
pub(crate) fn samples(model: &Model) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (sequence, prompt) in model.prompts.into_iter().enumerate() {
        let end = prompt + model.tokens;
        let page = (prompt + 1).next_multiple_of(PAGE_LEN);
        let positions = [0, PAGE_LEN - 1, PAGE_LEN, prompt - 1, prompt, page - 1, page, end - 1];
        let within = positions.into_iter().filter(|position| *position < end);
        samples.extend(within.map(|position| Sample { sequence, position }));
    }
    samples.sort_unstable();
    samples.dedup();
    samples
}

/// How far apart they are. What is allowed differs from row to row: `error` is that of the row nearest to its bound.
pub(crate) struct Verdict {
    tokens: usize,
    rows: usize,
    greatest: f64,
    error: f64,
    allowed: f64,
    kv_dtype: DType,
}

impl Verdict {
    pub(crate) fn is_right(&self) -> bool {
        self.error <= self.allowed
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, rows, greatest, error, allowed, kv_dtype } = self;
        writeln!(f, "{tokens} tokens, {rows} rows, against each whole sequence in f64:")?;
        writeln!(f, "  greatest error {greatest:.1e}")?;
        write!(
            f,
            "  the row nearest to its bound is off by {error:.1e}; a cache in {kv_dtype:?} allows {allowed:.1e} there"
        )
    }
}

/// `got` is `[samples, heads, head_dim]`.
pub(crate) fn compare(model: &Model, samples: &[Sample], got: &[f32]) -> Verdict {
    let dim = model.head_dim as usize;
    let mut verdict = Verdict {
        tokens: samples.len(),
        rows: 0,
        greatest: 0.0,
        error: 0.0,
        allowed: f64::INFINITY,
        kv_dtype: model.kv_dtype,
    };
    let mut tokens = samples.iter().zip(got.chunks(dim * model.heads as usize)).peekable();
    for (sequence, prompt) in (0..).zip(model.prompts) {
        let whole = Whole::new(model, sequence, prompt + model.tokens);
        // Of many heads some, other ones at every token.
        let step = model.heads.div_ceil(8);
        let mut turn = 0;
        while let Some((sample, got)) =
            tokens.next_if(|(sample, _)| sample.sequence == sequence as usize)
        {
            for head in (turn % step..model.heads).step_by(step as usize) {
                let (want, allowed) = whole.row(model, head, sample.position);
                let got = &got[head as usize * dim..][..dim];
                let error = greatest(got.iter().zip(want).map(|(a, b)| f64::from(*a) - b));
                verdict.greatest = error.max(verdict.greatest);
                if error / allowed >= verdict.error / verdict.allowed {
                    (verdict.error, verdict.allowed) = (error, allowed);
                }
                verdict.rows += 1;
            }
            turn += 1;
        }
    }
    verdict
}

/// The greatest magnitude; infinite where one is not a number.
fn greatest(apart: impl Iterator<Item = f64>) -> f64 {
    apart.map(f64::abs).fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { x.max(most) })
}

/// One sequence without a cache: all its rows at once.
struct Whole {
    problem: Problem,
    /// `[len, heads, head_dim]`, rotated.
    q: Vec<f32>,
    /// `[len, kv_heads, head_dim]`, rotated.
    k: Vec<f32>,
    /// `[len, kv_heads, head_dim]`.
    v: Vec<f32>,
}

impl Whole {
    fn new(model: &Model, sequence: u32, len: u32) -> Self {
        let Model { heads, kv_heads, head_dim, .. } = *model;
        let shape = Shape::self_attention(1, heads, len, head_dim).with_kv_heads(kv_heads);
        let rotary = model.rotary();
        let (cos, sin) = model.rotary_tables();
        let rotated = |position: u32, rows: Vec<f32>| -> Vec<f32> {
            let rows = rows.chunks(head_dim as usize);
            let turned =
                rows.flat_map(|row| reference::rotated(&rotary, &cos, &sin, position.into(), row));
            #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
            turned.map(|x| x as f32).collect()
        };
        let part = |position, heads| model.part(sequence, position, heads);
        Self {
            problem: Problem::new(shape).mask(Mask::CAUSAL).layout(Layout::Bshd),
            q: (0..len).flat_map(|i| rotated(i, part(i, [0, heads]))).collect(),
            k: (0..len).flat_map(|i| rotated(i, part(i, [heads, kv_heads]))).collect(),
            v: (0..len).flat_map(|i| part(i, [heads + kv_heads, kv_heads])).collect(),
        }
    }

    /// The row of a head, and how far off the device's may be.
    fn row(&self, model: &Model, head: u32, position: u32) -> (Vec<f64>, f64) {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        let row = reference::row(&self.problem, &inputs, (0, head, position));
        let dim = model.head_dim as usize;
        let first = position as usize * dim * model.heads as usize + head as usize * dim;
        let query = &self.q[first..][..dim];
        (row.out, allowed(model, query, &row.weights))
    }
}

/// What the cache's type explains.
///
/// Every element of k and v is stored with an error of at most `off`, evenly spread and independent of the others. With
/// weights `p` that moves a result by `sum_j p_j (dv_j + ds_j (v_j - out))`, where `ds_j` is `scale * q . dk_j`. Such a
/// sum grows as a random walk does: its deviation is `|p| off / sqrt(3) sqrt(1 + (scale |q|)^2)` at most, as values are
/// at most 1. Four deviations, and what f32 arithmetic adds.
fn allowed(model: &Model, query: &[f32], weights: &[f64]) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    // Keys that are turned are at most the root of 2.
    let off = match model.kv_dtype {
        // Half of a block's scale, which is a 127th of its largest.
        DType::Q8 => 2_f64.sqrt() / 254.0,
        // Half of what the last of 11 bits is worth from 1 to 2.
        _ => 1.0 / 2048.0,
    };
    let scale = 1.0 / f64::from(model.head_dim).sqrt();
    let scores = scale * length(&mut query.iter().map(|x| f64::from(*x)));
    let weights = length(&mut weights.iter().copied());
    4.0 * weights * off / 3_f64.sqrt() * scores.hypot(1.0) + 1e-5
}
