//! Softmax and weighted sum of a block of rows, as far as keys have been read.

use super::attend::{LANES, Row};
use super::product::{Matrix, product};
use super::softmax::exp;
use crate::problem::Problem;
use pulp::Scalar;
use std::ops::Range;

/// Softmax and weighted sum of a block of rows, as far as keys have been read; one lane a row.
pub(super) struct State {
    /// First key that a lane sees.
    pub(super) start: Vec<u32>,
    /// Keys that a lane sees; none in the lanes past the last row.
    pub(super) count: Vec<u32>,
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
        // A lone row (decode) is a matrix-vector product, which padding would make a slower one.
        let lanes = if rows.len() == 1 { 1 } else { rows.len().next_multiple_of(LANES) };
        let (mut start, mut count) = (vec![0; lanes], vec![0; lanes]);
        for (lane, row) in rows.iter().enumerate() {
            let visible = row.place.map_or(0..0, |place| place.visible(problem));
            (start[lane], count[lane]) = (visible.start, visible.end - visible.start);
        }
        Self {
            start,
            count,
            max: vec![f32::NEG_INFINITY; lanes],
            sum: vec![0.0; lanes],
            decay: vec![0.0; lanes],
            out: vec![0.0; rows.len() * problem.shape.v_head_dim as usize],
        }
    }

    /// From the first key that some row sees to the last.
    pub(super) fn seen(&self) -> Range<u32> {
        let lanes = || self.start.iter().zip(&self.count).filter(|(_, count)| **count > 0);
        let start = lanes().map(|(start, _)| *start).min();
        let end = lanes().map(|(start, count)| start + count).max();
        start.unwrap_or(0)..end.unwrap_or(0)
    }

    /// Keys of a block that a lane sees, counted from the block's first.
    pub(super) fn visible(&self, lane: usize, block: &Range<u32>) -> Range<usize> {
        let in_block = |key: u32| (key.clamp(block.start, block.end) - block.start) as usize;
        let start = self.start[lane];
        in_block(start)..in_block(start + self.count[lane])
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
        let value = |j: usize| &values.data[j * values.strides.1..][..v_dim];
        let rows = self.out.len() / v_dim;
        let all_visible =
            !hides && (0..rows).all(|lane| self.visible(lane, block).len() == block.len());
        // A weight of 0 times NaN is NaN: rows that do not see a value must not multiply it then.
        let is_wild = |j: &usize| !all_visible && !is_finite(value(*j));
        let wild: Vec<usize> = (0..block.len()).filter(is_wild).collect();
        let shape = (v_dim, rows, block.len());
        let factors = Matrix { data: weights, strides: (lanes, 1) };
        if wild.is_empty() {
            product(shape, &mut self.out, 1.0, 1.0, values, factors);
            return;
        }
        // As if they were 0, so that what no row sees changes no bit; then again for the rows that see them.
        let mut tame: Vec<f32> = (0..block.len()).flat_map(value).copied().collect();
        wild.iter().for_each(|j| tame[j * v_dim..][..v_dim].fill(0.0));
        let tame = Matrix { data: &tame, strides: (1, v_dim) };
        product(shape, &mut self.out, 1.0, 1.0, tame, factors);
        for lane in 0..rows {
            let visible = self.visible(lane, block);
            for j in wild.iter().filter(|j| visible.contains(j)) {
                let weight = weights[j * lanes + lane];
                if weight != 0.0 {
                    let out = &mut self.out[lane * v_dim..][..v_dim];
                    out.iter_mut().zip(value(*j)).for_each(|(x, value)| *x += weight * value);
                }
            }
        }
    }

    /// Divides by the sums, with the `[heads]` sinks in them if there are any, and turns scores that `attend` left in
    /// the rows into weights. `keep_scale`: what dropout multiplies those by that it keeps.
    pub(super) fn store(&self, rows: &mut [Row], sinks: &[f32], keep_scale: f32) {
        for (lane, row) in rows.iter_mut().enumerate() {
            let (start, count) = (self.start[lane] as usize, self.count[lane] as usize);
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

/// Without a branch, so that it is a few vector instructions.
fn is_finite(values: &[f32]) -> bool {
    let largest = values.iter().map(|x| x.abs().to_bits()).fold(0, u32::max);
    largest < f32::INFINITY.to_bits()
}
