//! What dropout leaves of a block's weights.

use super::attend::Row;
use crate::dropout::{Dropout, DropoutMask, head_key, words};
use crate::inputs::{Inputs, PairValue};
use crate::problem::Problem;
use crate::sequence::Place;
use pulp::Arch;
use std::ops::Range;

/// Drops weights `[keys, lanes]` of a block of keys; those that stay are not scaled.
pub(super) fn drop_weights(
    problem: &Problem,
    inputs: &Inputs<'_>,
    rows: &[Row],
    weights: &mut [f32],
    block: &Range<u32>,
) {
    let Some(dropout) = problem.drops() else { return };
    let lanes = weights.len() / block.len();
    match dropout.mask {
        DropoutMask::Seeded => {
            let rows = rows.iter().map(|row| (row.place, row.at.1));
            Streams::new(dropout, inputs.seed, rows, lanes).drop_weights(weights, block.start);
        }
        DropoutMask::Given => {
            let pair = PairValue { problem, inputs };
            for (lane, row) in rows.iter().enumerate() {
                let Some(place) = row.place else { continue };
                let within = place.within();
                for key in within.start.max(block.start)..within.end.min(block.end) {
                    if pair.kept(&place, row.at.1, key) == 0.0 {
                        weights[(key - block.start) as usize * lanes + lane] = 0.0;
                    }
                }
            }
        }
    }
}

/// The random numbers of the rows of a block, a lane each.
pub(super) struct Streams {
    threshold: u32,
    /// What the hash starts from at key 0, and the row of k that this is.
    keys: [Vec<u32>; 4],
    starts: Vec<u32>,
    /// Random numbers of four keys.
    words: [Vec<u32>; 4],
}

impl Streams {
    /// Of rows that are somewhere, with their head.
    pub(super) fn new(
        dropout: Dropout,
        seed: u64,
        rows: impl Iterator<Item = (Option<Place>, u32)>,
        lanes: usize,
    ) -> Self {
        let mut streams = Self {
            threshold: dropout.threshold(),
            keys: std::array::from_fn(|_| vec![0; lanes]),
            starts: vec![0; lanes],
            words: std::array::from_fn(|_| vec![0; lanes]),
        };
        for (lane, (place, head)) in rows.enumerate() {
            let Some(place) = place else { continue };
            let mut key = head_key(seed, place.sequence.batch, head);
            key[0] = key[0].wrapping_add(place.q_pos);
            streams.starts[lane] = place.sequence.kv_start;
            for (keys, key) in streams.keys.iter_mut().zip(key) {
                keys[lane] = key;
            }
        }
        streams
    }

    /// Of `[keys, lanes]` from a key on: 0 where a pair is dropped.
    pub(super) fn drop_weights(&mut self, weights: &mut [f32], first: u32) {
        // Compiled for the machine's vectors.
        Arch::new().dispatch(|| self.drop_all(weights, first));
    }

    #[inline(always)]
    fn drop_all(&mut self, weights: &mut [f32], first: u32) {
        let threshold = self.threshold;
        let lanes = self.starts.len();
        // Of packed sequences the rows of a block may be at several places.
        let start = self.starts[0];
        let together = self.starts.iter().all(|other| *other == start);
        for (key, weights) in (first..).zip(weights.chunks_exact_mut(lanes)) {
            if key == first || !together || key.wrapping_sub(start) % 4 == 0 {
                self.draw(key);
            }
            if together {
                let words = &self.words[(key.wrapping_sub(start) % 4) as usize];
                for (weight, word) in weights.iter_mut().zip(words) {
                    *weight = if *word >= threshold { *weight } else { 0.0 };
                }
            } else {
                for (lane, weight) in weights.iter_mut().enumerate() {
                    let kv_pos = key.wrapping_sub(self.starts[lane]);
                    let word = self.words[(kv_pos % 4) as usize][lane];
                    *weight = if word >= threshold { *weight } else { 0.0 };
                }
            }
        }
    }

    /// The numbers of a key and those that share its call.
    #[inline(always)]
    fn draw(&mut self, key: u32) {
        let lanes = self.starts.len();
        let [x, y, z, w] = &self.keys;
        let (x, y, z, w) = (&x[..lanes], &y[..lanes], &z[..lanes], &w[..lanes]);
        let [a, b, c, d] = &mut self.words;
        let (a, b) = (&mut a[..lanes], &mut b[..lanes]);
        let (c, d) = (&mut c[..lanes], &mut d[..lanes]);
        for lane in 0..lanes {
            let quad = key.wrapping_sub(self.starts[lane]) / 4;
            let four = words([x[lane], y[lane], z[lane], w[lane]], 0, quad);
            [a[lane], b[lane], c[lane], d[lane]] = four;
        }
    }
}
