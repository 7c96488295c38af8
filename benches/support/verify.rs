//! No figure without a right result: sampled rows against the definition in f64.

use super::data::{LayerTensors, Random, Tensors};
use super::product::product;
use wgpu_attention::{DType, Inputs, Layout, Problem, SelfAttention, Shape, reference};

/// Largest absolute error of an element of out, whose values are below 1: ten times what was seen.
const ATTENTION_TOLERANCE: f64 = 2e-5;
/// The same where weights are rounded to f16.
const HALF_TOLERANCE: f64 = 1e-3;
/// The same after projections of up to 4096 terms.
const LAYER_TOLERANCE: f64 = 5e-5;

/// Rows looked at, besides the first and the last.
const SAMPLES: usize = 30;

/// Checks sampled rows of one attention.
///
/// # Panics
/// If one is wrong, with the largest error.
pub(crate) fn attention(id: &str, problem: &Problem, tensors: &Tensors, out: &[f32]) {
    let Tensors { q, k, v } = tensors;
    let s = problem.shape;
    let width = s.v_head_dim as usize;
    for at in sampled(&s) {
        let (batch, head, q_pos) = at;
        let row = (batch as usize * s.heads as usize + head as usize) * s.q_len as usize;
        let got = &out[(row + q_pos as usize) * width..][..width];
        let want = reference::row(problem, &Inputs::new(q, k, v), at).out;
        let half = problem.dtype == DType::F16;
        let tolerance = if half { HALF_TOLERANCE } else { ATTENTION_TOLERANCE };
        check(id, at, got, &want, tolerance);
    }
}

/// Checks sampled rows of one layer.
///
/// # Panics
/// If one is wrong, with the largest error.
pub(crate) fn layer(id: &str, layer: &SelfAttention, tensors: &LayerTensors, out: &[f32]) {
    let s = layer.shape;
    let [q, k, v] =
        [&tensors.w_q, &tensors.w_k, &tensors.w_v].map(|w| project(&tensors.x, w, layer));
    let problem = Problem::new(s).mask(layer.mask).layout(Layout::Bshd);
    let (inputs, outputs) = ((s.heads * s.v_head_dim) as usize, layer.out_dim as usize);
    for at in sampled(&s) {
        let (batch, _, q_pos) = at;
        let heads: Vec<f64> = (0..s.heads)
            .flat_map(|head| {
                reference::row(&problem, &Inputs::new(&q, &k, &v), (batch, head, q_pos)).out
            })
            .collect();
        let dot = |w: &[f32]| heads.iter().zip(w).map(|(a, b)| a * f64::from(*b)).sum();
        let want: Vec<f64> = tensors.w_o.chunks_exact(inputs).map(dot).collect();
        let row = batch as usize * s.q_len as usize + q_pos as usize;
        check(id, at, &out[row * outputs..][..outputs], &want, LAYER_TOLERANCE);
    }
}

/// `x w^T`, summed in f64.
fn project(x: &[f32], w: &[f32], layer: &SelfAttention) -> Vec<f32> {
    let wide = |data: &[f32]| -> Vec<f64> { data.iter().map(|&x| x.into()).collect() };
    let inputs = layer.model_dim as usize;
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let mut y = vec![0.0; rows * outputs];
    product([rows, outputs, inputs], &wide(x), &wide(w), &mut y);
    #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    y.into_iter().map(|y| y as f32).collect()
}

/// Sequence, head and query of some rows.
fn sampled(shape: &Shape) -> Vec<(u32, u32, u32)> {
    let mut random = Random(3);
    let last = (shape.batch - 1, shape.heads - 1, shape.q_len - 1);
    let mut rows = vec![(0, 0, 0), last];
    rows.extend((0..SAMPLES).map(|_| {
        (random.below(shape.batch), random.below(shape.heads), random.below(shape.q_len))
    }));
    rows
}

fn check(id: &str, at: (u32, u32, u32), got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{id}: elements of row {at:?}");
    let errors = got.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs());
    // A NaN is the largest error there is.
    let error =
        errors.fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
    assert!(error <= tolerance, "{id}: row {at:?} is off by {error:e}, more than {tolerance:e}");
}
