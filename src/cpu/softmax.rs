//! Scores into weights, as wide as the machine's vectors.

use super::attend::State;
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
        let scores = S::as_mut_simd_f32s(scores).0;
        let (starts, counts) = (S::as_simd_u32s(&state.start).0, S::as_simd_u32s(&state.count).0);
        let (maxima, sums) =
            (S::as_mut_simd_f32s(&mut state.max).0, S::as_mut_simd_f32s(&mut state.sum).0);
        let decays = S::as_mut_simd_f32s(&mut state.decay).0;
        let vectors = maxima.len();
        for i in 0..vectors {
            let is_visible = |key: u32| {
                let distance = simd.sub_u32s(simd.splat_u32s(key), starts[i]);
                simd.less_than_u32s(distance, counts[i])
            };
            let mut max = maxima[i];
            for (score, key) in scores[i..].iter().step_by(vectors).zip(first..) {
                let larger = simd.and_m32s(is_visible(key), simd.less_than_f32s(max, *score));
                max = simd.select_f32s(larger, *score, max);
            }
            // Of rows that have seen no key, or only -inf: -inf - -inf would be NaN.
            let none = simd.equal_f32s(max, simd.splat_f32s(f32::NEG_INFINITY));
            let zero = simd.splat_f32s(0.0);
            let shift = simd.select_f32s(none, zero, max);
            let mut sum = zero;
            for (score, key) in scores[i..].iter_mut().step_by(vectors).zip(first..) {
                let weight = exp(simd, simd.sub_f32s(*score, shift));
                *score = simd.select_f32s(is_visible(key), weight, zero);
                sum = simd.add_f32s(sum, *score);
            }
            decays[i] = exp(simd, simd.sub_f32s(maxima[i], shift));
            sums[i] = simd.mul_add_e_f32s(sums[i], decays[i], sum);
            maxima[i] = max;
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
