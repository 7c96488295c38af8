//! The formula in f32, one row at a time: how far off an honest f32 evaluation is.

use super::At;
use super::case::{Tensors, extent, rows, start};
use wgpu_attention::{Outputs, Problem, Strides};

/// Results of a whole problem, or of something that pretends to be one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Got {
    /// As the problem lays out `out`.
    pub(crate) out: Vec<f32>,
    /// `[batch, heads, q_len]`.
    pub(crate) lse: Option<Vec<f32>>,
    /// `[batch, heads, q_len, kv_len]`.
    pub(crate) weights: Option<Vec<f32>>,
}

impl From<Outputs> for Got {
    fn from(outputs: Outputs) -> Self {
        Self { out: outputs.out, lse: outputs.lse, weights: outputs.weights }
    }
}

/// Results of one row.
pub(crate) struct Row {
    pub(crate) out: Vec<f32>,
    pub(crate) lse: f32,
    pub(crate) weights: Vec<f32>,
}

/// One row: no fused operation, no order of sums but the plain one.
pub(crate) fn row(problem: &Problem, tensors: &Tensors, at: At) -> Row {
    let s = problem.shape;
    let (batch, head, q_pos) = at;
    let kv_head = head / s.group_size();
    let line = |data, strides, at, dim: u32| line(data, strides, at, dim);
    let query = line(&tensors.q, problem.q, at, s.head_dim);
    let visible = problem.mask.kv_range(&s, q_pos);
    let mut scores = vec![0.0_f32; s.kv_len as usize];
    let mut max = f32::NEG_INFINITY;
    for j in visible.clone() {
        let key = line(&tensors.k, problem.k, (batch, kv_head, j), s.head_dim);
        let dot = query.iter().zip(key).fold(0.0, |sum, (a, b)| sum + a * b);
        scores[j as usize] = dot * problem.effective_scale();
        max = max.max(scores[j as usize]);
    }
    let mut weights = vec![0.0; s.kv_len as usize];
    let mut out = vec![0.0; s.v_head_dim as usize];
    let mut sum = 0.0;
    for j in visible.clone() {
        let p = (scores[j as usize] - max).exp();
        sum += p;
        weights[j as usize] = p;
        let value = line(&tensors.v, problem.v, (batch, kv_head, j), s.v_head_dim);
        out.iter_mut().zip(value).for_each(|(o, v)| *o += p * v);
    }
    if visible.is_empty() {
        return Row { out, lse: f32::NEG_INFINITY, weights };
    }
    out.iter_mut().for_each(|o| *o /= sum);
    weights.iter_mut().for_each(|p| *p /= sum);
    Row { out, lse: max + sum.ln(), weights }
}

fn line(data: &[f32], strides: Strides, at: At, dim: u32) -> &[f32] {
    &data[start(strides, at)..][..dim as usize]
}

/// Every row; all outputs, asked for or not.
pub(crate) fn forward(problem: &Problem, tensors: &Tensors) -> Got {
    let s = problem.shape;
    let mut out = vec![0.0; extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim)];
    let (mut lse, mut weights) = (Vec::new(), Vec::new());
    for at in rows(&s) {
        let row = row(problem, tensors, at);
        out[start(problem.out, at)..][..row.out.len()].copy_from_slice(&row.out);
        lse.push(row.lse);
        weights.extend(row.weights);
    }
    Got { out, lse: Some(lse), weights: Some(weights) }
}
