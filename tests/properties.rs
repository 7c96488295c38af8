//! Random problems against the definition. The seed is fixed: `PROPTEST_RNG_SEED` takes another.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::case::Case;
use crate::support::judge::Answer;
use crate::support::target::Target;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use wgpu_attention::{DeviceClass, Diagonal, Layout, Mask, Problem, Shape, Strides};

/// Head and value widths, drawn once from 1 to 260: each pair costs software GPUs seconds to compile, while
/// problems of one pair cost milliseconds.
const DIMS: [(u32, u32); 5] = [(80, 80), (23, 64), (131, 18), (6, 109), (260, 47)];

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![1 => 0_u32..3, 4 => 1_u32..100, 2 => 100_u32..=300]
}

fn mask() -> impl Strategy<Value = Mask> {
    let side = || prop::option::weighted(0.7, prop_oneof![3 => 0_u32..40, 1 => 0_u32..400]);
    let diagonal = prop_oneof![
        2 => Just(Diagonal::BottomRight),
        2 => Just(Diagonal::TopLeft),
        1 => (-320_i32..320).prop_map(Diagonal::Offset),
    ];
    (side(), side(), diagonal)
        .prop_map(|(left, right, diagonal)| Mask::band(left, right).along(diagonal))
}

/// Extra elements between rows, heads and sequences.
fn gaps() -> impl Strategy<Value = [u64; 3]> {
    prop_oneof![Just([0, 0, 0]), Just([4, 8, 4]), [0_u64..4, 0_u64..4, 0_u64..4]]
}

fn gapped(heads: u32, len: u32, dim: u32, [row, head, batch]: [u64; 3]) -> Strides {
    let row = u64::from(dim) + row;
    let head = u64::from(len) * row + head;
    Strides { batch: u64::from(heads) * head + batch, head, row }
}

fn problem((head_dim, v_head_dim): (u32, u32)) -> impl Strategy<Value = Problem> {
    let heads = (1_u32..4, 1_u32..8);
    let scale = prop::option::weighted(0.2, -2.0_f32..2.0);
    let layout = prop_oneof![
        Just(None),
        Just(Some(Layout::Bhsd)),
        Just(Some(Layout::Bshd)),
        Just(Some(Layout::PackedQkv)),
    ];
    (0_u32..4, heads, len(), len(), mask(), scale, layout, [gaps(), gaps(), gaps(), gaps()])
        .prop_map(move |(batch, (kv_heads, group), q_len, kv_len, mask, scale, layout, gaps)| {
            let heads = kv_heads * group;
            let shape = Shape::cross_attention(batch, heads, q_len, kv_len, head_dim)
                .with_kv_heads(kv_heads)
                .with_v_head_dim(v_head_dim);
            // Always with lse: half as many kernels.
            let mut problem = Problem::new(shape).mask(mask).with_lse();
            problem.scale = scale;
            match layout {
                Some(layout) => problem.layout(layout),
                None => problem
                    .q_strides(gapped(heads, q_len, head_dim, gaps[0]))
                    .k_strides(gapped(kv_heads, kv_len, head_dim, gaps[1]))
                    .v_strides(gapped(kv_heads, kv_len, v_head_dim, gaps[2]))
                    .out_strides(gapped(heads, q_len, v_head_dim, gaps[3])),
            }
        })
}

fn case(dims: (u32, u32)) -> impl Strategy<Value = Case> {
    (problem(dims), prop_oneof![Just(1.0_f32), 8.0_f32..30.0])
        .prop_map(|(problem, sharpness)| Case::new("random", problem).sharp(sharpness))
}

/// Problems of one pair of widths, on each target.
fn holds(dims: &[(u32, u32)], cases: u32, targets: &[Target]) {
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
    let config = Config {
        cases: if support::small() { cases / 4 } else { cases },
        failure_persistence: None,
        max_shrink_iters: 200,
        rng_seed: RngSeed::Fixed(seed.unwrap_or(1)),
        ..Config::default()
    };
    for dims in dims {
        let property = |case: Case| {
            let answer = Answer::of(&case);
            for target in targets {
                let got = target.try_run(&case.problem, &case.tensors(0));
                let got = got.map_err(|error| fail(*target, &format!("{error}: {case}")))?;
                answer.check(&got).map_err(|error| fail(*target, &error))?;
            }
            Ok(())
        };
        let result = TestRunner::new(config.clone()).run(&case(*dims), property);
        result.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn fail(target: Target, error: &str) -> TestCaseError {
    TestCaseError::fail(format!("{target:?}: {error}"))
}

/// The pair of widths where time is short.
const SMALL: [(u32, u32); 1] = [(23, 29)];

/// The first `count` widths.
fn dims(count: usize) -> &'static [(u32, u32)] {
    if support::small() { &SMALL } else { &DIMS[..count] }
}

#[test]
fn software_tiles_agree_with_the_definition() {
    let class = DeviceClass::Software;
    holds(dims(3), 60, &[Target::Staged(class), Target::Flash(class)]);
}

#[test]
fn hardware_tiles_agree_with_the_definition() {
    let class = DeviceClass::Hardware;
    holds(dims(2), 40, &[Target::Staged(class), Target::Flash(class)]);
}

#[test]
fn the_cpu_path_agrees_with_the_definition() {
    holds(&DIMS, 40, &[Target::Cpu]);
}
