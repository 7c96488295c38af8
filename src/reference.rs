//! The definition, in f64, one query row at a time: textbook two passes, no tiling, no cleverness.

use crate::layout::Strides;
use crate::problem::Problem;

/// Result of one query row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// `[v_head_dim]`.
    pub out: Vec<f64>,
    /// Natural log of the sum of exponentials; `-inf` where no key is visible.
    pub lse: f64,
    /// `[kv_len]`, exactly 0 where a key is not visible.
    pub weights: Vec<f64>,
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
}

/// Attention of query `q_pos` of `head` in sequence `batch`.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn row(
    problem: &Problem,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    (batch, head, q_pos): (u32, u32, u32),
) -> Row {
    let s = problem.shape;
    let kv_head = head / s.group_size();
    let query = line(q, problem.q, (batch, head, q_pos), s.head_dim);
    let visible = problem.mask.kv_range(&s, q_pos);
    let scores: Vec<f64> = visible
        .clone()
        .map(|j| {
            let key = line(k, problem.k, (batch, kv_head, j), s.head_dim);
            let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            dot * f64::from(problem.effective_scale())
        })
        .collect();

    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
    let mut out = vec![0.0; s.v_head_dim as usize];
    let mut weights = vec![0.0; s.kv_len as usize];
    for (j, x) in visible.zip(&scores) {
        let p = (x - max).exp() / sum;
        weights[j as usize] = p;
        let value = line(v, problem.v, (batch, kv_head, j), s.v_head_dim);
        for (o, value) in out.iter_mut().zip(value) {
            *o += p * f64::from(*value);
        }
    }
    let lse = if scores.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
    Row { out, lse, weights }
}

/// Attention of every row.
///
/// # Panics
/// If a slice is shorter than the problem's strides reach.
pub fn forward(problem: &Problem, q: &[f32], k: &[f32], v: &[f32]) -> Forward {
    let s = problem.shape;
    let extent = problem.out.extent(s.batch, s.heads, s.q_len, s.v_head_dim);
    let mut all = Forward {
        out: vec![0.0; extent.and_then(|n| usize::try_from(n).ok()).expect("fits in memory")],
        lse: Vec::new(),
        weights: Vec::new(),
    };
    for batch in 0..s.batch {
        for head in 0..s.heads {
            for q_pos in 0..s.q_len {
                let row = row(problem, q, k, v, (batch, head, q_pos));
                let first = start(problem.out, (batch, head, q_pos));
                all.out[first..][..row.out.len()].copy_from_slice(&row.out);
                all.lse.push(row.lse);
                all.weights.extend(row.weights);
            }
        }
    }
    all
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
