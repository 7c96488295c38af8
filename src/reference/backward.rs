//! The definition's gradients, in f64, one query row at a time.

use super::{line, start};
use crate::backward::Backward;
use crate::inputs::{Derived, Inputs, PairValue};
use crate::layout::Strides;
use crate::sequence::{Place, Sequence};

/// Gradients of a whole problem.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// As `d_q` is laid out; 0 in gaps between rows.
    pub q: Vec<f64>,
    /// As `d_k` is laid out; 0 in gaps between rows.
    pub k: Vec<f64>,
    /// As `d_v` is laid out; 0 in gaps between rows.
    pub v: Vec<f64>,
    /// The axes of the bias, contiguous; empty where not asked for.
    pub bias: Vec<f64>,
    /// `[heads]`; empty where not asked for.
    pub sinks: Vec<f64>,
    /// As the slopes; empty where not asked for.
    pub alibi_slopes: Vec<f64>,
}

/// What the gradients of one query row are made of.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BackwardRow {
    /// `[kv_len]`: weights as they multiply values, with dropout.
    pub weights: Vec<f64>,
    /// `[kv_len]`: gradients of the scores that softmax takes; exactly 0 where a key is not visible.
    pub d_scores: Vec<f64>,
    /// Gradient of the row's sink; 0 where there is none.
    pub d_sink: f64,
    /// Visible keys, and their scores.
    keys: Vec<(u32, Derived)>,
    place: Option<Place>,
}

/// Gradients of query row `row` of `head` in `batch`, as tensors count them, up to its scores. `d_out` is `[v_head_dim]`.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn backward_row(
    backward: &Backward,
    inputs: &Inputs<'_>,
    (batch, head, row): (u32, u32, u32),
    d_out: &[f32],
    d_lse: f64,
) -> BackwardRow {
    let problem = &backward.problem;
    let s = problem.shape;
    let place = Sequence::place(problem, inputs, batch, row);
    let mut result = BackwardRow {
        weights: vec![0.0; s.kv_len as usize],
        d_scores: vec![0.0; s.kv_len as usize],
        d_sink: 0.0,
        keys: Vec::new(),
        place,
    };
    let Some(place) = place else { return result };
    let kv_head = head / s.group_size();
    let query = line(inputs.q, problem.q, (batch, head, row), s.head_dim);
    let pairs = PairValue { problem, inputs };
    for j in place.visible(problem) {
        let key = line(inputs.k, problem.k, (batch, kv_head, j), s.head_dim);
        let raw = dot(query, key) * f64::from(problem.effective_scale());
        result.keys.extend(pairs.derived(raw, &place, head, j).map(|derived| (j, derived)));
    }

    let sink = if problem.sinks { inputs.sinks[head as usize].into() } else { f64::NEG_INFINITY };
    let max = result.keys.iter().map(|(_, derived)| derived.score).fold(sink, f64::max);
    if max == f64::NEG_INFINITY {
        return result;
    }
    let sum = result.keys.iter().map(|(_, derived)| (derived.score - max).exp()).sum::<f64>();
    let sum = sum + (sink - max).exp();
    // Gradients of the weights, and how they sum up: <out, d_out>.
    let mut d_weights = Vec::new();
    let mut delta = 0.0;
    for (j, derived) in &result.keys {
        let value = line(inputs.v, problem.v, (batch, kv_head, *j), s.v_head_dim);
        let (p, kept) = ((derived.score - max).exp() / sum, pairs.kept(&place, head, *j));
        let d_p = kept * dot(d_out, value);
        delta += p * d_p;
        result.weights[*j as usize] = p * kept;
        d_weights.push((*j, p, d_p));
    }
    for (j, p, d_p) in d_weights {
        result.d_scores[j as usize] = p * (d_p - delta + d_lse);
    }
    result.d_sink = (sink - max).exp() / sum * (d_lse - delta);
    result
}

/// Gradients of every row. `d_lse` is `[batch, heads, q_len]`, and not read where the backward has none.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn backward(
    backward: &Backward,
    inputs: &Inputs<'_>,
    d_out: &[f32],
    d_lse: &[f32],
) -> Gradients {
    let problem = &backward.problem;
    let s = problem.tensor_shape();
    let zeros = |strides: Strides, heads, len, dim| {
        let extent = strides.extent(s.batch, heads, len, dim);
        vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("fits in memory")]
    };
    let count = |n: Option<u64>| vec![0.0; usize::try_from(n.unwrap_or(0)).expect("in memory")];
    let bias = problem.bias.filter(|_| backward.d_bias).map(|bias| bias.gradient());
    let slopes = problem.alibi.filter(|_| backward.d_alibi_slopes);
    let mut all = Gradients {
        q: zeros(backward.d_q, s.heads, s.q_len, s.head_dim),
        k: zeros(backward.d_k, s.kv_heads, s.kv_len, s.head_dim),
        v: zeros(backward.d_v, s.kv_heads, s.kv_len, s.v_head_dim),
        bias: count(bias.map(|pairs| pairs.extent(pairs.axes).expect("validated"))),
        sinks: count(backward.d_sinks.then_some(s.heads.into())),
        alibi_slopes: count(slopes.map(|slopes| slopes.count(&problem.shape))),
    };
    let scale = f64::from(problem.effective_scale());
    let rows = (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h)));
    let rows = rows.flat_map(|(b, h)| (0..s.q_len).map(move |i| (b, h, i)));
    for (row, at) in rows.enumerate() {
        let (batch, head, _) = at;
        let kv_head = head / s.group_size();
        let d_out = line(d_out, backward.d_out, at, s.v_head_dim);
        let d_lse = if backward.d_lse { d_lse[row].into() } else { 0.0 };
        let of_row = backward_row(backward, inputs, at, d_out, d_lse);
        if let Some(sink) = all.sinks.get_mut(head as usize) {
            *sink += of_row.d_sink;
        }
        let Some(place) = of_row.place else { continue };
        for (j, derived) in &of_row.keys {
            let d_score = of_row.d_scores[*j as usize];
            let key = (batch, kv_head, *j);
            let d_dot = scale * d_score * derived.by_raw;
            add(&mut all.q, backward.d_q, at, d_dot, line(inputs.k, problem.k, key, s.head_dim));
            add(&mut all.k, backward.d_k, key, d_dot, line(inputs.q, problem.q, at, s.head_dim));
            add(&mut all.v, backward.d_v, key, of_row.weights[*j as usize], d_out);
            if let Some(pairs) = bias {
                let place = pairs.index([batch, head, place.q_pos, *j]);
                all.bias[usize::try_from(place).expect("in memory")] += d_score * derived.by_bias;
            }
            if let Some(slopes) = slopes {
                let place = slopes.index(&problem.shape, place.sequence.batch, head);
                all.alibi_slopes[place] += d_score * derived.by_slope;
            }
        }
    }
    all
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Adds a multiple of `data` to a row.
fn add(to: &mut [f64], strides: Strides, at: (u32, u32, u32), factor: f64, data: &[f32]) {
    for (to, x) in to[start(strides, at)..].iter_mut().zip(data) {
        *to += factor * f64::from(*x);
    }
}
