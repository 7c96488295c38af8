//! Softmax and weighted sum of a block of rows, as far as keys have been read.

use super::attend::Row;
use super::band::Band;
use super::product::Matrix;
use super::softmax::exp;
use super::weighted::{add_rows, wild_rows};
use crate::problem::Problem;
use pulp::Scalar;
use std::ops::Range;

/// Softmax and weighted sum of a block of rows, as far as keys have been read; one lane a row.
pub(super) struct State {
    pub(super) band: Band,
    /// Largest score; `-inf` before the first.
    pub(super) max: Vec<f32>,
    /// Sum of `exp(score - max)`.
    pub(super) sum: Vec<f32>,
    /// What the last block of keys shrank `exp(score - max)` of earlier keys by.
    pub(super) decay: Vec<f32>,
    /// `[rows, v_head_dim]`, not yet divided by `sum`.
    out: Vec<f32>,
}

impl State {
    pub(super) fn new(problem: &Problem, rows: &[Row]) -> Self {
        let visible = |row: &Row| row.place.map_or(0..0, |place| place.visible(problem));
        let band = Band::new(rows.iter().map(visible));
        let lanes = band.lanes();
        Self {
            band,
            max: vec![f32::NEG_INFINITY; lanes],
            sum: vec![0.0; lanes],
            decay: vec![0.0; lanes],
            out: vec![0.0; rows.len() * problem.shape.v_head_dim as usize],
        }
    }

    /// `out = decay * out + weights * values`.
    pub(super) fn add_values(
        &mut self,
        weights: &[f32],
        values: Matrix,
        v_dim: usize,
        block: &Range<u32>,
        hides: bool,
    ) {
        let lanes = self.decay.len();
        for (out, decay) in self.out.chunks_exact_mut(v_dim).zip(&self.decay) {
            out.iter_mut().for_each(|x| *x *= decay);
        }
        let rows = self.out.len() / v_dim;
        let whole = || self.band.whole(block.start, block.len());
        let all_visible = !hides && whole()[..rows].iter().all(|whole| *whole);
        let wild = if all_visible { Vec::new() } else { wild_rows(values, (block.len(), v_dim)) };
        let weights = Matrix { data: weights, strides: (lanes, 1) };
        add_rows((rows, block.len(), v_dim), &mut self.out, weights, values, &wild);
    }

    /// Divides by the sums, with the `[heads]` sinks in them if there are any, and turns scores that `attend` left in
    /// the rows into weights. `keep_scale`: what dropout multiplies those by that it keeps.
    pub(super) fn store(&self, rows: &mut [Row], sinks: &[f32], keep_scale: f32) {
        for (lane, row) in rows.iter_mut().enumerate() {
            let (start, count) = (self.band.start[lane] as usize, self.band.count[lane] as usize);
            let (max, sum) = (self.max[lane], self.sum[lane]);
            let sink = row.place.and_then(|_| sinks.get(row.at.1 as usize).copied());
            let sink = sink.unwrap_or(f32::NEG_INFINITY);
            let top = max.max(sink);
            if top == f32::NEG_INFINITY {
                row.out.fill(0.0);
                row.lse.iter_mut().for_each(|lse| lse[0] = f32::NEG_INFINITY);
                row.weights.iter_mut().for_each(|weights| weights.fill(0.0));
                continue;
            }
            let all = sum * (max - top).exp() + (sink - top).exp();
            let first = lane * row.out.len();
            let shrunk = (max - top).exp();
            for (out, x) in row.out.iter_mut().zip(&self.out[first..]) {
                *out = x * shrunk / all * keep_scale;
            }
            row.lse.iter_mut().for_each(|lse| lse[0] = top + all.ln());
            for weight in row.weights.iter_mut().flat_map(|weights| &mut weights[start..][..count])
            {
                *weight = exp(Scalar::new(), *weight - top) / all;
            }
        }
    }
}
