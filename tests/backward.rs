//! Gradients against the definition in f64.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::case::{Case, Tensors, rows, start};
use crate::support::catalogue::catalogue;
use crate::support::draw::kinds;
use crate::support::functions;
use crate::support::gradients::{Answer, BUDGET, Given, all_of, work};
use crate::support::random::Random;
use crate::support::target::Target;
use std::sync::{LazyLock, OnceLock};
use wgpu_attention::{
    Algorithm, Backward, BackwardInputs, DType, DeviceClass, Diagonal, Error, Gradients, Inputs,
    Layout, Mask, MaskFormat, Pairs, PlanError, Problem, Runner, ScoreFunction, Shape, Slopes,
    Strides,
};

/// A case, what of it is asked for, and its answer, which all targets share.
struct Asked {
    case: Case,
    backward: Backward,
    answer: OnceLock<(Answer, Tensors, Given)>,
}

impl Asked {
    fn new(case: Case, backward: Backward) -> Self {
        Self { case, backward, answer: OnceLock::new() }
    }

    fn all_of(case: Case) -> Self {
        let backward = all_of(&case.problem).with_d_lse();
        Self::new(case, backward)
    }

    /// What is wrong with what the target gives.
    fn error(&self, target: Target) -> Option<String> {
        let answer = || Answer::of(&self.case, &self.backward);
        let (answer, tensors, given) = self.answer.get_or_init(answer);
        match target.try_backward(&self.backward, tensors, given) {
            Ok(got) => answer.check(&got).err(),
            // A row or a key tile of some tensors does not fit: said by name.
            Err(Error::Plan(PlanError::LimitExceeded { limit, .. }))
                if matches!(target, Target::Tight(..))
                    && limit == "max_storage_buffer_binding_size" =>
            {
                None
            }
            Err(error) => Some(format!("{error}: {}", self.case)),
        }
    }
}

fn agree<'a>(target: Target, asked: impl IntoIterator<Item = &'a Asked>) {
    let failures: Vec<_> = asked.into_iter().filter_map(|asked| asked.error(target)).collect();
    assert!(failures.is_empty(), "{target:?}:\n{}", failures.join("\n"));
}

/// The catalogue's problems that f64 has the time for, without what has no gradient.
static CATALOGUE: LazyLock<Vec<Asked>> = LazyLock::new(|| {
    let few = |case: &Case| {
        let problem = &case.problem;
        work(problem) <= 3 * BUDGET && !problem.weights && problem.scores.is_none()
    };
    catalogue().into_iter().filter(few).map(Asked::all_of).collect()
});

/// Every feature that a kernel of gradients has, by itself, flat and sharp in turn.
static FEATURES: LazyLock<Vec<Asked>> = LazyLock::new(|| {
    let shape = Shape::cross_attention(2, 6, 37, 75, 16).with_kv_heads(2);
    let plain = || Problem::new(shape);
    let bias = |axes| plain().with_bias(DType::F32, Pairs::new(axes));
    let exact = Pairs::new([2, 6, 37, 75]);
    let types = |dtype| plain().dtype(dtype).mask(Mask::CAUSAL);
    let problems = vec![
        ("soft cap", plain().softcap(2.0)),
        ("slopes", plain().with_alibi(Slopes::PerHead).mask(Mask::CAUSAL)),
        ("slopes of sequences", plain().with_alibi(Slopes::PerSequence)),
        ("bias", bias([2, 6, 37, 75])),
        ("bias of heads", bias([1, 6, 37, 75])),
        ("bias that all share", bias([1, 1, 37, 75])),
        ("bias of keys", bias([2, 1, 1, 75])),
        ("bias of queries", bias([1, 6, 37, 1])),
        ("bias of heads alone", bias([1, 6, 1, 1])),
        ("bias in f16", plain().with_bias(DType::F16, exact)),
        ("boolean mask", plain().with_boolean_mask(MaskFormat::Bits, exact)),
        ("sinks", plain().with_sinks().mask(Mask::window(9))),
        ("sinks alone", plain().with_sinks().mask(Mask::CAUSAL.along(Diagonal::Offset(-20)))),
        ("lengths", plain().with_lengths(true, true).mask(Mask::CAUSAL)),
        ("packed", Problem::packed(shape).mask(Mask::CAUSAL)),
        ("packed with slopes", Problem::packed(shape).with_alibi(Slopes::PerSequence)),
        ("bent", plain().with_score_function(functions::bent())),
        ("fading", plain().with_score_function(functions::fading())),
        ("relative", plain().with_score_function(functions::relative_position())),
        ("documents", plain().with_mask_function(functions::same_document())),
        ("f16", types(DType::F16)),
        ("bf16", types(DType::BF16)),
        ("f32 on f16", types(DType::F32).kv_dtype(DType::F16)),
        ("dropout", plain().with_dropout(0.3).mask(Mask::CAUSAL)),
        ("dropout of packed", Problem::packed(shape).with_dropout(0.5)),
        ("given dropout", plain().with_given_dropout(0.2)),
        ("dropout of nothing", plain().with_dropout(0.0)),
        ("dropout and all", {
            let problem = plain().with_dropout(0.2).softcap(3.0).with_alibi(Slopes::PerHead);
            problem.with_sinks().with_bias(DType::F32, exact).mask(Mask::window(30))
        }),
    ];
    // Where drivers are slow, each feature in one problem.
    const FEW: [&str; 9] = [
        "bias that all share",
        "boolean mask",
        "lengths",
        "packed with slopes",
        "bent",
        "documents",
        "f16",
        "bf16",
        "dropout and all",
    ];
    let sharpness = [1.0, 30.0, 4.0, 8.0].into_iter().cycle();
    let cases = problems.into_iter().zip(sharpness);
    let cases = cases.filter(|((name, _), _)| !support::small() || FEW.contains(name));
    cases.map(|((name, problem), q)| Asked::all_of(Case::new(name, problem).sharp(q))).collect()
});

/// Lengths at which tiles and blocks end, and gradients laid out otherwise than their tensors.
static SHAPES: LazyLock<Vec<Asked>> = LazyLock::new(|| {
    let square = |len| Problem::new(Shape::self_attention(1, 2, len, 16)).mask(Mask::CAUSAL);
    let cross = |q, kv| Problem::new(Shape::cross_attention(1, 2, q, kv, 16));
    let mut all: Vec<Asked> = [
        ("192", square(192)),
        ("320", square(320)),
        ("128 and one", square(129)),
        ("96 and one", square(97)),
        ("one query", cross(1, 320)),
        ("one key", cross(320, 1)),
        ("one of each", cross(1, 1)),
        ("no query", cross(0, 40)),
        ("no key", cross(40, 0)),
        ("no key but a sink", cross(40, 0).with_sinks()),
        ("a head of many", Problem::new(square(40).shape.with_kv_heads(1)).softcap(1.0)),
        ("few queries of many heads", {
            Problem::new(Shape::cross_attention(1, 32, 3, 400, 16).with_kv_heads(1))
        }),
        ("rows of packed by themselves", {
            let shape = Shape::cross_attention(3, 2, 130, 150, 16);
            Problem::packed(shape).mask(Mask::CAUSAL).batch_invariant()
        }),
    ]
    .into_iter()
    .zip([1.0, 8.0].into_iter().cycle())
    .map(|((name, problem), q)| Asked::all_of(Case::new(name, problem).sharp(q)))
    .collect();
    let shape = Shape::cross_attention(2, 4, 30, 50, 8).with_kv_heads(2).with_v_head_dim(12);
    let strides = |batch, head, row| Strides { batch, head, row };
    let backward = Backward::new(&Problem::new(shape).mask(Mask::CAUSAL))
        .d_out_strides(strides(4 * 13 * 31, 13, 4 * 13))
        .d_q_strides(strides(9 * 4 * 30 + 5, 9 * 30, 9))
        .d_k_strides(strides(8 * 2 * 50, 8, 16))
        .d_v_strides(strides(2 * 700, 700, 14));
    all.push(Asked::new(Case::new("gaps in gradients", backward.problem.clone()), backward));
    let qkv = Problem::new(Shape::self_attention(2, 4, 30, 8)).layout(Layout::PackedQkv);
    all.push(Asked::new(Case::new("qkv", qkv.clone()), Backward::new(&qkv)));
    all
});

#[test]
fn the_cpu_path_agrees_over_the_catalogue() {
    agree(Target::Cpu, &*CATALOGUE);
}

#[test]
fn the_cpu_path_agrees_on_every_feature() {
    agree(Target::Cpu, &*FEATURES);
}

#[test]
fn the_cpu_path_agrees_on_every_shape() {
    agree(Target::Cpu, &*SHAPES);
}

/// How many random problems the environment asks for, as of `tests/fuzz.rs`.
fn many() -> Option<u32> {
    std::env::var("WGPU_ATTENTION_FUZZ").ok().and_then(|value| value.parse().ok())
}

/// Whole random problems, all features mixed; some gradients not asked for. Those of a kind share kernels.
fn agrees_on_random_problems(target: Target, seed: u64, count: u32, of_a_kind: u32) {
    let mut done = 0;
    for (kind, mut random) in kinds(seed, count, 12) {
        for i in 0..of_a_kind {
            let mut problem = kind.problem(&mut random);
            (problem.weights, problem.scores) = (false, None);
            let mut backward = all_of(&problem);
            backward.d_lse = random.below(2) == 0;
            backward.d_bias &= random.below(4) > 0;
            backward.d_sinks &= random.below(4) > 0;
            backward.d_alibi_slopes &= random.below(4) > 0;
            let sharpness = [1.0, 8.0, 30.0][random.below(3) as usize];
            // Caches have no gradients.
            let refused = backward.validate().is_err();
            if refused || !target.gives(&problem) || work(&problem) > 3 * BUDGET {
                continue;
            }
            done += 1;
            let asked = Asked::new(Case::new("random", problem).sharp(sharpness), backward);
            if let Some(error) = asked.error(target) {
                panic!("{target:?}: seed {seed}, problem {i} ({kind}): {error}");
            }
        }
    }
    assert!(done > count, "{done} of {count} kinds");
}

#[test]
fn the_cpu_path_agrees_on_random_problems() {
    let few = if support::small() { 8 } else { 40 };
    let (count, of_a_kind) = many().map_or((few, 4), |many| (many.div_ceil(16).max(3), 16));
    agrees_on_random_problems(Target::Cpu, 1, count, of_a_kind);
}

/// Scores so far below or above 0 that `exp` of them is 0 or infinite: only their distance from the lse counts.
fn agrees_where_lse_is_far_from_0(target: Target) {
    for shift in [-300.0, -89.0, 150.0] {
        let problem = Problem::new(Shape::self_attention(1, 2, 70, 16)).mask(Mask::CAUSAL);
        let problem = problem.with_bias(DType::F32, Pairs::new([1, 1, 70, 70]));
        let case = Case::new("far", problem.clone()).sharp(4.0);
        let backward = all_of(&problem).with_d_lse();
        let mut tensors = case.tensors(0);
        tensors.extra.bias.iter_mut().for_each(|x| *x += shift);
        let given = Given::of(&backward, &tensors, 0);
        assert!(given.lse.iter().any(|lse| (lse - shift).abs() < 30.0), "{shift}");
        let answer = Answer::for_inputs(case.to_string(), &backward, &tensors, &given);
        let got = target.try_backward(&backward, &tensors, &given).expect("gradients");
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}, {shift}: {error}"));
    }
}

#[test]
fn the_cpu_path_agrees_where_lse_is_far_from_0() {
    agrees_where_lse_is_far_from_0(Target::Cpu);
}

/// A NaN in a used key and value reaches gradients of the rows that see it and of keys that these see, and no other.
fn keeps_a_nan_to_those_that_see_it(target: Target) {
    let shape = Shape::self_attention(1, 2, 199, 16);
    let problem = Problem::new(shape).mask(Mask::window(17));
    let case = Case::new("nan", problem.clone()).sharp(8.0);
    let backward = Backward::new(&problem);
    let tensors = case.tensors(0);
    let given = Given::of(&backward, &tensors, 0);
    let answer = Answer::for_inputs(case.to_string(), &backward, &tensors, &given);
    // Key 40 is seen by rows 40 to 57, which see keys 23 to 57; row 100 sees keys 83 to 100.
    let (mut dirty, mut bad) = (tensors.clone(), given.clone());
    for at in rows(&shape).filter(|at| at.2 == 40) {
        dirty.k[start(problem.k, at)..][..16].fill(f32::NAN);
        dirty.v[start(problem.v, at)..][..16].fill(f32::NAN);
    }
    for (row, at) in rows(&shape).enumerate() {
        if (40..58).contains(&at.2) || at.2 == 100 {
            bad.out[start(problem.out, at)..][..16].fill(f32::NAN);
            bad.lse[row] = f32::NAN;
        }
        if at.2 == 100 {
            dirty.q[start(problem.q, at)..][..16].fill(f32::NAN);
            bad.d_out[start(problem.out, at)..][..16].fill(f32::INFINITY);
        }
    }
    let mut got = target.try_backward(&backward, &dirty, &bad).expect("gradients");
    let right = target.try_backward(&backward, &tensors, &given).expect("gradients");
    // What it reaches may be anything.
    for at in rows(&shape) {
        let range = start(problem.q, at)..start(problem.q, at) + 16;
        if (40..58).contains(&at.2) || at.2 == 100 {
            got.q[range.clone()].copy_from_slice(&right.q[range.clone()]);
        }
        if (23..58).contains(&at.2) || (83..101).contains(&at.2) {
            got.k[range.clone()].copy_from_slice(&right.k[range.clone()]);
            got.v[range.clone()].copy_from_slice(&right.v[range]);
        }
    }
    answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
}

#[test]
fn the_cpu_path_keeps_a_nan_to_those_that_see_it() {
    keeps_a_nan_to_those_that_see_it(Target::Cpu);
}

/// The same inputs give the same bits.
fn repeats(target: Target) {
    let shape = Shape::self_attention(2, 4, 301, 24).with_kv_heads(1);
    let bias = Pairs::new([1, 1, 301, 301]);
    let problem = Problem::new(shape).mask(Mask::CAUSAL).with_bias(DType::F32, bias);
    let problem = problem.with_alibi(Slopes::PerHead).with_sinks().with_dropout(0.1);
    let case = Case::new("repeated", problem.clone()).sharp(8.0);
    let backward = all_of(&problem);
    let tensors = case.tensors(0);
    let mut random = Random::new(3);
    let mut unit = |n: usize| (0..n).map(|_| random.unit()).collect::<Vec<f32>>();
    let rows = (shape.batch * shape.heads * shape.q_len) as usize;
    // Whatever they are.
    let (out, lse, d_out) = (unit(rows * 24), unit(rows), unit(rows * 24));
    let lse = lse.into_iter().map(|x| 9.0 + x).collect();
    let given = Given { out, lse, d_out, d_lse: Vec::new() };
    let first = target.try_backward(&backward, &tensors, &given).expect("gradients");
    assert!(first.k.iter().any(|x| *x != 0.0));
    let bits = |g: &Gradients| {
        let optional = [&g.bias, &g.sinks, &g.alibi_slopes].map(|data| data.iter().flatten());
        let all = [&g.q, &g.k, &g.v].into_iter().flatten().chain(optional.into_iter().flatten());
        all.map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    for _ in 0..5 {
        let again = target.try_backward(&backward, &tensors, &given).expect("gradients");
        assert_eq!(bits(&again), bits(&first), "{target:?}");
    }
}

#[test]
fn the_cpu_path_repeats_bit_for_bit() {
    repeats(Target::Cpu);
}

/// On both kinds of tiles.
const CLASSES: [DeviceClass; 2] = [DeviceClass::Hardware, DeviceClass::Software];

/// The fused kernels where they give it, the five products, and these in parts; where drivers are slow what the planner
/// takes, which is one or the other.
fn targets() -> impl Iterator<Item = Target> {
    CLASSES.into_iter().flat_map(|class| {
        let all =
            [Target::Auto(class), Target::Staged(class), Target::Tight(class, Algorithm::Auto)];
        all.into_iter().take(if support::small() { 1 } else { 3 })
    })
}

/// On all targets; where drivers are slow each on one of them in turn.
fn each_agrees(asked: &[Asked]) {
    let step = if support::small() { targets().count() } else { 1 };
    for (i, target) in targets().enumerate() {
        agree(target, asked.iter().skip(i % step).step_by(step));
    }
}

#[test]
fn the_kernels_agree_over_the_catalogue() {
    // Each problem by every other target: fused, by products and in parts, with tiles of either class.
    let step = if support::small() { targets().count() } else { 2 };
    // Seventy thousand workgroups as large as hardware's take a software GPU a minute: of them a narrow device folds 700.
    let is_folded = |asked: &&Asked| asked.case.name.starts_with("more_workgroups_than");
    for (i, target) in targets().enumerate() {
        let others =
            CATALOGUE.iter().filter(|asked| !is_folded(asked)).skip(i % step).step_by(step);
        agree(target, others);
        let few = |asked: &&Asked| !target.is_large() || asked.case.problem.shape.batch == 1;
        agree(target, CATALOGUE.iter().filter(is_folded).filter(few));
    }
}

#[test]
fn the_kernels_agree_on_every_feature() {
    each_agrees(&FEATURES);
}

#[test]
fn the_kernels_agree_on_every_shape() {
    each_agrees(&SHAPES);
}

#[test]
fn the_kernels_agree_on_random_problems() {
    let few = if support::small() { 2 } else { 20 };
    let targets: Vec<_> = targets().collect();
    let of_each = |many: u32| many.div_ceil(16 * u32::try_from(targets.len()).expect("few"));
    let (count, of_a_kind) = many().map_or((few, 4), |many| (of_each(many).max(2), 16));
    (1..).zip(targets).for_each(|(seed, target)| {
        agrees_on_random_problems(target, seed, count, of_a_kind);
    });
}

#[test]
fn the_kernels_agree_where_lse_is_far_from_0() {
    targets().for_each(agrees_where_lse_is_far_from_0);
}

#[test]
fn the_kernels_keep_a_nan_to_those_that_see_it() {
    targets().for_each(keeps_a_nan_to_those_that_see_it);
}

#[test]
fn the_kernels_repeat_bit_for_bit() {
    targets().for_each(repeats);
}

#[test]
fn gradients_of_a_sequence_do_not_depend_on_its_batch_where_that_is_asked_for() {
    let problem = |batch| {
        let shape = Shape::self_attention(batch, 3, 150, 16);
        Problem::new(shape).mask(Mask::CAUSAL).batch_invariant()
    };
    let case = Case::new("batch", problem(3));
    let backward = Backward::new(&case.problem);
    let tensors = case.tensors(0);
    let given = Given::of(&backward, &tensors, 0);
    let all = Target::Cpu.try_backward(&backward, &tensors, &given).expect("gradients");
    let (len, rows) = (3 * 150 * 16, 3 * 150);
    let inputs = Inputs::new(&tensors.q[..len], &tensors.k[..len], &tensors.v[..len]);
    let (out, lse, d_out) = (&given.out[..len], &given.lse[..rows], &given.d_out[..len]);
    let given = BackwardInputs { out, lse, d_out, d_lse: &[] };
    let alone = Runner::cpu().backward(&Backward::new(&problem(1)), &inputs, &given);
    let alone = alone.expect("gradients");
    assert_eq!(alone.q, all.q[..len]);
    assert_eq!(alone.k, all.k[..len]);
    assert_eq!(alone.v, all.v[..len]);
}

/// Each with its message, before any work.
#[test]
fn what_does_not_fit_is_refused() {
    let problem = Problem::new(Shape::self_attention(1, 2, 3, 4));
    let data = [0.5; 24];
    let lse = [1.0; 6];
    let inputs = Inputs::new(&data, &data, &data);
    let given = BackwardInputs { out: &data, lse: &lse, d_out: &data, d_lse: &[] };
    let backward = Backward::new(&problem);
    let runner = Runner::cpu();
    let refused = |backward: &Backward, inputs: &Inputs<'_>, given: BackwardInputs<'_>| {
        let error = runner.backward(backward, inputs, &given).expect_err("refused");
        let waited = pollster::block_on(runner.backward_async(backward, inputs, &given));
        assert_eq!(waited, Err(error.clone()));
        error.to_string()
    };
    assert!(runner.backward(&backward, &inputs, &given).is_ok());
    for (given, message) in [
        (BackwardInputs { out: &data[1..], ..given }, "out has 23 elements, the problem needs 24"),
        (BackwardInputs { d_out: &[], ..given }, "d_out has 0 elements, the problem needs 24"),
        (BackwardInputs { lse: &lse[1..], ..given }, "lse has 5 elements, the problem needs 6"),
        (BackwardInputs { lse: &data, ..given }, "lse has 24 elements, the problem needs 6"),
        (BackwardInputs { d_lse: &lse, ..given }, "d_lse was given, but the plan does not use it"),
    ] {
        assert_eq!(refused(&backward, &inputs, given), message);
    }
    let with_d_lse = backward.clone().with_d_lse();
    let message = "d_lse has 0 elements, the problem needs 6";
    assert_eq!(refused(&with_d_lse, &inputs, given), message);
    let short = Inputs::new(&data, &data[4..], &data);
    assert_eq!(refused(&backward, &short, given), "k has 20 elements, the problem needs 24");
    let buffered = problem.clone().with_score_function(functions::relative_position());
    let missing = refused(&Backward::new(&buffered), &inputs, given);
    assert!(missing.contains("relative_bias"), "{missing}");
    let function = ScoreFunction::new("plain", "", |s, _| s);
    let error =
        runner.backward(&Backward::new(&problem.with_score_function(function)), &inputs, &given);
    assert!(matches!(error, Err(Error::Problem(_))), "{error:?}");
}

/// A comparison that cannot fail proves nothing.
#[test]
fn wrong_gradients_are_caught() {
    let shape = Shape::self_attention(1, 4, 61, 24).with_kv_heads(2);
    let problem = Problem::new(shape).mask(Mask::CAUSAL).softcap(4.0).with_sinks();
    let problem = problem.with_alibi(Slopes::PerHead);
    for sharpness in [1.0, 8.0, 30.0] {
        let case = Case::new("control", problem.clone()).sharp(sharpness);
        let backward = all_of(&problem).with_d_lse();
        let (answer, tensors, given) = Answer::of(&case, &backward);
        let right = support::gradients::emulated(&backward, &tensors, &given);
        assert_eq!(answer.check(&right), Ok(()));
        let element: [fn(&mut Gradients) -> &mut f32; 5] = [
            |g| &mut g.q[100],
            |g| &mut g.k[100],
            |g| &mut g.v[100],
            |g| &mut g.sinks.as_mut().expect("sinks")[0],
            |g| &mut g.alibi_slopes.as_mut().expect("slopes")[0],
        ];
        let bounds = answer.bounds();
        let bounds = [bounds[0], bounds[1], bounds[2], bounds[4], bounds[5]];
        for (element, bound) in element.into_iter().zip(bounds) {
            for moved in [4.0 * bound, -4.0 * bound, f64::NAN] {
                let mut wrong = right.clone();
                #[allow(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
                let value = (f64::from(*element(&mut wrong)) + moved) as f32;
                *element(&mut wrong) = value;
                assert!(answer.check(&wrong).is_err(), "{moved}: {case}");
            }
        }
        // A mask off by one, a scale and a cap off by a hundredth, another diagonal.
        let scale = problem.effective_scale();
        for problem in [
            problem.clone().mask(Mask::band(None, Some(1))),
            problem.clone().scale(scale * 1.01),
            problem.clone().softcap(4.04),
            problem.clone().mask(Mask::CAUSAL.along(Diagonal::Offset(-1))),
        ] {
            let mut mistaken = backward.clone();
            mistaken.problem = problem;
            let wrong = support::gradients::emulated(&mistaken, &tensors, &given);
            assert!(answer.check(&wrong).is_err(), "{mistaken:?}");
        }
    }
}

#[test]
fn a_cap_without_its_derivative_is_caught() {
    let capped = |derivative: fn(f64) -> f64| {
        let function = ScoreFunction::new("cap", "", |s, _| 4.0 * (s / 4.0).tanh());
        let function = function.with_derivative("", move |s, _| derivative(s));
        Problem::new(Shape::self_attention(1, 4, 61, 24)).with_score_function(function)
    };
    for sharpness in [1.0, 8.0, 30.0] {
        let right = capped(|s| 1.0 - (s / 4.0).tanh().powi(2));
        let case = Case::new("control", right.clone()).sharp(sharpness);
        let (answer, tensors, given) = Answer::of(&case, &Backward::new(&right));
        let of = |problem| support::gradients::emulated(&Backward::new(&problem), &tensors, &given);
        assert_eq!(answer.check(&of(right)), Ok(()));
        assert!(answer.check(&of(capped(|_| 1.0))).is_err(), "{case}");
    }
}
