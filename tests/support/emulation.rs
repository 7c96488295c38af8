//! The formula in f32, one row at a time: how far off an honest f32 evaluation is.

use super::At;
use super::case::{Tensors, extent, rounded, rows, start};
use std::ops::Range;
use wgpu_attention::{
    Diagonal, DropoutMask, Lengths, Outputs, Pair, Problem, ScoreStage, Slopes, Strides, reference,
};

/// Results of a whole problem, or of something that pretends to be one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Got {
    /// As the problem lays out `out`.
    pub(crate) out: Vec<f32>,
    /// `[batch, heads, q_len]`.
    pub(crate) lse: Option<Vec<f32>>,
    /// `[batch, heads, q_len, kv_len]`.
    pub(crate) weights: Option<Vec<f32>>,
    /// `[batch, heads, q_len, kv_len]`.
    pub(crate) scores: Option<Vec<f32>>,
}

impl From<Outputs> for Got {
    fn from(outputs: Outputs) -> Self {
        let Outputs { out, lse, weights, scores, .. } = outputs;
        Self { out, lse, weights, scores }
    }
}

/// Results of one row.
pub(crate) struct Row {
    pub(crate) out: Vec<f32>,
    pub(crate) lse: f32,
    pub(crate) weights: Vec<f32>,
    /// Of the stage that the problem asks for; -inf where there is none.
    pub(crate) scores: Vec<f32>,
}

/// What products of inputs and of weights keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32.
    Full,
    /// exp(s - m) is rounded to f16, as matrix units take it, and divided by the sum of what was rounded; inputs are f16
    /// or bf16 already.
    Half,
    /// The same, but it is the weights themselves, multiplied with 2^15, that are rounded.
    HalfWeights,
    /// Inputs and weights are the sum of two f16.
    Split,
}

impl Precision {
    pub(crate) fn of(self, x: f32) -> f32 {
        let half = |x: f32| half::f16::from_f32(x).to_f32();
        match self {
            Self::Full => x,
            Self::Half | Self::HalfWeights => half(x),
            Self::Split => half(x) + half((x - half(x)) * 2048.0) / 2048.0,
        }
    }
}

/// One row: no fused operation, no order of sums but the plain one; out as it is stored. Which keys are visible, and
/// where rows are in their sequences, it takes from the definition.
pub(crate) fn row(problem: &Problem, tensors: &Tensors, at: At, precision: Precision) -> Row {
    let s = problem.shape;
    let (batch, head, _) = at;
    let kv_head = head / s.group_size();
    let line = |data, strides, at, dim: u32| line(data, strides, at, dim);
    let query = line(&tensors.q, problem.q, at, s.head_dim);
    let visible = reference::visible(problem, &tensors.inputs(), at);
    let place = Place::of(problem, tensors, at);
    let mut scores = vec![0.0_f32; s.kv_len as usize];
    let mut kept = vec![f32::NEG_INFINITY; s.kv_len as usize];
    let sink = if problem.sinks && place.real {
        tensors.extra.sinks[head as usize]
    } else {
        f32::NEG_INFINITY
    };
    let mut max = f32::NEG_INFINITY;
    for (j, shown) in (0..s.kv_len).zip(&visible) {
        let within = place.real && place.keys.contains(&j);
        if !(*shown || within && problem.scores.is_some()) {
            continue;
        }
        let (outer, key_row) = tensors.extra.key_at(problem, batch, j);
        let key = line(&tensors.k, problem.k, (outer, kv_head, key_row), s.head_dim);
        let dot = query
            .iter()
            .zip(key)
            .fold(0.0, |sum, (a, b)| sum + precision.of(*a) * precision.of(*b));
        let raw = dot * problem.effective_scale();
        let capped = problem.softcap.map_or(raw, |cap| cap * (raw / cap).tanh());
        let score = if *shown { place.biased(problem, tensors, capped, head, j) } else { 0.0 };
        match problem.scores {
            Some(ScoreStage::Raw) => kept[j as usize] = raw,
            Some(ScoreStage::Capped) => kept[j as usize] = capped,
            Some(_) if *shown => kept[j as usize] = score,
            _ => {}
        }
        if *shown {
            scores[j as usize] = score;
            max = max.max(score);
        }
    }
    // Weights are rounded beside the greatest, before the sink joins.
    let greatest = max;
    max = max.max(sink);
    let mut weights = vec![0.0; s.kv_len as usize];
    let mut out = vec![0.0; s.v_head_dim as usize];
    let mut sum = (sink - max).exp();
    let mut exact = sum;
    let shown = || (0..s.kv_len).filter(|j| visible[*j as usize]);
    for j in shown() {
        weights[j as usize] = (scores[j as usize] - max).exp();
        exact += weights[j as usize];
    }
    for j in shown() {
        let p = match precision {
            Precision::Full => weights[j as usize],
            Precision::HalfWeights => {
                precision.of(weights[j as usize] / exact * 32768.0) / 32768.0 * exact
            }
            _ => precision.of((scores[j as usize] - greatest).exp()) * (greatest - max).exp(),
        };
        sum += p;
        let (outer, key_row) = tensors.extra.key_at(problem, batch, j);
        let value = line(&tensors.v, problem.v, (outer, kv_head, key_row), s.v_head_dim);
        let p = p * place.kept(problem, tensors, head, j);
        out.iter_mut().zip(value).for_each(|(o, v)| *o += p * precision.of(*v));
    }
    if max == f32::NEG_INFINITY {
        return Row { out, lse: f32::NEG_INFINITY, weights, scores: kept };
    }
    let sum = if precision == Precision::HalfWeights { exact } else { sum };
    out.iter_mut().for_each(|o| *o /= sum);
    weights.iter_mut().for_each(|p| *p /= exact);
    let out = rounded(out, problem.out_dtype);
    Row { out, lse: max + exact.ln(), weights, scores: kept }
}

/// Where a row is: written down once more, apart from the crate's own.
pub(crate) struct Place {
    pub(crate) batch: u32,
    pub(crate) q_pos: u32,
    /// Rows of k of its sequence.
    pub(crate) keys: Range<u32>,
    pub(crate) diagonal: i64,
    pub(crate) real: bool,
}

impl Place {
    pub(crate) fn of(problem: &Problem, tensors: &Tensors, (batch, _, row): At) -> Self {
        let (s, e) = (problem.shape, &tensors.extra);
        let (mut batch, mut rows, mut keys) = (batch, 0..s.q_len, 0..s.kv_len);
        match problem.lengths {
            Lengths::PerSequence { q, kv } => {
                let b = batch as usize;
                rows.end = if q { e.q_lens[b] } else { rows.end };
                keys.end = if kv { e.kv_lens[b] } else { keys.end };
            }
            Lengths::Packed => {
                let holds = |b: &u32| {
                    let b = *b as usize;
                    (e.cu_seqlens_q[b]..e.cu_seqlens_q[b + 1]).contains(&row)
                };
                batch = (0..s.batch).find(holds).expect("every row has a sequence");
                let b = batch as usize;
                rows = e.cu_seqlens_q[b]..e.cu_seqlens_q[b + 1];
                keys = e.cu_seqlens_k[b]..e.cu_seqlens_k[b + 1];
            }
            _ => {}
        }
        let (q_len, kv_len) = (i64::from(rows.end - rows.start), i64::from(keys.end - keys.start));
        let diagonal = match problem.mask.diagonal {
            Diagonal::BottomRight => kv_len - q_len,
            Diagonal::TopLeft => 0,
            Diagonal::Offset(offset) => offset.into(),
            _ => e.diag_offsets[batch as usize].into(),
        };
        Self {
            batch,
            q_pos: row.wrapping_sub(rows.start),
            keys,
            diagonal,
            real: rows.contains(&row),
        }
    }

    /// What dropout makes of a weight of 1.
    pub(crate) fn kept(&self, problem: &Problem, tensors: &Tensors, head: u32, key: u32) -> f32 {
        let Some(dropout) = problem.dropout else { return 1.0 };
        let kv_pos = key - self.keys.start;
        let keeps = if dropout.mask == DropoutMask::Given {
            let s = problem.shape;
            let row = (self.batch * s.heads + head) * s.q_len + self.q_pos;
            tensors.extra.keep[(row * s.kv_len + kv_pos) as usize]
        } else {
            dropout.keeps(tensors.extra.seed, self.pair(head, key))
        };
        if keeps { dropout.keep_scale() } else { 0.0 }
    }

    /// From the key that the row stands at.
    pub(crate) fn distance(&self, key: u32) -> f32 {
        let kv_pos = key - self.keys.start;
        let distance = (i64::from(self.q_pos) + self.diagonal - i64::from(kv_pos)).abs();
        #[allow(clippy::cast_precision_loss, reason = "as f32 has it")]
        let distance = distance as f32;
        distance
    }

    /// Which slope is a head's.
    pub(crate) fn slope(&self, problem: &Problem, head: u32) -> usize {
        let first = match problem.alibi {
            Some(Slopes::PerSequence) => self.batch * problem.shape.heads,
            _ => 0,
        };
        (first + head) as usize
    }

    pub(crate) fn pair(&self, head: u32, key: u32) -> Pair {
        Pair::new(self.batch, head, self.q_pos, key - self.keys.start, self.diagonal)
    }

    /// ALiBi, bias, the caller's function.
    fn biased(&self, problem: &Problem, tensors: &Tensors, s: f32, head: u32, key: u32) -> f32 {
        let s = self.summed(problem, tensors, s, head, key);
        let Some(function) = &problem.score_function else { return s };
        #[allow(clippy::cast_possible_truncation, reason = "rounded once")]
        let changed = function.apply(f64::from(s), self.pair(head, key)) as f32;
        changed
    }

    /// ALiBi, bias.
    pub(crate) fn summed(
        &self,
        problem: &Problem,
        tensors: &Tensors,
        s: f32,
        head: u32,
        key: u32,
    ) -> f32 {
        let e = &tensors.extra;
        let kv_pos = key - self.keys.start;
        let mut s = s;
        if problem.alibi.is_some() {
            s -= e.alibi_slopes[self.slope(problem, head)] * self.distance(key);
        }
        if let Some(bias) = problem.bias {
            let at = [self.batch, head, self.q_pos, kv_pos];
            let strides = bias.pairs.strides;
            let index: u64 = at.iter().zip(strides).map(|(i, stride)| u64::from(*i) * stride).sum();
            s = (s + e.bias[usize::try_from(index).expect("in memory")]).max(f32::MIN);
        }
        s
    }
}

fn line(data: &[f32], strides: Strides, at: At, dim: u32) -> &[f32] {
    &data[start(strides, at)..][..dim as usize]
}

/// Every row; all outputs, asked for or not.
pub(crate) fn forward(problem: &Problem, tensors: &Tensors) -> Got {
    let s = problem.tensor_shape();
    let mut out = vec![0.0; extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim)];
    let (mut lse, mut weights, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for at in rows(&s) {
        let row = row(problem, tensors, at, Precision::Full);
        out[start(problem.out, at)..][..row.out.len()].copy_from_slice(&row.out);
        lse.push(row.lse);
        weights.extend(row.weights);
        scores.extend(row.scores);
    }
    let scores = problem.scores.map(|_| scores);
    Got { out, lse: Some(lse), weights: Some(weights), scores }
}
