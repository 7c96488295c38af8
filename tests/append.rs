//! Appending to caches and rotary embedding, by kernels and without a GPU, against the definition.

#![cfg(feature = "cpu")]

use crate::device::Gpu;
use crate::support::append::{Case, Element, On, UNUSED, bits, extent, rounded, stored, tables};
use crate::support::random::Random;
use crate::support::target::runner;
use std::sync::OnceLock;
use wgpu_attention::reference;
use wgpu_attention::{
    Append, AppendInputs, BindError, DType, DeviceClass, Error, Inputs, Layout, Pages, PlanError,
    Problem, ProblemError, Rotary, RotaryEmbedding, RotaryInputs, RotaryPairs, Runner, Shape,
    Strides, Tensors, wgpu,
};

const ROWS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const CACHES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4];

/// With all that the adapter has, and with no feature at all.
fn devices() -> [On<'static>; 2] {
    static PLAIN: OnceLock<Gpu> = OnceLock::new();
    let (device, queue, attention) = runner(DeviceClass::Software).device().expect("a GPU");
    let plain = PLAIN.get_or_init(|| Gpu::new(|_| {}));
    [On { device, queue, attention }, on(plain)]
}

fn on(gpu: &Gpu) -> On<'_> {
    let attention = gpu.attention(DeviceClass::Software);
    On { device: &gpu.device, queue: &gpu.queue, attention }
}

/// New rows of 3 sequences, 2 heads.
fn append(new_len: u32, capacity: u32, head_dim: u32, v_head_dim: u32) -> Append {
    let shape = Shape::cross_attention(3, 2, new_len, capacity, head_dim);
    Append::new(shape.with_v_head_dim(v_head_dim))
}

fn rotary(pairs: RotaryPairs, dim: u32) -> Rotary {
    Rotary::new(pairs, dim, 64)
}

/// All pairs of a row, some of them, and numbers of pairs that no vector of four divides.
fn rotaries(head_dim: u32) -> [Option<Rotary>; 6] {
    use RotaryPairs::{HalfSplit, Interleaved};
    [
        None,
        Some(rotary(HalfSplit, head_dim)),
        Some(rotary(HalfSplit, 10)),
        Some(rotary(Interleaved, head_dim)),
        Some(rotary(Interleaved, 14)),
        Some(rotary(HalfSplit, 16)),
    ]
}

#[test]
fn every_type_pairing_and_place() {
    for (i, kv_dtype) in CACHES.into_iter().enumerate() {
        for (j, rotary) in rotaries(32).into_iter().enumerate() {
            let plain = append(3, 13, 32, 64).dtype(ROWS[(i + j) % 3]).kv_dtype(kv_dtype);
            let turned = rotary.map_or(plain, |rotary| plain.with_rotary(rotary));
            for append in [turned, turned.with_pages(Pages::new(9, 5))] {
                devices().into_iter().for_each(|on| Case::new(append, &[0, 4, 10]).is_right(on));
            }
        }
    }
}

#[test]
fn odd_widths_whose_rows_share_words() {
    for kv_dtype in [DType::F32, DType::F16, DType::BF16] {
        for dtype in ROWS {
            let append = append(4, 9, 7, 5).dtype(dtype).kv_dtype(kv_dtype);
            let append = append.with_rotary(rotary(RotaryPairs::HalfSplit, 6));
            devices().into_iter().for_each(|on| Case::new(append, &[5, 0, 2]).is_right(on));
            let interleaved = append.with_rotary(rotary(RotaryPairs::Interleaved, 6));
            let paged = interleaved.with_pages(Pages::new(11, 2));
            devices().into_iter().for_each(|on| Case::new(paged, &[5, 0, 2]).is_right(on));
        }
    }
}

#[test]
fn every_sequence_has_a_number_of_new_rows() {
    for append in [append(4, 9, 32, 32), append(4, 9, 32, 32).with_pages(Pages::new(9, 3))] {
        let append = append.with_new_lens().with_rotary(rotary(RotaryPairs::HalfSplit, 32));
        // None, some, and more than there are: all.
        for new_lens in [[0, 3, 9], [4, 0, 1], [0, 0, 0]] {
            let case = Case { new_lens: new_lens.to_vec(), ..Case::new(append, &[5, 9, 1]) };
            devices().into_iter().for_each(|on| case.is_right(on));
        }
    }
}

#[test]
fn what_does_not_fit_is_not_begun() {
    for kv_dtype in CACHES {
        for append in [append(4, 9, 32, 32), append(4, 9, 32, 32).with_pages(Pages::new(12, 2))] {
            let append = append.kv_dtype(kv_dtype);
            for (kv_lens, status) in [
                ([6, 5, 9], [1, 0, 4]),
                ([0, u32::MAX, u32::MAX - 2], [0, 4, 4]),
                ([8, 9, 10], [3, 4, 4]),
            ] {
                let mut case = Case::new(append, &kv_lens.map(|len| len.min(9)));
                case.kv_lens = kv_lens.to_vec();
                assert_eq!(case.expected(1).status, status);
                devices().into_iter().for_each(|on| case.is_right(on));
            }
        }
    }
}

#[test]
fn a_page_that_is_none_has_no_place() {
    let paged = append(6, 16, 32, 32).with_pages(Pages::new(8, 3));
    let case = Case::new(paged, &[4, 0, 9]);
    for (entry, page, status) in [
        // Of sequence 0, positions 3 to 5 of which 4 and 5 are new; 6 to 8; 9 to 11, of which one is.
        (1, u32::MAX, [2, 0, 0]),
        (2, 8, [3, 0, 0]),
        (3, u32::MAX - 1, [1, 0, 0]),
        // Not needed.
        (0, 1000, [0, 0, 0]),
        (6, u32::MAX, [0, 3, 0]),
    ] {
        let mut case = case.clone();
        case.block_table[entry] = page;
        assert_eq!(case.expected(1).status, status, "{entry}");
        devices().into_iter().for_each(|on| case.is_right(on));
    }
}

#[test]
fn strided_tensors_that_start_anywhere() {
    // k and v side by side in a row of a projection; a cache of heads apart, with gaps.
    let side_by_side = Strides { batch: 5 * 140, head: 32, row: 140 };
    let apart = Strides { batch: 2 * 13 * 32 + 64, head: 13 * 32, row: 32 };
    for (i, kv_dtype) in CACHES.into_iter().enumerate() {
        let append = append(5, 13, 32, 32)
            .dtype(ROWS[i % 3])
            .kv_dtype(kv_dtype)
            .new_strides(side_by_side, side_by_side)
            .cache_strides(apart, apart)
            .with_rotary(rotary(RotaryPairs::Interleaved, 16));
        let pool = Strides { batch: 64, head: 3 * 9 * 64, row: 9 * 64 };
        let paged = append.with_pages(Pages::new(9, 3)).cache_strides(pool, pool);
        for append in [append, paged] {
            for first in [1, 2, 3, 4, 6, 8, 16] {
                let case = Case { first, ..Case::new(append, &[0, 8, 3]) };
                case.is_right(devices()[first % 2]);
            }
        }
    }
}

#[test]
fn a_row_repeated_by_a_stride_of_nothing() {
    let one = Strides { batch: 0, head: 0, row: 0 };
    let append = append(5, 13, 32, 32).new_strides(one, one);
    let append = append.with_rotary(rotary(RotaryPairs::HalfSplit, 32));
    devices().into_iter().for_each(|on| Case::new(append, &[0, 8, 3]).is_right(on));
}

#[test]
fn bound_once_lengths_advance_on_the_device() {
    let rows = append(2, 15, 32, 32).with_rotary(rotary(RotaryPairs::HalfSplit, 32));
    for append in [rows, rows.with_pages(Pages::new(15, 3)), rows.kv_dtype(DType::Q8)] {
        let mut case = Case::new(append, &[0, 7, 8]);
        if append.pages.is_some() {
            // Every page of every sequence: those are grown into.
            case.block_table = Random::new(3).permutation(15);
        }
        for times in 1..=9 {
            // From the fifth time on, one sequence after the other is full.
            devices().into_iter().for_each(|on| case.is_right_after(on, times));
        }
        assert_eq!(case.expected(9).kv_lens, [14, 15, 14]);
        assert_eq!(case.expected(9).status, [1, 2, 1]);
    }
}

#[test]
fn a_position_past_the_tables_counts_as_their_last() {
    let few = Rotary::new(RotaryPairs::HalfSplit, 32, 6);
    let case = Case::new(append(4, 20, 32, 32).with_rotary(few), &[0, 4, 11]);
    devices().into_iter().for_each(|on| case.is_right(on));
}

#[test]
fn blocks_of_any_range_reach_their_ends() {
    for kv_dtype in [DType::Q8, DType::Q4] {
        let mut case = Case::new(append(3, 13, 32, 64).kv_dtype(kv_dtype), &[0, 4, 10]);
        for (i, x) in case.k_new.iter_mut().enumerate() {
            // All above 0, all below, all alike, all 0.
            *x = [*x + 500.0, *x - 7.0, 0.3, 0.0, *x * 100.0][i / 32 % 5];
        }
        devices().into_iter().for_each(|on| case.is_right(on));
    }
}

#[test]
fn nothing_to_append() {
    for append in [append(0, 9, 32, 32), append(0, 0, 32, 32)] {
        for append in [append, append.with_pages(Pages::new(3, 4))] {
            let case = Case::new(append, &[0, 0, 0]);
            devices().into_iter().for_each(|on| case.is_right(on));
        }
    }
    let empty = Append::new(Shape::cross_attention(0, 2, 3, 9, 32));
    let plan = devices()[0].attention.plan_append(&empty).expect("a plan");
    assert_eq!(plan.kernels().count(), 0);
}

#[test]
fn caches_larger_than_a_binding_take_several_steps() {
    let gpu = Gpu::new(|limits| limits.max_storage_buffer_binding_size = 1 << 15);
    let interleaved = Rotary::new(RotaryPairs::Interleaved, 32, 200);
    // 3 sequences of 2 heads of 700 positions, 32 wide: 179,200 bytes each. Heads apart, rows apart, rows in many steps.
    let rows = append(90, 700, 32, 32);
    let (bhsd, new) = (Strides::bhsd(2, 700, 32), Strides::bhsd(2, 90, 32));
    for (append, least) in [
        (rows, 6),
        (rows.cache_strides(bhsd, bhsd), 12),
        (rows.new_strides(new, new), 6),
        (rows.kv_dtype(DType::F16), 3),
        (append(700, 700, 32, 32), 12),
    ] {
        let append = append.with_rotary(interleaved);
        let plan = gpu.attention(DeviceClass::Software).plan_append(&append).expect("a plan");
        assert!(plan.kernels().count() > 2 * least, "{plan}");
        let lens = if append.new_len == 700 { [0, 0, 0] } else { [0, 600, 333] };
        Case::new(append, &lens).is_right(on(&gpu));
    }
    let pool = append(2, 700, 32, 32).with_pages(Pages::new(200, 16));
    let refused = gpu.attention(DeviceClass::Software).plan_append(&pool);
    assert!(matches!(refused, Err(PlanError::LimitExceeded { .. })), "{refused:?}");
}

#[test]
fn the_comparison_sees_a_wrong_position_pairing_and_row() {
    let paged = append(3, 13, 32, 64).with_pages(Pages::new(9, 5));
    let append = paged.with_rotary(rotary(RotaryPairs::HalfSplit, 32));
    let case = Case::new(append, &[0, 4, 10]);
    let ran = case.run(devices()[0], 1);
    let right = case.expected(1);
    assert_eq!(case.compare(&ran, &right), Ok(()));
    let expected = |append: Append| Case { append, ..case.clone() }.expected(1);

    let wrong = expected(append.with_rotary(rotary(RotaryPairs::Interleaved, 32)));
    assert!(case.compare(&ran, &wrong).is_err());
    let wrong = expected(append.with_rotary(rotary(RotaryPairs::HalfSplit, 30)));
    assert!(case.compare(&ran, &wrong).is_err());
    // The angles of the position before.
    let (cos, sin) = (case.cos.clone(), case.sin.clone());
    let shifted = |table: Vec<f32>| [&table[..16], &table[..table.len() - 16]].concat();
    let wrong = Case { cos: shifted(cos), sin: shifted(sin), ..case.clone() }.expected(1);
    assert!(case.compare(&ran, &wrong).is_err());
    // A row further on, in lengths that say it is right.
    let mut wrong = Case { kv_lens: vec![1, 4, 10], ..case.clone() }.expected(1);
    wrong.kv_lens.clone_from(&right.kv_lens);
    assert!(case.compare(&ran, &wrong).is_err());
    // A byte beside.
    let mut ran = ran;
    let unused = ran.v.iter().rposition(|byte| *byte == UNUSED).expect("one");
    ran.v[unused] = 0;
    assert!(case.compare(&ran, &right).is_err());
}

/// Rows of 3 sequences, 2 heads of 5.
fn embedding(rotary: Rotary, head_dim: u32) -> RotaryEmbedding {
    RotaryEmbedding::new(rotary, Shape::cross_attention(3, 2, 5, 1, head_dim))
}

/// The rows, the offsets and the new lengths of an embedding.
fn rows(embedding: &RotaryEmbedding) -> (Vec<f32>, Vec<u32>, Vec<u32>) {
    let RotaryEmbedding { batch, heads, len, head_dim, .. } = *embedding;
    let n = extent(embedding.x, [batch, heads, len, head_dim]);
    let mut random = Random::new(5);
    let x = (0..n).map(|_| random.unit() * 3.0).collect();
    let first = [0, 37, 9];
    // Of counted ones, the last sequence has rows before position 0.
    let ends = if embedding.counted { [5, 42, 3] } else { first };
    let offsets = if embedding.offsets { ends.to_vec() } else { Vec::new() };
    let new_lens = if embedding.new_lens { vec![2, 5, 0] } else { Vec::new() };
    (x, offsets, new_lens)
}

/// That bytes are the embedding of rows; `None` are bytes that were not written.
fn check_embedding(embedding: &RotaryEmbedding, bytes: &[u8]) -> Result<(), String> {
    let RotaryEmbedding { batch, heads, len, head_dim, .. } = *embedding;
    let (x, pos_offsets, new_lens) = rows(embedding);
    let x = rounded(&x, embedding.dtype);
    let (cos, sin) = tables(&embedding.rotary);
    let inputs = RotaryInputs {
        x: &x,
        cos: &cos,
        sin: &sin,
        pos_offsets: &pos_offsets,
        new_lens: &new_lens,
    };
    let want = reference::rotary_embedding(embedding, &inputs);
    let mut written = vec![false; want.len()];
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..len).map(move |i| (b, h, i))))
    {
        let s = embedding.out;
        let at = u64::from(b) * s.batch + u64::from(h) * s.head + u64::from(i) * s.row;
        let at = usize::try_from(at).expect("small");
        written[at..at + head_dim as usize].fill(true);
    }
    for (i, (want, written)) in want.iter().zip(written).enumerate() {
        let Element { value, bound: [relative, least], unused } =
            Element::of(bytes, embedding.out_dtype, i);
        let off = (f64::from(value) - want).abs();
        let right = !unused && off <= relative * want.abs() + least;
        if if written { !right } else { !unused } {
            return Err(format!("out[{i}] is {value}, not {want} ({written})"));
        }
    }
    Ok(())
}

fn embed(on: On<'_>, embedding: &RotaryEmbedding, first: usize) -> Vec<u8> {
    let RotaryEmbedding { batch, heads, len, head_dim, dtype, out_dtype, .. } = *embedding;
    let (x, offsets, new_lens) = rows(embedding);
    let bytes = |dtype: DType| first * bits(dtype) / 8;
    let x = [vec![UNUSED; bytes(dtype)], stored(&x, dtype)].concat();
    let n = extent(embedding.out, [batch, heads, len, head_dim]);
    let out_bytes = n * bits(out_dtype) / 8;
    let (x, out) = (on.buffer(&x), on.buffer(&vec![UNUSED; bytes(out_dtype) + out_bytes]));
    let (cos, sin) = tables(&embedding.rotary);
    let [cos, sin] = [cos, sin].map(|table| on.buffer(bytemuck::cast_slice(&table)));
    let offsets = on.buffer(bytemuck::cast_slice(&offsets));
    let new_lens = on.buffer(bytemuck::cast_slice(&new_lens));
    let at = |dtype: DType| bytes(dtype) as u64;
    let mut tensors = Tensors::default()
        .x(x.slice(at(dtype)..))
        .out(out.slice(at(out_dtype)..))
        .cos(cos.slice(..))
        .sin(sin.slice(..));
    if embedding.offsets {
        tensors = tensors.pos_offsets(offsets.slice(..));
    }
    if embedding.new_lens {
        tensors = tensors.new_lens(new_lens.slice(..));
    }
    let plan = on.attention.plan_rotary(embedding).expect("a plan");
    let dispatch = on.attention.bind(&plan, &tensors).expect("buffers");
    let [got] = on.read_after(|encoder| dispatch.encode(encoder), [&out]);
    got[bytes(out_dtype)..][..out_bytes].to_vec()
}

#[test]
fn rows_are_turned_by_their_positions() {
    for (i, rotary) in rotaries(40).into_iter().flatten().enumerate() {
        for (j, dtype) in ROWS.into_iter().enumerate() {
            let plain = embedding(rotary, 40).dtype(dtype).out_dtype(ROWS[(i + j) % 3]);
            let apart = Strides { batch: 1000, head: 44, row: 92 };
            for (first, embedding) in [
                (0, plain),
                (0, plain.with_offsets()),
                (3, plain.with_offsets().x_strides(Strides::bshd(2, 5, 40))),
                (1, plain.out_strides(apart)),
                (0, plain.counted()),
                (2, plain.counted_by_new_lens()),
            ] {
                for on in devices() {
                    let got = embed(on, &embedding, first);
                    let right = check_embedding(&embedding, &got);
                    assert_eq!(right, Ok(()), "{embedding:?}");
                }
            }
        }
    }
}

#[test]
fn rows_of_odd_widths_are_turned() {
    for pairs in [RotaryPairs::HalfSplit, RotaryPairs::Interleaved] {
        for dtype in ROWS {
            // Past the tables, too.
            let few = Rotary::new(pairs, 6, 38);
            let embedding = embedding(few, 7).dtype(dtype).with_offsets();
            for on in devices() {
                assert_eq!(check_embedding(&embedding, &embed(on, &embedding, 1)), Ok(()));
            }
        }
    }
}

#[test]
fn the_comparison_sees_wrong_angles() {
    let half = embedding(rotary(RotaryPairs::HalfSplit, 32), 40).with_offsets();
    let got = embed(devices()[0], &half, 0);
    assert_eq!(check_embedding(&half, &got), Ok(()));
    let other = embedding(rotary(RotaryPairs::Interleaved, 32), 40).with_offsets();
    assert!(check_embedding(&other, &got).is_err());
    let other = embedding(rotary(RotaryPairs::HalfSplit, 32), 40);
    assert!(check_embedding(&other, &got).is_err());
}

#[test]
fn host_memory_on_a_device_and_without() {
    let [gpu, cpu] = [runner(DeviceClass::Software), &Runner::cpu()];
    for (i, kv_dtype) in CACHES.into_iter().enumerate() {
        let plain = append(3, 13, 32, 64).dtype(ROWS[i % 3]).kv_dtype(kv_dtype);
        let plain = plain.with_rotary(rotary(RotaryPairs::HalfSplit, 24));
        for append in [plain, plain.with_pages(Pages::new(9, 5)), plain.with_new_lens()] {
            let mut case = Case::new(append, &[0, 4, 10]);
            if append.new_lens {
                case.new_lens = vec![3, 0, 2];
            }
            let mut random = Random::new(8);
            let [k, v] =
                case.cache_lens().map(|n| (0..n).map(|_| random.unit()).collect::<Vec<f32>>());
            let want = case.expected(1);
            let [a, b] = [gpu, cpu]
                .map(|runner| runner.append(&append, &case.inputs(&k, &v)).expect("all fits"));
            for got in [&a, &b] {
                assert_eq!(got.kv_lens, want.kv_lens, "{append:?}");
            }
            for (got, other, old, want) in [(&a.k, &b.k, &k, &want.k), (&a.v, &b.v, &v, &want.v)] {
                assert_eq!([got.len(), other.len()], [old.len(); 2]);
                for (i, old) in old.iter().enumerate() {
                    // Old numbers of magnitudes below 1, new ones below 5: half a scale, of a block of Q4 the largest.
                    let (want, most) =
                        if want[i].is_nan() { (f64::from(*old), 1.0) } else { (want[i], 5.0) };
                    let unit = match kv_dtype {
                        DType::F32 => 1e-6,
                        DType::F16 => 1e-3,
                        DType::BF16 => 4e-3,
                        DType::Q8 => 0.502 / 127.0,
                        _ => 2.0 * 0.503 / 15.0,
                    };
                    for got in [got[i], other[i]] {
                        let off = (f64::from(got) - want).abs();
                        assert!(off <= unit * most, "{got} at {i} is not {want}: {append:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_in_host_memory_are_turned() {
    for pairs in [RotaryPairs::HalfSplit, RotaryPairs::Interleaved] {
        for (dtype, offsets) in [(DType::F32, true), (DType::F16, true), (DType::BF16, false)] {
            let plain = embedding(rotary(pairs, 24), 40).dtype(dtype);
            let embedding = if offsets { plain.with_offsets() } else { plain };
            let (x, pos_offsets, new_lens) = rows(&embedding);
            let (cos, sin) = tables(&embedding.rotary);
            let inputs = RotaryInputs {
                x: &x,
                cos: &cos,
                sin: &sin,
                pos_offsets: &pos_offsets,
                new_lens: &new_lens,
            };
            for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
                let got = runner.rotary_embedding(&embedding, &inputs).expect("within the tables");
                assert_eq!(check_embedding(&embedding, &stored(&got, dtype)), Ok(()));
            }
        }
    }
}

/// Of one sequence and head: keys and values up to the last, as the definition has them.
struct Cached {
    k: Vec<f32>,
    v: Vec<f32>,
}

#[test]
fn append_and_attend_in_one_pass_are_attention_over_what_was_appended() {
    const TOKENS: usize = 4;
    let shape = Shape::cross_attention(3, 4, 1, 13, 32).with_kv_heads(2);
    let plain = Problem::new(shape).layout(Layout::Bshd).with_lengths(false, true);
    let turn = rotary(RotaryPairs::HalfSplit, 24);
    let [on, _] = devices();
    for (problem, bound) in [
        (plain.clone(), 1e-5),
        (plain.clone().with_pages(Pages::new(9, 5)), 1e-5),
        (plain.clone().kv_dtype(DType::F16), 5e-3),
        (plain.with_pages(Pages::new(15, 3)).kv_dtype(DType::Q8), 5e-2),
    ] {
        let append = Append::to_cache_of(&problem).with_rotary(turn);
        let embedding = RotaryEmbedding::new(turn, shape).with_offsets();
        let mut random = Random::new(9);
        let mut data = |n: usize| (0..n).map(|_| random.unit() * 2.0).collect::<Vec<f32>>();
        let (q, k_new, v_new) = (data(TOKENS * 384), data(TOKENS * 192), data(TOKENS * 192));
        let (cos, sin) = tables(&turn);
        // Sequences are empty, and have some rows of 0.
        let begin = [0_u32, 3, 8];
        let pages = problem.pages.map_or(0, |pages| pages.pages);
        let table = Random::new(4).permutation(pages.max(1));

        let buffer = |data: &[f32]| on.buffer(bytemuck::cast_slice(data));
        let words = |data: &[u32]| on.buffer(bytemuck::cast_slice(data));
        let [q_all, k_all, v_all, cos_all, sin_all] =
            [&q, &k_new, &v_new, &cos, &sin].map(|data| buffer(data));
        let (lens, status, table) = (words(&begin), words(&[0; 3]), words(&table));
        let positions = problem.pages.map_or(3 * 13, |pages| pages.pages * pages.page_len);
        let cache = vec![0; positions as usize * 64 * bits(problem.kv_dtype) / 8];
        let (k, v) = (on.buffer(&cache), on.buffer(&cache));
        let (turned, out) = (buffer(&[0.0; 384]), buffer(&[0.0; 384]));
        let turning = on.attention.plan_rotary(&embedding).expect("a plan");
        let appending = on.attention.plan_append(&append).expect("a plan");
        let attending = on.attention.plan(&problem).expect("a plan");
        let record = |encoder: &mut wgpu::CommandEncoder| {
            for token in 0..TOKENS as u64 {
                let of = |width: u64| token * width * 4..(token + 1) * width * 4;
                let queries = Tensors::default()
                    .x(q_all.slice(of(384)))
                    .out(turned.slice(..))
                    .pos_offsets(lens.slice(..))
                    .cos(cos_all.slice(..))
                    .sin(sin_all.slice(..));
                let mut cached =
                    Tensors::default().k(k.slice(..)).v(v.slice(..)).kv_lens(lens.slice(..));
                if pages > 0 {
                    cached = cached.block_table(table.slice(..));
                }
                let rows = (cached.clone().k_new(k_all.slice(of(192))))
                    .v_new(v_all.slice(of(192)))
                    .append_status(status.slice(..))
                    .cos(cos_all.slice(..))
                    .sin(sin_all.slice(..));
                let all = cached.q(turned.slice(..)).out(out.slice(..));
                for (plan, tensors) in [(&turning, queries), (&appending, rows), (&attending, all)]
                {
                    on.attention.bind(plan, &tensors).expect("buffers").encode(encoder);
                }
            }
        };
        let [got, got_lens] = on.read_after(record, [&out, &lens]);
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&got);
        assert_eq!(bytemuck::pod_collect_to_vec::<_, u32>(&got_lens), [4, 7, 12]);

        // The last token's queries over all rows.
        for ((b, begin), head) in (0..).zip(begin).flat_map(|b| (0..4).map(move |head| (b, head))) {
            let turned = |row: &[f32], token: usize| {
                let pos = u64::from(begin) + token as u64;
                let row = reference::rotated(&turn, &cos, &sin, pos, row);
                #[allow(clippy::cast_possible_truncation, reason = "an input in f32")]
                row.into_iter().map(|x| x as f32).collect::<Vec<f32>>()
            };
            let zeros = vec![0.0; begin as usize * 32];
            let mut all = Cached { k: zeros.clone(), v: zeros };
            for token in 0..TOKENS {
                let at = (token * 3 + b) * 64 + head / 2 * 32;
                all.k.extend(turned(&k_new[at..at + 32], token));
                all.v.extend(&v_new[at..at + 32]);
            }
            // Of queries, heads are apart: one row of each.
            let at = ((TOKENS - 1) * 3 + b) * 128 + head * 32;
            let q = turned(&q[at..at + 32], TOKENS - 1);
            let one = Shape::cross_attention(1, 1, 1, begin + 4, 32);
            let inputs = Inputs::new(&q, &all.k, &all.v);
            let want = reference::row(&Problem::new(one), &inputs, (0, 0, 0)).out;
            let at = (b * 4 + head) * 32;
            for (got, want) in got[at..at + 32].iter().zip(want) {
                let off = (f64::from(*got) - want).abs();
                assert!(off <= bound, "{got} is not {want}: {problem:?}");
            }
        }
    }
}

#[test]
fn lengths_that_are_known_are_checked_before_anything_is_written() {
    let few = Rotary::new(RotaryPairs::HalfSplit, 32, 8);
    let plain = append(3, 13, 32, 32);
    let lens = plain.with_new_lens();
    let full = |index, kv_len, new_len| Error::CacheFull { index, kv_len, new_len, capacity: 13 };
    let wrong = |tensor: &'static str, required, actual| Error::Length {
        tensor: tensor.into(),
        required,
        actual,
    };
    for (append, kv_lens, new_lens, error) in [
        (plain, vec![10, 11, 12], None, full(1, 11, 3)),
        (plain, vec![10, 0, u32::MAX], None, full(2, u32::MAX, 3)),
        (lens, vec![13, 12, 0], Some(vec![0, 2, 0]), full(1, 12, 2)),
        (
            lens,
            vec![0, 0, 0],
            Some(vec![3, 4, 3]),
            Error::LengthTooLarge { tensor: "new_lens", index: 1, found: 4, max: 3 },
        ),
        (plain, vec![0, 0], None, wrong("kv_lens", 3, 2)),
        (lens, vec![0, 0, 0], None, wrong("new_lens", 3, 0)),
        (lens, vec![0, 0, 0], Some(vec![1]), wrong("new_lens", 3, 1)),
        (
            plain.with_rotary(few),
            vec![0, 5, 6],
            None,
            Error::PastTables { index: 2, pos: 8, positions: 8 },
        ),
    ] {
        let got = append.check_lens(&kv_lens, new_lens.as_deref());
        assert_eq!(got, Err(error.clone()), "{kv_lens:?}");
        let case = Case {
            kv_lens,
            new_lens: new_lens.unwrap_or_default(),
            ..Case::new(append, &[0, 0, 0])
        };
        let [k, v] = case.cache_lens().map(|n| vec![0.0; n]);
        for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
            assert_eq!(runner.append(&append, &case.inputs(&k, &v)), Err(error.clone()));
        }
    }
    assert_eq!(plain.check_lens(&[10, 0, 3], None), Ok(()));
    assert_eq!(lens.check_lens(&[13, 0, 3], Some(&[0, 3, 1])), Ok(()));
}

#[test]
fn host_tensors_are_checked() {
    let paged = append(3, 13, 32, 32).with_pages(Pages::new(9, 5));
    let turned = paged.with_rotary(rotary(RotaryPairs::HalfSplit, 32));
    let case = Case::new(turned, &[0, 4, 10]);
    let [k, v] = case.cache_lens().map(|n| vec![0.0; n]);
    let inputs = case.inputs(&k, &v);
    let mut table = case.block_table.clone();
    table[8] = 9;
    let short = |tensor: &'static str, required: usize, actual: usize| Error::Length {
        tensor: tensor.into(),
        required: required as u64,
        actual: actual as u64,
    };
    let unused = |tensor: &'static str| Error::Bind(BindError::Unused { tensor: tensor.into() });
    let (n, r) = (k.len(), case.k_new.len());
    for (append, inputs, error) in [
        (
            turned,
            AppendInputs { block_table: &table, ..inputs },
            Error::NoSuchPage { index: 8, found: 9, pages: 9 },
        ),
        (turned, AppendInputs { k: &k[1..], ..inputs }, short("k", n, n - 1)),
        (turned, AppendInputs { k_new: &case.k_new[1..], ..inputs }, short("k_new", r, r - 1)),
        (turned, AppendInputs { cos: &[], ..inputs }, short("cos", 64 * 16, 0)),
        (paged, inputs, unused("cos")),
        (turned, AppendInputs { block_table: &table[1..], ..inputs }, short("block_table", 9, 8)),
        (append(3, 13, 32, 32), AppendInputs { cos: &[], sin: &[], ..inputs }, {
            // The cache of 3 x 13 positions is no longer than that of 9 x 5.
            unused("block_table")
        }),
    ] {
        for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
            assert_eq!(runner.append(&append, &inputs), Err(error.clone()));
        }
    }
    let embedding = embedding(rotary(RotaryPairs::HalfSplit, 32), 32).with_offsets();
    let (x, ..) = rows(&embedding);
    let (cos, sin) = tables(&embedding.rotary);
    let inputs =
        RotaryInputs { x: &x, cos: &cos, sin: &sin, pos_offsets: &[0, 59, 60], new_lens: &[] };
    for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
        let got = runner.rotary_embedding(&embedding, &inputs);
        assert_eq!(got, Err(Error::PastTables { index: 2, pos: 64, positions: 64 }));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    use ProblemError as E;
    let plain = append(3, 13, 32, 32);
    let half = |dim| rotary(RotaryPairs::HalfSplit, dim);
    let turned = |dim| plain.with_rotary(half(dim));
    let overlapping = Strides { batch: 13 * 64, head: 16, row: 64 };
    let odd = Strides { batch: 13 * 64, head: 32, row: 66 };
    let no_positions = Rotary::new(RotaryPairs::HalfSplit, 32, 0);
    let far = Strides { batch: u64::MAX, head: 1, row: 1 };
    for (append, error) in [
        (turned(0), E::RotaryDim { dim: 0, head_dim: 32 }),
        (turned(7), E::RotaryDim { dim: 7, head_dim: 32 }),
        (turned(34), E::RotaryDim { dim: 34, head_dim: 32 }),
        (plain.with_rotary(no_positions), E::EmptyAxis { axis: "positions" }),
        (append(14, 13, 32, 32), E::TooLong { axis: "new_len", len: 14, max: 13 }),
        (plain.with_pages(Pages::new(0, 3)), E::EmptyAxis { axis: "pages" }),
        (plain.with_pages(Pages::new(3, 0)), E::EmptyAxis { axis: "page_len" }),
        (append(3, 13, 0, 32), E::EmptyAxis { axis: "head_dim" }),
        (plain.dtype(DType::Q8), E::Quantised { tensor: "k_new", dtype: DType::Q8 }),
        (
            append(3, 13, 32, 40).kv_dtype(DType::Q4),
            E::PartOfBlock { what: "v_head_dim", dtype: DType::Q4, found: 40 },
        ),
        (
            plain.kv_dtype(DType::Q8).cache_strides(plain.k, odd),
            E::PartOfBlock { what: "the row stride of v", dtype: DType::Q8, found: 66 },
        ),
        (
            plain.cache_strides(overlapping, plain.v),
            E::OverlappingRows { tensor: "k", strides: overlapping },
        ),
        (plain.new_strides(plain.k_new, far), E::Unaddressable { tensor: "v_new" }),
    ] {
        let refused = devices()[0].attention.plan_append(&append);
        assert_eq!(refused.err(), Some(PlanError::Problem(error)), "{append:?}");
    }
    for (embedding, error) in [
        (embedding(half(33), 40), E::RotaryDim { dim: 33, head_dim: 40 }),
        (embedding(half(32), 40).dtype(DType::Q8), E::Quantised { tensor: "x", dtype: DType::Q8 }),
        (
            embedding(half(32), 40).out_strides(overlapping),
            E::OverlappingRows { tensor: "out", strides: overlapping },
        ),
    ] {
        let refused = devices()[0].attention.plan_rotary(&embedding);
        assert_eq!(refused.err(), Some(PlanError::Problem(error)), "{embedding:?}");
    }
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let [on, _] = devices();
    let append = append(1, 4, 32, 32);
    let plan = on.attention.plan_append(&append).expect("a plan");
    let buffer = |words: usize| on.buffer(&vec![0; words * 4]);
    let (k_new, v_new, k, v) = (buffer(192), buffer(192), buffer(768), buffer(768));
    let (kv_lens, status) = (buffer(3), buffer(3));
    let all = Tensors::default()
        .k_new(k_new.slice(..))
        .v_new(v_new.slice(..))
        .k(k.slice(..))
        .v(v.slice(..))
        .kv_lens(kv_lens.slice(..));
    let bind = |tensors: &Tensors<'_>| on.attention.bind(&plan, tensors).err();
    let missing = BindError::Missing { tensor: "append_status".into() };
    assert_eq!(bind(&all), Some(missing));
    let complete = all.clone().append_status(status.slice(..));
    assert_eq!(bind(&complete), None);
    let overlap = bind(&complete.clone().k_new(k.slice(..)));
    assert!(matches!(overlap, Some(BindError::Overlap { .. })), "{overlap:?}");
    let overlap = bind(&complete.clone().append_status(kv_lens.slice(..)));
    assert!(matches!(overlap, Some(BindError::Overlap { .. })), "{overlap:?}");
    let unused = bind(&complete.clone().cos(k_new.slice(..)));
    assert_eq!(unused, Some(BindError::Unused { tensor: "cos".into() }));
    let small = bind(&complete.v(k.slice(4..)));
    assert!(matches!(small, Some(BindError::TooSmall { .. })), "{small:?}");
}
