//! The file bridge on pages, caches and rotary embedding, against a computation of the test's own.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::case::Case;
use crate::support::files::{
    Tensor, answers, attend, f32s, few, file, floats, i32s, mask, read, refuses, values, with,
    write,
};
use crate::support::random::Random;
use safetensors::Dtype;
use std::ops::Range;
use wgpu_attention::{DType, Mask, MaskFormat, Pages, Pairs, Problem, Shape, reference};

const BACKENDS: [&str; 3] = ["gpu", "cpu", "reference"];

/// Rows of all heads: `[position][head][element]`.
type Rows = Vec<Vec<Vec<f64>>>;

/// One sequence and what its queries see.
struct Sequence {
    q: Rows,
    k: Rows,
    v: Rows,
    /// The key that query 0 stands at.
    diagonal: i64,
    left: Option<i64>,
    causal: bool,
    /// By head, query and key; empty is all.
    shown: Vec<Vec<Vec<bool>>>,
}

impl Sequence {
    fn new(q: Rows, k: Rows, v: Rows) -> Self {
        let diagonal = k.len() as i64 - q.len() as i64;
        Self { q, k, v, diagonal, left: None, causal: false, shown: Vec::new() }
    }

    /// By the formula: rows of out, and log-sum-exp of each.
    fn attend(&self) -> (Rows, Vec<Vec<f64>>) {
        let mut all = (Vec::new(), Vec::new());
        for (i, heads) in self.q.iter().enumerate() {
            let (mut outs, mut lses) = (Vec::new(), Vec::new());
            for (h, q) in heads.iter().enumerate() {
                let group = heads.len() / self.k.first().map_or(1, Vec::len);
                let width = self.v.first().map_or(0, |heads| heads[0].len());
                let (mut sum, mut out) = (0.0, vec![0.0; width]);
                for (j, (k, v)) in self.k.iter().zip(&self.v).enumerate() {
                    let distance = i as i64 + self.diagonal - j as i64;
                    let shown = self.left.is_none_or(|left| distance <= left)
                        && (!self.causal || distance >= 0)
                        && self.shown.get(h).is_none_or(|shown| shown[i][j]);
                    if shown {
                        let dot: f64 = q.iter().zip(&k[h / group]).map(|(a, b)| a * b).sum();
                        let weight = (dot / (q.len() as f64).sqrt()).exp();
                        sum += weight;
                        out.iter_mut().zip(&v[h / group]).for_each(|(o, v)| *o += weight * v);
                    }
                }
                outs.push(out.iter().map(|o| if sum > 0.0 { o / sum } else { 0.0 }).collect());
                lses.push(f64::ln(sum));
            }
            all.0.push(outs);
            all.1.push(lses);
        }
        all
    }
}

/// A row turned; `tables` are `cos` and `sin`, `[positions][pairs]`.
fn turned(row: &[f64], pos: usize, tables: &[Vec<Vec<f64>>; 2], half: bool) -> Vec<f64> {
    let [cos, sin] = [&tables[0][pos], &tables[1][pos]];
    let mut row = row.to_vec();
    for i in 0..cos.len() {
        let (a, b) = if half { (i, i + cos.len()) } else { (2 * i, 2 * i + 1) };
        let (x, y) = (row[a], row[b]);
        row[a] = x * cos[i] - y * sin[i];
        row[b] = x * sin[i] + y * cos[i];
    }
    row
}

fn turn(rows: &mut Rows, first: i64, tables: &[Vec<Vec<f64>>; 2], half: bool) {
    for (i, heads) in (first..).zip(rows) {
        let pos = usize::try_from(i).expect("a position");
        heads.iter_mut().for_each(|row| *row = turned(row, pos, tables, half));
    }
}

/// What a file holds, as the storage type rounds it.
struct Given {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Given {
    fn of(tensors: &[Tensor], name: &str, options: &str) -> Self {
        let (.., shape, bytes) = tensors.iter().find(|(other, ..)| *other == name).expect("given");
        let round = |x: f32| match options {
            _ if options.contains("bf16") => half::bf16::from_f32(x).to_f32(),
            _ if options.contains("f16") => half::f16::from_f32(x).to_f32(),
            _ => x,
        };
        let data = bytes.as_chunks().0.iter().map(|x| round(f32::from_le_bytes(*x)).into());
        Self { shape: shape.clone(), data: data.collect() }
    }

    /// Rows of an outer entry: of heads behind one another (bhsd), or of positions.
    fn rows(&self, outer: usize, rows: Range<usize>, heads_first: bool) -> Rows {
        let [_, a, b, dim] = self.shape[..] else { panic!("rank 4") };
        let heads = if heads_first { a } else { b };
        let row = |i: usize, h: usize| {
            let at = if heads_first { h * b + i } else { i * b + h };
            self.data[(outer * a * b + at) * dim..][..dim].to_vec()
        };
        rows.map(|i| (0..heads).map(|h| row(i, h)).collect()).collect()
    }

    /// `[positions][pairs]`.
    fn table(&self) -> Vec<Vec<f64>> {
        self.data.chunks(self.shape[1]).map(<[f64]>::to_vec).collect()
    }
}

/// How far a result may be off.
fn bound(options: &str) -> f64 {
    match options {
        _ if options.contains("bf16") => 0.05,
        _ if options.contains("f16") => 0.006,
        _ => 2e-5,
    }
}

/// That `out` and `lse` of a file are those of sequences; rows past a sequence's are 0 and -inf.
fn check(name: &str, sequences: &[Sequence], layout: &str, options: &str) {
    let [(shape, out), (lse_shape, lse)] = ["out", "lse"].map(|tensor| read(name, tensor));
    let packed = layout == "thd";
    let width = *shape.last().expect("an axis");
    let [heads, len] = lse_shape[lse_shape.len() - 2..] else { panic!("two axes") };
    let mut first = 0;
    for (b, sequence) in sequences.iter().enumerate() {
        let (outs, lses) = sequence.attend();
        let rows = if packed { outs.len() } else { len };
        for (i, h) in (0..rows).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let at = match layout {
                "bhsd" => (b * heads + h) * len + i,
                "bshd" => (b * len + i) * heads + h,
                _ => (first + i) * heads + h,
            };
            let lse = lse[if packed { h * len + first + i } else { (b * heads + h) * len + i }];
            let none = (vec![0.0; width], f64::NEG_INFINITY);
            let (want, want_lse) = match outs.get(i) {
                Some(out) if !sequence.k.is_empty() => (out[h].clone(), lses[i][h]),
                _ => none,
            };
            let near = |got: f32, want: f64| {
                f64::from(got) == want
                    || (f64::from(got) - want).abs() <= bound(options) * want.abs().max(1.0)
            };
            assert!(near(lse, want_lse), "lse {:?}: {lse}, not {want_lse}: {options}", (b, h, i));
            for (got, want) in out[at * width..][..width].iter().zip(want) {
                assert!(near(*got, want), "out {:?}: {got}, not {want}: {options}", (b, h, i));
            }
        }
        first += outs.len();
    }
}

/// Of the kernels' own algorithms, and of all backends.
fn ways() -> impl Iterator<Item = String> {
    let algorithms = ["staged", "flash", "split"].map(|name| format!("--algorithm {name}"));
    BACKENDS.map(|name| format!("--backend {name}")).into_iter().chain(algorithms)
}

fn quiet(name: &'static str, shape: &[usize], seed: u32) -> Tensor {
    let data: Vec<f32> = values(shape.iter().product(), seed).iter().map(|x| x * 0.4).collect();
    floats(name, Dtype::F32, shape, &data)
}

fn table(rows: &[&[i32]]) -> Tensor {
    let (name, dtype, _, bytes) = i32s("block_table", &rows.concat());
    (name, dtype, vec![rows.len(), rows[0].len()], bytes)
}

/// 2 sequences of 7 and 10 keys that share their first page; 6 heads on 3; pages of 3, 7 of them; NaN where nothing is.
fn pages() -> Vec<Tensor> {
    let blocks: [&[i32]; 2] = [&[5, 2, 6, -1], &[5, 0, 3, 1]];
    let lens = [7, 10];
    let pool = |name, dim: usize, seed| {
        let mut data: Vec<f32> = values(7 * 3 * 3 * dim, seed).iter().map(|x| x * 0.4).collect();
        for (slot, rows) in data.chunks_mut(3 * dim).enumerate() {
            let used = |(block, len): (&&[i32], usize)| {
                (0..len).any(|j| block[j / 3] as usize * 3 + j % 3 == slot)
            };
            if !blocks.iter().zip(lens).any(used) {
                rows.fill(f32::NAN);
            }
        }
        floats(name, Dtype::F32, &[7, 3, 3, dim], &data)
    };
    vec![
        quiet("q", &[2, 6, 4, 8], 1),
        pool("k_pages", 8, 2),
        pool("v_pages", 5, 3),
        table(&blocks),
        i32s("kv_lens", &[7, 10]),
    ]
}

/// The sequences of `pages`, with keys in order.
fn paged(tensors: &[Tensor], options: &str) -> Vec<Sequence> {
    let [q, k, v] = ["q", "k_pages", "v_pages"].map(|name| Given::of(tensors, name, options));
    let gather = |pool: &Given, block: &[usize], len: usize| -> Rows {
        (0..len).flat_map(|j| pool.rows(block[j / 3], j % 3..j % 3 + 1, false)).collect()
    };
    let sequence = |(b, (block, len)): (usize, ([usize; 4], usize))| {
        let [k, v] = [&k, &v].map(|pool| gather(pool, &block, len));
        Sequence::new(q.rows(b, 0..4, true), k, v)
    };
    [([5, 2, 6, 9], 7), ([5, 0, 3, 1], 10)].into_iter().enumerate().map(sequence).collect()
}

#[test]
fn pages_are_the_keys_in_the_order_of_the_table() {
    let hidden = mask(Dtype::BOOL, &[2, 1, 4, 12], 4);
    let all = [
        ("--causal bottom-right --window-left 4", vec![]),
        ("", vec![]),
        ("--causal top-left --dtype f16", vec![]),
        ("--causal bottom-right --dtype bf16", vec![]),
        ("--window-left 2", vec![i32s("diag_offset", &[3, -1])]),
        ("", vec![hidden.clone()]),
    ];
    for (options, extra) in few(&all).iter().cloned() {
        let tensors = [pages(), extra.clone()].concat();
        let mut sequences = paged(&tensors, options);
        for (b, sequence) in sequences.iter_mut().enumerate() {
            sequence.causal = options.contains("--causal");
            sequence.left = options.contains("left 4").then_some(4);
            if options.contains("top-left") {
                sequence.diagonal = 0;
            }
            if let Some(("diag_offset", ..)) = extra.first() {
                (sequence.left, sequence.diagonal) = (Some(2), [3, -1][b]);
            }
            if let Some(("mask", .., bytes)) = extra.first() {
                let row = |i: usize| (0..12).map(|j| bytes[(b * 4 + i) * 12 + j] != 0).collect();
                sequence.shown = vec![(0..4).map(row).collect(); 6];
            }
        }
        write("pages-in", &tensors);
        for way in ways() {
            answers(&format!("{options} {way} pages-in pages-out"));
            check("pages-out", &sequences, "bhsd", &format!("{options} {way}"));
        }
        answers(&format!("{options} --weights --scores biased pages-in pages-out"));
        assert_eq!(read("pages-out", "weights").0, [2, 6, 4, 12]);
        check("pages-out", &sequences, "bhsd", options);
    }
}

/// 3 sequences with 0, 7 and 3 of 9 positions; 4 heads on 2; 2 rows to be appended; NaN where nothing is.
fn cache() -> Vec<Tensor> {
    let lens = [0, 7, 3];
    let cache = |name, dim: usize, seed| {
        let mut data: Vec<f32> = values(3 * 9 * 2 * dim, seed).iter().map(|x| x * 0.4).collect();
        for (b, len) in lens.into_iter().enumerate() {
            data[b * 18 * dim..][len * 2 * dim..18 * dim].fill(f32::NAN);
        }
        floats(name, Dtype::F32, &[3, 9, 2, dim], &data)
    };
    vec![
        quiet("q", &[3, 2, 4, 8], 1),
        cache("k_cache", 8, 2),
        cache("v_cache", 5, 3),
        i32s("cache_lens", &[0, 7, 3]),
        quiet("k_new", &[3, 2, 2, 8], 4),
        quiet("v_new", &[3, 2, 2, 5], 5),
    ]
}

fn cos_sin(positions: usize, pairs: usize) -> [Tensor; 2] {
    let table = |name, of: fn(f32) -> f32| {
        let angle = |n: usize| 0.37 * (n / pairs) as f32 / (n % pairs + 1) as f32;
        let data: Vec<f32> = (0..positions * pairs).map(|n| of(angle(n))).collect();
        floats(name, Dtype::F32, &[positions, pairs], &data)
    };
    [table("cos", f32::cos), table("sin", f32::sin)]
}

fn tables(tensors: &[Tensor]) -> [Vec<Vec<f64>>; 2] {
    ["cos", "sin"].map(|name| Given::of(tensors, name, "").table())
}

#[test]
fn a_cache_is_appended_to_and_written_back() {
    let all = [
        ("--causal bottom-right --rotary half", Some((9, 3, true))),
        ("--causal bottom-right", None),
        ("--dtype f16 --window-left 3", None),
        ("--rotary interleaved --dtype bf16", Some((12, 4, false))),
        ("--causal top-left --rotary interleaved", Some((9, 1, false))),
    ];
    for (options, rotary) in few(&all).iter().cloned() {
        let mut tensors = cache();
        tensors
            .extend(rotary.into_iter().flat_map(|(positions, pairs, _)| cos_sin(positions, pairs)));
        let given = |name| Given::of(&tensors, name, options);
        let [q, k, v] = ["q", "k_cache", "v_cache"].map(given);
        let [k_new, v_new] = ["k_new", "v_new"].map(given);
        let sequences: Vec<Sequence> = [0, 7, 3]
            .into_iter()
            .enumerate()
            .map(|(b, len)| {
                let mut queries = q.rows(b, 0..2, false);
                let mut keys = k_new.rows(b, 0..2, false);
                if let Some((_, _, half)) = rotary {
                    turn(&mut queries, len as i64, &tables(&tensors), half);
                    turn(&mut keys, len as i64, &tables(&tensors), half);
                }
                let k = [k.rows(b, 0..len, false), keys].concat();
                let v = [v.rows(b, 0..len, false), v_new.rows(b, 0..2, false)].concat();
                let mut sequence = Sequence::new(queries, k, v);
                sequence.causal = options.contains("--causal");
                sequence.left = options.contains("left 3").then_some(3);
                if options.contains("top-left") {
                    sequence.diagonal = 0;
                }
                sequence
            })
            .collect();
        write("cache-in", &tensors);
        for way in ways() {
            answers(&format!("{options} {way} --layout bshd cache-in cache-out"));
            check("cache-out", &sequences, "bshd", &format!("{options} {way}"));
            for (name, old) in [("k_cache", &k), ("v_cache", &v)] {
                let (shape, got) = read("cache-out", name);
                assert_eq!(shape, old.shape, "{way}");
                let width = shape[2] * shape[3];
                for (n, (got, old)) in got.chunks(width).zip(old.data.chunks(width)).enumerate() {
                    let (b, j) = (n / 9, n % 9);
                    let rows = if name == "k_cache" { &sequences[b].k } else { &sequences[b].v };
                    let first = sequences[b].k.len() - 2;
                    let new = (first..first + 2).contains(&j);
                    let want = if new { rows[j].concat() } else { old.to_vec() };
                    for (got, want) in got.iter().map(|x| f64::from(*x)).zip(want) {
                        let right = if new && rotary.is_some() && name == "k_cache" {
                            (got - want).abs() <= bound(options)
                        } else {
                            got == want || got.is_nan() && want.is_nan()
                        };
                        assert!(right, "{name} {b} {j}: {got}, not {want}: {options} {way}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_mask_over_a_cache_has_its_capacity() {
    let hidden = mask(Dtype::BOOL, &[3, 4, 2, 9], 8);
    let tensors = with(cache(), "mask", Some(hidden.clone()));
    let given = |name: &str| Given::of(&tensors, name, "");
    let sequences: Vec<Sequence> = [0, 7, 3]
        .into_iter()
        .enumerate()
        .map(|(b, len)| {
            let join = |old: &str, new: &str| {
                [given(old).rows(b, 0..len, false), given(new).rows(b, 0..2, false)].concat()
            };
            let (k, v) = (join("k_cache", "k_new"), join("v_cache", "v_new"));
            let mut sequence = Sequence::new(given("q").rows(b, 0..2, false), k, v);
            let shown = |h, i, j| hidden.3[((b * 4 + h) * 2 + i) * 9 + j] != 0;
            let row = |h, i| (0..9).map(|j| shown(h, i, j)).collect();
            sequence.shown = (0..4).map(|h| (0..2).map(|i| row(h, i)).collect()).collect();
            sequence
        })
        .collect();
    write("mask-cache-in", &tensors);
    for way in ways() {
        answers(&format!("{way} --layout bshd mask-cache-in mask-cache-out"));
        check("mask-cache-out", &sequences, "bshd", &way);
    }
}

#[test]
fn queries_and_keys_are_turned_by_their_positions() {
    let plain = || {
        vec![
            quiet("q", &[2, 4, 5, 8], 1),
            quiet("k", &[2, 2, 9, 8], 2),
            quiet("v", &[2, 2, 9, 6], 3),
        ]
    };
    let all = [
        ("--rotary half --causal bottom-right", 9, vec![]),
        ("--rotary interleaved", 9, vec![]),
        ("--rotary half --causal top-left --dtype f16", 9, vec![]),
        ("--rotary interleaved --dtype bf16", 11, vec![i32s("diag_offset", &[6, 0])]),
        // Rows past a length stand nowhere: the tables end before them.
        (
            "--rotary half --window-left 2",
            7,
            vec![i32s("q_lens", &[5, 0]), i32s("kv_lens", &[7, 3])],
        ),
        ("--rotary half", 8, vec![i32s("q_lens", &[2, 1]), i32s("kv_lens", &[8, 1])]),
    ];
    for (options, positions, extra) in few(&all).iter().cloned() {
        let half = options.contains("half");
        let tensors =
            [plain(), cos_sin(positions, if half { 4 } else { 3 }).to_vec(), extra.clone()]
                .concat();
        let [q, k, v] = ["q", "k", "v"].map(|name| Given::of(&tensors, name, options));
        let lens = |name: &str, len: usize| -> Vec<usize> {
            match extra.iter().find(|(other, ..)| *other == name) {
                Some((.., bytes)) => bytes.iter().step_by(4).map(|n| (*n).into()).collect(),
                None => vec![len; 2],
            }
        };
        let (q_lens, kv_lens) = (lens("q_lens", 5), lens("kv_lens", 9));
        let sequence = |b: usize| {
            let (mut keys, values) =
                (k.rows(b, 0..kv_lens[b], true), v.rows(b, 0..kv_lens[b], true));
            turn(&mut keys, 0, &tables(&tensors), half);
            let mut sequence = Sequence::new(q.rows(b, 0..q_lens[b], true), keys, values);
            sequence.causal = options.contains("--causal");
            sequence.left = options.contains("left 2").then_some(2);
            if options.contains("top-left") {
                sequence.diagonal = 0;
            }
            if extra.len() == 1 {
                sequence.diagonal = [6, 0][b];
            }
            turn(&mut sequence.q, sequence.diagonal, &tables(&tensors), half);
            sequence
        };
        let sequences = [sequence(0), sequence(1)];
        write("rotary-in", &tensors);
        for way in ways() {
            answers(&format!("{options} {way} rotary-in rotary-out"));
            check("rotary-out", &sequences, "bhsd", &format!("{options} {way}"));
        }
    }
}

#[test]
fn packed_sequences_are_turned_by_positions_of_their_own() {
    let tensors = [
        vec![
            quiet("q", &[6, 4, 8], 1),
            quiet("k", &[12, 2, 8], 2),
            quiet("v", &[12, 2, 6], 3),
            i32s("cu_seqlens_q", &[0, 3, 3, 5, 6]),
            i32s("cu_seqlens_k", &[0, 5, 7, 9, 12]),
        ],
        cos_sin(5, 2).to_vec(),
    ]
    .concat();
    for options in ["--rotary half --causal bottom-right", "--rotary interleaved --causal top-left"]
    {
        let half = options.contains("half");
        let [q, k, v] = ["q", "k", "v"].map(|name| {
            let mut given = Given::of(&tensors, name, options);
            given.shape.insert(0, 1);
            given
        });
        let sequences =
            [(0..3, 0..5), (3..3, 5..7), (3..5, 7..9), (5..6, 9..12)].map(|(rows, keys)| {
                let mut turned_keys = k.rows(0, keys.clone(), false);
                turn(&mut turned_keys, 0, &tables(&tensors), half);
                let mut sequence =
                    Sequence::new(q.rows(0, rows, false), turned_keys, v.rows(0, keys, false));
                sequence.causal = true;
                if options.contains("top-left") {
                    sequence.diagonal = 0;
                }
                turn(&mut sequence.q, sequence.diagonal, &tables(&tensors), half);
                sequence
            });
        write("packed-rotary-in", &tensors);
        for way in ways() {
            answers(&format!("{options} {way} --layout thd packed-rotary-in packed-rotary-out"));
            check("packed-rotary-out", &sequences, "thd", &format!("{options} {way}"));
        }
    }
}

#[test]
fn keys_in_pages_are_turned_by_their_index() {
    let tensors = [pages(), cos_sin(10, 4).to_vec()].concat();
    // The same pages at other positions of another sequence.
    let swapped =
        with(tensors.clone(), "block_table", Some(table(&[&[5, 2, 6, -1], &[2, 5, 0, 3]])));
    for (tensors, order) in [
        (tensors, [5, 0, 3, 1]),
        (with(swapped, "kv_lens", Some(i32s("kv_lens", &[7, 9]))), [2, 5, 0, 3]),
    ] {
        let options = "--rotary half --causal bottom-right";
        let pool = ["k_pages", "v_pages"].map(|name| Given::of(&tensors, name, options));
        let mut sequences = paged(&tensors, options);
        if order[0] == 2 {
            let gather = |pool: &Given| -> Rows {
                (0..9).flat_map(|j| pool.rows(order[j / 3], j % 3..j % 3 + 1, false)).collect()
            };
            let q = Given::of(&tensors, "q", options).rows(1, 0..4, true);
            sequences[1] = Sequence::new(q, gather(&pool[0]), gather(&pool[1]));
        }
        for sequence in &mut sequences {
            sequence.causal = true;
            turn(&mut sequence.k, 0, &tables(&tensors), true);
            turn(&mut sequence.q, sequence.diagonal, &tables(&tensors), true);
        }
        write("paged-rotary-in", &tensors);
        for way in ways() {
            answers(&format!("{options} {way} paged-rotary-in paged-rotary-out"));
            check("paged-rotary-out", &sequences, "bhsd", &way);
        }
    }
}

#[test]
fn misuse_is_named() {
    let turned = |tensors: Vec<Tensor>| [tensors, cos_sin(10, 4).to_vec()].concat();
    let plain = || {
        vec![f32s("q", &[2, 4, 5, 8], 1), f32s("k", &[2, 2, 9, 8], 2), f32s("v", &[2, 2, 9, 6], 3)]
    };
    let lens = |name, data: &[i32]| Some(i32s(name, data));
    for (options, tensors, what) in [
        ("", with(pages(), "kv_lens", None), "tensor kv_lens is missing"),
        ("", with(pages(), "v_pages", None), "tensor v_pages is missing"),
        ("", with(pages(), "block_table", None), "tensor block_table is missing"),
        (
            "",
            with(pages(), "k", Some(f32s("k", &[1], 1))),
            "tensor k does not go with tensor k_pages",
        ),
        (
            "",
            with(pages(), "k_new", Some(f32s("k_new", &[1], 1))),
            "tensor k_new does not go with tensor k_pages",
        ),
        ("--layout thd", pages(), "tensor k_pages does not go with --layout thd"),
        ("", with(pages(), "kv_lens", lens("kv_lens", &[13, 1])), "tensor kv_lens: entry 0 is 13"),
        (
            "",
            with(pages(), "kv_lens", lens("kv_lens", &[10, 1])),
            "tensor block_table: entry [0, 3] is -1",
        ),
        ("", with(pages(), "kv_lens", lens("kv_lens", &[1])), "tensor kv_lens has shape"),
        (
            "",
            with(pages(), "block_table", Some(table(&[&[5, 2, 7, 0], &[0; 4]]))),
            "tensor block_table: entry [0, 2] is 7, needed is a page below 7",
        ),
        (
            "",
            with(pages(), "block_table", Some(table(&[&[5, 2, 6, 0]]))),
            "tensor block_table has shape",
        ),
        (
            "",
            with(pages(), "block_table", lens("block_table", &[0; 8])),
            "tensor block_table has shape",
        ),
        (
            "",
            with(pages(), "block_table", Some(f32s("block_table", &[2, 4], 1))),
            "tensor block_table is F32",
        ),
        (
            "",
            with(pages(), "k_pages", Some(f32s("k_pages", &[3, 3, 8], 1))),
            "tensor k_pages has shape",
        ),
        (
            "",
            with(pages(), "v_pages", Some(f32s("v_pages", &[6, 3, 3, 5], 1))),
            "tensor v_pages has shape",
        ),
        (
            "",
            with(pages(), "v_pages", Some(f32s("v_pages", &[7, 4, 3, 5], 1))),
            "tensor v_pages: length is 16",
        ),
        (
            "",
            with(pages(), "v_pages", Some(f32s("v_pages", &[7, 3, 1, 5], 1))),
            "tensor v_pages: heads is 1",
        ),
        (
            "",
            with(pages(), "k_pages", Some(f32s("k_pages", &[7, 3, 3, 9], 1))),
            "tensor k_pages: head_dim is 9",
        ),
        (
            "",
            with(pages(), "mask", Some(mask(Dtype::BOOL, &[1, 1, 1, 10], 1))),
            "mask: kv_len is 10, needed is 12",
        ),
        ("--layout bshd", with(cache(), "k_new", None), "tensor k_new is missing"),
        ("--layout bshd", with(cache(), "cache_lens", None), "tensor cache_lens is missing"),
        ("--layout bshd", with(cache(), "v_cache", None), "tensor v_cache is missing"),
        ("--layout bhsd", cache(), "tensor k_cache is for --layout bshd alone"),
        ("--layout thd", cache(), "tensor k_cache is for --layout bshd alone"),
        (
            "--layout bshd",
            with(cache(), "kv_lens", lens("kv_lens", &[1; 3])),
            "tensor kv_lens does not go with tensor k_cache",
        ),
        (
            "--layout bshd",
            with(cache(), "q_lens", lens("q_lens", &[1; 3])),
            "tensor q_lens does not go with tensor k_cache",
        ),
        (
            "--layout bshd",
            with(cache(), "v", Some(f32s("v", &[1], 1))),
            "tensor v does not go with tensor k_cache",
        ),
        (
            "--layout bshd",
            with(cache(), "cache_lens", lens("cache_lens", &[0, 8, 3])),
            "tensor cache_lens: entry 1 is 8",
        ),
        (
            "--layout bshd",
            with(cache(), "cache_lens", lens("cache_lens", &[0, -1, 3])),
            "tensor cache_lens: entry 1 is -1",
        ),
        (
            "--layout bshd",
            with(cache(), "cache_lens", lens("cache_lens", &[0, 2147483647, 3])),
            "tensor cache_lens: entry 1 is 2147483647",
        ),
        (
            "--layout bshd",
            with(cache(), "cache_lens", lens("cache_lens", &[0])),
            "tensor cache_lens has shape",
        ),
        (
            "--layout bshd",
            with(cache(), "k_new", Some(f32s("k_new", &[3, 1, 2, 8], 1))),
            "tensor k_new has shape",
        ),
        (
            "--layout bshd",
            with(cache(), "v_new", Some(f32s("v_new", &[3, 2, 2, 8], 1))),
            "tensor v_new has shape",
        ),
        (
            "--layout bshd",
            with(cache(), "mask", Some(mask(Dtype::BOOL, &[1, 1, 2, 8], 1))),
            "mask: kv_len is 8, needed is 9",
        ),
        (
            "--layout bshd --rotary half",
            [cache(), cos_sin(8, 4).to_vec()].concat(),
            "tensor cos has 8 positions, q of sequence 1 reaches 8",
        ),
        ("--rotary half", plain(), "tensor cos is missing"),
        ("--rotary half", with(turned(plain()), "sin", None), "tensor sin is missing"),
        ("", turned(plain()), "tensor cos needs --rotary"),
        ("--rotary other", turned(plain()), "--rotary: other is none of half, interleaved"),
        (
            "--rotary half",
            with(turned(plain()), "sin", Some(f32s("sin", &[10, 3], 1))),
            "tensor sin has shape",
        ),
        (
            "--rotary half",
            with(turned(plain()), "cos", Some(f32s("cos", &[40], 1))),
            "tensor cos has shape",
        ),
        ("--rotary half", [plain(), cos_sin(10, 5).to_vec()].concat(), "tensor cos has shape"),
        (
            "--rotary half",
            [plain(), vec![f32s("cos", &[10, 0], 1), f32s("sin", &[10, 0], 1)]].concat(),
            "tensor cos has shape",
        ),
        (
            "--rotary half",
            with(turned(plain()), "cos", Some(floats("cos", Dtype::F16, &[10, 4], &[0.0; 40]))),
            "tensor cos is F16",
        ),
        (
            "--rotary half",
            [plain(), cos_sin(8, 4).to_vec()].concat(),
            "tensor cos has 8 positions, q of sequence 0 reaches 8",
        ),
        (
            "--rotary half --causal top-left",
            [plain(), cos_sin(8, 4).to_vec()].concat(),
            "tensor cos has 8 positions, k of sequence 0 reaches 8",
        ),
        (
            "--rotary half",
            with(turned(plain()), "kv_lens", lens("kv_lens", &[9, 2])),
            "--rotary: query 0 of sequence 1 stands at position -3",
        ),
        (
            "--rotary half",
            with(turned(plain()), "diag_offset", lens("diag_offset", &[5, -1])),
            "tensor diag_offset: entry 1 is -1",
        ),
        (
            "--rotary half",
            with(turned(plain()), "diag_offset", lens("diag_offset", &[6, 0])),
            "tensor cos has 10 positions, q of sequence 0 reaches 10",
        ),
        (
            "--rotary half",
            with(turned(plain()), "diag_offset", lens("diag_offset", &[0, i32::MAX])),
            "q of sequence 1 reaches 2147483651",
        ),
    ] {
        write("misused-in", &tensors);
        for backend in BACKENDS {
            refuses(&format!("{options} --backend {backend} misused-in"), what);
        }
    }
}

#[test]
fn nothing_to_append_or_turn_is_answered() {
    for (name, tensors, out) in [
        // No sequence; no new row; pages of none.
        (
            "no-sequence",
            vec![
                f32s("q", &[0, 2, 4, 8], 1),
                f32s("k_cache", &[0, 9, 2, 8], 2),
                f32s("v_cache", &[0, 9, 2, 5], 3),
                i32s("cache_lens", &[]),
                f32s("k_new", &[0, 2, 2, 8], 4),
                f32s("v_new", &[0, 2, 2, 5], 5),
            ],
            vec![0, 2, 4, 5],
        ),
        (
            "no-row",
            vec![
                f32s("q", &[1, 0, 4, 8], 1),
                f32s("k_cache", &[1, 9, 2, 8], 2),
                f32s("v_cache", &[1, 9, 2, 5], 3),
                i32s("cache_lens", &[4]),
                f32s("k_new", &[1, 0, 2, 8], 4),
                f32s("v_new", &[1, 0, 2, 5], 5),
            ],
            vec![1, 0, 4, 5],
        ),
        (
            "no-page",
            vec![
                f32s("q", &[1, 0, 4, 8], 1),
                f32s("k_pages", &[1, 3, 2, 8], 2),
                f32s("v_pages", &[1, 3, 2, 5], 3),
                table(&[&[-1, -1]]),
                i32s("kv_lens", &[0]),
            ],
            vec![1, 0, 4, 5],
        ),
    ] {
        // Tables of no position have all that are needed.
        let tables = [f32s("cos", &[0, 4], 1), f32s("sin", &[0, 4], 1)];
        write("empty-in", &[tensors.clone(), tables.to_vec()].concat());
        for way in ways() {
            answers(&format!("--layout bshd --rotary half {way} empty-in empty-out"));
            assert_eq!(read("empty-out", "out").0, out, "{name} {way}");
            for cache in tensors.iter().filter(|(name, ..)| name.ends_with("_cache")) {
                let bytes: Vec<u8> =
                    read("empty-out", cache.0).1.iter().flat_map(|x| x.to_le_bytes()).collect();
                assert_eq!(bytes, cache.3, "{name} {way}");
            }
        }
    }
}

/// One call at random: its options and tensors.
fn random_call(random: &mut Random) -> (String, Vec<Tensor>) {
    let below = |random: &mut Random, n: u32| random.below(n) as usize;
    let (batch, kv_heads) = (1 + below(random, 3), 1 + below(random, 2));
    let heads = kv_heads * (1 + below(random, 4));
    let (len, dim, v_dim) = (1 + below(random, 5), 2 + below(random, 40), 1 + below(random, 40));
    let seed = random.below(1 << 30);
    let mut options = String::new();
    let layout = ["bhsd", "bshd"][below(random, 2)];
    let kind = ["whole", "pages", "cache"][below(random, 3)];
    let layout = if kind == "cache" { "bshd" } else { layout };
    let rows = |heads: usize, len: usize, dim: usize| match layout {
        "bhsd" => [batch, heads, len, dim],
        _ => [batch, len, heads, dim],
    };
    let int = |n: usize| i32::try_from(n).expect("small");
    let mut tensors = vec![quiet("q", &rows(heads, len, dim), seed)];
    let capacity = match kind {
        "whole" => {
            let keys = len + below(random, 70);
            tensors.push(quiet("k", &rows(kv_heads, keys, dim), seed + 1));
            tensors.push(quiet("v", &rows(kv_heads, keys, v_dim), seed + 2));
            keys
        }
        "pages" => {
            let (page, entries) = (1 + below(random, 20), 1 + below(random, 8));
            let pool = batch * entries;
            tensors.push(quiet("k_pages", &[pool, page, kv_heads, dim], seed + 1));
            tensors.push(quiet("v_pages", &[pool, page, kv_heads, v_dim], seed + 2));
            let mut order: Vec<i32> = random
                .permutation(u32::try_from(pool).expect("small"))
                .into_iter()
                .map(u32::cast_signed)
                .collect();
            let capacity = page * entries;
            let fewest = len.min(capacity);
            let lens: Vec<usize> = (0..batch)
                .map(|_| {
                    fewest
                        + random.below(u32::try_from(capacity - fewest + 1).expect("small"))
                            as usize
                })
                .collect();
            for (row, len) in order.chunks_mut(entries).zip(&lens) {
                row[len.div_ceil(page)..].fill(-1);
            }
            tensors.push(table(&order.chunks(entries).collect::<Vec<_>>()));
            tensors.push(i32s("kv_lens", &lens.into_iter().map(int).collect::<Vec<_>>()));
            if fewest < len {
                // Queries would stand before position 0.
                options += "--causal top-left ";
            }
            capacity.max(len)
        }
        _ => {
            let capacity = len + below(random, 70);
            tensors.push(quiet("k_cache", &[batch, capacity, kv_heads, dim], seed + 1));
            tensors.push(quiet("v_cache", &[batch, capacity, kv_heads, v_dim], seed + 2));
            tensors.push(quiet("k_new", &[batch, len, kv_heads, dim], seed + 3));
            tensors.push(quiet("v_new", &[batch, len, kv_heads, v_dim], seed + 4));
            let room = u32::try_from(capacity - len + 1).expect("small");
            let lens: Vec<i32> = (0..batch).map(|_| random.below(room).cast_signed()).collect();
            tensors.push(i32s("cache_lens", &lens));
            capacity
        }
    };
    if random.below(2) == 0 {
        let pairs = 1 + below(random, u32::try_from(dim / 2).expect("small"));
        tensors.extend(cos_sin(capacity, pairs));
        options += ["--rotary half ", "--rotary interleaved "][below(random, 2)];
    }
    if random.below(2) == 0 && !options.contains("--causal") {
        options += ["--causal bottom-right ", "--causal top-left "][below(random, 2)];
    }
    if random.below(3) == 0 {
        options += &format!("--window-left {} ", random.below(20));
    }
    options += ["", "", "--dtype f16 ", "--dtype bf16 "][below(random, 4)];
    (format!("{options}--layout {layout}"), tensors)
}

#[test]
fn random_calls_give_the_reference() {
    let count = if support::small() { 3 } else { 60 };
    let mut random = Random::new(31);
    let calls: Vec<_> = (0..count).map(|_| random_call(&mut random)).collect();
    let mut lines = String::new();
    for (n, (options, tensors)) in calls.iter().enumerate() {
        write(&format!("random-in{n}"), tensors);
        for backend in BACKENDS {
            lines += &format!("{options} --backend {backend} random-in{n} random-{backend}{n}\n");
        }
    }
    std::fs::write(file("random-jobs"), lines).expect("written");
    let got = attend("--jobs random-jobs");
    let text = String::from_utf8_lossy(&got.stdout);
    assert_eq!(got.status.code(), Some(0), "{text}");
    for (n, (options, tensors)) in calls.iter().enumerate() {
        let grows = tensors.iter().any(|(name, ..)| *name == "k_cache");
        let caches: &[&str] = if grows { &["k_cache", "v_cache"] } else { &[] };
        for name in [&["out", "lse"], caches].concat() {
            let (shape, want) = read(&format!("random-reference{n}"), name);
            for backend in ["gpu", "cpu"] {
                let (got_shape, got) = read(&format!("random-{backend}{n}"), name);
                assert_eq!(got_shape, shape, "{name} of {options}");
                for (got, want) in got.into_iter().zip(&want) {
                    let off = f64::from((got - want).abs());
                    let near =
                        got == *want || off <= bound(options) * f64::from(want.abs()).max(1.0);
                    assert!(near, "{name}: {got}, not {want}: {backend} {n} {options}");
                }
            }
        }
    }
}

#[test]
fn a_fuzz_case_in_pages_is_told_as_a_command_line() {
    let shape = Shape::cross_attention(2, 4, 5, 10, 16).with_kv_heads(2).with_v_head_dim(8);
    let plain = Problem::new(shape).mask(Mask::window(6)).with_lse().with_pages(Pages::new(9, 4));
    let hidden = Pairs::new([2, 1, 5, 10]);
    for (name, problem) in [
        ("pages", plain.clone().with_lengths(false, true)),
        ("full_pages", plain.clone().with_boolean_mask(MaskFormat::Bytes, hidden)),
        ("biased_pages", plain.with_bias(DType::F32, Pairs::new([1, 4, 1, 10]))),
    ] {
        let case = Case::new(name, problem);
        let told = support::attend::reproduce(&case, name);
        let (_, arguments) = told.split_once("attend -- ").expect("a command");
        let (arguments, _) = arguments.rsplit_once(' ').expect("a file");
        // It is told as seen from where the test runs.
        let (options, input) = arguments.rsplit_once(' ').expect("a file");
        let input = std::path::absolute(input).expect("a path");
        for backend in BACKENDS {
            let input = input.display();
            answers(&format!("{options} --backend {backend} {input} told-out"));
            let tensors = case.tensors(0);
            let want = reference::forward(&case.problem, &tensors.inputs());
            for (name, want) in [("out", &want.out), ("lse", &want.lse)] {
                let (_, got) = read("told-out", name);
                assert_eq!(got.len(), want.len(), "{name}: {told}");
                for (got, want) in got.into_iter().map(f64::from).zip(want) {
                    assert!(got == *want || (got - want).abs() < 2e-5, "{name}: {got}, not {want}");
                }
            }
        }
    }
}
