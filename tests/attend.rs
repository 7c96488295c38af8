//! The file bridge, as another language uses it: the built example on generated files.

#![cfg(feature = "cpu")]

use crate::support::files::{
    Tensor, answers, attend, bias, close, f32s, few, file, floats, i32s, mask, program, read,
    refuses, values, with, within, write,
};
use half::{bf16, f16};
use safetensors::Dtype;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// 2 sequences, 6 heads on 3, 11 queries, 17 keys, 20 and 12 wide.
fn qkv() -> Vec<Tensor> {
    vec![
        f32s("q", &[2, 6, 11, 20], 1),
        f32s("k", &[2, 3, 17, 20], 2),
        f32s("v", &[2, 3, 17, 12], 3),
    ]
}

/// What calls can ask and give, without q, k and v.
fn calls() -> Vec<(&'static str, Vec<Tensor>)> {
    let no_sink = floats("sinks", Dtype::F32, &[6], &[0.5, f32::NEG_INFINITY, 9.0, -3.0, 0.0, 2.0]);
    vec![
        ("--window-left 2 --window-right 4 --scale -0.3", vec![]),
        (
            "--causal top-left --window-left 9 --softcap 2.5 --scores biased",
            vec![
                bias(Dtype::F16, &[1, 6, 11, 17], 4),
                mask(Dtype::BOOL, &[2, 1, 11, 17], 5),
                f32s("alibi_slopes", &[2, 6], 6),
                no_sink.clone(),
                i32s("diag_offset", &[-3, 5]),
                i32s("q_lens", &[11, 7]),
                i32s("kv_lens", &[12, 17]),
            ],
        ),
        ("", vec![]),
        ("--causal bottom-right", vec![]),
        ("--causal top-left --window-left 3", vec![]),
        ("--scale 0", vec![]),
        ("--softcap 3 --scores raw", vec![bias(Dtype::F32, &[2, 6, 11, 17], 4)]),
        ("--softcap 3 --causal bottom-right --scores capped", vec![]),
        ("--scores biased", vec![bias(Dtype::BF16, &[2, 1, 11, 1], 4)]),
        ("", vec![mask(Dtype::U8, &[1, 6, 1, 17], 5)]),
        ("--causal bottom-right", vec![mask(Dtype::BOOL, &[1, 1, 11, 17], 5)]),
        ("", vec![f32s("alibi_slopes", &[6], 6)]),
        ("--window-right 2", vec![no_sink]),
        ("--window-left 4", vec![i32s("diag_offset", &[9, -7])]),
        ("--causal bottom-right", vec![i32s("q_lens", &[0, 10]), i32s("kv_lens", &[3, 16])]),
        ("", vec![i32s("kv_lens", &[17, 0])]),
        ("--dtype f16 --causal bottom-right", vec![]),
        ("--dtype bf16 --window-left 5", vec![bias(Dtype::F32, &[1, 1, 11, 17], 4)]),
    ]
}

/// One unit in the last place of the storage type of out: twice what rounding costs.
fn tolerance(options: &str) -> f32 {
    match options {
        _ if options.contains("--dtype bf16") => 1.0 / 128.0,
        _ if options.contains("--dtype f16") => 1.0 / 1024.0,
        _ => 2e-5,
    }
}

#[test]
fn every_backend_gives_the_reference() {
    for (options, tensors) in few(&calls()) {
        write("all-in", &[qkv(), tensors.clone()].concat());
        answers(&format!("{options} --backend reference --weights all-in all-ref"));
        let [out, lse, weights] = ["out", "lse", "weights"].map(|name| read("all-ref", name));
        assert_eq!(out.0, [2, 6, 11, 12]);
        assert_eq!(lse.0, [2, 6, 11]);
        assert_eq!(weights.0, [2, 6, 11, 17]);
        let without = options.split("--scores").next().expect("a part");
        let matrix = format!("{options} --weights");
        for (way, options) in [
            ("--backend cpu", matrix.as_str()),
            ("--algorithm staged", &matrix),
            ("--algorithm flash", without),
            ("--algorithm split", without),
            ("--algorithm auto --limits default", without),
        ] {
            answers(&format!("{options} {way} all-in all-out"));
            let given: Vec<_> = tensors.iter().map(|(name, ..)| name).collect();
            let case = format!("{options} {way} {given:?}");
            assert!(within(tolerance(options), &read("all-out", "out").1, &out.1), "{case}");
            assert!(close(&read("all-out", "lse").1, &lse.1), "{case}");
            if options.contains("--weights") {
                let got = read("all-out", "weights").1;
                assert!(close(&got, &weights.1), "{case}");
                let zeros = |w: &[f32]| w.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
                assert_eq!(zeros(&got), zeros(&weights.1), "{case}");
            }
            if options.contains("--scores") {
                let scores = read("all-ref", "scores");
                assert_eq!(scores.0, weights.0, "{case}");
                assert!(close(&read("all-out", "scores").1, &scores.1), "{case}");
            }
        }
    }
}

/// A tensor's element; an axis of 1 stands for all.
fn pick(tensor: &Tensor, at: &[usize]) -> f64 {
    let (_, dtype, shape, bytes) = tensor;
    let index = shape.iter().zip(at).fold(0, |i, (n, at)| i * n + at % n);
    let half = || [bytes[2 * index], bytes[2 * index + 1]];
    match dtype {
        Dtype::F16 => f16::from_le_bytes(half()).into(),
        Dtype::BF16 => bf16::from_le_bytes(half()).into(),
        Dtype::F32 => f32::from_le_bytes(bytes.as_chunks().0[index]).into(),
        Dtype::I32 => i32::from_le_bytes(bytes.as_chunks().0[index]).into(),
        _ => bytes[index].into(),
    }
}

#[test]
fn the_reference_follows_the_formula() {
    let (_, tensors) = calls().swap_remove(1);
    write("formula-in", &[qkv(), tensors.clone()].concat());
    let options = "--window-left 4 --window-right 6 --scale 0.2 --softcap 2.5 --dtype bf16";
    for stage in ["raw", "capped", "biased"] {
        let asked = format!("--backend reference --weights --scores {stage}");
        answers(&format!("{options} {asked} formula-in formula-{stage}"));
    }
    let [out, lse, weights] = ["out", "lse", "weights"].map(|name| read("formula-raw", name).1);
    let scores =
        ["raw", "capped", "biased"].map(|stage| read(&format!("formula-{stage}"), "scores").1);
    let [q, k, v] = &qkv()[..] else { unreachable!() };
    let [bias, mask, slopes, sinks, offsets, q_lens, kv_lens] = &tensors[..] else {
        unreachable!()
    };
    let rounded = |tensor, at: &[usize]| f64::from(bf16::from_f64(pick(tensor, at)));
    let near = |got: f32, needed: f64| {
        let got = f64::from(got);
        got == needed || (got - needed).abs() < 1e-5
    };
    for row in 0..2 * 6 * 11 {
        let (b, h, i) = (row / 66, row / 11 % 6, row % 11);
        let mut sum = 0.0;
        let mut values = [0.0; 12];
        let mut exponentials = Vec::new();
        for j in 0..17 {
            let dot = |x| rounded(q, &[b, h, i, x]) * rounded(k, &[b, h / 2, j, x]);
            let raw = 0.2 * (0..20).map(dot).sum::<f64>();
            let capped = 2.5 * (raw / 2.5).tanh();
            let distance = i as f64 + pick(offsets, &[b]) - j as f64;
            let biased =
                capped - pick(slopes, &[b, h]) * distance.abs() + pick(bias, &[b, h, i, j]);
            let inside = (i as f64) < pick(q_lens, &[b]) && (j as f64) < pick(kv_lens, &[b]);
            let shown =
                inside && (-6.0..=4.0).contains(&distance) && pick(mask, &[b, h, i, j]) != 0.0;
            let or_none = |shown, score| if shown { score } else { f64::NEG_INFINITY };
            let needed = [or_none(inside, raw), or_none(inside, capped), or_none(shown, biased)];
            for (got, needed) in scores.iter().zip(needed) {
                assert!(near(got[row * 17 + j], needed), "{:?} {needed}", (b, h, i, j));
            }
            exponentials.push(needed[2].exp());
            sum += needed[2].exp();
            for (x, value) in values.iter_mut().enumerate() {
                *value += needed[2].exp() * rounded(v, &[b, h / 2, j, x]);
            }
        }
        if (i as f64) < pick(q_lens, &[b]) {
            sum += pick(sinks, &[h]).exp();
        }
        assert!(near(lse[row], sum.ln()), "{:?}", (b, h, i));
        let share = |x: f64| if sum == 0.0 { 0.0 } else { x / sum };
        for (j, x) in exponentials.into_iter().enumerate() {
            assert!(near(weights[row * 17 + j], share(x)), "{:?}", (b, h, i, j));
        }
        for (x, value) in values.into_iter().enumerate() {
            assert!(near(out[row * 12 + x], share(value)), "{:?}", (b, h, i, x));
        }
    }
}

/// 4 sequences of 3, 0, 8 and 2 queries, and 5, 4, 0 and 9 keys; heads and widths as `qkv`.
fn packed() -> Vec<Tensor> {
    vec![
        f32s("q", &[13, 6, 20], 1),
        f32s("k", &[18, 3, 20], 2),
        f32s("v", &[18, 3, 12], 3),
        i32s("cu_seqlens_q", &[0, 3, 3, 11, 13]),
        i32s("cu_seqlens_k", &[0, 5, 9, 9, 18]),
    ]
}

#[test]
fn packed_sequences_are_calls_of_their_own() {
    let all = packed();
    let part = |tensor: usize, name: &'static str, from: usize, to: usize| {
        let (_, dtype, shape, bytes) = &all[tensor];
        let row = bytes.len() / shape[0];
        let shape = [&[1, to - from], &shape[1..]].concat();
        (name, *dtype, shape, bytes[from * row..to * row].to_vec())
    };
    let slopes = values(24, 7);
    let every = [
        ("--causal bottom-right --window-left 4", None),
        ("--softcap 2 --window-left 3 --window-right 1 --dtype f16", Some([2, -1, 0, 6])),
        ("", None),
        ("--causal top-left", None),
    ];
    for (options, offsets) in few(&every) {
        let mut given = packed();
        given.extend(offsets.map(|offsets| i32s("diag_offset", &offsets)));
        given.push(f32s("sinks", &[6], 8));
        given.push(floats("alibi_slopes", Dtype::F32, &[4, 6], &slopes));
        write("packed-in", &given);
        answers(&format!("{options} --layout thd --backend reference packed-in packed-ref"));
        let [out, lse] = ["out", "lse"].map(|name| read("packed-ref", name));
        assert_eq!((out.0, lse.0), (vec![13, 6, 12], vec![6, 13]));
        for (b, [q0, q1, k0, k1]) in
            [[0, 3, 0, 5], [3, 3, 5, 9], [3, 11, 9, 9], [11, 13, 9, 18]].into_iter().enumerate()
        {
            let slopes = &slopes[6 * b..6 * (b + 1)];
            let mut given = vec![
                part(0, "q", q0, q1),
                part(1, "k", k0, k1),
                part(2, "v", k0, k1),
                f32s("sinks", &[6], 8),
                floats("alibi_slopes", Dtype::F32, &[6], slopes),
            ];
            given.extend(offsets.map(|offsets| i32s("diag_offset", &[offsets[b]])));
            write("part-in", &given);
            answers(&format!("{options} --layout bshd --backend reference part-in part-out"));
            assert_eq!(read("part-out", "out").1, out.1[q0 * 72..q1 * 72], "{options} {b}");
            let columns: Vec<f32> =
                (0..6).flat_map(|h| &lse.1[h * 13..][q0..q1]).copied().collect();
            assert_eq!(read("part-out", "lse").1, columns, "{options} {b}");
        }
        for way in few(&[
            "--algorithm staged",
            "--algorithm flash",
            "--backend cpu",
            "--algorithm split",
            "--limits default",
        ]) {
            answers(&format!("{options} {way} --layout thd packed-in packed-out"));
            let got = read("packed-out", "out");
            assert_eq!(got.0, [13, 6, 12]);
            assert!(within(tolerance(options), &got.1, &out.1), "{options} {way}");
            let got = read("packed-out", "lse");
            assert_eq!(got.0, [6, 13]);
            assert!(close(&got.1, &lse.1), "{options} {way}");
        }
    }
}

#[test]
fn the_storage_type_is_that_of_q_unless_asked_for() {
    let as_type = |dtype| {
        let each = qkv().into_iter().map(move |(name, _, shape, bytes)| {
            let data = bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes);
            floats(name, dtype, &shape, &data.collect::<Vec<_>>())
        });
        each.collect::<Vec<_>>()
    };
    write("f32-in", &qkv());
    for (dtype, name) in [(Dtype::F16, "f16"), (Dtype::BF16, "bf16")] {
        write("half-in", &as_type(dtype));
        write("half-q-in", &with(qkv(), "q", Some(as_type(dtype).swap_remove(0))));
        for way in ["--backend reference", "--backend cpu", "--backend gpu"] {
            answers(&format!("{way} half-in half-out"));
            answers(&format!("{way} --dtype {name} f32-in asked-out"));
            answers(&format!("{way} half-q-in half-q-out"));
            answers(&format!("{way} --dtype f32 half-in f32-out"));
            for result in ["out", "lse"] {
                let got = read("half-out", result);
                assert_eq!(got, read("asked-out", result), "{way} {name}");
                assert_eq!(got, read("half-q-out", result), "{way} {name}");
            }
            // The inputs are the same; out alone is stored otherwise.
            assert!(close(&read("half-out", "lse").1, &read("f32-out", "lse").1), "{way} {name}");
            let same = read("half-out", "out") == read("f32-out", "out");
            assert_eq!(same, way.contains("reference"), "{way} {name}");
        }
    }
}

#[test]
fn bshd_is_bhsd_with_axes_swapped() {
    let swap = |shape: &[usize], data: &[f32]| {
        let [_, heads, len, dim] = shape.try_into().expect("rank 4");
        let at = |i: usize| {
            let (x, h, l, b) =
                (i % dim, i / dim % heads, i / dim / heads % len, i / dim / heads / len);
            data[((b * heads + h) * len + l) * dim + x]
        };
        (0..data.len()).map(at).collect::<Vec<f32>>()
    };
    let mut swapped = Vec::new();
    for (name, _, shape, bytes) in qkv() {
        let data: Vec<f32> = bytes.as_chunks().0.iter().copied().map(f32::from_le_bytes).collect();
        let data = swap(&shape, &data);
        let [b, h, l, d] = shape.try_into().expect("rank 4");
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        swapped.push((name, Dtype::F32, vec![b, l, h, d], bytes));
    }
    write("bhsd-in", &qkv());
    write("bshd-in", &swapped);
    for way in ["--backend cpu", "--algorithm staged", "--algorithm flash"] {
        answers(&format!("{way} --causal bottom-right bhsd-in bhsd-out"));
        answers(&format!("{way} --causal bottom-right --layout bshd bshd-in bshd-out"));
        let (shape, data) = read("bhsd-out", "out");
        let (other_shape, other) = read("bshd-out", "out");
        assert_eq!(other_shape, [2, 11, 6, 12]);
        assert!(close(&swap(&shape, &data), &other), "{way}");
    }
}

#[test]
fn an_even_diagonal_offset_replaces_the_alignment() {
    let mut tensors = qkv();
    tensors.push(i32s("diag_offset", &[0, 0]));
    write("diagonal-in", &tensors);
    write("plain-in", &qkv());
    answers("--causal bottom-right diagonal-in diagonal-out");
    answers("--causal top-left plain-in plain-out");
    assert_eq!(read("diagonal-out", "out"), read("plain-out", "out"));
}

#[test]
fn empty_axes_are_answered() {
    write(
        "no-keys-in",
        &[f32s("q", &[1, 2, 3, 4], 1), f32s("k", &[1, 2, 0, 4], 2), f32s("v", &[1, 2, 0, 4], 3)],
    );
    for way in ["--backend reference", "--backend cpu", "--algorithm staged", "--algorithm flash"] {
        answers(&format!("{way} no-keys-in no-keys-out"));
        assert_eq!(read("no-keys-out", "out"), (vec![1, 2, 3, 4], vec![0.0; 24]), "{way}");
        assert_eq!(read("no-keys-out", "lse").1, [f32::NEG_INFINITY; 6], "{way}");
    }
    write(
        "nothing-in",
        &[
            f32s("q", &[0, 2, 4], 1),
            f32s("k", &[0, 2, 4], 2),
            f32s("v", &[0, 2, 4], 3),
            i32s("cu_seqlens_q", &[0]),
            i32s("cu_seqlens_k", &[0]),
            i32s("diag_offset", &[]),
            f32s("alibi_slopes", &[0, 2], 4),
        ],
    );
    for way in ["--backend reference", "--backend cpu", "--algorithm staged", "--algorithm flash"] {
        answers(&format!("{way} --layout thd nothing-in nothing-out"));
        assert_eq!(read("nothing-out", "out"), (vec![0, 2, 4], vec![]), "{way}");
        assert_eq!(read("nothing-out", "lse"), (vec![2, 0], vec![]), "{way}");
    }
}

#[test]
fn dropout_is_by_a_seed_or_by_a_given_mask() {
    write("dropout-in", &qkv());
    let seeded = "--dropout 0.4 --seed 18446744073709551615";
    answers(&format!("{seeded} --backend reference dropout-in dropout-want"));
    let (want, lse) = (read("dropout-want", "out"), read("dropout-want", "lse"));
    answers("--backend reference dropout-in plain-want");
    assert!(!close(&want.1, &read("plain-want", "out").1));
    assert!(close(&lse.1, &read("plain-want", "lse").1), "dropout moves no lse");
    for way in
        few(&["--backend cpu", "--algorithm flash", "--algorithm staged", "--algorithm split", ""])
    {
        answers(&format!("{seeded} {way} dropout-in dropout-out"));
        assert!(close(&read("dropout-out", "out").1, &want.1), "{way}");
        answers(&format!("--dropout 0 {way} dropout-in dropout-out"));
        assert!(close(&read("dropout-out", "out").1, &read("plain-want", "out").1), "{way}");
    }
    answers("--dropout 0.4 --seed 7 --backend reference dropout-in dropout-out");
    assert!(!close(&read("dropout-out", "out").1, &want.1), "another seed");

    let shape = vec![2, 6, 11, 17];
    let keep = |dtype, shape: Vec<usize>| {
        let bytes = (0..shape.iter().product()).map(|i: usize| u8::from(i % 7 > 2)).collect();
        with(qkv(), "keep", Some(("keep", dtype, shape, bytes)))
    };
    write("keep-in", &keep(Dtype::BOOL, shape.clone()));
    answers("--dropout 0.4 --backend reference keep-in keep-want");
    let want = read("keep-want", "out").1;
    for way in ["", "--algorithm staged", "--backend cpu", "--weights"] {
        answers(&format!("--dropout 0.4 {way} keep-in keep-out"));
        assert!(close(&read("keep-out", "out").1, &want), "{way}");
    }
    for (arguments, what) in [
        ("--dropout 0.1 dropout-in", "--seed"),
        ("--seed 2 dropout-in", "--seed"),
        ("--dropout 1 --seed 2 dropout-in", "dropout"),
        ("--dropout -0.1 --seed 2 dropout-in", "dropout"),
        ("--dropout nan --seed 2 --backend reference dropout-in", "dropout"),
        ("--dropout 0.1 --seed -2 dropout-in", "--seed"),
        ("--dropout 0.1 --seed 0.5 dropout-in", "--seed"),
        ("--dropout some --seed 2 dropout-in", "--dropout"),
        ("--dropout 0.1 --seed 2 keep-in", "--seed"),
        ("keep-in", "tensor keep"),
        ("--dropout 0.1 --algorithm flash keep-in", "tensor keep"),
        ("--dropout 0.1 --algorithm split keep-in", "tensor keep"),
    ] {
        refuses(arguments, what);
    }
    write("keep-in", &keep(Dtype::BOOL, vec![2, 6, 11, 1]));
    refuses("--dropout 0.1 keep-in", "tensor keep has shape");
    write("keep-in", &keep(Dtype::U8, shape));
    refuses("--dropout 0.1 keep-in", "tensor keep is U8");
}

#[test]
fn bad_calls_name_what_is_wrong() {
    write("bad-in", &qkv());
    for (arguments, what) in [
        ("--frob bad-in", "--frob"),
        ("--scale big bad-in", "--scale"),
        ("--scale inf bad-in", "scale"),
        ("--window-left -1 bad-in", "--window-left"),
        ("--causal sideways bad-in", "--causal"),
        ("--weights --algorithm flash bad-in", "--weights"),
        ("--scores raw --algorithm flash bad-in", "--scores"),
        ("--scores raw --algorithm split bad-in", "--scores"),
        ("--weights --algorithm split bad-in", "--weights"),
        ("--scores some bad-in", "--scores"),
        ("--weights --layout thd bad-in", "--weights"),
        ("--scores biased --layout thd bad-in", "--scores"),
        ("--layout thd bad-in", "tensor cu_seqlens_q is missing"),
        ("--layout dht bad-in", "--layout"),
        ("--softcap 0 bad-in", "softcap"),
        ("--softcap nan --backend reference bad-in", "softcap"),
        ("--dtype f64 bad-in", "--dtype"),
        ("--backend cpu --algorithm staged bad-in", "--algorithm"),
        ("--adapter no-such-adapter bad-in", "no-such-adapter"),
        ("bad-in bad-in", "two files"),
        ("absent-in", "absent-in"),
    ] {
        refuses(arguments, what);
    }
    std::fs::write(file("garbage-in"), b"no tensors here").expect("written");
    refuses("garbage-in", "garbage-in");
}

#[test]
fn bad_tensors_are_named() {
    for (name, tensor, what) in [
        ("v", None, "tensor v is missing"),
        ("x", Some(f32s("x", &[1], 1)), "tensor x is unknown"),
        ("d_bias", Some(f32s("d_bias", &[1], 1)), "tensor d_bias is unknown"),
        ("k", Some(f32s("k", &[2, 3, 17], 1)), "tensor k has shape"),
        ("k", Some(f32s("k", &[2, 3, 17, 21], 1)), "head_dim is 21"),
        ("k", Some(f32s("k", &[1, 3, 17, 20], 1)), "batch is 1"),
        ("v", Some(f32s("v", &[2, 3, 16, 12], 1)), "length is 16"),
        ("v", Some(f32s("v", &[2, 1, 17, 12], 1)), "heads is 1"),
        ("q", Some(f32s("q", &[2, 4, 11, 20], 1)), "kv_heads (3) does not divide heads (4)"),
        ("q", Some(f32s("q", &[2, 0, 11, 20], 1)), "heads is zero"),
        ("q", Some(i32s("q", &[1])), "tensor q is I32"),
        ("mask", Some(mask(Dtype::BOOL, &[2, 3, 11, 17], 1)), "mask: heads is 3"),
        ("mask", Some(mask(Dtype::BOOL, &[11, 17], 1)), "tensor mask has shape"),
        ("mask", Some(f32s("mask", &[2, 6, 11, 17], 1)), "tensor mask is F32"),
        ("bias", Some(bias(Dtype::F16, &[2, 6, 11, 16], 1)), "bias: kv_len is 16"),
        ("bias", Some(bias(Dtype::F16, &[17], 1)), "tensor bias has shape"),
        ("alibi_slopes", Some(f32s("alibi_slopes", &[3], 1)), "tensor alibi_slopes has shape"),
        ("alibi_slopes", Some(f32s("alibi_slopes", &[1, 6], 1)), "tensor alibi_slopes has shape"),
        (
            "alibi_slopes",
            Some(floats("alibi_slopes", Dtype::F16, &[6], &[0.0; 6])),
            "tensor alibi_slopes is F16",
        ),
        ("sinks", Some(f32s("sinks", &[2, 6], 1)), "tensor sinks has shape"),
        ("diag_offset", Some(i32s("diag_offset", &[1])), "tensor diag_offset has shape"),
        ("diag_offset", Some(f32s("diag_offset", &[2], 1)), "tensor diag_offset is F32"),
        ("q_lens", Some(i32s("q_lens", &[11])), "tensor q_lens has shape"),
        ("q_lens", Some(i32s("q_lens", &[11, 12])), "tensor q_lens: entry 1 is 12"),
        ("kv_lens", Some(i32s("kv_lens", &[-1, 17])), "tensor kv_lens: entry 0 is -1"),
        ("kv_lens", Some(i32s("kv_lens", &[18, 17])), "tensor kv_lens: entry 0 is 18"),
        ("cu_seqlens_q", Some(i32s("cu_seqlens_q", &[0, 11])), "tensor cu_seqlens_q is for"),
    ] {
        write("bad-tensor-in", &with(qkv(), name, tensor));
        // What the kernels and the reference refuse is one and the same.
        for backend in ["gpu", "reference"] {
            refuses(&format!("--backend {backend} bad-tensor-in"), what);
        }
    }
}

#[test]
fn bad_packed_tensors_are_named() {
    let q = |starts: &[i32]| Some(i32s("cu_seqlens_q", starts));
    let k = |starts: &[i32]| Some(i32s("cu_seqlens_k", starts));
    for (name, tensor, what) in [
        ("cu_seqlens_q", None, "tensor cu_seqlens_q is missing"),
        ("cu_seqlens_k", None, "tensor cu_seqlens_k is missing"),
        ("cu_seqlens_q", q(&[]), "tensor cu_seqlens_q has shape"),
        ("cu_seqlens_q", q(&[0, 3, 11, 13]), "tensor cu_seqlens_k has shape"),
        ("cu_seqlens_q", q(&[1, 3, 3, 11, 13]), "tensor cu_seqlens_q: entry 0 is 1"),
        ("cu_seqlens_q", q(&[0, 3, 2, 11, 13]), "tensor cu_seqlens_q: entry 2 is 2"),
        ("cu_seqlens_q", q(&[0, 3, -2, 11, 13]), "tensor cu_seqlens_q: entry 2 is -2"),
        ("cu_seqlens_k", k(&[0, 5, 9, 9, 17]), "tensor cu_seqlens_k: entry 4 is 17"),
        ("cu_seqlens_k", k(&[0, 5, 9, 19, 18]), "tensor cu_seqlens_k: entry 4 is 18"),
        ("q", Some(f32s("q", &[1, 6, 13, 20], 1)), "tensor q has shape"),
        ("v", Some(f32s("v", &[17, 3, 12], 1)), "length is 17"),
        ("mask", Some(mask(Dtype::BOOL, &[1, 1, 1, 1], 1)), "tensor mask does not go with"),
        ("bias", Some(bias(Dtype::F32, &[1, 1, 1, 1], 1)), "tensor bias does not go with"),
        ("q_lens", Some(i32s("q_lens", &[1; 4])), "tensor q_lens does not go with"),
        ("kv_lens", Some(i32s("kv_lens", &[1; 4])), "tensor kv_lens does not go with"),
        ("diag_offset", Some(i32s("diag_offset", &[1])), "tensor diag_offset has shape"),
        ("alibi_slopes", Some(f32s("alibi_slopes", &[1, 6], 1)), "tensor alibi_slopes has shape"),
    ] {
        write("bad-packed-in", &with(packed(), name, tensor));
        for backend in ["gpu", "reference"] {
            refuses(&format!("--layout thd --backend {backend} bad-packed-in"), what);
        }
    }
}

#[test]
fn many_calls_are_answered_line_by_line() {
    write("jobs-in", &qkv());
    let lines: &[u8] = b"jobs-in jobs-out1\n\
        --rotary half jobs-in jobs-out2\n\
        \n\
        --backend reference jobs-in jobs-out3\n\
        --adapter x jobs-in jobs-out4\n\
        \xff\xfe\n\
        --causal top-left jobs-in jobs-out5\n";
    for out in 1..=5 {
        let _ = std::fs::remove_file(file(&format!("jobs-out{out}")));
    }
    let mut child = Command::new(program())
        .args(["--causal", "bottom-right", "--jobs", "-"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(lines).expect("it reads");
    let got = child.wait_with_output().expect("it ends");
    assert_eq!(got.status.code(), Some(2));
    let text = String::from_utf8(got.stdout).expect("UTF-8");
    let starts: Vec<_> = text.lines().map(|line| line.split(':').next().expect("a part")).collect();
    let expected = ["ok 1", "error 2", "error 3", "ok 4", "error 5", "error 6", "ok 7"];
    assert_eq!(starts, expected, "{text}");
    assert!(text.contains("tensor cos is missing"), "{text}");
    for (out, written) in [(1, true), (2, false), (3, true), (4, false), (5, true)] {
        assert_eq!(file(&format!("jobs-out{out}")).exists(), written, "jobs-out{out}");
    }
    assert!(close(&read("jobs-out1", "out").1, &read("jobs-out3", "out").1));
    assert!(!close(&read("jobs-out1", "out").1, &read("jobs-out5", "out").1));

    std::fs::write(file("jobs"), "jobs-in jobs-out1\n").expect("written");
    let got = attend("--jobs jobs");
    assert_eq!((got.status.code(), got.stdout.as_slice()), (Some(0), b"ok 1\n".as_slice()));
}

/// 5 rows of 3 heads, 12 wide, in 4 parts. Part 1 saw nothing in row 2, no part anything in row 3: their out is NaN.
fn parts() -> Vec<Tensor> {
    let mut out = values(5 * 4 * 3 * 12, 7);
    let mut lse = values(5 * 4 * 3, 8);
    for part in [2 * 4 + 1, 3 * 4, 3 * 4 + 1, 3 * 4 + 2, 3 * 4 + 3] {
        lse[part * 3..][..3].fill(f32::NEG_INFINITY);
        out[part * 36..][..36].fill(f32::NAN);
    }
    vec![
        floats("out_parts", Dtype::F32, &[5, 4, 3, 12], &out),
        floats("lse_parts", Dtype::F32, &[5, 4, 3], &lse),
    ]
}

#[test]
fn partial_results_are_merged_on_every_backend() {
    write("parts-in", &parts());
    for options in ["", "--dtype f16", "--dtype bf16"] {
        answers(&format!("{options} --backend reference parts-in parts-ref"));
        let [out, lse] = ["out", "lse"].map(|name| read("parts-ref", name));
        assert_eq!((&out.0[..], &lse.0[..]), (&[5, 3, 12][..], &[5, 3][..]));
        // No part of row 3 saw a key.
        assert!(out.1[3 * 36..4 * 36].iter().all(|x| *x == 0.0));
        assert!(lse.1[3 * 3..4 * 3].iter().all(|x| *x == f32::NEG_INFINITY));
        for backend in ["gpu", "cpu", "gpu --limits default"] {
            answers(&format!("{options} --backend {backend} parts-in parts-out"));
            let [got_out, got_lse] = ["out", "lse"].map(|name| read("parts-out", name));
            assert_eq!((&got_out.0, &got_lse.0), (&out.0, &lse.0), "{options} {backend}");
            assert!(within(tolerance(options), &got_out.1, &out.1), "{options} {backend}");
            assert!(close(&got_lse.1, &lse.1), "{options} {backend}");
        }
    }
    // The formula, of one element: row 4, head 1, column 5.
    let [outs, lses] = [&parts()[0], &parts()[1]].map(|tensor| tensor.clone());
    let weight = |part: usize| pick(&lses, &[4, part, 1]).exp();
    let sum: f64 = (0..4).map(weight).sum();
    let want: f64 = (0..4).map(|part| weight(part) / sum * pick(&outs, &[4, part, 1, 5])).sum();
    answers("--backend reference parts-in parts-ref");
    let (out, lse) = (read("parts-ref", "out").1, read("parts-ref", "lse").1);
    assert!((f64::from(out[(4 * 3 + 1) * 12 + 5]) - want).abs() < 1e-6);
    assert!((f64::from(lse[4 * 3 + 1]) - sum.ln()).abs() < 1e-6);
}

#[test]
fn no_part_and_no_row_are_answered() {
    for (shape, rows) in [([2, 0, 3, 4], 2), ([0, 2, 3, 4], 0)] {
        let lse = &shape[..3];
        write("no-parts-in", &[f32s("out_parts", &shape, 1), f32s("lse_parts", lse, 2)]);
        for backend in ["gpu", "cpu", "reference"] {
            answers(&format!("--backend {backend} no-parts-in no-parts-out"));
            let none = vec![f32::NEG_INFINITY; rows * 3];
            assert_eq!(read("no-parts-out", "out"), (vec![rows, 3, 4], vec![0.0; rows * 12]));
            assert_eq!(read("no-parts-out", "lse"), (vec![rows, 3], none));
        }
    }
}

#[test]
fn bad_partial_results_are_named() {
    for (name, tensor, what) in [
        ("lse_parts", None, "tensor lse_parts is missing"),
        ("out_parts", None, "tensor out_parts is missing"),
        ("q", Some(f32s("q", &[1], 1)), "tensor q does not go with partial results"),
        ("sinks", Some(f32s("sinks", &[3], 1)), "tensor sinks does not go with"),
        ("x", Some(f32s("x", &[1], 1)), "tensor x is unknown"),
        ("out_parts", Some(f32s("out_parts", &[5, 4, 3], 1)), "tensor out_parts has shape"),
        ("out_parts", Some(f32s("out_parts", &[5, 4, 3, 0], 1)), "v_head_dim is zero"),
        ("lse_parts", Some(f32s("lse_parts", &[5, 3, 4], 1)), "tensor lse_parts has shape"),
        ("lse_parts", Some(f32s("lse_parts", &[5, 4, 3, 1], 1)), "tensor lse_parts has shape"),
        ("lse_parts", Some(i32s("lse_parts", &[60])), "tensor lse_parts is I32"),
        (
            "out_parts",
            Some(floats("out_parts", Dtype::F16, &[5, 4, 3, 12], &[0.0; 720])),
            "tensor out_parts is F16",
        ),
    ] {
        write("bad-parts-in", &with(parts(), name, tensor));
        for backend in ["gpu", "cpu", "reference"] {
            refuses(&format!("--backend {backend} bad-parts-in"), what);
        }
    }
    write("good-parts-in", &parts());
    for options in [
        "--layout bshd",
        "--causal bottom-right",
        "--window-left 2",
        "--window-right 2",
        "--scale 1",
        "--softcap 3",
        "--rotary half",
        "--algorithm flash",
        "--weights",
        "--scores raw",
    ] {
        let option = options.split(' ').next().expect("an option");
        refuses(&format!("{options} good-parts-in"), &format!("{option} does not go with"));
    }
}
