//! Rules 2, 16, 18, 19, 20 and 27: numbers and memory at their ends, on every path.

#![cfg(feature = "cpu")]

use crate::device::{Gpu, classes};
use crate::support;
use crate::support::At;
use crate::support::case::{Case, Tensors, rows, start};
use crate::support::emulation::Got;
use crate::support::functions;
use crate::support::judge::{Answer, error};
use crate::support::target::Target;
use std::sync::LazyLock;
use wgpu_attention::{
    Algorithm, DType, DeviceClass, Diagonal, Mask, MaskFormat, MaskFunction, Pairs, Problem,
    ScoreStage, Shape, Slopes, Tensors as Slices,
};

/// Binds few rows at a time: keys come in ranges, sequences one by one.
static TIGHT: LazyLock<Gpu> =
    LazyLock::new(|| Gpu::new(|limits| limits.max_storage_buffer_binding_size = 17_408));

/// Storage types; all halves, or one.
fn types() -> Vec<DType> {
    let halves = if support::small() { vec![DType::F16] } else { vec![DType::F16, DType::BF16] };
    [vec![DType::F32], halves].concat()
}

/// One sequence, one head, 16 wide.
fn plain(q_len: u32, kv_len: u32) -> Problem {
    Problem::new(Shape::cross_attention(1, 1, q_len, kv_len, 16)).with_lse()
}

/// Queries of 0, and keys and values of which none is unused; what the problem has besides is left empty.
fn flat(problem: &Problem) -> Tensors {
    let s = problem.shape;
    let plain = Problem::new(s).dtype(problem.dtype);
    let mut tensors = Case::new("flat", plain).tensors(0);
    tensors.q.fill(0.0);
    tensors
}

/// The first coordinate of every query is 1 and of key `j` is `logit(j)`, the others are 0: with a scale of 1, the
/// score is the logit, exactly.
fn with_logits(problem: &Problem, logit: impl Fn(u32) -> f32) -> Tensors {
    let mut tensors = flat(problem);
    tensors.q.iter_mut().step_by(16).for_each(|x| *x = 1.0);
    tensors.k.fill(0.0);
    let keys = tensors.k.iter_mut().step_by(16);
    let len = problem.shape.kv_len;
    keys.zip((0..len).cycle()).for_each(|(x, j)| *x = logit(j));
    tensors
}

/// Every path; where kernels are slow to compile, each algorithm with tiles of one class.
fn targets(problem: &Problem) -> impl Iterator<Item = Target> {
    let few =
        [Target::Staged(DeviceClass::Hardware), Target::Flash(DeviceClass::Software), Target::Cpu];
    let chosen = if support::small() { few.to_vec() } else { Target::ALL.to_vec() };
    chosen.into_iter().filter(|target| target.gives(problem))
}

/// By the rule, on every path.
fn judged(case: &Case) {
    let (answer, tensors) = (Answer::of(case), case.tensors(0));
    for target in targets(&case.problem) {
        let got = target.run(&case.to_string(), &case.problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

/// Each row is the mean of the values with these weights; to a millionth of the largest.
fn is_mean(what: &str, problem: &Problem, tensors: &Tensors, weight: impl Fn(At, u32) -> f64) {
    for target in targets(problem) {
        mean_in(
            &format!("{target:?}: {what}"),
            problem,
            tensors,
            &weight,
            |_| None,
            |p, t| target.run(what, p, t),
        );
    }
}

/// As `is_mean`, of one run; `lse` of a row where it is known.
fn mean_in(
    what: &str,
    problem: &Problem,
    tensors: &Tensors,
    weight: impl Fn(At, u32) -> f64,
    lse: impl Fn(At) -> Option<f64>,
    run: impl Fn(&Problem, &Tensors) -> Got,
) {
    let s = problem.shape;
    let got = run(problem, tensors);
    for (row, at) in rows(&s).enumerate() {
        let (b, h, _) = at;
        let mut want = vec![0.0; s.v_head_dim as usize];
        for j in 0..s.kv_len {
            let p = weight(at, j);
            if p != 0.0 {
                let first = start(problem.v, (b, h / s.group_size(), j));
                let value = &tensors.v[first..][..want.len()];
                want.iter_mut().zip(value).for_each(|(o, v)| *o += p * f64::from(*v));
            }
        }
        let out = &got.out[start(problem.out, at)..][..want.len()];
        let bound = 1e-6 * want.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
        for (got, want) in out.iter().zip(&want) {
            assert!(error(*got, *want) <= bound, "{what}: row {at:?} is {got}, not {want}");
        }
        if let (Some(want), Some(lses)) = (lse(at), &got.lse) {
            let off = error(lses[row], want);
            assert!(off <= 1e-6 * want.abs().max(1.0), "{what}: lse {at:?} is {}", lses[row]);
        }
    }
}

/// A pair for each query and key.
fn each_pair(problem: &Problem) -> Pairs {
    Pairs::new([1, 1, problem.shape.q_len, problem.shape.kv_len])
}

#[test]
fn rule_02_a_row_of_the_lowest_biases_is_a_plain_mean() {
    // Long enough for several tiles, and not a multiple of one.
    let base = plain(3, 150);
    for dtype in types() {
        let lowest = match dtype {
            DType::F16 => -65504.0,
            DType::BF16 => f32::from_bits(0xff7f_0000),
            _ => f32::MIN,
        };
        let problem = base.clone().with_bias(dtype, Pairs::new([1, 1, 1, 150]));
        let mut tensors = flat(&problem);
        for bias in [lowest, -1e4] {
            tensors.extra.bias = vec![bias; 150];
            let what = format!("{dtype:?}, {bias}");
            is_mean(&what, &problem, &tensors, |_, _| 1.0 / 150.0);
        }
        // A lone key stays, however low its score becomes.
        tensors.extra.bias = vec![f32::NEG_INFINITY; 150];
        tensors.extra.bias[140] = lowest;
        is_mean("one", &problem, &tensors, |_, j| f64::from(u8::from(j == 140)));
    }
}

#[test]
fn rule_02_a_lone_key_stays_where_its_score_and_bias_are_both_lowest() {
    let problem = plain(2, 70).scale(1.0).with_bias(DType::F32, Pairs::new([1, 1, 1, 70]));
    let mut tensors = with_logits(&problem, |_| -1e38);
    tensors.extra.bias = vec![f32::NEG_INFINITY; 70];
    tensors.extra.bias[66] = f32::MIN;
    is_mean("lowest", &problem, &tensors, |_, j| f64::from(u8::from(j == 66)));
}

#[test]
fn rule_02_huge_finite_biases_are_compared_like_any_other() {
    for len in [2, 100] {
        let problem = plain(2, len).with_bias(DType::F32, Pairs::new([1, 1, 1, len]));
        let mut tensors = flat(&problem);
        tensors.extra.bias = vec![-3e38; len as usize];
        tensors.extra.bias[len as usize - 1] = -2e38;
        is_mean("huge", &problem, &tensors, |_, j| f64::from(u8::from(j == len - 1)));
    }
}

#[test]
fn rule_02_a_bias_of_minus_ten_thousand_does_not_exclude() {
    let problem = plain(40, 150).with_bias(DType::F32, Pairs::new([1, 1, 1, 150]));
    // The softmax of scores rounded as far as -1e4 leaves them room.
    let mut tensors = Case::new("-1e4", plain(40, 150)).sharp(8.0).tensors(0);
    tensors.extra.bias = vec![-1e4; 150];
    let at: Vec<_> = rows(&problem.shape).collect();
    let answer = Answer::for_rows("-1e4".to_owned(), &problem, &tensors, &at);
    for target in targets(&problem) {
        let got = target.run("-1e4", &problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

#[test]
fn rule_02_a_bias_of_minus_infinity_excludes_by_its_bits() {
    for dtype in types() {
        let base = plain(5, 90);
        let problem = base.clone().with_bias(dtype, each_pair(&base));
        let mut tensors = flat(&problem);
        let hidden = |i: u32, j: u32| (i + j).is_multiple_of(3) || j < 70 && i == 1 || i == 4;
        let pairs = (0..5).flat_map(|i| (0..90).map(move |j| hidden(i, j)));
        tensors.extra.bias = pairs.map(|hide| if hide { f32::NEG_INFINITY } else { 0.0 }).collect();
        let count = |i| f64::from((0..90).map(|j| u32::from(!hidden(i, j))).sum::<u32>());
        is_mean(&format!("{dtype:?}"), &problem, &tensors, |(_, _, i), j| {
            if hidden(i, j) { 0.0 } else { 1.0 / count(i) }
        });
    }
}

/// Inputs and outputs on the caller's own device, all f32.
fn on(gpu: &Gpu, class: DeviceClass, algorithm: Algorithm, problem: &Problem, t: &Tensors) -> Got {
    let attention = gpu.attention(class);
    let plan = attention.plan_with(problem, algorithm).expect("a plan");
    let s = problem.tensor_shape();
    let row_count = (s.batch * s.heads * s.q_len) as usize;
    let [q, k, v] = [&t.q, &t.k, &t.v].map(|data| gpu.input(data));
    let (out, lse) = (gpu.output(row_count * s.v_head_dim as usize), gpu.output(row_count));
    let e = &t.extra;
    let mut mask: Vec<u8> = e.mask.iter().map(|shown| u8::from(*shown)).collect();
    mask.resize(mask.len().next_multiple_of(4), 0);
    let mask: Vec<f32> = bytemuck::pod_collect_to_vec(&mask);
    let words = |data: &[u32]| gpu.input(bytemuck::cast_slice(data));
    let offsets = gpu.input(bytemuck::cast_slice(&e.diag_offsets));
    let (q_lens, kv_lens) = (words(&e.q_lens), words(&e.kv_lens));
    let [mask, bias, slopes, sinks] =
        [&mask, &e.bias, &e.alibi_slopes, &e.sinks].map(|data| gpu.input(data));
    let mut slices = Slices::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    slices = slices.lse(lse.slice(..));
    if !e.mask.is_empty() {
        slices = slices.mask(mask.slice(..));
    }
    if !e.bias.is_empty() {
        slices = slices.bias(bias.slice(..));
    }
    if !e.alibi_slopes.is_empty() {
        slices = slices.alibi_slopes(slopes.slice(..));
    }
    if !e.sinks.is_empty() {
        slices = slices.sinks(sinks.slice(..));
    }
    if !e.diag_offsets.is_empty() {
        slices = slices.diag_offsets(offsets.slice(..));
    }
    if !e.q_lens.is_empty() {
        slices = slices.q_lens(q_lens.slice(..));
    }
    if !e.kv_lens.is_empty() {
        slices = slices.kv_lens(kv_lens.slice(..));
    }
    gpu.run(&[&attention.bind(&plan, &slices).expect("buffers")]);
    Got { out: gpu.read(&out), lse: Some(gpu.read(&lse)), weights: None, scores: None }
}

/// Steps of a plan on the tight device.
fn steps(class: DeviceClass, algorithm: Algorithm, problem: &Problem) -> usize {
    let plan = TIGHT.attention(class).plan_with(problem, algorithm).expect("a plan");
    plan.kernels().count()
}

#[test]
fn rule_16_a_sink_is_added_once_unscaled_and_uncapped() {
    let shape = Shape::cross_attention(2, 4, 3, 90, 16).with_kv_heads(2);
    let problem = Problem::new(shape).scale(0.1).softcap(0.5).with_sinks().with_lse();
    let mut tensors = flat(&problem);
    // 90 scores of 0, and a sink that counts as 3, as 270, as all, as nothing.
    tensors.extra.sinks = vec![3.0_f32.ln(), 270.0_f32.ln(), 1e4, f32::NEG_INFINITY];
    let sums = [93.0_f64, 360.0, f64::INFINITY, 90.0];
    let lses = [sums[0].ln(), sums[1].ln(), 1e4, sums[3].ln()];
    for target in targets(&problem) {
        let weight = |(_, h, _): At, _| 1.0 / sums[h as usize];
        let lse = |(_, h, _): At| Some(lses[h as usize]);
        let what = format!("{target:?}");
        mean_in(&what, &problem, &tensors, weight, lse, |p, t| target.run(&what, p, t));
    }
}

#[test]
fn rule_16_a_sink_is_added_once_where_keys_are_split_over_bindings() {
    let shape = Shape::cross_attention(1, 4, 5, 301, 16).with_kv_heads(2);
    let sinks = vec![100.0_f32.ln(), 1000.0_f32.ln(), 50.0, f32::NEG_INFINITY];
    // The second shows rows no key in whole ranges, and the first row none at all.
    let far = Mask::band(Some(0), Some(0)).along(Diagonal::Offset(-1));
    for (mask, count) in [(Mask::FULL, [301.0; 5]), (far, [0.0, 1.0, 1.0, 1.0, 1.0])] {
        let problem = Problem::new(shape).mask(mask).with_sinks().with_lse();
        let mut tensors = flat(&problem);
        tensors.extra.sinks.clone_from(&sinks);
        for class in classes() {
            for algorithm in [Algorithm::Staged, Algorithm::Flash] {
                assert!(steps(class, algorithm, &problem) > 4, "not cut");
                let sink = |h: u32| f64::from(sinks[h as usize]).exp();
                let sum = |(_, h, i): At| sink(h) + count[i as usize];
                let shows = |i: u32, j: u32| mask.is_full() || i == j + 1;
                let weight = |at: At, j| if shows(at.2, j) { 1.0 / sum(at) } else { 0.0 };
                let lse = |at: At| Some(sum(at).ln());
                let what = format!("{class:?} {algorithm:?} {mask:?}");
                mean_in(&what, &problem, &tensors, weight, lse, |p, t| {
                    on(&TIGHT, class, algorithm, p, t)
                });
            }
        }
    }
}

#[test]
fn rule_20_rows_of_very_low_scores_are_a_plain_softmax() {
    let problem = plain(3, 150).scale(1.0);
    // -131072 - j / 2, exact in f32.
    let tensors =
        with_logits(&problem, |j| -131_072.0 - 0.5 * f32::from(u16::try_from(j).unwrap()));
    let sum: f64 = (0..150).map(|j| (-0.5 * f64::from(j)).exp()).sum();
    for target in targets(&problem) {
        let weight = |_, j| (-0.5 * f64::from(j)).exp() / sum;
        let lse = |_| Some(sum.ln() - 131_072.0);
        mean_in("-1e5", &problem, &tensors, weight, lse, |p, t| target.run("-1e5", p, t));
    }
    for low in [-1e30, -3e38, f32::MIN] {
        let what = format!("{low:e}");
        let equal = with_logits(&problem, |_| low);
        is_mean(&what, &problem, &equal, |_, _| 1.0 / 150.0);
        let one = with_logits(&problem, |j| if j == 77 { low / 2.0 } else { low });
        is_mean(&what, &problem, &one, |_, j| f64::from(u8::from(j == 77)));
    }
}

#[test]
fn rule_20_scores_of_halves_past_65504_are_numbers() {
    for dtype in types().split_off(1) {
        let problem = plain(9, 150).dtype(dtype).out_dtype(DType::F32);
        // Products of 40,000, sums of 640,000, and a scale that brings them back.
        let scaled = problem.clone().scale(1e-5);
        let mut tensors = Case::new("halves", problem.clone()).tensors(0);
        tensors.q.fill(200.0);
        tensors
            .k
            .chunks_exact_mut(16)
            .zip([200.0, 100.0, -200.0].iter().cycle())
            .for_each(|(row, x)| row.fill(*x));
        let at: Vec<_> = rows(&problem.shape).collect();
        let answer = Answer::for_rows("scaled".to_owned(), &scaled, &tensors, &at);
        for target in targets(&scaled) {
            let got = target.run("scaled", &scaled, &tensors);
            answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
        }
        // Without it, a third of the keys take all.
        is_mean("large", &problem, &tensors, |_, j| if j % 3 == 0 { 1.0 / 50.0 } else { 0.0 });
    }
}

#[test]
fn rule_20_scaled_queries_are_not_rounded_to_halves() {
    for dtype in types().split_off(1) {
        let problem = plain(40, 150).dtype(dtype).out_dtype(DType::F32).scale(1.0 / 3.0);
        judged(&Case::new("a third", problem).sharp(8.0));
    }
}

#[test]
fn rule_20_forty_thousand_keys_of_halves_are_all_counted() {
    for dtype in types().split_off(1) {
        let problem = plain(2, 40_000).dtype(dtype).out_dtype(DType::F32);
        let mut tensors = flat(&problem);
        let values = tensors.v.chunks_exact_mut(16).zip((0_u8..8).cycle());
        values.for_each(|(row, x)| row.fill(f32::from(x)));
        for target in targets(&problem) {
            let got = target.run("40,000", &problem, &tensors);
            for out in &got.out {
                // As f32 sums that many terms; halves would stop at 2,048.
                assert!(error(*out, 3.5) <= 1e-4, "{target:?}: {out}");
            }
            for lse in got.lse.iter().flatten() {
                assert!(error(*lse, 40_000_f64.ln()) <= 1e-5, "{target:?}: {lse}");
            }
        }
    }
}

/// Only key `far` is visible to the rows, by mask, bias or function, and its score is very low; hidden ones are high.
#[test]
fn rule_20_one_visible_key_far_away_takes_all() {
    let far = if support::small() { 301 } else { 997 };
    let base = plain(3, far + 4).scale(1.0);
    let keys = far as usize + 4;
    let at = |j: usize| j == far as usize;
    let mut cases = Vec::new();
    let row = Pairs::new([1, 1, 1, far + 4]);
    for format in [MaskFormat::Bytes, MaskFormat::Bits] {
        let problem = base.clone().with_boolean_mask(format, row);
        let mut tensors = flat(&problem);
        tensors.extra.mask = (0..keys).map(at).collect();
        cases.push((problem, tensors.extra));
    }
    let problem = base.clone().with_bias(DType::F32, row);
    let mut tensors = flat(&problem);
    let bias = |j| if at(j) { 0.0 } else { f32::NEG_INFINITY };
    tensors.extra.bias = (0..keys).map(bias).collect();
    cases.push((problem, tensors.extra));
    let wgsl = format!(
        "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool {{ return kv_pos == {far}u; }}"
    );
    let function = MaskFunction::new("far", &wgsl, move |pair| pair.kv_pos == far);
    let problem = base.clone().with_mask_function(function);
    let extra = flat(&problem).extra;
    cases.push((problem, extra));
    let band = Mask::band(Some(0), Some(0));
    for (problem, extra) in cases {
        let logit = |j| if j == far { -1e30 } else { 1e30 };
        let tensors = Tensors { extra, ..with_logits(&problem, logit) };
        let weight = |_, j| f64::from(u8::from(j == far));
        is_mean(&format!("{problem:?}"), &problem, &tensors, weight);
        if problem.mask_function.is_some()
            || problem.boolean_mask.is_some_and(|m| m.format != MaskFormat::Bytes)
        {
            continue;
        }
        // The first ranges of keys are hidden whole.
        for (class, algorithm) in
            [(DeviceClass::Software, Algorithm::Staged), (DeviceClass::Software, Algorithm::Flash)]
        {
            mean_in(
                "tight",
                &problem,
                &tensors,
                weight,
                |_| Some(-1e30),
                |p, t| on(&TIGHT, class, algorithm, p, t),
            );
        }
    }
    let offset = i32::try_from(far).expect("small");
    let problem = base.mask(band.along(Diagonal::Offset(offset)));
    let tensors = with_logits(&problem, |j| if j >= far { -1e30 } else { 1e30 });
    is_mean("band", &problem, &tensors, |(_, _, i), j| f64::from(u8::from(j == far + i)));
}

/// What hides keys and rows: lengths, a band, a mask, biases of -inf, a function.
fn hiding() -> Vec<Case> {
    let shape = Shape::cross_attention(3, 4, 45, 150, 16).with_kv_heads(2);
    let base = Problem::new(shape).with_lse();
    let row = Pairs::new([3, 1, 1, 150]);
    let wgsl = "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool { return kv_pos % 3u == 1u; }";
    let third = MaskFunction::new("a third", wgsl, |pair| pair.kv_pos % 3 == 1);
    [
        ("lengths", base.clone().mask(Mask::window(20)).with_lengths(true, true)),
        ("causal", base.clone().mask(Mask::CAUSAL.along(Diagonal::TopLeft))),
        ("bytes", base.clone().with_boolean_mask(MaskFormat::Bytes, row)),
        ("bits", base.clone().with_boolean_mask(MaskFormat::Bits, row).with_lengths(false, true)),
        ("bias", base.clone().with_bias(DType::F32, row)),
        ("function", base.clone().with_mask_function(third)),
    ]
    .map(|(name, problem)| Case::new(name, problem).sharp(8.0))
    .to_vec()
}

fn bits(got: &Got) -> Vec<u32> {
    let lse = got.lse.iter().flatten();
    got.out.iter().chain(lse).map(|x| x.to_bits()).collect()
}

#[test]
fn rule_18_what_nothing_sees_reaches_no_result() {
    for case in hiding() {
        let unused = case.tensors(0);
        let filled = |x: f32| {
            let fill = |data: &[f32]| -> Vec<f32> {
                data.iter().map(|y| if y.is_nan() { x } else { *y }).collect()
            };
            let extra = unused.extra.clone();
            Tensors { q: fill(&unused.q), k: fill(&unused.k), v: fill(&unused.v), extra }
        };
        assert!(unused.v.iter().any(|x| x.is_nan()), "nothing unused: {case}");
        let answer = Answer::of(&case);
        for target in targets(&case.problem) {
            let clean = target.run(&case.to_string(), &case.problem, &filled(0.0));
            answer.check(&clean).unwrap_or_else(|error| panic!("{target:?}: {error}"));
            for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let got = target.run(&case.to_string(), &case.problem, &filled(x));
                answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {x}: {error}"));
                assert!(bits(&got) == bits(&clean), "{target:?}: {x}: {case}");
            }
        }
    }
}

/// The rows that see none of it are right where keys, values, queries and biases hold NaN and infinities.
#[test]
fn rule_19_a_nan_in_used_data_stays_in_the_rows_that_see_it() {
    let shape = Shape::cross_attention(2, 4, 45, 150, 16).with_kv_heads(2);
    let base = Problem::new(shape).with_lse();
    let pairs = Pairs::new([1, 1, 45, 150]);
    let cases = [
        ("window", base.clone().mask(Mask::window(30))),
        ("lengths", base.clone().mask(Mask::CAUSAL).with_lengths(true, true)),
        ("bytes", base.clone().with_boolean_mask(MaskFormat::Bytes, pairs)),
        ("bits", base.clone().with_boolean_mask(MaskFormat::Bits, pairs)),
        ("bias", base.clone().with_bias(DType::F32, pairs)),
        ("function", base.clone().with_mask_function(functions::dilated())),
    ];
    for (name, problem) in cases {
        let case = Case::new(name, problem).sharp(8.0);
        let (problem, clean) = (&case.problem, case.tensors(0));
        // A key of one head of one sequence, and a query of another.
        let (key, query) = ((0, 1, 120), (1, 2, 30));
        let dirty_row = |at: &At| {
            let (b, h, i) = *at;
            let inputs = clean.inputs();
            let sees = || wgpu_attention::reference::visible(problem, &inputs, (b, h, i))[120];
            *at == query || b == key.0 && h / 2 == key.1 && sees()
        };
        let (affected, spared): (Vec<At>, Vec<At>) = rows(&shape).partition(dirty_row);
        assert!(affected.len() < 90, "{case}");
        let answer = Answer::for_rows(case.to_string(), problem, &clean, &spared);
        for x in [f32::NAN, f32::INFINITY] {
            let mut dirty = clean.clone();
            dirty.k[start(problem.k, key)..][..16].fill(x);
            dirty.v[start(problem.v, key)..][..16].fill(x);
            dirty.q[start(problem.q, query)..][..16].fill(x);
            for target in targets(problem) {
                let mut got = target.run(&case.to_string(), problem, &dirty);
                for at in &affected {
                    // Whatever they are: that is not specified.
                    got.out[start(problem.out, *at)..][..16].fill(0.0);
                }
                answer.check(&got).unwrap_or_else(|error| panic!("{x} in {target:?}: {error}"));
            }
        }
    }
}

/// One sequence out of a batch.
fn alone(case: &Case, tensors: &Tensors, b: u32) -> (Problem, Tensors) {
    let mut problem = case.problem.clone();
    let batch = problem.shape.batch as usize;
    problem.shape.batch = 1;
    let part = |data: &[f32]| {
        let len = data.len() / batch;
        data[len * b as usize..][..len].to_vec()
    };
    let mut extra = tensors.extra.clone();
    extra.alibi_slopes = part(&extra.alibi_slopes);
    for lens in [&mut extra.q_lens, &mut extra.kv_lens] {
        *lens = lens.get(b as usize).copied().into_iter().collect();
    }
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|data| part(data));
    (problem, Tensors { q, k, v, extra })
}

/// Sequences that fit a binding of the tight device alone but not together, and some that do not alone.
fn batches() -> Vec<Case> {
    let small = Shape::cross_attention(3, 4, 20, 30, 16).with_kv_heads(2);
    let large = Shape::cross_attention(3, 6, 45, 83, 16).with_kv_heads(2);
    let long = Shape::cross_attention(3, 4, 3, 301, 16).with_kv_heads(2);
    [small, large, long]
        .into_iter()
        .flat_map(|shape| {
            let plain = Problem::new(shape).mask(Mask::CAUSAL).with_lse().batch_invariant();
            let rich = plain.clone().with_lengths(true, true).with_alibi(Slopes::PerSequence);
            [("plain", plain), ("rich", rich.with_sinks())]
        })
        .chain([("window", {
            // Rows in blocks that see different keys.
            let shape = Shape::cross_attention(3, 2, 64, 700, 16);
            Problem::new(shape).mask(Mask::window(300)).with_lse().batch_invariant()
        })])
        .map(|(name, problem)| Case::new(name, problem).sharp(8.0))
        .collect()
}

#[test]
fn rule_27_sequences_have_the_same_bits_in_every_batch() {
    for case in batches() {
        let (problem, tensors) = (&case.problem, case.tensors(0));
        let answer = Answer::of(&case);
        let same = |what: &str, run: &dyn Fn(&Problem, &Tensors) -> Got| {
            let all = run(problem, &tensors);
            answer.check(&all).unwrap_or_else(|error| panic!("{what}: {error}"));
            let lse = all.lse.unwrap_or_default();
            for b in 0..3 {
                let (one, its) = alone(&case, &tensors, b);
                let got = run(&one, &its);
                let part =
                    |all: &[f32]| all[all.len() / 3 * b as usize..][..all.len() / 3].to_vec();
                let want = Got { out: part(&all.out), lse: Some(part(&lse)), ..got.clone() };
                assert!(bits(&got) == bits(&want), "{what}: sequence {b}: {case}");
            }
        };
        for target in targets(problem) {
            same(&format!("{target:?}"), &|p, t| target.run("batch", p, t));
        }
        for class in classes() {
            for algorithm in [Algorithm::Staged, Algorithm::Flash, Algorithm::Auto] {
                let what = format!("tight {class:?} {algorithm:?}");
                same(&what, &|p, t| on(&TIGHT, class, algorithm, p, t));
            }
        }
    }
}

#[test]
fn rule_27_results_repeat_bit_for_bit() {
    let shape = Shape::cross_attention(2, 4, 45, 150, 16).with_kv_heads(2);
    let base = Problem::new(shape).with_lse().with_sinks().softcap(20.0);
    let pairs = Pairs::new([1, 1, 45, 150]);
    let cases = [
        base.clone().mask(Mask::window(40)).with_lengths(true, true),
        base.clone().with_boolean_mask(MaskFormat::Bytes, pairs).with_bias(DType::F16, pairs),
        base.clone().dtype(DType::F16).with_alibi(Slopes::PerHead),
        base.clone().with_scores(ScoreStage::Biased).with_weights(),
    ];
    for problem in cases {
        let case = Case::new("repeated", problem.clone()).sharp(8.0);
        let tensors = case.tensors(0);
        for target in targets(&problem) {
            let first = target.run("repeated", &problem, &tensors);
            for _ in 0..3 {
                let again = target.run("repeated", &problem, &tensors);
                assert!(bits(&again) == bits(&first), "{target:?}: {case}");
                assert_eq!(again.weights, first.weights, "{target:?}: {case}");
            }
        }
    }
}
