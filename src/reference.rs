//! The definition, in f64, one query row at a time: textbook two passes, no tiling, no cleverness.

mod append;
mod backward;

pub use append::{Appended, append, rotary_embedding, rotated};
pub use backward::{BackwardRow, Gradients, backward, backward_row};

use crate::inputs::{Inputs, PairValue};
use crate::layout::Strides;
use crate::merge::Merge;
use crate::problem::{Problem, ScoreStage};
use crate::sequence::Sequence;

/// Result of one query row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// `[v_head_dim]`.
    pub out: Vec<f64>,
    /// Natural log of the sum of exponentials, the sink's among them; `-inf` of none.
    pub lse: f64,
    /// `[kv_len]`, exactly 0 where a key is not visible; those before dropout.
    pub weights: Vec<f64>,
    /// `[kv_len]`, of the stage that the problem asks for; empty if of none. `-inf` where there is no score.
    pub scores: Vec<f64>,
}

/// Result of a whole problem.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Forward {
    /// As `out` of the problem is laid out; 0 in gaps between rows.
    pub out: Vec<f64>,
    /// `[batch, heads, q_len]`.
    pub lse: Vec<f64>,
    /// `[batch, heads, q_len, kv_len]`.
    pub weights: Vec<f64>,
    /// `[batch, heads, q_len, kv_len]`, where the problem asks for scores.
    pub scores: Vec<f64>,
}

/// Attention of query row `row` of `head` in `batch`, as tensors count them: packed sequences are one batch entry.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn row(problem: &Problem, inputs: &Inputs<'_>, (batch, head, row): (u32, u32, u32)) -> Row {
    let s = problem.shape;
    let mut result = Row {
        out: vec![0.0; s.v_head_dim as usize],
        lse: f64::NEG_INFINITY,
        weights: vec![0.0; s.kv_len as usize],
        scores: vec![f64::NEG_INFINITY; problem.scores.map_or(0, |_| s.kv_len as usize)],
    };
    let Some(place) = Sequence::place(problem, inputs, batch, row) else { return result };
    let kv_head = head / s.group_size();
    let query = line(inputs.q, problem.q, (batch, head, row), s.head_dim);
    let pair = PairValue { problem, inputs };
    let visible = place.visible(problem);
    let mut scores: Vec<(u32, f64)> = Vec::new();
    for j in place.within() {
        if problem.scores.is_none() && !visible.contains(&j) {
            continue;
        }
        let (outer, key_row) = inputs.key_at(problem, batch, j);
        let key = line(inputs.k, problem.k, (outer, kv_head, key_row), s.head_dim);
        let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let raw = dot * f64::from(problem.effective_scale());
        let capped = pair.capped(raw);
        let biased = pair.biased(capped, &place, head, j).filter(|_| visible.contains(&j));
        scores.extend(biased.map(|score| (j, score)));
        let wanted = problem.scores.and_then(|stage| match stage {
            ScoreStage::Raw => Some(raw),
            ScoreStage::Capped => Some(capped),
            ScoreStage::Biased => biased,
        });
        if let Some(score) = wanted {
            result.scores[j as usize] = score;
        }
    }

    let sink = if problem.sinks { inputs.sinks[head as usize].into() } else { f64::NEG_INFINITY };
    let max = scores.iter().map(|(_, x)| *x).fold(sink, f64::max);
    if max == f64::NEG_INFINITY {
        return result;
    }
    let sum = scores.iter().map(|(_, x)| (x - max).exp()).sum::<f64>() + (sink - max).exp();
    for (j, x) in scores {
        let p = (x - max).exp() / sum;
        result.weights[j as usize] = p;
        let (outer, key_row) = inputs.key_at(problem, batch, j);
        let value = line(inputs.v, problem.v, (outer, kv_head, key_row), s.v_head_dim);
        let kept = p * pair.kept(&place, head, j);
        for (o, value) in result.out.iter_mut().zip(value) {
            *o += kept * f64::from(*value);
        }
    }
    result.lse = max + sum.ln();
    result
}

/// Which keys the query row sees, `[kv_len]`; places as in [`row`].
///
/// # Panics
/// If a slice is shorter than the problem says.
pub fn visible(
    problem: &Problem,
    inputs: &Inputs<'_>,
    (batch, head, row): (u32, u32, u32),
) -> Vec<bool> {
    let mut shown = vec![false; problem.shape.kv_len as usize];
    if let Some(place) = Sequence::place(problem, inputs, batch, row) {
        let pair = PairValue { problem, inputs };
        for j in place.visible(problem) {
            shown[j as usize] = pair.biased(0.0, &place, head, j).is_some();
        }
    }
    shown
}

/// Attention of every row.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn forward(problem: &Problem, inputs: &Inputs<'_>) -> Forward {
    let s = problem.tensor_shape();
    let extent = problem.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
    let mut all = Forward {
        out: vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("fits in memory")],
        lse: Vec::new(),
        weights: Vec::new(),
        scores: Vec::new(),
    };
    for batch in 0..s.batch {
        for head in 0..s.heads {
            for i in 0..s.q_len {
                let row = row(problem, inputs, (batch, head, i));
                let first = start(problem.out, (batch, head, i));
                all.out[first..][..row.out.len()].copy_from_slice(&row.out);
                all.lse.push(row.lse);
                all.weights.extend(row.weights);
                all.scores.extend(row.scores);
            }
        }
    }
    all
}

/// Result of a merge.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Merged {
    /// As `out` of the merge is laid out; 0 in gaps between rows.
    pub out: Vec<f64>,
    /// `[batch, heads, q_len]`; `-inf` where no part saw a key.
    pub lse: Vec<f64>,
}

/// Partial results into one, every row. Parts as the merge lays them out.
///
/// # Panics
/// If a slice is shorter than the merge's strides reach.
pub fn merge(merge: &Merge, out_parts: &[f32], lse_parts: &[f32]) -> Merged {
    let s = merge.shape;
    let extent = merge.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
    let mut merged = Merged {
        out: vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("fits in memory")],
        lse: Vec::new(),
    };
    let part = |stride: u64, p: u32| usize::try_from(stride * u64::from(p)).expect("in memory");
    for batch in 0..s.batch {
        for head in 0..s.heads {
            for i in 0..s.q_len {
                let at = (batch, head, i);
                let lse = |p: u32| -> f64 {
                    lse_parts[part(merge.lse_part, p) + start(merge.lse_parts, at)].into()
                };
                let seen = (0..merge.parts).filter(|p| lse(*p) != f64::NEG_INFINITY);
                let max = seen.clone().map(lse).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = seen.clone().map(|p| (lse(p) - max).exp()).sum();
                let row = &mut merged.out[start(merge.out, at)..][..s.v_head_dim as usize];
                for p in seen {
                    let weight = (lse(p) - max).exp() / sum;
                    let first = part(merge.out_part, p) + start(merge.out_parts, at);
                    for (o, x) in row.iter_mut().zip(&out_parts[first..]) {
                        *o += weight * f64::from(*x);
                    }
                }
                // Of no part, ln 0 = -inf; max is that already.
                merged.lse.push(if sum > 0.0 { max + sum.ln() } else { max });
            }
        }
    }
    merged
}

/// Index of the first element of a row.
pub(crate) fn start(strides: Strides, (batch, head, row): (u32, u32, u32)) -> usize {
    let index = u64::from(batch) * strides.batch
        + u64::from(head) * strides.head
        + u64::from(row) * strides.row;
    usize::try_from(index).expect("a row of a slice in memory")
}

fn line(data: &[f32], strides: Strides, at: (u32, u32, u32), dim: u32) -> &[f32] {
    &data[start(strides, at)..][..dim as usize]
}
