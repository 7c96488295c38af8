//! The tests of the tests: the rule fails what is wrong, and the definition agrees with something else.

#![cfg(feature = "cpu")]

use crate::support::case::{Case, Tensors, rows, start};
use crate::support::emulation::{self, Got};
use crate::support::judge::Answer;
use wgpu_attention::{Diagonal, Inputs, Mask, Problem, Shape, reference};

/// Flat and sharp: a wrong kernel must be caught in both.
const SHARPNESS: [f32; 3] = [1.0, 8.0, 30.0];

fn cases(problem: Problem) -> impl Iterator<Item = (Case, Answer)> {
    SHARPNESS.into_iter().map(move |sharpness| {
        let case = Case::new("control", problem.clone().with_lse().with_weights()).sharp(sharpness);
        let answer = Answer::of(&case);
        (case, answer)
    })
}

fn square() -> Shape {
    Shape::self_attention(1, 6, 61, 37).with_kv_heads(3)
}

fn masked(mask: Mask) -> Problem {
    Problem::new(square()).mask(mask)
}

/// Asserts that each output that `wrong` changed is caught by itself, and all of them right are not.
fn catches(problem: Problem, wrong: impl Fn(&Case, &Tensors) -> Got) {
    for (case, answer) in cases(problem) {
        let tensors = case.tensors(0);
        let right = emulation::forward(&case.problem, &tensors);
        assert_eq!(answer.check(&right), Ok(()));
        let wrong = wrong(&case, &tensors);
        assert!(answer.check(&Got { out: wrong.out, ..right.clone() }).is_err(), "out: {case}");
        assert!(answer.check(&Got { lse: wrong.lse, ..right.clone() }).is_err(), "lse: {case}");
        let weights = wrong.weights;
        assert!(answer.check(&Got { weights, ..right }).is_err(), "weights: {case}");
    }
}

/// Finite inputs everywhere, so that a wrong mask is caught by its numbers and not by the poison.
fn healed(tensors: &Tensors) -> Tensors {
    let heal = |data: &[f32]| data.iter().map(|x| if x.is_nan() { 0.1 } else { *x }).collect();
    Tensors { q: heal(&tensors.q), k: heal(&tensors.k), v: heal(&tensors.v), ..tensors.clone() }
}

/// What a kernel gives that takes `problem` for the case's own.
fn mistaken(problem: Problem) -> impl Fn(&Case, &Tensors) -> Got {
    move |_, tensors| emulation::forward(&problem, &healed(tensors))
}

#[test]
fn a_mask_that_is_off_by_one_is_caught() {
    catches(masked(Mask::CAUSAL), mistaken(masked(Mask::band(None, Some(1)))));
    catches(masked(Mask::window(9)), mistaken(masked(Mask::window(8))));
    catches(masked(Mask::window(9)), mistaken(masked(Mask::window(10))));
    let (one_less, band) = (Mask::band(Some(7), Some(3)), Mask::band(Some(7), Some(4)));
    catches(masked(band), mistaken(masked(one_less)));
    let shifted = Mask::CAUSAL.along(Diagonal::Offset(-1));
    catches(masked(Mask::CAUSAL), mistaken(masked(shifted)));
}

#[test]
fn a_scale_that_is_off_by_a_hundredth_is_caught() {
    let scale = Problem::new(square()).effective_scale();
    catches(masked(Mask::CAUSAL), mistaken(masked(Mask::CAUSAL).scale(scale * 1.01)));
    catches(masked(Mask::FULL), mistaken(masked(Mask::FULL).scale(scale * 0.99)));
}

#[test]
fn the_other_diagonal_is_caught() {
    for (q_len, kv_len) in [(31, 59), (59, 31)] {
        let shape = Shape::cross_attention(1, 2, q_len, kv_len, 32);
        let problem = |diagonal| Problem::new(shape).mask(Mask::CAUSAL.along(diagonal));
        let (top, bottom) = (problem(Diagonal::TopLeft), problem(Diagonal::BottomRight));
        catches(bottom.clone(), mistaken(top.clone()));
        catches(top, mistaken(bottom));
    }
}

#[test]
fn a_dropped_key_is_caught() {
    let problem = masked(Mask::FULL);
    let mut shorter = problem.clone().with_lse();
    shorter.shape.kv_len -= 1;
    catches(problem, |case, tensors| {
        let s = case.problem.shape;
        let mut got = emulation::forward(&shorter, tensors);
        // The weights of the keys that are left, with a 0 for the dropped one.
        let weights = got.weights.take().expect("weights");
        let kept = weights.chunks_exact(s.kv_len as usize - 1);
        got.weights = Some(kept.flat_map(|row| row.iter().copied().chain([0.0])).collect());
        got
    });
}

#[test]
fn heads_grouped_by_modulo_are_caught() {
    catches(masked(Mask::CAUSAL), |case, tensors| {
        let s = case.problem.shape;
        let spread = |data: &[f32]| -> Vec<f32> {
            let head_len = data.len() / s.kv_heads as usize;
            let head = |h: u32| &data[(h % s.kv_heads) as usize * head_len..][..head_len];
            (0..s.heads).flat_map(|h| head(h).iter().copied()).collect()
        };
        let spread = Tensors {
            q: tensors.q.clone(),
            k: spread(&tensors.k),
            v: spread(&tensors.v),
            ..tensors.clone()
        };
        let ungrouped = Problem::new(s.with_kv_heads(s.heads)).mask(case.problem.mask);
        emulation::forward(&ungrouped, &spread)
    });
}

#[test]
fn a_missing_rescale_is_caught() {
    // As an online softmax that forgets to shrink what it has when a block of keys raises the maximum.
    for (case, answer) in cases(masked(Mask::FULL)) {
        let (problem, s) = (&case.problem, case.problem.shape);
        let tensors = case.tensors(0);
        let mut got = emulation::forward(problem, &tensors);
        for at in rows(&s) {
            let row = reference::row(problem, &Inputs::new(&tensors.q, &tensors.k, &tensors.v), at);
            let score = |j: u32| row.weights[j as usize].ln();
            let half = s.kv_len / 2;
            let max = |keys: std::ops::Range<u32>| keys.map(score).fold(f64::MIN, f64::max);
            let (early, all) = (max(0..half), max(0..s.kv_len));
            // Early keys count as if their maximum were everyone's.
            let factor = |j: u32| if j < half { (all - early).exp() } else { 1.0 };
            let p = |j: u32| row.weights[j as usize] * factor(j);
            let sum: f64 = (0..s.kv_len).map(p).sum();
            for d in 0..s.v_head_dim as usize {
                let v = |j| tensors.v[start(problem.v, (0, at.1 / s.group_size(), j)) + d];
                let o: f64 = (0..s.kv_len).map(|j| p(j) / sum * f64::from(v(j))).sum();
                #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
                let o = o as f32;
                got.out[start(problem.out, at) + d] = o;
            }
        }
        assert!(answer.check(&got).is_err(), "{case}");
    }
}

/// The first element of each output, to be spoilt.
fn elements() -> [fn(&mut Got) -> &mut f32; 3] {
    [
        |got| &mut got.out[100],
        |got| &mut got.lse.as_mut().expect("lse")[60],
        |got| &mut got.weights.as_mut().expect("weights")[61],
    ]
}

#[test]
fn one_element_off_by_four_bounds_is_caught() {
    for (case, answer) in cases(masked(Mask::FULL)) {
        let right = emulation::forward(&case.problem, &case.tensors(0));
        let bounds = answer.bounds;
        for (element, bound) in elements().into_iter().zip([bounds.out, bounds.lse, bounds.weights])
        {
            for sign in [-1.0, 1.0] {
                let mut wrong = right.clone();
                let moved = f64::from(*element(&mut wrong)) + sign * 4.0 * bound;
                #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
                let moved = moved as f32;
                *element(&mut wrong) = moved;
                assert!(answer.check(&wrong).is_err(), "{bound} {sign}: {case}");
            }
        }
    }
}

#[test]
fn one_nan_or_infinity_is_caught() {
    for (case, answer) in cases(masked(Mask::FULL)) {
        let right = emulation::forward(&case.problem, &case.tensors(0));
        for element in elements() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut wrong = right.clone();
                *element(&mut wrong) = value;
                assert!(answer.check(&wrong).is_err(), "{value}: {case}");
            }
        }
    }
}

#[test]
fn rows_without_keys_that_are_not_exact_are_caught() {
    let shape = Shape::cross_attention(1, 1, 20, 10, 32);
    for (case, answer) in cases(Problem::new(shape).mask(Mask::CAUSAL)) {
        let right = emulation::forward(&case.problem, &case.tensors(0));
        assert_eq!(answer.check(&right), Ok(()));
        // Row 0 sees nothing; 1e-9 is far below the bound of any other element.
        let spoilt: [fn(&mut Got); 4] = [
            |got| got.out[3] = 1e-9,
            |got| got.lse.as_mut().expect("lse")[0] = -1e30,
            |got| got.lse.as_mut().expect("lse")[0] = f32::NAN,
            |got| got.weights.as_mut().expect("weights")[0] = 1e-9,
        ];
        for (i, spoil) in spoilt.into_iter().enumerate() {
            let mut wrong = right.clone();
            spoil(&mut wrong);
            assert!(answer.check(&wrong).is_err(), "{i}: {case}");
        }
    }
}

#[test]
fn outputs_that_are_missing_or_too_short_are_caught() {
    let (case, answer) = cases(masked(Mask::FULL)).next().expect("a case");
    let right = emulation::forward(&case.problem, &case.tensors(0));
    assert!(answer.check(&Got { out: Vec::new(), ..right.clone() }).is_err());
    assert!(answer.check(&Got { lse: None, ..right.clone() }).is_err());
    assert!(answer.check(&Got { lse: Some(Vec::new()), ..right.clone() }).is_err());
    assert!(answer.check(&Got { weights: None, ..right }).is_err());
}

#[test]
fn the_definition_gives_two_by_two_as_done_by_hand() {
    // Scores ln 1, ln 3 / ln 2, ln 2: weights 1/4, 3/4 / 1/2, 1/2.
    let problem = Problem::new(Shape::self_attention(1, 1, 2, 1)).scale(1.0);
    let (q, k) = ([1.0, 0.0], [0.0, 3.0_f32.ln()]);
    let row = |i| reference::row(&problem, &Inputs::new(&q, &k, &[4.0, 8.0]), (0, 0, i));
    let (first, second) = (row(0), row(1));
    approx::assert_abs_diff_eq!(first.weights[..], [0.25, 0.75], epsilon = 1e-7);
    approx::assert_abs_diff_eq!(first.out[..], [7.0], epsilon = 1e-6);
    approx::assert_abs_diff_eq!(first.lse, 4.0_f64.ln(), epsilon = 1e-7);
    assert_eq!(second.weights, [0.5, 0.5]);
    assert_eq!(second.out, [6.0]);
    approx::assert_abs_diff_eq!(second.lse, 2.0_f64.ln(), epsilon = 1e-15);

    // Causal: row 0 sees key 0 alone, row 1 both.
    let problem = problem.mask(Mask::CAUSAL);
    let row = |i| reference::row(&problem, &Inputs::new(&q, &k, &[4.0, 8.0]), (0, 0, i));
    assert_eq!((row(0).out, row(0).lse, row(0).weights), (vec![4.0], 0.0, vec![1.0, 0.0]));
    assert_eq!(row(1), second);
}

#[test]
fn the_definition_is_the_naive_formula_where_scores_are_small() {
    let shape = Shape::cross_attention(2, 4, 7, 11, 5).with_kv_heads(2).with_v_head_dim(3);
    let problem = Problem::new(shape).mask(Mask::band(Some(4), Some(2)));
    let tensors = healed(&Case::new("naive", problem.clone()).tensors(0));
    let want = reference::forward(&problem, &Inputs::new(&tensors.q, &tensors.k, &tensors.v));
    for (row, (b, h, i)) in rows(&shape).enumerate() {
        // Contiguous indices, the band and the group spelt out; no maximum subtracted.
        let kv = (b * 2 + h / 2) as usize * 11;
        let visible = |j: u32| j + 4 >= i + 4 && j <= i + 4 + 2;
        let (mut sum, mut out) = (0.0, [0.0; 3]);
        for j in (0..11).filter(|j| visible(*j)) {
            let at = kv + j as usize;
            let dot = |d: usize| f64::from(tensors.q[row * 5 + d] * tensors.k[at * 5 + d]);
            let p = ((0..5).map(dot).sum::<f64>() / 5.0_f64.sqrt()).exp();
            sum += p;
            (0..3).for_each(|d| out[d] += p * f64::from(tensors.v[at * 3 + d]));
        }
        let out = out.map(|o| o / sum);
        approx::assert_abs_diff_eq!(want.out[row * 3..][..3], out, epsilon = 1e-6);
        approx::assert_abs_diff_eq!(want.lse[row], sum.ln(), epsilon = 1e-6);
    }
}
