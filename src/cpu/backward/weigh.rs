//! Scores into weights and gradients of scores, as wide as the machine's vectors.

use super::super::band::Band;
use super::super::softmax::exp;
use pulp::{Scalar, Simd, WithSimd};

/// Weights and gradients of scores where nothing but the band has a say, as wide as the machine's vectors.
pub(super) struct Weigh<'a> {
    pub(super) band: &'a Band,
    /// One a lane.
    pub(super) lse: &'a [f32],
    /// One a lane.
    pub(super) delta: &'a [f32],
    /// `[keys, lanes]`: scores before, weights after.
    pub(super) weights: &'a mut [f32],
    /// `[keys, lanes]`: gradients of weights before, of scores after.
    pub(super) d_scores: &'a mut [f32],
    /// Position of the first key.
    pub(super) first: u32,
    /// What gradients of scores are multiplied by.
    pub(super) factor: f32,
}

/// Vectors of rows that are worked on at once: whole cache lines.
const TOGETHER: usize = 2;

impl WithSimd for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = self.band.lanes();
        if !lanes.is_multiple_of(S::F32_LANES) {
            return self.with_simd(Scalar::new());
        }
        let Self { band, lse, delta, weights, d_scores, first, factor } = self;
        let whole = band.whole(first, weights.len() / lanes);
        let mut columns = Columns {
            weights: S::as_mut_simd_f32s(weights).0,
            d_scores: S::as_mut_simd_f32s(d_scores).0,
            starts: S::as_simd_u32s(&band.start).0,
            counts: S::as_simd_u32s(&band.count).0,
            lse: S::as_simd_f32s(lse).0,
            delta: S::as_simd_f32s(delta).0,
            factor: simd.splat_f32s(factor),
            first,
        };
        let mut at = 0;
        while at < columns.lse.len() {
            let n = TOGETHER.min(columns.lse.len() - at);
            let all = whole[at * S::F32_LANES..][..n * S::F32_LANES].iter().all(|whole| *whole);
            match (n == TOGETHER, all) {
                (true, true) => columns.weigh::<TOGETHER, true>(simd, at),
                (true, false) => columns.weigh::<TOGETHER, false>(simd, at),
                (false, true) => columns.weigh::<1, true>(simd, at),
                (false, false) => columns.weigh::<1, false>(simd, at),
            }
            at += if n == TOGETHER { n } else { 1 };
        }
    }
}

/// A block of keys as vectors of rows.
struct Columns<'a, S: Simd> {
    /// `[keys, vectors]`.
    weights: &'a mut [S::f32s],
    /// `[keys, vectors]`.
    d_scores: &'a mut [S::f32s],
    starts: &'a [S::u32s],
    counts: &'a [S::u32s],
    lse: &'a [S::f32s],
    delta: &'a [S::f32s],
    factor: S::f32s,
    first: u32,
}

impl<S: Simd> Columns<'_, S> {
    /// N vectors from `at` on. `ALL`: each row sees every key of the block.
    #[inline(always)]
    fn weigh<const N: usize, const ALL: bool>(&mut self, simd: S, at: usize) {
        let vectors = self.lse.len();
        let zero = simd.splat_f32s(0.0);
        let pairs =
            self.weights.chunks_exact_mut(vectors).zip(self.d_scores.chunks_exact_mut(vectors));
        for ((weights, d_scores), key) in pairs.zip(self.first..) {
            for n in at..at + N {
                let p = exp(simd, simd.sub_f32s(weights[n], self.lse[n]));
                let d_score = simd.mul_f32s(p, simd.sub_f32s(d_scores[n], self.delta[n]));
                let d_score = simd.mul_f32s(d_score, self.factor);
                (weights[n], d_scores[n]) = if ALL {
                    (p, d_score)
                } else {
                    let distance = simd.sub_u32s(simd.splat_u32s(key), self.starts[n]);
                    let is_visible = simd.less_than_u32s(distance, self.counts[n]);
                    let select = |x| simd.select_f32s(is_visible, x, zero);
                    (select(p), select(d_score))
                };
            }
        }
    }
}
