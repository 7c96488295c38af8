//! Gradients through the file bridge, as another language asks for them.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::attend::{options, tensors};
use crate::support::case::{Case, Tensors};
use crate::support::files::{
    Tensor, attend, bias, close, f32s, few, file, floats, i32s, mask, read, refuses, values, with,
    write,
};
use crate::support::gradients::{Answer, Given, all_of, emulated};
use safetensors::{Dtype, SafeTensors};
use std::sync::LazyLock;
use wgpu_attention::{
    Backward, DType, Diagonal, DropoutMask, Gradients, Mask, MaskFormat, Pair, Pairs, Problem,
    Shape, Slopes, reference,
};

/// Calls in one process.
fn answer(name: &str, options: &str, lines: &[String]) {
    let jobs = format!("{name}-jobs");
    std::fs::write(file(&jobs), lines.join("\n")).expect("written");
    let got = attend(&format!("{options} --jobs {jobs}"));
    let text = String::from_utf8_lossy(&got.stdout);
    let wrong: Vec<_> = text.lines().filter(|line| !line.starts_with("ok")).collect();
    assert!(wrong.is_empty(), "{wrong:?}: {lines:?}");
    assert_eq!(got.status.code(), Some(0), "{}", String::from_utf8_lossy(&got.stderr));
    assert_eq!(text.lines().count(), lines.len());
}

fn data(name: &str, tensor: &str) -> Vec<f32> {
    read(name, tensor).1
}

fn names(name: &str) -> Vec<String> {
    let bytes = std::fs::read(file(name)).expect("written");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut names: Vec<_> = tensors.names().into_iter().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// Gradients of a file, each as long as the tensor that it is one of.
fn gradients(name: &str, inputs: &[Tensor]) -> Gradients {
    let mut wanted = vec!["out".to_owned(), "lse".to_owned()];
    let mut all = Gradients::default();
    let mut of = |input: &str| {
        let (.., shape, _) = inputs.iter().find(|(name, ..)| *name == input)?;
        let output = format!("d_{input}");
        let (got, data) = read(name, &output);
        assert_eq!(&got, shape, "{name}: {output}");
        wanted.push(output);
        Some(data)
    };
    [all.q, all.k, all.v] = ["q", "k", "v"].map(|input| of(input).expect("given"));
    [all.bias, all.sinks, all.alibi_slopes] = ["bias", "sinks", "alibi_slopes"].map(of);
    wanted.sort_unstable();
    assert_eq!(names(name), wanted, "{name}");
    all
}

const WAYS: [(&str, &str); 6] = [
    ("reference", "--backend reference"),
    ("cpu", "--backend cpu"),
    ("staged", "--algorithm staged"),
    ("flash", "--algorithm flash"),
    ("split", "--algorithm split"),
    ("auto", "--algorithm auto"),
];

/// The ways to the gradients of a problem.
fn ways(problem: &Problem) -> impl Iterator<Item = (&'static str, &'static str)> {
    let summed = problem.bias.is_some() || problem.alibi.is_some();
    let given = problem.dropout.is_some_and(|dropout| dropout.mask == DropoutMask::Given);
    let gives = move |way: &str| match way {
        "flash" => !summed && !given,
        "split" => !given,
        _ => true,
    };
    WAYS.into_iter().filter(move |(way, _)| gives(way))
}

/// All of them; without a GPU where its driver compiles slowly, for what other tests compile there.
fn everywhere() -> impl Iterator<Item = (&'static str, &'static str)> {
    WAYS.into_iter().take(if support::small() { 2 } else { WAYS.len() })
}

/// Every feature, by itself and with others, flat and sharp in turn.
static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let shape = Shape::cross_attention(2, 4, 37, 75, 16).with_kv_heads(2).with_v_head_dim(12);
    let plain = || Problem::new(shape);
    let bias = |axes| plain().with_bias(DType::F32, Pairs::new(axes));
    let exact = Pairs::new([2, 4, 37, 75]);
    let problems = vec![
        ("all", {
            let problem = plain().with_dropout(0.2).softcap(3.0).with_alibi(Slopes::PerHead);
            problem.with_sinks().with_bias(DType::F32, exact).mask(Mask::window(30))
        }),
        ("causal", plain().mask(Mask::CAUSAL)),
        ("plain", plain()),
        ("top-left", plain().mask(Mask::CAUSAL.along(Diagonal::TopLeft)).scale(-0.4)),
        ("band", plain().mask(Mask::band(Some(9), Some(5)))),
        ("diagonals", plain().mask(Mask::window(7).along(Diagonal::PerSequence))),
        ("soft cap", plain().softcap(2.0)),
        ("slopes", plain().with_alibi(Slopes::PerSequence).mask(Mask::CAUSAL)),
        ("bias", bias([2, 4, 37, 75])),
        ("bias that heads share", bias([2, 1, 37, 75])),
        ("bias of keys", bias([1, 4, 1, 75])),
        ("boolean mask", plain().with_boolean_mask(MaskFormat::Bytes, exact)),
        ("sinks", plain().with_sinks().mask(Mask::window(9))),
        ("sinks alone", plain().with_sinks().mask(Mask::CAUSAL.along(Diagonal::Offset(-20)))),
        ("lengths", plain().with_lengths(true, true).mask(Mask::CAUSAL)),
        ("no row sees a key", plain().mask(Mask::CAUSAL.along(Diagonal::Offset(-99)))),
        ("f16", plain().dtype(DType::F16).mask(Mask::CAUSAL)),
        ("bf16", plain().dtype(DType::BF16).with_sinks()),
        ("dropout", plain().with_dropout(0.3).mask(Mask::CAUSAL)),
        ("given dropout", plain().with_given_dropout(0.2)),
        ("packed", Problem::packed(shape).mask(Mask::CAUSAL)),
        ("packed, more", {
            let problem = Problem::packed(shape).with_alibi(Slopes::PerSequence).with_sinks();
            problem.with_dropout(0.5).softcap(4.0)
        }),
        ("no key", Problem::new(Shape::cross_attention(1, 2, 5, 0, 16)).with_sinks()),
        ("no query", Problem::new(Shape::cross_attention(1, 2, 0, 5, 16))),
        ("no sequence", Problem::new(Shape::cross_attention(0, 2, 5, 5, 16))),
        ("one of each", Problem::new(Shape::cross_attention(1, 2, 1, 1, 16))),
    ];
    let sharpness = [1.0, 30.0, 4.0, 8.0].into_iter().cycle();
    let cases = problems.into_iter().zip(sharpness);
    cases.map(|((name, problem), q)| Case::new(name, problem.with_lse()).sharp(q)).collect()
});

/// A case's file, with gradients to start from.
fn with_gradients(case: &Case, given: &Given) -> Vec<Tensor> {
    let mut all = tensors(case).expect("laid out as files are");
    let s = case.problem.tensor_shape();
    let [heads, len, dim] = [s.heads, s.q_len, s.v_head_dim].map(|n| n as usize);
    let packed = all.iter().any(|(name, ..)| *name == "cu_seqlens_q");
    let (out, lse) = if packed {
        (vec![len, heads, dim], vec![heads, len])
    } else {
        (vec![s.batch as usize, heads, len, dim], vec![s.batch as usize, heads, len])
    };
    all.push(floats("d_out", Dtype::F32, &out, &given.d_out));
    if !given.d_lse.is_empty() {
        all.push(floats("d_lse", Dtype::F32, &lse, &given.d_lse));
    }
    all
}

#[test]
fn every_backend_and_algorithm_gives_the_gradients() {
    let mut lines = Vec::new();
    let mut by_default = Vec::new();
    let mut asked = Vec::new();
    for (n, case) in few(&CASES).iter().enumerate() {
        let mut backward = all_of(&case.problem);
        backward.d_lse = n % 3 > 0;
        let (answer, tensors, given) = Answer::from(case, &backward, Given::after_forward);
        let inputs = with_gradients(case, &given);
        let name = format!("gradients-{n}");
        write(&name, &inputs);
        for (way, options_of_way) in ways(&case.problem) {
            lines.push(format!("{}{options_of_way} {name} {name}-{way}", options(case)));
        }
        by_default.push(format!("{}{name} {name}-default", options(case)));
        asked.push((name, case, backward, answer, tensors, given, inputs));
    }
    answer("gradients", "", &lines);
    answer("gradients-default", "--limits default", &by_default);
    for (name, case, backward, answer, tensors, given, inputs) in asked {
        for way in ways(&case.problem).map(|(way, _)| way).chain(["default"]) {
            let got = gradients(&format!("{name}-{way}"), &inputs);
            answer.check(&got).unwrap_or_else(|error| panic!("{way}: {error}"));
        }
        // The definition's, each rounded once.
        let got = gradients(&format!("{name}-reference"), &inputs);
        let want = reference::backward(&backward, &tensors.inputs(), &given.d_out, &given.d_lse);
        #[allow(clippy::cast_possible_truncation, reason = "as the file has it")]
        let same = |got: &[f32], want: &[f64]| {
            assert!(got.iter().copied().eq(want.iter().map(|x| *x as f32)), "{case}");
        };
        for (got, want) in [(&got.q, &want.q), (&got.k, &want.k), (&got.v, &want.v)] {
            same(got, want);
        }
        same(got.bias.as_deref().unwrap_or_default(), &want.bias);
        same(got.sinks.as_deref().unwrap_or_default(), &want.sinks);
        same(got.alibi_slopes.as_deref().unwrap_or_default(), &want.alibi_slopes);
    }
}

/// Values in a range in which differences of them are exact.
fn exact(name: &'static str, shape: &[usize], seed: u32) -> Tensor {
    let data: Vec<f32> = values(shape.iter().product(), seed).iter().map(|x| x / 4.0).collect();
    floats(name, Dtype::F32, shape, &data)
}

fn f32_data((_, _, _, bytes): &Tensor) -> Vec<f32> {
    bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
}

/// Gradients by the reference backend against central differences of what the same backend gives without them.
fn follow_central_differences(name: &str, options: &str, inputs: &[Tensor], starts: &[Tensor]) {
    const STEP: f32 = 1.0 / 128.0;
    let options = format!("{options} --backend reference");
    let whole = [inputs, starts].concat();
    let asked = format!("{name}-asked");
    write(&asked, &whole);
    let mut lines = vec![format!("{options} {asked} {asked}-out")];
    let mut moved = Vec::new();
    for (n, tensor) in inputs.iter().enumerate() {
        let (input, dtype, shape, _) = tensor;
        if *dtype != Dtype::F32 || ["cos", "sin"].contains(input) {
            continue;
        }
        for i in 0..shape.iter().product() {
            for (side, step) in [("a", STEP), ("b", -STEP)] {
                let mut data = f32_data(tensor);
                data[i] += step;
                let mut other = inputs.to_vec();
                other[n] = floats(input, Dtype::F32, shape, &data);
                let at = format!("{name}-{n}-{i}-{side}");
                write(&at, &other);
                lines.push(format!("{options} {at} {at}-out"));
            }
            moved.push((n, i));
        }
    }
    answer(name, "", &lines);
    let dot = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let [d_out, d_lse] = starts else { panic!("two gradients to start from") };
    let [d_out, d_lse] = [d_out, d_lse].map(f32_data);
    let loss = |at: &str| dot(&data(at, "out"), &d_out) + dot(&data(at, "lse"), &d_lse);
    let mut largest = 0.0f64;
    for (n, i) in moved {
        let (input, ..) = inputs[n];
        let at = format!("{name}-{n}-{i}");
        let up = loss(&format!("{at}-a-out"));
        let slope = (up - loss(&format!("{at}-b-out"))) / f64::from(2.0 * STEP);
        let got = data(&format!("{asked}-out"), &format!("d_{input}"))[i];
        let off = (f64::from(got) - slope).abs();
        assert!(off < 2e-4 * slope.abs().max(1.0), "d_{input} at {i} is {got}, not {slope}");
        largest = largest.max(slope.abs());
        for end in ["a", "b", "a-out", "b-out"] {
            std::fs::remove_file(file(&format!("{at}-{end}"))).expect("it was written");
        }
    }
    assert!(largest > 0.5, "{largest}: nothing depends on anything");
}

#[test]
fn gradients_follow_central_differences() {
    let inputs = [
        exact("q", &[2, 4, 3, 6], 1),
        exact("k", &[2, 2, 5, 6], 2),
        exact("v", &[2, 2, 5, 3], 3),
        exact("bias", &[1, 4, 1, 5], 4),
        exact("alibi_slopes", &[2, 4], 5),
        exact("sinks", &[4], 6),
        // No rotation: a transpose is not its inverse.
        exact("cos", &[5, 2], 7),
        exact("sin", &[5, 2], 8),
        i32s("kv_lens", &[5, 4]),
        ("mask", Dtype::BOOL, vec![1, 1, 3, 5], vec![1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ];
    let starts = [exact("d_out", &[2, 4, 3, 3], 9), exact("d_lse", &[2, 4, 3], 10)];
    let options = "--causal bottom-right --softcap 2 --dropout 0.3 --seed 7";
    let options = format!("{options} --window-left 3 --rotary half");
    follow_central_differences("differences", &options, &inputs, &starts);
}

#[test]
fn gradients_of_packed_sequences_follow_central_differences() {
    let inputs = [
        exact("q", &[6, 2, 4], 1),
        exact("k", &[9, 1, 4], 2),
        exact("v", &[9, 1, 5], 3),
        exact("sinks", &[2], 6),
        exact("alibi_slopes", &[2], 5),
        exact("cos", &[9, 1], 7),
        exact("sin", &[9, 1], 8),
        i32s("cu_seqlens_q", &[0, 2, 2, 6]),
        i32s("cu_seqlens_k", &[0, 4, 5, 9]),
        i32s("diag_offset", &[1, 5, 2]),
    ];
    let starts = [exact("d_out", &[6, 2, 5], 9), exact("d_lse", &[2, 6], 10)];
    let options = "--layout thd --causal top-left --scale 0.8 --rotary interleaved";
    let options = format!("{options} --dropout 0.2 --seed 3");
    follow_central_differences("packed-differences", &options, &inputs, &starts);
}

/// Rows of `dim`, of which the first elements are turned at their positions; -1 turns back.
fn turned(x: &[f32], dim: usize, [cos, sin]: [&[f32]; 2], pos: &[usize], sign: f32) -> Vec<f32> {
    let half = cos.len() / (pos.iter().max().expect("rows") + 1);
    let mut all = x.to_vec();
    for (row, line) in all.chunks_mut(dim).enumerate() {
        let at = pos[row % pos.len()] * half;
        for i in 0..half {
            let (c, s) = (cos[at + i], sign * sin[at + i]);
            let (a, b) = (line[i], line[half + i]);
            (line[i], line[half + i]) = (a * c - b * s, b * c + a * s);
        }
    }
    all
}

#[test]
fn gradients_are_those_of_rows_before_they_are_turned() {
    let shape = Shape::cross_attention(2, 4, 21, 35, 16).with_kv_heads(2);
    let problem = Problem::new(shape).mask(Mask::CAUSAL);
    let backward = Backward::new(&problem).with_d_lse();
    let case = Case::new("turned", problem.clone()).sharp(4.0);
    let angle = |i: usize| (i / 6) as f32 * 0.15f32.powf((i % 6) as f32);
    let [cos, sin] =
        [f32::cos, f32::sin].map(|f| (0..35 * 6).map(|i| f(angle(i))).collect::<Vec<_>>());
    let tables = [&cos[..], &sin];
    let queries: Vec<usize> = (14..35).collect();
    let keys: Vec<usize> = (0..35).collect();
    // Positions of queries end where those of keys do.
    let plain = case.tensors(0);
    let after = Tensors {
        q: turned(&plain.q, 16, tables, &queries, 1.0),
        k: turned(&plain.k, 16, tables, &keys, 1.0),
        ..plain
    };
    let given = Given::after_forward(&backward, &after, 0);
    let mut want = emulated(&backward, &after, &given);
    want.q = turned(&want.q, 16, tables, &queries, -1.0);
    want.k = turned(&want.k, 16, tables, &keys, -1.0);

    let mut inputs = with_gradients(&case, &given);
    inputs.push(floats("cos", Dtype::F32, &[35, 6], &cos));
    inputs.push(floats("sin", Dtype::F32, &[35, 6], &sin));
    write("turned", &inputs);
    let lines: Vec<_> = everywhere()
        .map(|(way, asked)| format!("{}--rotary half {asked} turned turned-{way}", options(&case)))
        .collect();
    answer("turned", "", &lines);
    let right = gradients("turned-reference", &inputs);
    let off = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, f64::max)
    };
    for (way, _) in everywhere() {
        let got = gradients(&format!("turned-{way}"), &inputs);
        for (name, got, want, right) in [
            ("q", &got.q, &want.q, &right.q),
            ("k", &got.k, &want.k, &right.k),
            ("v", &got.v, &want.v, &right.v),
        ] {
            let bound = 2.0 * off(want, right) + 1e-6;
            assert!(bound < 1e-4, "{bound}");
            assert!(
                off(got, right) <= bound,
                "{way}: d_{name} off by {} > {bound}",
                off(got, right)
            );
        }
    }
}

/// 2 sequences, 4 heads on 2, 7 queries, 9 keys, 8 and 6 wide, and what gradients start from.
fn small() -> Vec<Tensor> {
    vec![
        f32s("q", &[2, 4, 7, 8], 1),
        f32s("k", &[2, 2, 9, 8], 2),
        f32s("v", &[2, 2, 9, 6], 3),
        f32s("d_out", &[2, 4, 7, 6], 4),
        f32s("d_lse", &[2, 4, 7], 5),
    ]
}

const GRADIENTS: [&str; 3] = ["d_q", "d_k", "d_v"];

/// The two middle axes swapped.
fn swapped((name, dtype, shape, bytes): &Tensor) -> Tensor {
    let &[batch, a, b, dim] = &shape[..] else { panic!("4 axes") };
    let row = 4 * dim;
    let at = |n: usize| (n / (a * b) * a + n % a) * b + n / a % b;
    let bytes = (0..batch * a * b).flat_map(|n| bytes[at(n) * row..][..row].to_vec()).collect();
    (name, *dtype, vec![batch, b, a, dim], bytes)
}

#[test]
fn layouts_say_the_same() {
    let bhsd = small();
    let swap = |tensor: &Tensor| if tensor.2.len() == 4 { swapped(tensor) } else { tensor.clone() };
    let bshd: Vec<Tensor> = bhsd.iter().map(swap).collect();
    // Of one sequence, axes behind one another.
    let first = |(name, dtype, shape, bytes): &Tensor| {
        (*name, *dtype, shape[1..].to_vec(), bytes[..bytes.len() / 2].to_vec())
    };
    let mut thd: Vec<Tensor> = bshd.iter().map(first).collect();
    thd.extend([i32s("cu_seqlens_q", &[0, 7]), i32s("cu_seqlens_k", &[0, 9])]);
    for (name, tensors) in [("bhsd", &bhsd), ("bshd", &bshd), ("thd", &thd)] {
        write(&format!("layout-{name}"), tensors);
    }
    let mut lines = Vec::new();
    for (way, asked) in everywhere() {
        for layout in ["bhsd", "bshd", "thd"] {
            let files = format!("layout-{layout} layout-{layout}-{way}");
            lines.push(format!("--causal bottom-right --layout {layout} {asked} {files}"));
        }
    }
    answer("layout", "", &lines);
    for (way, _) in everywhere() {
        for name in GRADIENTS {
            let (shape, got) = read(&format!("layout-bhsd-{way}"), name);
            let other = swapped(&floats("x", Dtype::F32, &shape, &got));
            let (shape, bshd) = read(&format!("layout-bshd-{way}"), name);
            assert_eq!(shape, other.2, "{way} {name}");
            assert!(close(&bshd, &f32_data(&other)), "{way} {name}");
            let (shape, thd) = read(&format!("layout-thd-{way}"), name);
            assert_eq!(shape, other.2[1..], "{way} {name}");
            assert!(close(&thd, &bshd[..thd.len()]), "{way} {name}");
        }
    }
}

#[test]
fn dropout_by_a_seed_is_dropout_by_its_mask() {
    let dropout = Problem::new(Shape::self_attention(1, 1, 1, 1)).with_dropout(0.4).dropout;
    let dropout = dropout.expect("asked for");
    let pair = |n: u32| Pair::new(n / 252, n / 63 % 4, n / 9 % 7, n % 9, 0);
    let keep = (0..2 * 4 * 7 * 9).map(|n| u8::from(dropout.keeps(11, pair(n)))).collect();
    let keep = ("keep", Dtype::BOOL, vec![2, 4, 7, 9], keep);
    write("seeded", &small());
    write("kept", &with(small(), "keep", Some(keep)));
    let ways = [("reference", "--backend reference"), ("cpu", "--backend cpu")];
    let kernels = [("staged", "--algorithm staged"), ("auto", "")];
    let ways =
        ways.into_iter().chain(kernels.into_iter().take(if support::small() { 1 } else { 2 }));
    let mut lines = vec!["--backend reference seeded whole-reference".to_owned()];
    for (way, asked) in ways.clone() {
        lines.push(format!("--dropout 0.4 --seed 11 {asked} seeded seeded-{way}"));
        lines.push(format!("--dropout 0.4 {asked} kept kept-{way}"));
    }
    answer("seeded", "", &lines);
    for (way, _) in ways {
        for name in GRADIENTS {
            let (seeded, kept) =
                (data(&format!("seeded-{way}"), name), data(&format!("kept-{way}"), name));
            assert!(close(&seeded, &kept), "{way} {name}");
            assert!(!close(&seeded, &data("whole-reference", name)), "{way} {name}");
        }
    }
    let of = |name| GRADIENTS.map(|gradient| data(name, gradient));
    assert_eq!(of("seeded-reference"), of("kept-reference"));
}

#[test]
fn what_sees_nothing_and_is_not_seen_has_no_gradient() {
    let nan = |name, shape: &[usize], seed, hidden: fn(usize) -> bool| {
        let mut data = values(shape.iter().product(), seed);
        data.iter_mut().enumerate().filter(|(i, _)| hidden(*i)).for_each(|(_, x)| *x = f32::NAN);
        floats(name, Dtype::F32, shape, &data)
    };
    // Sequence 0 has 5 queries and 4 keys, and its query 0 stands before all keys; sequence 1 has no key.
    write(
        "hidden",
        &[
            nan("q", &[2, 2, 6, 4], 1, |i| i < 48 && i / 4 % 6 > 4),
            nan("k", &[2, 1, 7, 4], 2, |i| i > 27 || i / 4 > 3),
            nan("v", &[2, 1, 7, 3], 3, |i| i > 20 || i / 3 > 3),
            nan("d_out", &[2, 2, 6, 3], 4, |i| i > 35 || matches!(i / 3 % 6, 0 | 5)),
            i32s("q_lens", &[5, 6]),
            i32s("kv_lens", &[4, 0]),
        ],
    );
    let lines: Vec<_> = everywhere()
        .map(|(way, asked)| format!("--causal bottom-right {asked} hidden hidden-{way}"))
        .collect();
    answer("hidden", "", &lines);
    for (way, _) in everywhere() {
        let name = format!("hidden-{way}");
        let zero = |gradient, zero: fn(usize) -> bool| {
            for (i, x) in data(&name, gradient).into_iter().enumerate() {
                assert!(
                    if zero(i) { x == 0.0 } else { x.is_finite() },
                    "{way}: {gradient} {i} {x}"
                );
            }
        };
        zero("d_q", |i| i >= 48 || matches!(i / 4 % 6, 0 | 5));
        zero("d_k", |i| i >= 28 || i / 4 > 3);
        zero("d_v", |i| i >= 21 || i / 3 > 3);
        assert!(data(&name, "d_v")[..12].iter().all(|x| *x != 0.0), "{way}");
    }
}

#[test]
fn weights_and_scores_come_with_gradients() {
    write("beside", &small());
    let mut lines = Vec::new();
    let ways = || everywhere().filter(|(way, _)| !["flash", "split"].contains(way));
    for (way, asked) in ways() {
        lines.push(format!("--softcap 2 {asked} beside beside-{way}"));
        lines.push(format!("--softcap 2 --weights --scores capped {asked} beside matrix-{way}"));
    }
    answer("beside", "", &lines);
    for (way, _) in ways() {
        let matrix = format!("matrix-{way}");
        assert_eq!(read(&matrix, "weights").0, [2, 4, 7, 9]);
        assert_eq!(read(&matrix, "scores").0, [2, 4, 7, 9]);
        for name in GRADIENTS {
            assert!(
                close(&data(&matrix, name), &data(&format!("beside-{way}"), name)),
                "{way} {name}"
            );
        }
    }
}

#[test]
fn the_gradient_of_out_is_rounded_as_out_is() {
    let d_out = f32_data(&small()[3]);
    for (dtype, name) in [(Dtype::F16, "f16"), (Dtype::BF16, "bf16")] {
        write("whole-d", &small());
        let rounded = floats("d_out", dtype, &[2, 4, 7, 6], &d_out);
        write("rounded-d", &with(small(), "d_out", Some(rounded)));
        let mut lines = Vec::new();
        for (way, asked) in everywhere() {
            lines.push(format!("--dtype {name} {asked} whole-d whole-d-{way}"));
            lines.push(format!("--dtype {name} {asked} rounded-d rounded-d-{way}"));
        }
        answer("rounded-d", "", &lines);
        for (way, _) in everywhere() {
            for gradient in GRADIENTS {
                let of = |name: &str| data(&format!("{name}-d-{way}"), gradient);
                assert_eq!(of("whole"), of("rounded"), "{way} {name} {gradient}");
            }
        }
    }
}

#[test]
fn bad_gradients_are_named() {
    let case = |changes: Vec<Tensor>| {
        changes.into_iter().fold(small(), |all, tensor| {
            let name = tensor.0;
            with(all, name, Some(tensor))
        })
    };
    let without = |name| with(small(), name, None);
    let pool = |name, dim| f32s(name, &[3, 4, 2, dim], 1);
    let paged = {
        let tables = vec![
            pool("k_pages", 8),
            pool("v_pages", 6),
            ("block_table", Dtype::I32, vec![2, 1], vec![0; 8]),
            i32s("kv_lens", &[4, 3]),
        ];
        tables.into_iter().fold(with(without("k"), "v", None), |all, tensor| {
            let name = tensor.0;
            with(all, name, Some(tensor))
        })
    };
    let cached = vec![
        f32s("q", &[1, 2, 2, 4], 1),
        f32s("k_cache", &[1, 5, 2, 4], 1),
        f32s("v_cache", &[1, 5, 2, 4], 1),
        i32s("cache_lens", &[1]),
        f32s("k_new", &[1, 2, 2, 4], 1),
        f32s("v_new", &[1, 2, 2, 4], 1),
        f32s("d_out", &[1, 2, 2, 4], 1),
    ];
    let parts = vec![
        f32s("out_parts", &[2, 2, 2, 4], 1),
        f32s("lse_parts", &[2, 2, 2], 1),
        f32s("d_out", &[2, 2, 4], 1),
    ];
    for (options, tensors, what) in [
        ("", without("d_out"), "tensor d_lse needs tensor d_out"),
        ("", case(vec![f32s("d_out", &[2, 4, 7, 8], 1)]), "tensor d_out has shape"),
        ("", case(vec![f32s("d_out", &[2, 7, 4, 6], 1)]), "tensor d_out has shape"),
        ("", case(vec![f32s("d_lse", &[2, 7, 4], 1)]), "tensor d_lse has shape"),
        ("", case(vec![f32s("d_lse", &[2, 4, 7, 1], 1)]), "tensor d_lse has shape"),
        ("", case(vec![i32s("d_out", &[336])]), "tensor d_out is I32"),
        (
            "",
            case(vec![floats("d_lse", Dtype::F16, &[2, 4, 7], &[0.0; 56])]),
            "tensor d_lse is F16",
        ),
        ("", paged, "tensor d_out does not go with tensor k_pages"),
        ("--layout bshd", cached, "tensor d_out does not go with tensor k_cache"),
        ("", parts, "tensor d_out does not go with partial results"),
    ] {
        write("bad-gradients", &tensors);
        for backend in ["gpu", "reference"] {
            refuses(&format!("{options} --backend {backend} bad-gradients"), what);
        }
    }
    for (tensor, what) in [
        (bias(Dtype::F32, &[1, 1, 7, 9], 1), "flash does not give d_bias"),
        (f32s("alibi_slopes", &[4], 1), "flash does not give d_alibi_slopes"),
    ] {
        write("bad-gradients", &case(vec![tensor]));
        refuses("--algorithm flash bad-gradients", what);
    }
    write("bad-gradients", &case(vec![mask(Dtype::BOOL, &[1, 1, 7, 9], 1)]));
    refuses("--algorithm flash --weights bad-gradients", "--weights");
}
