//! Biases by distance, as wide as the machine's vectors.

use crate::inputs::Inputs;
use crate::problem::Problem;
use crate::sequence::Place;
use pulp::Arch;

/// Slopes of ALiBi of a block of rows, a lane each.
pub(super) struct Alibi {
    /// The key that a row stands at, in tensor coordinates; its distance is 0.
    at: Vec<f64>,
    slope: Vec<f64>,
}

impl Alibi {
    /// Of rows that are somewhere, with their head; `None` where the problem has no slopes.
    pub(super) fn new(
        problem: &Problem,
        inputs: &Inputs<'_>,
        rows: impl Iterator<Item = (Option<Place>, u32)>,
        lanes: usize,
    ) -> Option<Self> {
        let slopes = problem.alibi?;
        let mut alibi = Self { at: vec![0.0; lanes], slope: vec![0.0; lanes] };
        for (lane, (place, head)) in rows.enumerate() {
            let Some(place) = place else { continue };
            let sequence = place.sequence;
            let at = i64::from(place.q_pos) + sequence.diagonal + i64::from(sequence.kv_start);
            #[allow(clippy::cast_precision_loss, reason = "positions are below 2^33")]
            let at = at as f64;
            let slope = slopes.index(&problem.shape, sequence.batch, head);
            (alibi.at[lane], alibi.slope[lane]) = (at, inputs.alibi_slopes[slope].into());
        }
        Some(alibi)
    }

    /// Takes `slope * distance` off scores `[keys, lanes]`; `first` is the key of the first.
    pub(super) fn bias(&self, scores: &mut [f32], first: u32) {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (key, scores) in (first..).zip(scores.chunks_exact_mut(self.at.len())) {
                    let key = f64::from(key);
                    for ((score, at), slope) in scores.iter_mut().zip(&self.at).zip(&self.slope) {
                        let biased = f64::from(*score) - slope * (at - key).abs();
                        #[allow(clippy::cast_possible_truncation, reason = "rounded once")]
                        let biased = biased as f32;
                        // A large distance hides nothing.
                        *score = if biased < f32::MIN { f32::MIN } else { biased };
                    }
                }
            },
        );
    }

    /// Adds what pairs give to the gradient of each lane's slope, `-distance * d_score`.
    pub(super) fn add_gradients(&self, sums: &mut [f64], d_scores: &[f32], first: u32) {
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (key, d_scores) in (first..).zip(d_scores.chunks_exact(self.at.len())) {
                    let key = f64::from(key);
                    for ((sum, at), d_score) in sums.iter_mut().zip(&self.at).zip(d_scores) {
                        *sum -= (at - key).abs() * f64::from(*d_score);
                    }
                }
            },
        );
    }
}
