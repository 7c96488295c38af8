//! What must hold whatever the numbers are: on every kernel and on the CPU path.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::buffers::{Placing, placed, tight};
use crate::support::case::{Case, Tensors, positions, relaid, start};
use crate::support::emulation::Got;
use crate::support::judge::{self, Answer};
use crate::support::random::Random;
use crate::support::target::Target;
use wgpu_attention::{Algorithm, DeviceClass, Layout, Mask, Problem, Shape, Strides};

const SHAPE: Shape = Shape::cross_attention(2, 6, 45, 83, 16).with_kv_heads(2);

fn case(name: &str, mask: Mask) -> Case {
    Case::new(name, Problem::new(SHAPE).mask(mask).with_lse()).sharp(12.0)
}

fn judged(answer: &Answer, target: Target, got: &Got) {
    answer.check(got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
}

/// Contiguous `[batch, heads, len, dim]` with its rows in another order.
fn reordered(data: &[f32], len: u32, order: impl Fn(u32) -> u32) -> Vec<f32> {
    let dim = SHAPE.head_dim;
    let heads = u32::try_from(data.len()).expect("small") / (SHAPE.batch * len * dim);
    let strides = Strides::bhsd(heads, len, dim);
    positions([SHAPE.batch, heads, len])
        .flat_map(|(b, h, j)| &data[start(strides, (b, h, order(j)))..][..dim as usize])
        .copied()
        .collect()
}

#[test]
fn the_order_of_keys_does_not_matter_without_a_mask() {
    let case = case("permuted keys", Mask::FULL);
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    let order = Random::new(5).permutation(SHAPE.kv_len);
    let permuted = |data: &[f32]| reordered(data, SHAPE.kv_len, |j| order[j as usize]);
    let permuted = Tensors {
        q: tensors.q.clone(),
        k: permuted(&tensors.k),
        v: permuted(&tensors.v),
        ..tensors.clone()
    };
    for target in Target::ALL {
        judged(&answer, target, &target.run(&case.to_string(), &case.problem, &permuted));
    }
}

#[test]
fn the_order_of_queries_does_not_matter_without_a_mask() {
    let case = case("permuted queries", Mask::FULL);
    let tensors = case.tensors(0);
    let order = Random::new(6).permutation(SHAPE.q_len);
    let permute = |data: &[f32]| reordered(data, SHAPE.q_len, |i| order[i as usize]);
    let permuted = Tensors { q: permute(&tensors.q), ..tensors.clone() };
    let answer = Answer::of(&case);
    for target in Target::ALL {
        let got = target.run(&case.to_string(), &case.problem, &permuted);
        let straight = target.run(&case.to_string(), &case.problem, &tensors);
        judged(&answer, target, &straight);
        let off = furthest(&got.out, &permute(&straight.out));
        assert!(off <= answer.bounds.out, "{target:?}: off by {off:e}: {case}");
    }
}

fn furthest(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| judge::error(*a, f64::from(*b))).fold(0.0, f64::max)
}

#[test]
fn a_constant_added_to_all_scores_moves_only_the_lse() {
    // The last coordinate is 0 in every query, or `shift`; every key has 1 there.
    let shift = 24.0;
    let case = case("shifted scores", Mask::CAUSAL);
    let with_last = |tensors: &Tensors, q: f32| {
        let last = SHAPE.head_dim as usize - 1;
        let mut tensors = tensors.clone();
        tensors.q.chunks_exact_mut(last + 1).for_each(|row| row[last] = q);
        tensors.k.chunks_exact_mut(last + 1).for_each(|row| row[last] = 1.0);
        tensors
    };
    let tensors = case.tensors(0);
    let (straight, shifted) = (with_last(&tensors, 0.0), with_last(&tensors, shift));
    let rows: Vec<_> = support::case::rows(&SHAPE).collect();
    let bounds = Answer::for_rows(case.to_string(), &case.problem, &shifted, &rows).bounds;
    let moved = shift * case.problem.effective_scale();
    for target in Target::ALL {
        let a = target.run(&case.to_string(), &case.problem, &straight);
        let b = target.run(&case.to_string(), &case.problem, &shifted);
        let off = furthest(&a.out, &b.out);
        assert!(off <= 2.0 * bounds.out, "{target:?}: out moved by {off:e}: {case}");
        let expected: Vec<f32> = a.lse.iter().flatten().map(|lse| lse + moved).collect();
        let off = furthest(&expected, &b.lse.unwrap_or_default());
        assert!(off <= 2.0 * bounds.lse, "{target:?}: lse is off by {off:e}: {case}");
    }
}

#[test]
fn equal_values_come_back() {
    let case = case("equal values", Mask::CAUSAL);
    let mut tensors = case.tensors(0);
    let value: Vec<f32> = (0_u8..16).map(|d| f32::from(d) - 7.5).collect();
    tensors.v.chunks_exact_mut(16).for_each(|row| row.copy_from_slice(&value));
    for target in Target::ALL {
        let got = target.run(&case.to_string(), &case.problem, &tensors);
        for row in got.out.chunks_exact(16) {
            let off = furthest(row, &value);
            // Weights sum to 1 but for rounding: a few units in the last place of a sum of 83.
            assert!(off <= 7.5 * 2e-6, "{target:?}: off by {off:e}: {case}");
        }
    }
}

#[test]
fn shared_heads_are_repeated_heads() {
    let case = case("repeated heads", Mask::CAUSAL);
    let (grouped, tensors) = (case.problem.clone(), case.tensors(0));
    let repeated = |data: &[f32]| -> Vec<f32> {
        let head_len = (SHAPE.kv_len * SHAPE.head_dim) as usize;
        let heads = data.chunks_exact(head_len);
        heads.flat_map(|head| head.repeat(SHAPE.group_size() as usize)).collect()
    };
    let repeated = Tensors {
        q: tensors.q.clone(),
        k: repeated(&tensors.k),
        v: repeated(&tensors.v),
        ..tensors.clone()
    };
    let shape = SHAPE.with_kv_heads(SHAPE.heads);
    let ungrouped = Problem::new(shape).mask(Mask::CAUSAL).with_lse();
    for target in Target::ALL {
        let got = target.run(&case.to_string(), &grouped, &tensors);
        let want = target.run(&case.to_string(), &ungrouped, &repeated);
        // Blocks of the CPU path are cut by group, which may round otherwise.
        if matches!(target, Target::Cpu) {
            let answer = Answer::of(&case);
            judged(&answer, target, &got);
            judged(&answer, target, &want);
        } else {
            assert_eq!(got, want, "{target:?}: {case}");
        }
    }
}

#[test]
fn all_targets_agree() {
    let case = case("agreement", Mask::window(30));
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    let results: Vec<_> = (Target::ALL.iter())
        .map(|target| target.run(&case.to_string(), &case.problem, &tensors))
        .collect();
    for (i, a) in results.iter().enumerate() {
        for (j, b) in results.iter().enumerate() {
            let off = furthest(&a.out, &b.out);
            assert!(off <= answer.bounds.out, "targets {i} and {j} differ by {off:e}: {case}");
        }
    }
}

#[test]
fn results_repeat_bit_for_bit() {
    let case = case("repeated", Mask::CAUSAL);
    let tensors = case.tensors(0);
    for target in Target::ALL {
        let first = target.run(&case.to_string(), &case.problem, &tensors);
        for _ in 0..3 {
            let again = target.run(&case.to_string(), &case.problem, &tensors);
            assert_eq!(again, first, "{target:?}: {case}");
        }
    }
}

#[test]
fn strides_do_not_change_a_bit() {
    let case = case("strided", Mask::CAUSAL);
    let (dense, tensors) = (case.problem.clone(), case.tensors(0));
    let gapped = |heads: u32, len: u32| {
        let row = u64::from(SHAPE.head_dim) + 4;
        let head = u64::from(len) * row + 8;
        Strides { batch: u64::from(heads) * head + 12, head, row }
    };
    let q = gapped(SHAPE.heads, SHAPE.q_len);
    let kv = gapped(SHAPE.kv_heads, SHAPE.kv_len);
    let layouts = [
        dense.clone().layout(Layout::Bshd),
        dense.clone().layout(Layout::PackedQkv),
        dense.clone().q_strides(q).k_strides(kv).v_strides(kv).out_strides(q),
    ];
    let q_axes = [SHAPE.batch, SHAPE.heads, SHAPE.q_len];
    let kv_axes = [SHAPE.batch, SHAPE.kv_heads, SHAPE.kv_len];
    let dim = SHAPE.head_dim;
    for target in Target::ALL {
        let want = target.run(&case.to_string(), &dense, &tensors);
        for problem in &layouts {
            let strided = Tensors {
                q: relaid(&tensors.q, q_axes, dim, (dense.q, problem.q)),
                k: relaid(&tensors.k, kv_axes, dim, (dense.k, problem.k)),
                v: relaid(&tensors.v, kv_axes, dim, (dense.v, problem.v)),
                ..Tensors::default()
            };
            let mut got = target.run(&case.to_string(), problem, &strided);
            got.out = relaid(&got.out, q_axes, dim, (problem.out, dense.out));
            assert_eq!(got, want, "{target:?}: {problem:?}");
        }
    }
}

/// The caller's own device and buffers: one for q, k and v, at starts that vectors of four do and do not like.
#[test]
fn slices_of_shared_buffers_give_what_buffers_of_their_own_give() {
    let case = case("slices", Mask::CAUSAL);
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    for (class, algorithm) in
        [(DeviceClass::Hardware, Algorithm::Staged), (DeviceClass::Software, Algorithm::Flash)]
    {
        for first in [0, 4, 3] {
            let placing = Placing { class, algorithm, first };
            let got = placed(&placing, &case.problem, &tensors);
            answer.check(&got).unwrap_or_else(|error| panic!("{placing:?}: {error}"));
        }
    }
}

/// Where a binding holds a small part of any tensor, problems come in blocks and ranges of keys.
#[test]
fn small_bindings_give_the_same() {
    let cases = [
        Case::new("blocks", Problem::new(SHAPE).mask(Mask::CAUSAL).with_lse()).sharp(12.0),
        Case::new("ranges", {
            let shape = Shape::cross_attention(1, 3, 50, 301, 16);
            Problem::new(shape).mask(Mask::band(Some(150), None)).with_lse()
        }),
        Case::new("full ranges", {
            Problem::new(Shape::cross_attention(1, 2, 70, 513, 16).with_kv_heads(1)).with_lse()
        })
        .sharp(8.0),
    ];
    for case in cases {
        let (answer, tensors) = (Answer::of(&case), case.tensors(0));
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let got = tight(algorithm, 8_500, &case.problem, &tensors);
            answer.check(&got).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
    }
}
