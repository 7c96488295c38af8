//! Partial results into one: against the formula in f64, against attention over all keys, and at every edge.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, Gpu, POISON, bits};
use crate::support::judge::error;
use crate::support::random::Random;
use crate::support::small;
use crate::support::target::runner;
use std::sync::LazyLock;
use wgpu_attention::{
    BindError, DType, DeviceClass, Diagonal, Error, Inputs, Mask, Merge, Outputs, PlanError,
    Problem, ProblemError, Runner, Shape, Strides, Tensors, reference,
};

/// Kernels of both classes, and the CPU path.
static TARGETS: LazyLock<[(&str, &Runner); 3]> = LazyLock::new(|| {
    static CPU: LazyLock<Runner> = LazyLock::new(Runner::cpu);
    let [hardware, software] = CLASSES.map(runner);
    [("hardware tiles", hardware), ("software tiles", software), ("CPU", &CPU)]
});

/// Binds so little that nothing larger than a few rows is bound at once.
static TIGHT: LazyLock<Gpu> =
    LazyLock::new(|| Gpu::new(|limits| limits.max_storage_buffer_binding_size = 1 << 12));

/// Has room for everything.
static ROOMY: LazyLock<Gpu> = LazyLock::new(|| Gpu::new(|_| ()));

const INF: f32 = f32::INFINITY;

fn shape(batch: u32, heads: u32, q_len: u32, v_head_dim: u32) -> Shape {
    Shape::cross_attention(batch, heads, q_len, 0, 8).with_v_head_dim(v_head_dim)
}

/// The same merge of another number of parts.
fn of_parts(merge: &Merge, parts: u32) -> Merge {
    let mut merge = *merge;
    merge.parts = parts;
    merge
}

fn rows(merge: &Merge) -> usize {
    (merge.shape.batch * merge.shape.heads * merge.shape.q_len) as usize
}

/// Contiguous parts, all of which saw keys.
fn parts(merge: &Merge, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(seed);
    let n = merge.parts as usize * rows(merge);
    let out = (0..n * merge.shape.v_head_dim as usize).map(|_| random.unit()).collect();
    (out, (0..n).map(|_| 4.0 * random.unit()).collect())
}

/// Gives rows of parts that saw nothing NaN, as a part's owner may leave them.
fn hide(merge: &Merge, (out, lse): &mut (Vec<f32>, Vec<f32>), hidden: impl Fn(usize) -> bool) {
    let width = merge.shape.v_head_dim as usize;
    for (i, lse) in lse.iter_mut().enumerate().filter(|(i, _)| hidden(*i)) {
        *lse = -INF;
        out[i * width..][..width].fill(f32::NAN);
    }
}

fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// What an honest evaluation in f32 is off: rounding of as many sums as there are parts, and of out.
fn bound(merge: &Merge) -> f64 {
    let out = match merge.out_dtype {
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
        _ => 0.0,
    };
    out + 1e-6 + f64::from(merge.parts) * 2.0_f64.powi(-23)
}

/// That a result is the formula's, rows of nothing exactly so.
fn judge(merge: &Merge, out_parts: &[f32], lse_parts: &[f32], got: &Outputs) -> Result<(), String> {
    let stored: Vec<f32> = out_parts.iter().map(|x| rounded(*x, merge.parts_dtype)).collect();
    let want = reference::merge(merge, &stored, lse_parts);
    if got.out.len() != want.out.len() {
        return Err(format!("{} elements of out, not {}", got.out.len(), want.out.len()));
    }
    for (i, (got, want)) in got.out.iter().zip(&want.out).enumerate() {
        let bound = if *want == 0.0 { 0.0 } else { bound(merge) * want.abs().max(1.0) };
        let off = error(*got, *want);
        if off > bound {
            return Err(format!("out at {i} is {got}, not {want}: off by {off:e} of {bound:e}"));
        }
    }
    let lse = got.lse.as_deref().unwrap_or_default();
    if lse.len() != if merge.lse { want.lse.len() } else { 0 } {
        return Err(format!("{} elements of lse", lse.len()));
    }
    for (i, (got, want)) in lse.iter().zip(&want.lse).enumerate() {
        let bound = 1e-6 * want.abs().max(1.0);
        let off = error(*got, *want);
        if off > bound {
            return Err(format!("lse at {i} is {got}, not {want}: off by {off:e} of {bound:e}"));
        }
    }
    Ok(())
}

/// On every target; what the last gave.
fn check(merge: &Merge, (out, lse): &(Vec<f32>, Vec<f32>)) -> Outputs {
    let mut last = None;
    for (name, runner) in *TARGETS {
        let got = runner.merge(merge, out, lse).unwrap_or_else(|e| panic!("{name}: {e}"));
        judge(merge, out, lse, &got).unwrap_or_else(|e| panic!("{name}: {e}: {merge:?}"));
        last = Some(got);
    }
    last.expect("a target")
}

#[test]
fn any_number_of_parts_is_the_formula() {
    for (n, shape) in [
        (0, shape(2, 3, 5, 20)),
        (1, shape(1, 3, 7, 64)),
        (2, shape(2, 2, 5, 128)),
        (7, shape(1, 2, 9, 33)),
        (128, shape(1, 4, 2, 128)),
        (131, shape(1, 1, 2, 300)),
        (3, shape(1, 2, 3, 1)),
        (3, shape(0, 2, 3, 8)),
        (3, shape(2, 2, 0, 8)),
    ] {
        for merge in [Merge::new(n, shape), Merge::new(n, shape).with_lse()] {
            let mut parts = parts(&merge, n.into());
            check(&merge, &parts);
            // Some of the parts, then all of some rows' parts, saw nothing.
            let rows = rows(&merge).max(1);
            hide(&merge, &mut parts, |i| i % 5 == 2 || i % rows % 4 == 1);
            let got = check(&merge, &parts);
            for row in (0..rows).filter(|row| row % 4 == 1 || n == 0) {
                let width = shape.v_head_dim as usize;
                let out = got.out.get(row * width..).unwrap_or_default();
                assert!(out.iter().take(width).all(|x| *x == 0.0), "{merge:?}");
                let lse = got.lse.as_ref().and_then(|lse| lse.get(row));
                assert!(lse.is_none_or(|lse| *lse == -INF), "{merge:?}");
            }
        }
    }
}

#[test]
fn lse_of_any_size_is_merged() {
    let merge = Merge::new(4, shape(1, 1, 8, 16)).with_lse();
    let (out, _) = parts(&merge, 3);
    // A row a line, a part a column.
    let lines = [
        [1e30, -1e30, 1e30, 0.0],
        [-1e30, -1e30, -INF, -1e30],
        [1e30, 1e30, 1e30, 1e30],
        [-1e30, 3.0, -200.0, -INF],
        [90.0, 0.0, 89.5, 91.0],
        [-90.0, -300.0, -89.5, -91.0],
        [-1e30, -INF, -INF, -INF],
        [1e5, 1e5 + 1.0, -1e5, 0.0],
    ];
    let lse = (0..4).flat_map(|part| lines.map(|line| line[part])).collect();
    check(&merge, &(out, lse));
}

#[test]
fn one_part_comes_back_to_the_bit() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let merge = Merge::new(1, shape(2, 3, 5, 40)).with_lse().dtype(dtype);
        let (mut out, mut lse) = parts(&merge, 11);
        out.iter_mut().for_each(|x| *x = rounded(*x * 1e3, dtype));
        (out[0], out[1], out[2]) = (-0.0, 0.0, f32::MIN_POSITIVE);
        out[2] = rounded(1e-3, dtype);
        (lse[0], lse[1]) = (1e30, -1e30);
        // Beside neutral ones it is alone, wherever it stands.
        let rows = lse.len();
        for (before, after) in [(0, 0), (0, 1), (3, 0), (2, 5)] {
            let neutral = |n: usize| (vec![0.0; n * out.len()], vec![-INF; n * rows]);
            let all = of_parts(&merge, 1 + before + after);
            let (first, last) = (neutral(before as usize), neutral(after as usize));
            let outs = [&first.0[..], &out, &last.0].concat();
            let lses = [&first.1[..], &lse, &last.1].concat();
            for (name, runner) in *TARGETS {
                let got = runner.merge(&all, &outs, &lses).expect("merged");
                assert_eq!(bits(&got.out), bits(&out), "{name}, {dtype:?}, {before} {after}");
                let got_lse = got.lse.expect("asked for");
                assert_eq!(bits(&got_lse), bits(&lse), "{name}, {dtype:?}, {before} {after}");
            }
        }
    }
}

/// A range of the parts of a merge, contiguous as they are.
fn some(merge: &Merge, (out, lse): &(Vec<f32>, Vec<f32>), range: std::ops::Range<u32>) -> Outputs {
    let (n, first) = ((range.end - range.start) as usize, range.start as usize);
    let (width, rows) = (merge.shape.v_head_dim as usize, rows(merge));
    let part = of_parts(merge, range.end - range.start);
    let outs = &out[first * rows * width..][..n * rows * width];
    runner(DeviceClass::Software)
        .merge(&part, outs, &lse[first * rows..][..n * rows])
        .expect("a part")
}

#[test]
fn merges_of_merges_are_the_merge_of_all() {
    let merge = Merge::new(9, shape(1, 3, 11, 48)).with_lse();
    let mut all = parts(&merge, 5);
    hide(&merge, &mut all, |i| i % 7 == 3);
    let want = check(&merge, &all);
    for cuts in [&[0, 4, 9][..], &[0, 1, 2, 9], &[0, 8, 8, 9], &[0, 3, 6, 9]] {
        let merged: Vec<_> =
            cuts.windows(2).map(|cut| some(&merge, &all, cut[0]..cut[1])).collect();
        let outs: Vec<f32> = merged.iter().flat_map(|part| part.out.clone()).collect();
        let lses: Vec<f32> = merged.iter().flat_map(|part| part.lse.clone().unwrap()).collect();
        let top = of_parts(&merge, u32::try_from(merged.len()).expect("few"));
        let got = check(&top, &(outs, lses));
        let off = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| error(*a, (*b).into())).fold(0.0, f64::max)
        };
        assert!(off(&got.out, &want.out) < 2e-6, "{cuts:?}");
        assert!(off(&got.lse.unwrap(), want.lse.as_ref().unwrap()) < 4e-6, "{cuts:?}");
    }
}

/// Where everything lies, and in which types.
fn layouts() -> Vec<Merge> {
    let shape = shape(2, 3, 5, 12);
    let plain = Merge::new(4, shape).with_lse();
    // [batch, q_len, parts, heads, v_head_dim] and [batch, q_len, parts, heads].
    let rows = Strides { batch: 5 * 4 * 36, head: 12, row: 4 * 36 };
    let lse_rows = Strides { batch: 5 * 4 * 3, head: 1, row: 4 * 3 };
    // With gaps that nothing is aligned to.
    let gaps = Strides { batch: 401, head: 131, row: 25 };
    let mut all = vec![
        plain.out_parts_strides(36, rows).lse_parts_strides(3, lse_rows),
        plain.out_strides(Strides::bshd(3, 5, 12)),
        plain.out_strides(gaps).out_parts_strides(907, gaps),
        // One part for all, one row for all.
        plain.out_parts_strides(0, Strides::bhsd(3, 5, 12)),
        plain.lse_parts_strides(1, Strides { batch: 0, head: 0, row: 0 }),
    ];
    for parts in [DType::F32, DType::F16, DType::BF16] {
        for out in [DType::F32, DType::F16, DType::BF16] {
            all.push(plain.parts_dtype(parts).out_dtype(out));
            all.push(all[0].parts_dtype(parts).out_dtype(out).out_strides(gaps));
        }
    }
    all
}

fn extent(part: u64, count: u32, strides: Strides, shape: Shape, width: u32) -> usize {
    let axis = |n: u32, stride: u64| u64::from(n - 1) * stride;
    let within = axis(shape.batch, strides.batch)
        + axis(shape.heads, strides.head)
        + axis(shape.q_len, strides.row);
    usize::try_from(axis(count, part) + within + u64::from(width)).expect("small")
}

/// Parts of any layout.
fn laid_out(merge: &Merge, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(seed);
    let Merge { parts, shape, .. } = *merge;
    let out = extent(merge.out_part, parts, merge.out_parts, shape, shape.v_head_dim);
    let lse = extent(merge.lse_part, parts, merge.lse_parts, shape, 1);
    let mut fill = |n: usize, most: f32| (0..n).map(|_| most * random.unit()).collect::<Vec<_>>();
    (fill(out, 1.0), fill(lse, 4.0))
}

#[test]
fn strides_and_storage_types_are_those_asked_for() {
    for (merge, seed) in layouts().into_iter().zip(0..) {
        let mut parts = laid_out(&merge, seed);
        check(&merge, &parts);
        // What a part's owner has besides is not read.
        parts.0.extend([f32::NAN; 3]);
        parts.1.extend([f32::NAN; 3]);
        check(&merge, &parts);
    }
}

/// Own buffers, each tensor some words from its start; nothing beside out and lse is written.
fn placed(gpu: &Gpu, class: DeviceClass, merge: &Merge, first: usize) -> (Outputs, usize) {
    let (out_parts, lse_parts) = laid_out(merge, 17);
    let attention = gpu.attention(class);
    let plan = attention.plan_merge(merge).expect("a plan");
    let before = vec![f32::NAN; first];
    let [outs, lses] = [&out_parts, &lse_parts].map(|x| gpu.input(&[&before, &x[..]].concat()));
    let out_len = extent(0, 1, merge.out, merge.shape, merge.shape.v_head_dim);
    let (out, lse) = (gpu.output(first + out_len + 9), gpu.output(first + rows(merge) + 9));
    let at = first as u64 * 4;
    let tensors = Tensors::default()
        .out_parts(outs.slice(at..))
        .lse_parts(lses.slice(at..))
        .out(out.slice(at..))
        .lse(lse.slice(at..));
    let dispatch = attention.bind(&plan, &tensors).expect("bound");
    gpu.run(&[&dispatch]);
    let (mut got, lse) = (gpu.read(&out), gpu.read(&lse));
    for (words, len) in [(&got, out_len), (&lse, rows(merge))] {
        let around = bits(words);
        assert!(around[..first].iter().chain(&around[first + len..]).all(|word| *word == POISON));
    }
    // Gaps between rows were poison, and are 0 to whoever compares.
    got.iter_mut().filter(|x| x.to_bits() == POISON).for_each(|x| *x = 0.0);
    let out = got[first..][..out_len].to_vec();
    let lse = lse[first..][..rows(merge)].to_vec();
    let got = outputs(out, lse);
    judge(merge, &out_parts, &lse_parts, &got).unwrap_or_else(|e| panic!("{e}: {merge:?}"));
    (got, plan.kernels().count())
}

/// `Outputs` has no constructor: those of a merge of one part are these.
fn outputs(out: Vec<f32>, lse: Vec<f32>) -> Outputs {
    let rows = u32::try_from(lse.len()).expect("small");
    let mut outputs = Runner::cpu()
        .merge(&Merge::new(0, shape(1, 1, rows, 1)).with_lse(), &[], &[])
        .expect("nothing");
    (outputs.out, outputs.lse) = (out, Some(lse));
    outputs
}

#[test]
fn slices_start_at_any_element() {
    let f32s = |merge: &Merge| merge.parts_dtype == DType::F32 && merge.out_dtype == DType::F32;
    for merge in layouts().into_iter().filter(f32s) {
        for first in [0, 1, 5, 64] {
            for class in CLASSES {
                placed(&TIGHT, class, &merge, first);
            }
        }
    }
}

#[test]
fn what_no_binding_holds_comes_in_blocks_and_groups() {
    // Bindings hold 4,096 bytes: 1,020 words and what a start is aligned by.
    let wide = shape(2, 3, 37, 20);
    let inner = Strides { batch: 37 * 6 * 60, head: 20, row: 6 * 60 };
    let inner_lse = Strides { batch: 37 * 6 * 3, head: 1, row: 6 * 3 };
    for merge in [
        // Parts lie side by side: blocks of rows are enough.
        Merge::new(6, wide).out_parts_strides(60, inner).lse_parts_strides(3, inner_lse),
        // Parts are apart: in groups, as no row's parts fit a binding.
        Merge::new(6, wide),
        Merge::new(40, shape(1, 1, 3, 20)),
        Merge::new(64, shape(1, 2, 1, 20)),
    ] {
        let merge = merge.with_lse();
        for (class, first) in [(DeviceClass::Software, 0), (DeviceClass::Hardware, 3)] {
            let (got, steps) = placed(&TIGHT, class, &merge, first);
            assert!(steps > 1, "{merge:?}");
            // What fits is one step, and the same.
            let (want, one) = placed(&ROOMY, class, &merge, first);
            assert_eq!(one, 1);
            let off = got.out.iter().zip(&want.out).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 2e-6, "{merge:?}");
        }
    }
}

/// Attention over some keys, as the one who has them computes it.
fn attend(runner: &Runner, problem: &Problem, [q, k, v]: [&[f32]; 3]) -> Outputs {
    runner.forward(problem, &Inputs::new(q, k, v)).expect("attention")
}

#[test]
fn ranges_of_keys_merged_are_attention_over_all() {
    let (heads, q_len, kv_len, dim) = (3_u32, 33_u32, 201_u32, 32_u32);
    let mut random = Random::new(8);
    let mut fill = |n: u32, most: f32| -> Vec<f32> {
        (0..n * heads * dim).map(|_| most * random.unit()).collect()
    };
    // [len, heads, dim]: a range of keys is a slice.
    let (q, k, v) = (fill(q_len, 4.0), fill(kv_len, 1.0), fill(kv_len, 1.0));
    let layout = |problem: Problem| problem.layout(wgpu_attention::Layout::Bshd).with_lse();
    let offset = i32::try_from(kv_len - q_len).expect("small");
    let window = Mask::window(40);
    for mask in [Mask::FULL, Mask::CAUSAL, window] {
        let shape = Shape::cross_attention(1, heads, q_len, kv_len, dim);
        let whole = layout(Problem::new(shape).mask(mask));
        for (name, runner) in *TARGETS {
            let want = attend(runner, &whole, [&q, &k, &v]);
            for cuts in [&[0, 100, 201][..], &[0, 3, 64, 65, 180, 201]] {
                let (mut outs, mut lses) = (Vec::new(), Vec::new());
                for cut in cuts.windows(2) {
                    let (first, end) = (cut[0], cut[1]);
                    let part = Shape::cross_attention(1, heads, q_len, end - first, dim);
                    let first_pos = i32::try_from(first).expect("small");
                    let mask = mask.along(Diagonal::Offset(offset - first_pos));
                    let words = (first * heads * dim) as usize..(end * heads * dim) as usize;
                    let problem = layout(Problem::new(part).mask(mask));
                    let got = attend(runner, &problem, [&q, &k[words.clone()], &v[words]]);
                    outs.extend(got.out);
                    lses.extend(got.lse.expect("asked for"));
                }
                let n = u32::try_from(cuts.len() - 1).expect("few");
                let merge = Merge::of(n, &whole);
                let got = runner.merge(&merge, &outs, &lses).expect("merged");
                judge(&merge, &outs, &lses, &got).expect("the formula");
                let off = |a: &[f32], b: &[f32]| {
                    a.iter().zip(b).map(|(a, b)| error(*a, (*b).into())).fold(0.0, f64::max)
                };
                let out = off(&got.out, &want.out);
                let lse = off(got.lse.as_ref().unwrap(), want.lse.as_ref().unwrap());
                assert!(out < 2e-6 && lse < 4e-6, "{name}, {mask:?}: {out:e}, {lse:e}");
            }
        }
    }
}

#[test]
fn the_comparison_sees_what_is_wrong() {
    let merge = Merge::new(5, shape(1, 2, 6, 24)).with_lse();
    let (out, lse) = parts(&merge, 2);
    let good = check(&merge, &(out.clone(), lse.clone()));
    let fails = |got: &Outputs, what: &str| {
        assert!(judge(&merge, &out, &lse, got).is_err(), "{what} passes");
    };
    let merged = |lse: &[f32]| runner(DeviceClass::Software).merge(&merge, &out, lse).unwrap();
    // lse in base 2, a part forgotten, parts averaged, parts in each other's place.
    fails(&merged(&lse.iter().map(|x| x * std::f32::consts::LOG2_E).collect::<Vec<_>>()), "base 2");
    let rows = rows(&merge);
    let forgotten: Vec<f32> =
        lse.iter().enumerate().map(|(i, x)| if i < rows { -INF } else { *x }).collect();
    fails(&merged(&forgotten), "a forgotten part");
    fails(&merged(&vec![0.5; lse.len()]), "an average");
    let mut turned = lse.clone();
    turned.rotate_left(rows);
    fails(&merged(&turned), "another part's lse");
    for i in [0, 7, good.out.len() - 1] {
        let mut bent = good.clone();
        bent.out[i] += 4e-5;
        fails(&bent, "a bent element");
    }
    let mut bent = good.clone();
    bent.out[3] = f32::NAN;
    fails(&bent, "NaN");
    let mut bent = good;
    bent.lse.as_mut().expect("asked for")[4] += 1e-4;
    fails(&bent, "a bent lse");
}

#[test]
fn one_random_merge_in_many() {
    let mut random = Random::new(77);
    for seed in 0..if small() { 6 } else { 40 } {
        let mut below = |n: u32| random.below(n);
        let shape = shape(1 + below(2), 1 + below(4), 1 + below(9), 1 + below(140));
        let merge = Merge::new(below(12), shape).with_lse();
        let mut parts = parts(&merge, seed);
        let scale = [1.0, 30.0, 1e4][below(3) as usize];
        parts.1.iter_mut().for_each(|x| *x *= scale);
        let every = 2 + below(6) as usize;
        hide(&merge, &mut parts, |i| i % every == 1);
        check(&merge, &parts);
    }
}

#[test]
fn what_is_wrong_is_a_typed_error() {
    let good = Merge::new(2, shape(1, 2, 3, 8));
    let with = |change: fn(&mut Merge)| {
        let mut merge = good;
        change(&mut merge);
        merge.validate()
    };
    assert_eq!(good.validate(), Ok(()));
    let empty = |axis| Err(ProblemError::EmptyAxis { axis });
    assert_eq!(with(|m| m.shape.heads = 0), empty("heads"));
    assert_eq!(with(|m| m.shape.v_head_dim = 0), empty("v_head_dim"));
    let too_long = |axis| Err(ProblemError::TooLong { axis, len: (1 << 29) + 1, max: 1 << 29 });
    assert_eq!(with(|m| m.parts = (1 << 29) + 1), too_long("parts"));
    assert_eq!(with(|m| m.shape.q_len = (1 << 29) + 1), too_long("q_len"));
    assert_eq!(with(|m| m.shape.v_head_dim = (1 << 29) + 1), too_long("v_head_dim"));
    let dtype = DType::Q8;
    for (change, tensor) in [
        ((|m| m.parts_dtype = DType::Q8) as fn(&mut Merge), "out_parts"),
        (|m| m.out_dtype = DType::Q8, "out"),
    ] {
        assert_eq!(with(change), Err(ProblemError::Quantised { tensor, dtype }));
    }
    for (change, tensor) in [
        ((|m| m.out_part = u64::MAX) as fn(&mut Merge), "out_parts"),
        (|m| m.lse_part = 1 << 62, "lse_parts"),
        (|m| m.out.row = 1 << 62, "out"),
    ] {
        assert_eq!(with(change), Err(ProblemError::Unaddressable { tensor }));
    }
    let strides = Strides { row: 7, ..good.out };
    let overlapping = good.out_strides(strides);
    let overlap = ProblemError::OverlappingRows { tensor: "out", strides };
    assert_eq!(overlapping.validate(), Err(overlap.clone()));

    let (out, lse) = parts(&good, 1);
    for (name, runner) in *TARGETS {
        let error = |merge: &Merge, out: &[f32], lse: &[f32]| runner.merge(merge, out, lse).err();
        assert_eq!(
            error(&overlapping, &out, &lse),
            Some(Error::Problem(overlap.clone())),
            "{name}"
        );
        let length = |tensor: &'static str, required: u64| Error::Length {
            tensor: tensor.into(),
            required,
            actual: required - 1,
        };
        assert_eq!(error(&good, &out[1..], &lse), Some(length("out_parts", 96)), "{name}");
        assert_eq!(error(&good, &out, &lse[1..]), Some(length("lse_parts", 12)), "{name}");
    }
}

#[test]
fn buffers_that_do_not_fit_are_typed_errors() {
    let gpu = &*TIGHT;
    let attention = gpu.attention(DeviceClass::Software);
    let merge = Merge::new(2, shape(1, 2, 3, 8)).with_lse();
    let plan = attention.plan_merge(&merge).expect("a plan");
    let (outs, lses, out, lse) =
        (gpu.input(&[0.0; 96]), gpu.input(&[0.0; 12]), gpu.output(48), gpu.output(6));
    let all = || {
        let tensors = Tensors::default().out_parts(outs.slice(..)).lse_parts(lses.slice(..));
        tensors.out(out.slice(..)).lse(lse.slice(..))
    };
    let error = |tensors: Tensors<'_>| attention.bind(&plan, &tensors).err();
    assert_eq!(error(all()), None);
    let missing = Tensors::default().out_parts(outs.slice(..)).out(out.slice(..));
    let tensor = "lse_parts".into();
    assert_eq!(error(missing.lse(lse.slice(..))), Some(BindError::Missing { tensor }));
    let tensor = "out_parts".into();
    let too_small = BindError::TooSmall { tensor, required: 384, actual: 380 };
    assert_eq!(error(all().out_parts(outs.slice(4..))), Some(too_small));
    let overlap = BindError::Overlap { output: "out".into(), other: "out_parts".into() };
    assert_eq!(error(all().out(outs.slice(..192))), Some(overlap));
    let unused = Some(BindError::Unused { tensor: "q".into() });
    assert_eq!(error(all().q(outs.slice(..))), unused);
    let without = attention.plan_merge(&Merge::new(2, merge.shape)).expect("a plan");
    let unused = BindError::Unused { tensor: "lse".into() };
    assert_eq!(attention.bind(&without, &all()).err(), Some(unused));

    // One row of out, then one of the groups of parts, is more than a binding holds.
    let limit = "max_storage_buffer_binding_size";
    for (merge, row, bytes) in [
        (Merge::new(2, shape(1, 1, 1, 1100)), "one row of out", 4400),
        (Merge::new(40, shape(1, 1, 3, 200)), "one row of partial results", 16_000),
    ] {
        match attention.plan_merge(&merge) {
            Err(PlanError::LimitExceeded { what, limit: named, required, available: 4096 }) => {
                assert_eq!((&*what, named), (row, limit));
                assert!(required >= bytes && required < 3 * bytes, "{required}");
            }
            other => panic!("{other:?}"),
        }
    }
}
