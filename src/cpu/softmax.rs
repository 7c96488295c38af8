//! Scores into weights, as wide as the machine's vectors.

use super::state::State;
use pulp::{Scalar, Simd, WithSimd};
use std::f32::consts::LOG2_E;

/// Turns the scores of a block of keys into weights, `exp(score - max)`, and updates the state.
pub(super) struct Softmax<'a> {
    pub(super) state: &'a mut State,
    /// `[keys, lanes]`.
    pub(super) scores: &'a mut [f32],
    /// Position of the first key.
    pub(super) first: u32,
}

/// `pulp` compiles it for every instruction set and chooses as the program runs: a plain x86-64
/// build would use half the lanes.
impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { state, scores, first } = self;
        if state.max.len() % S::F32_LANES != 0 {
            return Softmax { state, scores, first }.with_simd(Scalar::new());
        }
        let keys = scores.len() / state.max.len();
        // Rows past the last see nothing.
        let all = state.band.whole(first, keys);
        let mut columns = Columns {
            scores: S::as_mut_simd_f32s(scores).0,
            starts: S::as_simd_u32s(&state.band.start).0,
            counts: S::as_simd_u32s(&state.band.count).0,
            maxima: S::as_mut_simd_f32s(&mut state.max).0,
            sums: S::as_mut_simd_f32s(&mut state.sum).0,
            decays: S::as_mut_simd_f32s(&mut state.decay).0,
            first,
        };
        let mut at = 0;
        while at < columns.maxima.len() {
            let lanes = &all[at * S::F32_LANES..];
            let together = lanes.len() >= TOGETHER * S::F32_LANES;
            let n = if together { TOGETHER } else { 1 };
            let all = lanes[..n * S::F32_LANES].iter().all(|all| *all);
            match (together, all) {
                (true, true) => columns.weigh::<TOGETHER, true>(simd, at),
                (true, false) => columns.weigh::<TOGETHER, false>(simd, at),
                (false, true) => columns.weigh::<1, true>(simd, at),
                (false, false) => columns.weigh::<1, false>(simd, at),
            }
            at += n;
        }
    }
}

/// Vectors of rows that are worked on at once: whole cache lines, and enough of them that one need not wait for
/// another's maximum.
const TOGETHER: usize = 4;

/// A block of keys as vectors of rows.
struct Columns<'a, S: Simd> {
    /// `[keys, vectors]`.
    scores: &'a mut [S::f32s],
    starts: &'a [S::u32s],
    counts: &'a [S::u32s],
    maxima: &'a mut [S::f32s],
    sums: &'a mut [S::f32s],
    decays: &'a mut [S::f32s],
    first: u32,
}

impl<S: Simd> Columns<'_, S> {
    /// N vectors from `at` on. `ALL`: each row sees every key of the block.
    #[inline(always)]
    fn weigh<const N: usize, const ALL: bool>(&mut self, simd: S, at: usize) {
        let vectors = self.maxima.len();
        let (starts, counts) = (&self.starts[at..][..N], &self.counts[at..][..N]);
        let is_visible = |n: usize, key: u32| {
            let distance = simd.sub_u32s(simd.splat_u32s(key), starts[n]);
            simd.less_than_u32s(distance, counts[n])
        };
        let (lowest, zero) = (simd.splat_f32s(f32::NEG_INFINITY), simd.splat_f32s(0.0));
        let maxima: &mut [_; N] = (&mut self.maxima[at..][..N]).try_into().expect("N");
        let mut max = *maxima;
        for (scores, key) in self.scores.chunks_exact(vectors).zip(self.first..) {
            let scores: &[_; N] = scores[at..][..N].try_into().expect("N");
            for n in 0..N {
                let score = scores[n];
                let score =
                    if ALL { score } else { simd.select_f32s(is_visible(n, key), score, lowest) };
                max[n] = simd.max_f32s(score, max[n]);
            }
        }
        // Of rows that have seen no key, or only -inf: -inf - -inf would be NaN.
        let shift = max.map(|max| simd.select_f32s(simd.equal_f32s(max, lowest), zero, max));
        let mut sum = [zero; N];
        for (scores, key) in self.scores.chunks_exact_mut(vectors).zip(self.first..) {
            let scores: &mut [_; N] = (&mut scores[at..][..N]).try_into().expect("N");
            for n in 0..N {
                let weight = exp(simd, simd.sub_f32s(scores[n], shift[n]));
                let weight =
                    if ALL { weight } else { simd.select_f32s(is_visible(n, key), weight, zero) };
                scores[n] = weight;
                sum[n] = simd.add_f32s(sum[n], weight);
            }
        }
        for n in 0..N {
            let decay = exp(simd, simd.sub_f32s(maxima[n], shift[n]));
            self.decays[at + n] = decay;
            self.sums[at + n] = simd.mul_add_e_f32s(self.sums[at + n], decay, sum[n]);
            maxima[n] = max[n];
        }
    }
}

/// `exp(x)` within 2 units in the last place for `x <= 0`, 0 where that is below the normal
/// numbers, NaN of NaN; by the polynomial of Cephes. `f32::exp` is a call for every lane.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, negative; an integer times the first is exact.
    const MINUS_LN_2: [f32; 2] = [-355.0 / 512.0, 2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let splat = |x| simd.splat_f32s(x);
    let rounded = simd.mul_add_e_f32s(x, splat(LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(MINUS_LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, splat(MINUS_LN_2[1]), r);
    let mut p = splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = simd.mul_add_e_f32s(p, r, splat(*c));
    }
    let one = splat(1.0);
    p = simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), simd.add_f32s(r, one));
    let exponent_bits = 23;
    let n = simd.transmute_u32s_f32s(rounded);
    let n = simd.wrapping_dyn_shl_u32s(n, simd.splat_u32s(exponent_bits));
    let power_of_two = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.transmute_u32s_f32s(one)));
    let normal = simd.mul_f32s(p, power_of_two);
    simd.select_f32s(simd.less_than_f32s(x, splat(-87.3)), splat(0.0), normal)
}
