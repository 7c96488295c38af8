//! Kernels on matrix units against the definition in f64, each product with the digits that it keeps.
//!
//! An adapter without cooperative matrices of f16 with sums in f32 has no such kernels: then plans must hold none,
//! which is said on standard error, and nothing is run, for other tests run all other kernels.
//! `WGPU_ATTENTION_MATRICES=1` makes that a failure.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::case::Case;
use crate::support::catalogue::small;
use crate::support::draw::kinds;
use crate::support::emulation::Precision;
use crate::support::gradients::{self, all_of};
use crate::support::judge::Answer;
use crate::support::target::{Target, matrices};
use std::io::Write as _;
use wgpu_attention::{
    Algorithm, DType, Lengths, Mask, MaskFormat, MatrixInputs, MatrixKernel, Operand, Pairs,
    Problem, Shape, Slopes,
};

/// Whether the device has room for a kernel: of two parts of each operand, heads of 64 take 32 KiB.
fn has_room(kernel: MatrixKernel) -> bool {
    let (device, _, _) = matrices().device().expect("a GPU");
    let room = device.limits().max_compute_workgroup_storage_size;
    kernel != MatrixKernel::SplitFused || room >= 32 << 10
}

/// Whether the device has matrices; all kernels on them that it has room for are unlocked then.
fn has_matrices() -> bool {
    let (_, _, attention) = matrices().device().expect("a GPU");
    let Some(matrices) = attention.capabilities().matrices else {
        let info = matrices().adapter_info().expect("a GPU");
        assert!(std::env::var_os("WGPU_ATTENTION_MATRICES").is_none(), "no matrices: {info:?}");
        let _ = writeln!(std::io::stderr(), "{} has no matrices that kernels could use", info.name);
        return false;
    };
    for kernel in MatrixKernel::ALL {
        assert_eq!(matrices.unlocked.contains(kernel), has_room(kernel), "{kernel:?}");
    }
    true
}

/// Whether a plan has a kernel on matrix units.
fn is_on_matrices(problem: &Problem, algorithm: Algorithm) -> bool {
    let (_, _, attention) = matrices().device().expect("a GPU");
    let plan = attention.plan_with(problem, algorithm).expect("a plan");
    format!("{plan:?}").contains("_coop.wgsl")
}

/// Types that matrix units take, asked or unasked.
#[derive(Clone, Copy, Debug)]
enum Types {
    F16,
    F16ToF32,
    F16AndBf16,
    Split,
}

impl Types {
    fn of(self, problem: Problem) -> (Problem, Precision) {
        let (f32, f16, bf16) = (DType::F32, DType::F16, DType::BF16);
        match self {
            Self::F16 => (problem.dtype(f16), Precision::Half),
            Self::F16ToF32 => (problem.dtype(f16).out_dtype(f32), Precision::Half),
            Self::F16AndBf16 => {
                let problem = problem.dtype(f16).kv_dtype(bf16).out_dtype(f32);
                (problem.matrix_inputs(MatrixInputs::Bf16AsF16), Precision::Half)
            }
            Self::Split => {
                (problem.dtype(f32).matrix_inputs(MatrixInputs::Split), Precision::Split)
            }
        }
    }
}

/// The staged kernels round weights, the fused one what is divided by their sum later.
fn staged_or_fused(precision: Precision, algorithm: Algorithm) -> Precision {
    match (precision, algorithm) {
        (Precision::Half, Algorithm::Staged) => Precision::HalfWeights,
        _ => precision,
    }
}

/// Runs cases on either algorithm and names every one that is wrong; how many met a kernel on matrix units.
fn judged(cases: impl Iterator<Item = (Case, Types)>) -> usize {
    let (mut failures, mut count) = (Vec::new(), 0);
    let known = has_matrices();
    for (case, types) in cases {
        let (problem, precision) = types.of(case.problem.clone());
        let case = Case { problem, ..case };
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let target = Target::Matrices(algorithm);
            if !target.gives(&case.problem) {
                continue;
            }
            let on = is_on_matrices(&case.problem, algorithm);
            assert!(known || !on, "a locked kernel: {case}");
            if !known {
                continue;
            }
            count += usize::from(on);
            let answer = Answer::within(&case, staged_or_fused(precision, algorithm));
            let error = match target.try_run(&case.problem, &case.tensors(0)) {
                Ok(got) => answer.check(&got).err(),
                Err(error) => Some(format!("{error}: {case}")),
            };
            failures.extend(error.map(|error| format!("{algorithm:?}: {error}")));
        }
    }
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
    count
}

/// But for the largest, which takes a software GPU minutes.
#[test]
fn the_catalogue_agrees_with_the_definition() {
    let cases = small().into_iter().filter(|case| case.name != "chunked");
    let count = judged(cases.map(|case| (case, Types::F16ToF32)));
    assert!(!has_matrices() || count > 15, "{count} on matrix units");
}

/// All features mixed.
#[test]
fn random_problems_agree_with_the_definition() {
    let count = if support::small() { 8 } else { 30 };
    let cases = kinds(11, 60, 12).into_iter().take(count).map(|(kind, mut random)| {
        let problem = kind.problem(&mut random);
        let types = [Types::F16, Types::F16ToF32, Types::F16AndBf16, Types::Split];
        let case = Case::new(&kind.to_string(), problem);
        (case.sharp([1.0, 8.0, 20.0][random.below(3) as usize]), types[random.below(4) as usize])
    });
    let met = judged(cases);
    assert!(!has_matrices() || met > count / 2, "{met} on matrix units");
}

/// Few large weights too: what is kept is scaled where f16 no longer bounds it.
#[test]
fn dropped_weights_agree_with_the_definition() {
    let problem = Problem::new(Shape::cross_attention(2, 2, 70, 90, 16)).mask(Mask::CAUSAL);
    let problems = [
        problem.clone().with_dropout(0.4).with_lse(),
        problem.clone().with_dropout(0.999),
        problem.with_given_dropout(0.4).with_weights(),
    ];
    let types = [Types::F16, Types::F16ToF32, Types::F16AndBf16, Types::Split];
    let cases = problems.iter().flat_map(|problem| {
        types.map(|types| (Case::new("dropout", problem.clone()).sharp(8.0), types))
    });
    let count = judged(cases);
    assert!(!has_matrices() || count >= 12, "{count} on matrix units");
}

/// Scores, gradients of weights, and gradients of values from weights; the products with gradients of scores, which may
/// be of any size, stay with plain kernels.
#[test]
fn gradients_agree_with_the_definition() {
    let known = has_matrices();
    let shape = Shape::cross_attention(2, 4, 70, 90, 24).with_kv_heads(2).with_v_head_dim(40);
    let square = Shape::self_attention(1, 2, 129, 16);
    let (f16, f32) = (DType::F16, DType::F32);
    let exact = Pairs::new([2, 4, 70, 90]);
    let all = Problem::new(shape).softcap(3.0).with_alibi(Slopes::PerHead).with_sinks();
    let cases = [
        ("plain", Problem::new(shape), 5),
        ("causal", Problem::new(square).mask(Mask::CAUSAL), 5),
        ("f32 from f16", Problem::new(square).mask(Mask::window(40)).out_dtype(f32), 2),
        ("lengths", Problem::new(shape).with_lengths(true, true).mask(Mask::CAUSAL), 5),
        ("packed", Problem::packed(shape).mask(Mask::CAUSAL), 5),
        ("all", all.with_bias(f32, exact).mask(Mask::window(30)), 5),
        ("dropout", Problem::new(shape).with_dropout(0.3), 4),
    ];
    for ((name, problem, in_plan), sharp) in
        cases.into_iter().zip([1.0, 8.0, 20.0].into_iter().cycle())
    {
        let out = problem.out_dtype;
        let mut problem = problem.dtype(f16);
        if name == "f32 from f16" {
            problem = problem.out_dtype(out);
        }
        let case = Case::new(name, problem.with_lse()).sharp(sharp);
        let backward = all_of(&case.problem).with_d_lse();
        let (_, _, attention) = matrices().device().expect("a GPU");
        let plan = attention.plan_backward_with(&backward, Algorithm::Staged).expect("a plan");
        // Kernels that load vectors are there a second time, for rows that start elsewhere.
        let on = format!("{plan:?}").matches("product_coop.wgsl").count();
        assert_eq!(on, if known { in_plan } else { 0 }, "{name}: {plan}");
        for algorithm in [Algorithm::Staged, Algorithm::Auto].into_iter().filter(|_| known) {
            let (answer, tensors, given) =
                gradients::Answer::within(&case, &backward, Precision::HalfWeights);
            let target = Target::Matrices(algorithm);
            let got = target.try_backward(&backward, &tensors, &given);
            let got = got.unwrap_or_else(|error| panic!("{algorithm:?}: {name}: {error}"));
            answer.check(&got).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
    }
}

/// Widths and lengths that are no multiples of a fragment.
#[test]
fn odd_widths_and_lengths_agree_with_the_definition() {
    let case = |q_len, kv_len, dim: u32, v_dim: u32, mask| {
        let shape = Shape::cross_attention(1, 4, q_len, kv_len, dim);
        let problem = Problem::new(shape.with_kv_heads(2).with_v_head_dim(v_dim)).mask(mask);
        Case::new("odd", problem.with_lse()).sharp(8.0)
    };
    let cases = [
        (case(67, 131, 40, 72, Mask::CAUSAL), Types::F16),
        (case(33, 97, 24, 40, Mask::window(20)), Types::F16AndBf16),
        (case(129, 65, 80, 24, Mask::FULL), Types::F16ToF32),
        (case(1, 300, 9, 11, Mask::FULL), Types::Split),
        (case(50, 43, 24, 9, Mask::CAUSAL), Types::Split),
    ];
    judged(cases.into_iter());
}

/// Maxima that grow along a row, now by more and now by less than sums are left unscaled for.
#[test]
fn sums_are_rescaled_where_a_maximum_grows() {
    if !has_matrices() {
        return;
    }
    let shape = Shape::cross_attention(1, 1, 650, 257, 16);
    for step in [0.02_f32, 0.2, 3.0, -0.2] {
        let problem = Problem::new(shape).dtype(DType::F16).out_dtype(DType::F32).scale(1.0);
        let case = Case::new("growing", problem.with_lse());
        let mut tensors = case.tensors(0);
        tensors.q.chunks_mut(16).for_each(|row| row[0] = 1.0);
        for (j, row) in (0_u8..).zip(tensors.k.chunks_mut(16).take(250)) {
            row[0] = half::f16::from_f32(step * f32::from(j)).to_f32();
        }
        let at: Vec<_> = (0..650).map(|row| (0, 0, row)).collect();
        let answer = Answer::rows_within(
            format!("step {step}"),
            &case.problem,
            &tensors,
            &at,
            Precision::Half,
        );
        let got = Target::Matrices(Algorithm::Flash).run("growing", &case.problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// f32 stays with the plain kernels, and bf16, until the caller says otherwise.
#[test]
fn only_f16_goes_to_matrix_units_unasked() {
    let problem = Problem::new(Shape::self_attention(1, 2, 64, 64));
    let known = has_matrices();
    for (dtype, inputs, on) in [
        (DType::F16, MatrixInputs::AsStored, true),
        (DType::BF16, MatrixInputs::AsStored, false),
        (DType::F32, MatrixInputs::AsStored, false),
        (DType::F32, MatrixInputs::Bf16AsF16, false),
        (DType::BF16, MatrixInputs::Bf16AsF16, true),
        (DType::BF16, MatrixInputs::Split, true),
        (DType::F32, MatrixInputs::Split, true),
    ] {
        let problem = problem.clone().dtype(dtype).matrix_inputs(inputs);
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let found = is_on_matrices(&problem, algorithm);
            let is_split = inputs == MatrixInputs::Split && algorithm == Algorithm::Flash;
            let fits = !is_split || has_room(MatrixKernel::SplitFused);
            assert_eq!(found, on && known && fits, "{dtype:?} {inputs:?} {algorithm:?}");
        }
    }
}

/// What no row sees, or only some, reaches no other: NaN and infinities of f16.
#[test]
fn garbage_in_hidden_values_reaches_no_row() {
    if !has_matrices() {
        return;
    }
    let shape = Shape::self_attention(2, 2, 75, 16);
    for (types, mask) in [
        (Types::F16, Mask::CAUSAL),
        (Types::F16AndBf16, Mask::window(9)),
        (Types::Split, Mask::CAUSAL),
    ] {
        let problem = Problem::new(shape).mask(mask).with_lengths(false, true).with_lse();
        let (problem, precision) = types.of(problem);
        assert!(matches!(problem.lengths, Lengths::PerSequence { kv: true, .. }));
        let case = Case::new("garbage", problem);
        let clean = case.tensors(0);
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let answer = Answer::within(&case, staged_or_fused(precision, algorithm));
            let target = Target::Matrices(algorithm);
            let want = target.run("clean", &case.problem, &clean);
            answer.check(&want).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
            for garbage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut tensors = clean.clone();
                // Key 40 of the first head of the first sequence: rows before it do not see it.
                tensors.v[40 * 16..41 * 16].fill(garbage);
                tensors.k[40 * 16..41 * 16].fill(garbage);
                let got = target.run("garbage", &case.problem, &tensors);
                let offset = clean.extra.kv_lens[0];
                let diagonal = i64::from(offset) - 75;
                let first = usize::try_from((40 - diagonal).clamp(0, 75)).expect("a row");
                let (want, got) = (&want.out[..first * 16], &got.out[..first * 16]);
                let off = want.iter().zip(got).map(|(a, b)| (a - b).abs());
                assert!(off.clone().all(|off| off < 1e-3), "{algorithm:?} {garbage} {types:?}");
            }
        }
    }
}

/// A block mask fits plans made before kernels were unlocked and after: with one, tiles are those of the device's class.
#[test]
fn block_masks_are_of_the_same_tiles() {
    let shape = Shape::self_attention(1, 2, 300, 64);
    let pairs = Pairs::new([1, 1, 300, 300]);
    let problem = Problem::new(shape).with_boolean_mask(MaskFormat::Bytes, pairs);
    let bytes = |problem: &Problem| {
        let (_, _, attention) = matrices().device().expect("a GPU");
        let made = attention.plan_block_mask(problem).expect("a plan");
        let used = attention.plan(&problem.clone().with_block_mask()).expect("a plan");
        [made, used].map(|plan| plan.operand_bytes(Operand::BlockMask))
    };
    let [made, used] = bytes(&problem);
    assert_eq!(made, used);
    assert_eq!(bytes(&problem.dtype(DType::F16)), [made, used]);
}
