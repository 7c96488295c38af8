//! The rules of what attention means, one by one, on every path; their extremes are in `extremes.rs`.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::At;
use crate::support::case::{Case, Tensors, rows, start};
use crate::support::emulation::Got;
use crate::support::extra::Extra;
use crate::support::functions;
use crate::support::judge::{Answer, error};
use crate::support::target::{TIGHT_WORKGROUPS, Target};
use wgpu_attention::{
    Algorithm, BindError, Capabilities, DType, DeviceClass, Diagonal, Error, Layout, Mask,
    MaskFormat, MaskFunction, Pairs, Plan, PlanError, Problem, ProblemError, ScoreStage, Shape,
    Slopes, Strides, alibi_slopes,
};

const INF: f64 = f64::INFINITY;

/// Every path; where kernels are slow to compile, each algorithm with tiles of one class.
fn targets(problem: &Problem) -> impl Iterator<Item = Target> {
    let few =
        [Target::Staged(DeviceClass::Hardware), Target::Flash(DeviceClass::Software), Target::Cpu];
    let chosen = if support::small() { few.to_vec() } else { Target::ALL.to_vec() };
    chosen.into_iter().filter(|target| target.gives(problem))
}

fn len(n: u32) -> usize {
    n as usize
}

/// By the rule, on every path, with the case's own inputs.
fn judged(name: &str, problem: Problem) {
    let case = Case::new(name, problem).sharp(8.0);
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    for target in targets(&case.problem) {
        let got = target.run(&case.to_string(), &case.problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

fn bits(got: &Got) -> Vec<u32> {
    let rest = got.lse.iter().chain(&got.weights).chain(&got.scores).flatten();
    got.out.iter().chain(rest).map(|x| x.to_bits()).collect()
}

/// Two runs give the same bits, on every path.
fn same_bits(what: &str, a: (&Problem, &Tensors), b: (&Problem, &Tensors)) {
    for target in targets(a.0) {
        let [x, y] = [a, b].map(|(problem, tensors)| target.run(what, problem, tensors));
        assert!(bits(&x) == bits(&y), "{target:?}: {what}");
    }
}

/// Queries of 0, so that all scores are; the value of a key is 1 in one coordinate, which depends on sequence, head
/// and key, and 0 in the others.
fn marked(problem: &Problem, extra: Extra) -> Tensors {
    let s = problem.tensor_shape();
    let plain = Problem::new(s).layout(Layout::Bhsd);
    let mut tensors = Case::new("marked", plain.clone()).tensors(0);
    tensors.q.fill(0.0);
    tensors.v.fill(0.0);
    for b in 0..s.batch {
        for h in 0..s.kv_heads {
            for j in 0..s.kv_len {
                tensors.v[start(plain.v, (b, h, j)) + mark((b, h, j), s.v_head_dim)] = 1.0;
            }
        }
    }
    Tensors { extra, ..tensors }
}

fn mark((b, h, j): At, width: u32) -> usize {
    len((j + 5 * h + 11 * b) % width)
}

/// Each row sees exactly these keys: of a contiguous problem without anything but what hides, each counts the same,
/// next to a sink. Rows that are no rows have neither keys nor a sink.
fn sees(what: &str, problem: &Problem, extra: Extra, shown: impl Fn(At, u32) -> bool) {
    sees_on(targets(problem), what, problem, extra, shown);
}

/// The same, on some paths.
fn sees_on(
    targets: impl Iterator<Item = Target>,
    what: &str,
    problem: &Problem,
    extra: Extra,
    shown: impl Fn(At, u32) -> bool,
) {
    let s = problem.tensor_shape();
    let tensors = marked(problem, extra);
    let past = |(b, _, i): At| tensors.extra.q_lens.get(len(b)).is_some_and(|n| i >= *n);
    for target in targets {
        let got = target.run(what, problem, &tensors);
        for (row, at) in rows(&s).enumerate() {
            let (b, h, _) = at;
            let sink = tensors.extra.sinks.get(len(h)).map_or(-INF, |sink| f64::from(*sink));
            let sink = if past(at) { -INF } else { sink };
            let mut counts = vec![0.0; len(s.v_head_dim)];
            for j in (0..s.kv_len).filter(|j| shown(at, *j)) {
                counts[mark((b, h / s.group_size(), j), s.v_head_dim)] += 1.0;
            }
            let keys: f64 = counts.iter().sum();
            let sum = keys + sink.exp();
            let out = &got.out[start(problem.out, at)..][..counts.len()];
            for (d, (got, count)) in out.iter().zip(&counts).enumerate() {
                let (want, bound) = if *count == 0.0 { (0.0, 0.0) } else { (count / sum, 1e-6) };
                let right = error(*got, want) <= bound;
                assert!(right, "{target:?}: {what}: {got} at {d} of row {at:?}, not {want}");
            }
            if let Some(lse) = &got.lse {
                let (want, bound) = if keys == 0.0 { (sink, 0.0) } else { (sum.ln(), 1e-6) };
                let right = error(lse[row], want) <= bound;
                assert!(right, "{target:?}: {what}: lse of row {at:?} is {}, not {want}", lse[row]);
            }
        }
    }
}

/// As `sees`, without and with sinks.
fn sees_with_sinks(what: &str, problem: Problem, extra: &Extra, shown: impl Fn(At, u32) -> bool) {
    sees(what, &problem, extra.clone(), &shown);
    let sinks: Vec<f32> =
        [0.75, -3.25, 40.0, -1e30].iter().copied().cycle().take(len(problem.shape.heads)).collect();
    let extra = Extra { sinks, ..extra.clone() };
    sees(&format!("{what}, sinks"), &problem.with_sinks(), extra, &shown);
}

fn cross(batch: u32, heads: u32, q_len: u32, kv_len: u32) -> Problem {
    Problem::new(Shape::cross_attention(batch, heads, q_len, kv_len, 16)).with_lse()
}

#[test]
fn rule_01_a_row_without_keys_is_0_and_minus_infinity_or_the_sink() {
    let base = cross(2, 2, 5, 70);
    // Odd rows see nothing.
    let odd = |(_, _, i): At, _: u32| i % 2 == 0;
    let all = |problem: &Problem| rows(&problem.shape).flat_map(|at| (0..70).map(move |j| (at, j)));
    let pairs = Pairs::new([2, 2, 5, 70]);
    let problem = base.clone().with_boolean_mask(MaskFormat::Bytes, pairs);
    let mask = all(&base).map(|(at, j)| odd(at, j)).collect();
    sees_with_sinks("mask", problem, &Extra { mask, ..Extra::default() }, odd);
    let problem = base.clone().with_bias(DType::F32, pairs);
    let value = |shown| if shown { 0.0 } else { f32::NEG_INFINITY };
    let bias = all(&base).map(|(at, j)| value(odd(at, j))).collect();
    sees_with_sinks("bias", problem, &Extra { bias, ..Extra::default() }, odd);
    let wgsl = "fn visible(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> bool { return q_pos % 2u == 0u; }";
    let function = MaskFunction::new("even rows", wgsl, |pair| pair.q_pos % 2 == 0);
    sees_with_sinks("function", base.clone().with_mask_function(function), &Extra::default(), odd);
    let band = Mask::CAUSAL.along(Diagonal::Offset(-3));
    let shown = |(_, _, i): At, j: u32| j + 3 <= i;
    sees_with_sinks("band", base.clone().mask(band), &Extra::default(), shown);
    let extra = Extra { kv_lens: vec![0, 70], ..Extra::default() };
    sees_with_sinks("length", base.with_lengths(false, true), &extra, |(b, ..), _| b == 1);
    judged("weights", cross(2, 2, 50, 20).mask(Mask::CAUSAL).with_sinks().with_weights());
}

#[test]
fn rule_03_causal_rows_end_at_the_diagonal_that_is_asked_for() {
    for (q_len, kv_len) in [(7, 80), (80, 7), (40, 40)] {
        let base = cross(3, 1, q_len, kv_len);
        let causal = |diagonal| base.clone().mask(Mask::CAUSAL.along(diagonal));
        let ends = |offset: i64| move |(_, _, i): At, j: u32| i64::from(j) <= i64::from(i) + offset;
        let bottom_right = i64::from(kv_len) - i64::from(q_len);
        let none = Extra::default;
        sees("default", &base.clone().mask(Mask::CAUSAL), none(), ends(bottom_right));
        sees("bottom-right", &causal(Diagonal::BottomRight), none(), ends(bottom_right));
        sees("top-left", &causal(Diagonal::TopLeft), none(), ends(0));
        sees("offset", &causal(Diagonal::Offset(2)), none(), ends(2));
        let offsets = [3, -2, 100];
        let extra = Extra { diag_offsets: offsets.to_vec(), ..none() };
        sees("each its own", &causal(Diagonal::PerSequence), extra, |(b, _, i), j| {
            i64::from(j) <= i64::from(i) + i64::from(offsets[len(b)])
        });
    }
}

#[test]
fn rule_04_no_query_no_key_and_no_sequence_are_valid() {
    for (batch, q_len, kv_len) in [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0), (0, 0, 0)] {
        let base = cross(batch, 2, q_len, kv_len);
        sees_with_sinks("empty", base.clone().mask(Mask::CAUSAL), &Extra::default(), |_, _| true);
        let pairs = Pairs::new([batch, 2, q_len, kv_len]);
        let rich = base
            .mask(Mask::window(3).along(Diagonal::PerSequence))
            .softcap(5.0)
            .with_alibi(Slopes::PerSequence)
            .with_sinks()
            .with_lengths(true, true)
            .with_boolean_mask(MaskFormat::Bits, pairs)
            .with_bias(DType::F16, pairs)
            .with_mask_function(functions::dilated())
            .with_score_function(functions::fading());
        judged("every feature", rich.clone());
        let name = format!("{batch} {q_len} {kv_len}");
        for stage in [ScoreStage::Raw, ScoreStage::Biased] {
            judged(&name, rich.clone().with_weights().with_scores(stage));
        }
        let packed = Shape::cross_attention(batch.min(q_len + kv_len), 2, q_len, kv_len, 16);
        if batch > 0 || (q_len, kv_len) == (0, 0) {
            judged(&name, Problem::packed(packed).mask(Mask::CAUSAL).with_sinks().with_lse());
        }
    }
}

/// The first coordinate of every query is `q`, of key `j` `keys[j]`; the value of key `j` is 1 at `j`.
fn by_hand(problem: &Problem, q: f32, keys: &[f32]) -> Tensors {
    let mut tensors = marked(problem, Extra::default());
    tensors.k.fill(0.0);
    tensors.q.iter_mut().step_by(16).for_each(|x| *x = q);
    tensors.k.iter_mut().step_by(16).zip(keys.iter().cycle()).for_each(|(x, key)| *x = *key);
    tensors
}

/// One row of one head has these scores and this sink, worked out by hand.
fn has_scores(what: &str, problem: &Problem, tensors: &Tensors, scores: &[f64], sink: f64) {
    assert_eq!(problem.shape.heads * problem.shape.q_len, 1);
    let sum = scores.iter().map(|x| x.exp()).sum::<f64>() + sink.exp();
    for target in targets(problem) {
        let got = target.run(what, problem, tensors);
        let weights = scores.iter().map(|x| x.exp() / sum);
        for (j, (got, want)) in got.out.iter().zip(weights).enumerate() {
            assert!(error(*got, want) <= 1e-6, "{target:?}: {what}: {got} at {j}, not {want}");
        }
        let lse = got.lse.as_ref().map_or(f32::NAN, |lse| lse[0]);
        assert!(error(lse, sum.ln()) <= 2e-6, "{target:?}: {what}: lse {lse}, not {}", sum.ln());
        for (got, want) in got.scores.iter().flatten().zip(scores) {
            assert!(error(*got, *want) <= 2e-6, "{target:?}: {what}: score {got}, not {want}");
        }
    }
}

const KEYS: [f32; 5] = [1.0, -2.0, 0.5, 3.0, -0.25];

#[test]
fn rule_05_a_scale_of_0_is_a_mean_and_a_negative_one_turns_scores_round() {
    let base = cross(1, 1, 1, 5);
    for scale in [0.0, -2.0, 0.7] {
        let problem = base.clone().scale(scale);
        let tensors = by_hand(&problem, 1.5, &KEYS);
        let scores = KEYS.map(|k| f64::from(scale) * 1.5 * f64::from(k));
        has_scores("scale", &problem, &tensors, &scores, -INF);
    }
    // 1 / sqrt(16).
    let scores = KEYS.map(|k| 1.5 * f64::from(k) / 4.0);
    has_scores("default", &base, &by_hand(&base, 1.5, &KEYS), &scores, -INF);
    let wide = cross(2, 3, 40, 150).mask(Mask::CAUSAL);
    judged("negative", wide.clone().scale(-0.4));
    judged("zero", wide.scale(0.0));
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let refused = |error: &Error| matches!(error, Error::Problem(ProblemError::Scale { .. }));
        is_refused(&base.clone().scale(scale), &Extra::default(), refused);
    }
}

/// Every path gives the same kind of error.
fn is_refused(problem: &Problem, extra: &Extra, wanted: impl Fn(&Error) -> bool) {
    let tensors = Tensors { extra: extra.clone(), ..Tensors::default() };
    for target in Target::ALL {
        match target.try_run(problem, &tensors) {
            Err(error) => assert!(wanted(&error), "{target:?}: {error:?}"),
            Ok(_) => panic!("{target:?}: not refused: {problem:?}"),
        }
    }
}

#[test]
fn rule_06_a_soft_cap_is_finite_and_above_0_or_an_error() {
    let base = cross(1, 1, 1, 5).scale(1.0);
    for cap in [0.0, -0.0, -30.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let refused = |error: &Error| matches!(error, Error::Problem(ProblemError::Softcap { .. }));
        is_refused(&base.clone().softcap(cap), &Extra::default(), refused);
    }
    for cap in [1e-3, 0.5, 30.0, 1e30] {
        let problem = base.clone().softcap(cap);
        let scores = KEYS.map(|k| f64::from(cap) * (f64::from(k) / f64::from(cap)).tanh());
        has_scores("cap", &problem, &by_hand(&problem, 1.0, &KEYS), &scores, -INF);
    }
}

/// Each feature is added to the ones before.
#[test]
fn rule_07_scale_cap_alibi_and_bias_come_in_this_order() {
    let mut problem = cross(1, 1, 1, 5).scale(0.5);
    let mut tensors = by_hand(&problem, 2.0, &KEYS);
    let mut scores = KEYS.map(f64::from);
    let check = |what: &str, problem: &Problem, tensors: &Tensors, scores: &[f64], sink: f64| {
        has_scores(what, problem, tensors, scores, sink);
        let given = problem.clone().with_scores(ScoreStage::Biased);
        has_scores(what, &given, tensors, scores, sink);
    };
    check("scale", &problem, &tensors, &scores, -INF);
    problem = problem.softcap(2.0);
    scores = scores.map(|x| 2.0 * (x / 2.0).tanh());
    check("cap", &problem, &tensors, &scores, -INF);
    problem = problem.with_alibi(Slopes::PerHead);
    tensors.extra.alibi_slopes = vec![3.0];
    // The query stands at the last of the keys.
    scores = std::array::from_fn(|j| scores[j] - 3.0 * [4.0, 3.0, 2.0, 1.0, 0.0][j]);
    check("alibi", &problem, &tensors, &scores, -INF);
    problem = problem.with_bias(DType::BF16, Pairs::new([1, 1, 1, 5]));
    let bias = [9.0, 5.0, 7.0, -2.5, 0.5];
    tensors.extra.bias = bias.to_vec();
    scores = std::array::from_fn(|j| scores[j] + f64::from(bias[j]));
    check("bias", &problem, &tensors, &scores, -INF);
    problem = problem.with_sinks();
    tensors.extra.sinks = vec![1.25];
    check("sink", &problem, &tensors, &scores, 1.25);
}

#[test]
fn rule_13_lse_is_a_natural_log_and_has_scale_cap_bias_and_sink_in_it() {
    let ln_2 = 2.0_f64.ln();
    // Eight keys, each of which scores 1.
    let mut problem = cross(1, 1, 1, 8).scale(0.5);
    let mut tensors = by_hand(&problem, 2.0, &[1.0]);
    let has_lse = |what: &str, problem: &Problem, tensors: &Tensors, want: f64| {
        for target in targets(problem) {
            let lse = target.run(what, problem, tensors).lse.expect("asked for")[0];
            assert!(error(lse, want) <= 1e-6, "{target:?}: {what}: {lse}, not {want}");
        }
    };
    has_lse("scale", &problem, &tensors, 1.0 + 3.0 * ln_2);
    problem = problem.softcap(1.0);
    has_lse("cap", &problem, &tensors, 1.0_f64.tanh() + 3.0 * ln_2);
    problem = problem.with_bias(DType::F32, Pairs::new([1; 4]));
    tensors.extra.bias = vec![2.0_f32.ln()];
    let lse = 1.0_f64.tanh() + 4.0 * ln_2;
    has_lse("bias", &problem, &tensors, lse);
    // As much again.
    problem = problem.with_sinks();
    tensors.extra.sinks = vec![1.0_f32.tanh() + 4.0 * 2.0_f32.ln()];
    has_lse("sink", &problem, &tensors, lse + ln_2);
}

#[test]
fn rule_08_a_boolean_mask_and_a_bias_are_two_inputs_of_their_own_types() {
    let hidden = |i: u32, j: u32| (i + j).is_multiple_of(4);
    let excluded = |i: u32, j: u32| (i + 2 * j) % 7 == 1;
    let all = || (0..45).flat_map(|i| (0..83).map(move |j| (i, j)));
    let pairs = Pairs::new([1, 1, 45, 83]);
    let types = [(MaskFormat::Bytes, DType::BF16), (MaskFormat::Bits, DType::F32)];
    let few = if support::small() { 1 } else { 2 };
    for ((format, bias_type), dtype) in types.into_iter().zip([DType::F32, DType::F16]).take(few) {
        let base = cross(2, 4, 45, 83).dtype(dtype).out_dtype(DType::F32);
        let problem = base.with_boolean_mask(format, pairs).with_bias(bias_type, pairs);
        let bias = |i, j| if excluded(i, j) { f32::NEG_INFINITY } else { 0.0 };
        let extra = Extra {
            mask: all().map(|(i, j)| !hidden(i, j)).collect(),
            bias: all().map(|(i, j)| bias(i, j)).collect(),
            ..Extra::default()
        };
        let shown = |(_, _, i): At, j: u32| !hidden(i, j) && !excluded(i, j);
        sees("both", &problem, extra, shown);
        judged("both", problem);
    }
}

/// The elements of a broadcast tensor, one for each pair.
fn materialised<T: Copy>(data: &[T], pairs: Pairs, exact: [u32; 4]) -> Vec<T> {
    let [batch, heads, q_len, kv_len] = exact;
    let at = move |b, h, i, j| {
        let strides = [b, h, i, j].into_iter().zip(pairs.strides);
        let index: u64 = strides.map(|(n, stride)| u64::from(n) * stride).sum();
        usize::try_from(index).expect("in memory")
    };
    let rows = (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h)));
    let rows = rows.flat_map(|(b, h)| (0..q_len).map(move |i| (b, h, i)));
    rows.flat_map(|(b, h, i)| (0..kv_len).map(move |j| data[at(b, h, i, j)])).collect()
}

#[test]
fn rule_09_every_axis_of_a_mask_and_a_bias_may_be_broadcast() {
    let exact = [2, 4, 45, 83];
    let shape = Shape::cross_attention(2, 4, 45, 83, 16).with_kv_heads(2);
    let form = |n: u32| {
        let axes = std::array::from_fn(|axis| if n >> axis & 1 == 0 { exact[axis] } else { 1 });
        Pairs::new(axes)
    };
    let step = if support::small() { 5 } else { 1 };
    for n in (0..16).step_by(step) {
        // Each form of the one meets each of two forms of the other.
        for (mask, bias) in [(form(n), form(15 - n)), (form(n), form(n))] {
            let with = |mask, bias| {
                let problem = Problem::new(shape).mask(Mask::window(60)).with_lse();
                problem.with_boolean_mask(MaskFormat::Bytes, mask).with_bias(DType::F32, bias)
            };
            let case = Case::new("broadcast", with(mask, bias)).sharp(8.0);
            let (answer, tensors) = (Answer::of(&case), case.tensors(0));
            let mut whole = tensors.clone();
            whole.extra.mask = materialised(&tensors.extra.mask, mask, exact);
            whole.extra.bias = materialised(&tensors.extra.bias, bias, exact);
            let all = Pairs::new(exact);
            let dense = with(all, all);
            // The same without an axis of 1, by strides of 0 alone.
            let strided = with(all.with_strides(mask.strides), all.with_strides(bias.strides));
            for target in targets(&dense) {
                let what = case.to_string();
                let got = target.run(&what, &case.problem, &tensors);
                answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
                for (problem, tensors) in [(&dense, &whole), (&strided, &tensors)] {
                    let other = target.run(&what, problem, tensors);
                    assert!(bits(&got) == bits(&other), "{target:?}: {problem:?}: {what}");
                }
            }
        }
    }
    let problem =
        cross(2, 4, 45, 83).with_boolean_mask(MaskFormat::Bytes, Pairs::new([2, 2, 45, 83]));
    let refused = |error: &Error| {
        matches!(error, Error::Problem(ProblemError::Broadcast { axis: "heads", .. }))
    };
    is_refused(&problem, &Extra::default(), refused);
}

#[test]
fn rule_10_groups_of_any_ratio_share_a_head_in_order() {
    for (heads, kv_heads) in [(2, 2), (6, 2), (10, 2), (14, 2), (28, 4), (5, 1)] {
        let shape = Shape::cross_attention(2, heads, 9, 40, 16).with_kv_heads(kv_heads);
        let problem = Problem::new(shape).mask(Mask::CAUSAL).with_lse();
        let what = format!("{heads} on {kv_heads}");
        sees(&what, &problem, Extra::default(), |(_, _, i), j| j <= i + 31);
        judged(&what, problem);
    }
    let problem = Problem::new(Shape::self_attention(1, 6, 9, 16).with_kv_heads(4));
    let wanted = ProblemError::UngroupedHeads { heads: 6, kv_heads: 4 };
    is_refused(&problem, &Extra::default(), |error| *error == Error::Problem(wanted.clone()));
}

#[test]
fn rule_11_a_stride_of_0_shares_keys_and_values_among_sequences() {
    let problem = cross(3, 2, 45, 83).mask(Mask::CAUSAL);
    let shared = Strides { batch: 0, ..problem.k };
    let case = Case::new("shared", problem.clone().k_strides(shared).v_strides(shared)).sharp(8.0);
    let tensors = case.tensors(0);
    let repeated = Tensors { k: tensors.k.repeat(3), v: tensors.v.repeat(3), ..tensors.clone() };
    same_bits("shared", (&case.problem, &tensors), (&problem, &repeated));
    judged("shared", case.problem);
}

#[test]
fn rule_12_widths_of_keys_and_values_are_any() {
    let all: &[(u32, u32)] = &[
        (1, 2),
        (2, 3),
        (3, 1),
        (31, 33),
        (33, 31),
        (127, 129),
        (129, 127),
        (511, 1),
        (512, 512),
        (576, 512),
    ];
    let few: &[(u32, u32)] = &[(3, 1), (33, 31)];
    for &(dim, v_dim) in if support::small() { few } else { all } {
        let shape = Shape::cross_attention(1, 2, 19, 45, dim).with_v_head_dim(v_dim);
        judged("width", Problem::new(shape).mask(Mask::CAUSAL).with_lse());
    }
}

#[test]
fn rule_14_both_ends_of_a_window_are_seen() {
    assert_eq!(Mask::CAUSAL, Mask::band(None, Some(0)));
    assert_eq!(Mask::window(4), Mask::band(Some(4), Some(0)));
    for width in [1, 2, 4096] {
        assert_eq!(Mask::from_sliding_window(width), Ok(Mask::window(width - 1)));
    }
    assert_eq!(Mask::from_sliding_window(0), Err(ProblemError::EmptyWindow));
    for (q_len, kv_len) in [(90, 90), (20, 90), (90, 20)] {
        for (left, right) in
            [(Some(0), Some(0)), (Some(3), Some(5)), (Some(40), None), (None, Some(33))]
        {
            let problem = cross(1, 2, q_len, kv_len).mask(Mask::band(left, right));
            sees("window", &problem, Extra::default(), |(_, _, i), j| {
                let distance = i64::from(i) + i64::from(kv_len) - i64::from(q_len) - i64::from(j);
                left.is_none_or(|left| distance <= left.into())
                    && right.is_none_or(|right| -distance <= right.into())
            });
        }
    }
}

#[test]
fn rule_15_alibi_is_minus_slope_times_distance_along_the_diagonal() {
    let keys = 70;
    for (offset, slopes) in [(3, Slopes::PerHead), (-5, Slopes::PerSequence)] {
        let base = cross(2, 2, 6, keys).mask(Mask::FULL.along(Diagonal::Offset(offset)));
        let problem = base.with_alibi(slopes);
        let mut tensors = marked(&problem, Extra::default());
        let given = [0.5, 0.25, 1.0, 0.0];
        let slope = |b: u32, h: u32| match slopes {
            Slopes::PerHead => given[len(h)],
            _ => given[len(2 * b + h)],
        };
        tensors.extra.alibi_slopes =
            given[..if slopes == Slopes::PerHead { 2 } else { 4 }].to_vec();
        let score = |(b, h, i): At, j: u32| {
            let distance = i64::from(i) + i64::from(offset) - i64::from(j);
            -f64::from(slope(b, h)) * f64::from(i32::try_from(distance.abs()).expect("small"))
        };
        for problem in [problem.clone(), problem.with_scores(ScoreStage::Biased)] {
            for target in targets(&problem) {
                let got = target.run("alibi", &problem, &tensors);
                for (row, at) in rows(&problem.shape).enumerate() {
                    let sum: f64 = (0..keys).map(|j| score(at, j).exp()).sum();
                    let lse = got.lse.as_ref().map_or(f32::NAN, |lse| lse[row]);
                    assert!(error(lse, sum.ln()) <= 2e-6, "{target:?}: {lse}, not {}", sum.ln());
                    let scores = got.scores.iter().flatten().skip(row * len(keys));
                    for (j, got) in (0..keys).zip(scores) {
                        let want = score(at, j);
                        assert!(error(*got, want) == 0.0, "{target:?}: {got}, not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn rule_15_the_standard_slopes_are_those_of_the_paper() {
    let powers: Vec<f32> = (1_u8..=8).map(|i| (-f32::from(i)).exp2()).collect();
    assert_eq!(alibi_slopes(8), powers);
    assert_eq!(alibi_slopes(1), [1.0 / 256.0]);
    let twelve = alibi_slopes(12);
    assert_eq!(twelve[..8], powers);
    let odd = [0.707_106_77, 0.353_553_4, 0.176_776_69, 0.088_388_35];
    for (slope, known) in twelve[8..].iter().zip(odd) {
        assert!((slope - known).abs() <= 1e-7, "{slope} is not {known}");
    }
    assert_eq!(twelve.len(), 12);
}

#[test]
fn rule_24_rows_past_the_length_of_their_sequence_are_0_and_minus_infinity() {
    let lens = [0, 7, 45];
    let extra = Extra { q_lens: lens.to_vec(), ..Extra::default() };
    let problem = cross(3, 2, 45, 83).with_lengths(true, false);
    sees_with_sinks("q_lens", problem.clone(), &extra, |(b, _, i), _| i < lens[len(b)]);
    // The diagonal is that of the rows there are.
    sees_with_sinks("causal", problem.mask(Mask::CAUSAL), &extra, |(b, _, i), j| {
        i < lens[len(b)] && j + lens[len(b)] <= i + 83
    });
    let extra = Extra { kv_lens: vec![83, 0, 5], ..extra };
    let problem = cross(3, 2, 45, 83).with_lengths(true, true);
    sees_with_sinks("both", problem, &extra, |(b, _, i), j| {
        i < lens[len(b)] && j < [83, 0, 5][len(b)]
    });
}

/// One sequence out of a packed batch, packed alone and not packed.
fn unpacked(case: &Case, tensors: &Tensors, b: u32) -> [(Problem, Tensors); 2] {
    let s = case.problem.shape;
    let part = |cu: &[u32]| cu[len(b)]..cu[len(b) + 1];
    let e = &tensors.extra;
    let (q, kv) = (part(&e.cu_seqlens_q), part(&e.cu_seqlens_k));
    let rows = |data: &[f32], range: &std::ops::Range<u32>, heads: u32| {
        data[len(range.start * heads * 16)..len(range.end * heads * 16)].to_vec()
    };
    let (q_len, kv_len) = (q.end - q.start, kv.end - kv.start);
    let shape = Shape::cross_attention(1, s.heads, q_len, kv_len, 16).with_kv_heads(s.kv_heads);
    let mut packed = case.problem.clone();
    packed.shape = shape;
    let mut dense = Problem::new(shape).layout(Layout::Bshd).mask(packed.mask).with_lse();
    (dense.sinks, dense.batch_invariant) = (packed.sinks, packed.batch_invariant);
    let mut its = Tensors {
        q: rows(&tensors.q, &q, s.heads),
        k: rows(&tensors.k, &kv, s.kv_heads),
        v: rows(&tensors.v, &kv, s.kv_heads),
        extra: Extra { sinks: e.sinks.clone(), ..Extra::default() },
    };
    let alone = its.clone();
    (its.extra.cu_seqlens_q, its.extra.cu_seqlens_k) = (vec![0, q_len], vec![0, kv_len]);
    [(packed, its), (dense, alone)]
}

/// Nothing at the start, in the middle, at the end; queries without keys, keys without queries.
fn packed_case(problem: impl Fn(Problem) -> Problem) -> (Case, Tensors) {
    let shape = |batch| Shape::cross_attention(batch, 4, 130, 310, 16).with_kv_heads(2);
    let case = Case::new("packed", problem(Problem::packed(shape(7)).with_lse().with_sinks()));
    let mut tensors = Case::new("tokens", Problem::packed(shape(1))).sharp(8.0).tensors(0);
    tensors.extra = Extra {
        cu_seqlens_q: vec![0, 0, 61, 61, 62, 80, 130, 130],
        cu_seqlens_k: vec![0, 0, 70, 75, 280, 280, 310, 310],
        sinks: vec![0.5, -1.0, f32::NEG_INFINITY, 2.0],
        ..Extra::default()
    };
    (case, tensors)
}

/// How far the rows of sequence `b` in a packed result are off those of its own, and their lse.
fn apart(tensors: &Tensors, b: u32, all: &Got, own: &Got) -> (f64, f64) {
    let first = len(tensors.extra.cu_seqlens_q[len(b)]);
    let count = own.out.len() / 64;
    let most = |off: f64, (x, y): (&f32, &f32)| off.max(error(*x, f64::from(*y)));
    let out = all.out[first * 64..].iter().zip(&own.out).fold(0.0, most);
    let lses = |got: &Got, h: usize, rows: usize, first: usize| {
        got.lse.as_ref().map_or(Vec::new(), |lse| lse[h * rows + first..][..count].to_vec())
    };
    let heads = (0..4).map(|h| (lses(all, h, 130, first), lses(own, h, count, 0)));
    let lse = heads.fold(0.0, |off, (x, y)| x.iter().zip(&y).fold(off, most));
    (out, lse)
}

#[test]
fn rule_25_packed_sequences_are_what_each_is_alone() {
    for mask in [Mask::CAUSAL, Mask::window(30), Mask::FULL] {
        let (case, tensors) = packed_case(|problem| problem.mask(mask));
        let at: Vec<_> = rows(&case.problem.tensor_shape()).collect();
        let answer = Answer::for_rows(case.to_string(), &case.problem, &tensors, &at);
        // Each of two is off by no more than the rule allows.
        let (out_bound, lse_bound) = (2.0 * answer.bounds.out, 2.0 * answer.bounds.lse);
        for target in targets(&case.problem) {
            let all = target.run(&case.to_string(), &case.problem, &tensors);
            answer.check(&all).unwrap_or_else(|error| panic!("{target:?}: {error}"));
            for b in 0..7 {
                for (problem, its) in unpacked(&case, &tensors, b) {
                    let own = target.run(&case.to_string(), &problem, &its);
                    let (out, lse) = apart(&tensors, b, &all, &own);
                    let right = out <= out_bound && lse <= lse_bound;
                    assert!(right, "{target:?}: sequence {b}: {out:e}, {lse:e}: {problem:?}");
                }
            }
        }
    }
}

/// The fused kernels refuse, as their tiles hold rows of several: an option is never ignored.
#[test]
fn rule_27_packed_sequences_have_the_same_bits_in_every_batch() {
    for mask in [Mask::CAUSAL, Mask::window(30)] {
        let (case, tensors) = packed_case(|problem| problem.mask(mask).batch_invariant());
        for target in targets(&case.problem) {
            let all = match target.try_run(&case.problem, &tensors) {
                Err(Error::Plan(PlanError::AlgorithmLacks { algorithm, what })) => {
                    assert_eq!(what, "batch_invariant of packed sequences");
                    let refuses = match target {
                        Target::Flash(_) => "flash",
                        Target::Split(_) => "split",
                        _ => "none",
                    };
                    assert_eq!(algorithm, refuses, "{target:?}");
                    continue;
                }
                all => all.expect("a result"),
            };
            for b in 0..7 {
                let [(problem, its), _] = unpacked(&case, &tensors, b);
                let own = target.run(&case.to_string(), &problem, &its);
                let off = apart(&tensors, b, &all, &own);
                assert!(off == (0.0, 0.0), "{target:?}: sequence {b}: {off:?}: {case}");
            }
        }
    }
}

#[test]
fn rule_28_results_do_not_depend_on_strides() {
    let shape = Shape::cross_attention(2, 4, 45, 83, 16).with_kv_heads(2);
    let base = Problem::new(shape).mask(Mask::window(50)).with_lse();
    let dense = Case::new("dense", base.clone()).sharp(8.0);
    let tensors = dense.tensors(0);
    let answer = Answer::of(&dense);
    let gapped = |heads: u32, len: u32, row: u64| {
        let head = u64::from(len) * row + 4;
        Strides { batch: u64::from(heads) * head + 8, head, row }
    };
    // Heads outermost, rows of 36 apart; and an odd distance, that no vector load likes.
    let turned = |rows: u64| Strides { batch: 36 * rows, head: 72 * rows, row: 36 };
    let even = |p: Problem| {
        p.q_strides(turned(45))
            .k_strides(gapped(2, 83, 40))
            .v_strides(turned(83))
            .out_strides(gapped(4, 45, 44))
    };
    let odd = |p: Problem| {
        let (q, kv) = (gapped(4, 45, 33), gapped(2, 83, 37));
        p.q_strides(q).k_strides(kv).v_strides(kv).out_strides(q)
    };
    let layouts = [even(base.clone()), base.clone().layout(Layout::Bshd), odd(base.clone())];
    for (i, problem) in layouts.iter().enumerate() {
        let relaid = |data: &[f32], heads, rows, strides| {
            support::case::relaid(data, [2, heads, rows], 16, strides)
        };
        let other = Tensors {
            q: relaid(&tensors.q, 4, 45, (base.q, problem.q)),
            k: relaid(&tensors.k, 2, 83, (base.k, problem.k)),
            v: relaid(&tensors.v, 2, 83, (base.v, problem.v)),
            extra: Extra::default(),
        };
        for target in targets(problem) {
            let want = target.run("dense", &base, &tensors);
            let mut got = target.run("strided", problem, &other);
            got.out = relaid(&got.out, 4, 45, (problem.out, base.out));
            answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {problem:?}: {error}"));
            // Kernels that load one number at a time may add in another order.
            assert!(i == 2 || bits(&got) == bits(&want), "{target:?}: {problem:?}");
        }
    }
    let overlapping = base.out_strides(Strides { batch: 2880, head: 720, row: 15 });
    let refused =
        |error: &Error| matches!(error, Error::Problem(ProblemError::OverlappingRows { .. }));
    is_refused(&overlapping, &Extra::default(), refused);
}

#[test]
fn rule_29_what_is_past_a_limit_is_folded_or_a_typed_error() {
    // More sequences than an axis of a grid has workgroups; large tiles, of which a software GPU takes a minute for so many,
    // where an axis has few.
    let of = |batch| {
        let shape = Shape::cross_attention(batch, 1, 1, 2, 4);
        Problem::new(shape).mask(Mask::CAUSAL).with_lse()
    };
    let (problem, few) = (of(66_000), of(20 * TIGHT_WORKGROUPS));
    let small = Target::ALL.into_iter().filter(|target| !target.is_large());
    sees_on(small, "folded", &problem, Extra::default(), |_, _| true);
    let large = [Algorithm::Staged, Algorithm::Flash, Algorithm::Split]
        .map(|algorithm| Target::Tight(DeviceClass::Hardware, algorithm));
    sees_on(large.into_iter(), "folded", &few, Extra::default(), |_, _| true);
    let wide = Shape::self_attention(1, 1, 1, 1 << 26);
    let portable = Capabilities::portable();
    match Plan::new(&Problem::new(wide), &portable, Algorithm::Auto) {
        Err(PlanError::LimitExceeded { limit, required, available, .. }) => {
            assert_eq!(limit, "max_storage_buffer_binding_size");
            assert!(required >= 1 << 28, "{required}");
            assert_eq!(available, portable.limits.max_storage_buffer_binding_size);
        }
        other => panic!("{other:?}"),
    }
    let far = cross(1, 1, 2, 2).k_strides(Strides { batch: 0, head: 0, row: u64::MAX });
    let refused =
        |error: &Error| matches!(error, Error::Problem(ProblemError::Unaddressable { .. }));
    is_refused(&far, &Extra::default(), refused);
    let long = Problem::new(Shape::cross_attention(1, 1, 1, (1 << 29) + 1, 1));
    let refused = |error: &Error| matches!(error, Error::Problem(ProblemError::TooLong { .. }));
    is_refused(&long, &Extra::default(), refused);
}

#[test]
fn rule_30_misuse_is_a_typed_error_and_no_option_is_ignored() {
    let base = cross(2, 2, 5, 7);
    let tensors = marked(&base, Extra::default());
    let refused = |problem: &Problem, extra: Extra, wanted: &dyn Fn(&Error) -> bool| {
        let tensors = Tensors { extra, ..tensors.clone() };
        for target in Target::ALL {
            match target.try_run(problem, &tensors) {
                Err(error) => assert!(wanted(&error), "{target:?}: {error:?}"),
                Ok(_) => panic!("{target:?}: not refused: {problem:?}"),
            }
        }
    };
    // Given but not asked for.
    let unused = |error: &Error| matches!(error, Error::Bind(BindError::Unused { .. }));
    let none = Extra::default;
    refused(&base, Extra { sinks: vec![0.0; 2], ..none() }, &unused);
    refused(&base, Extra { mask: vec![true; 35], ..none() }, &unused);
    refused(&base, Extra { bias: vec![0.0; 35], ..none() }, &unused);
    refused(&base, Extra { alibi_slopes: vec![0.0; 2], ..none() }, &unused);
    refused(&base, Extra { kv_lens: vec![7; 2], ..none() }, &unused);
    refused(&base, Extra { diag_offsets: vec![0; 2], ..none() }, &unused);
    refused(&base, Extra { buffers: vec![("mine".to_owned(), vec![1])], ..none() }, &unused);
    // Asked for but not given, or of another length.
    let length = |error: &Error| matches!(error, Error::Length { .. });
    let pairs = Pairs::new([1, 1, 5, 7]);
    let lens = base.clone().with_lengths(false, true);
    refused(&base.clone().with_sinks(), none(), &length);
    refused(&base.clone().with_sinks(), Extra { sinks: vec![0.0; 3], ..none() }, &length);
    refused(
        &base.clone().with_alibi(Slopes::PerSequence),
        Extra { alibi_slopes: vec![0.0; 2], ..none() },
        &length,
    );
    refused(&base.clone().with_boolean_mask(MaskFormat::Bytes, pairs), none(), &length);
    refused(&base.clone().with_bias(DType::F16, pairs), none(), &length);
    refused(&lens, none(), &length);
    refused(&base.clone().mask(Mask::CAUSAL.along(Diagonal::PerSequence)), none(), &length);
    // Values out of range.
    let too_long =
        |error: &Error| matches!(error, Error::LengthTooLarge { index: 1, found: 8, max: 7, .. });
    refused(&lens, Extra { kv_lens: vec![7, 8], ..none() }, &too_long);
    let packed = Problem::packed(Shape::cross_attention(2, 2, 5, 7, 16));
    let wrong = |error: &Error| matches!(error, Error::Sequences { .. });
    for (q, k) in [([1, 2, 5], [0, 2, 7]), ([0, 2, 5], [0, 2, 6]), ([0, 6, 5], [0, 2, 7])] {
        let extra = Extra { cu_seqlens_q: q.to_vec(), cu_seqlens_k: k.to_vec(), ..none() };
        refused(&packed, extra, &wrong);
    }
    let pairs = |error: &Error| matches!(error, Error::Problem(ProblemError::PackedPairs { .. }));
    refused(&packed.with_bias(DType::F32, Pairs::new([1; 4])), none(), &pairs);
    // Dropout by one or by the other.
    let (seeded, given) = (base.clone().with_dropout(0.1), base.clone().with_given_dropout(0.1));
    refused(&base, Extra { seed: 1, ..none() }, &unused);
    refused(&base, Extra { keep: vec![true; 140], ..none() }, &unused);
    refused(&given, Extra { seed: 1, keep: vec![true; 140], ..none() }, &unused);
    refused(&seeded, Extra { keep: vec![true; 140], ..none() }, &unused);
    refused(&given, none(), &length);
    refused(&given, Extra { keep: vec![true; 139], ..none() }, &length);
    let lacks = |error: &Error| matches!(error, Error::Plan(PlanError::AlgorithmLacks { .. }));
    let problem = base.with_weights();
    for target in Target::ALL.into_iter().filter(|target| !target.gives(&problem)) {
        let error = target.try_run(&problem, &tensors).expect_err("not refused");
        assert!(lacks(&error), "{target:?}: {error:?}");
    }
}
