//! Layers that share their lengths: the first append advances them, the others find their new rows counted already.

#![cfg(feature = "cpu")]

use crate::support;
use crate::support::append::{Case, On, rounded, stored, tables};
use crate::support::random::Random;
use crate::support::target::runner;
use wgpu_attention::reference::{self, Appended};
use wgpu_attention::{
    Append, AppendInputs, BindError, DType, DeviceClass, Error, Pages, Rotary, RotaryEmbedding,
    RotaryInputs, RotaryPairs, Runner, Shape, Strides, Tensors, wgpu,
};

fn device() -> On<'static> {
    let (device, queue, attention) = runner(DeviceClass::Software).device().expect("a GPU");
    On { device, queue, attention }
}

/// New rows of 3 sequences, 2 heads.
fn append(new_len: u32, capacity: u32) -> Append {
    let shape = Shape::cross_attention(3, 2, new_len, capacity, 32);
    Append::new(shape).with_rotary(Rotary::new(RotaryPairs::HalfSplit, 24, 64))
}

#[test]
fn counted_rows_go_before_the_end_of_lengths() {
    for kv_dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4] {
        for append in [append(4, 13), append(4, 13).with_pages(Pages::new(12, 3))] {
            let append = append.kv_dtype(kv_dtype).counted();
            let case = Case::new(append, &[4, 13, 9]);
            let all = case.expected(1);
            assert_eq!((&all.kv_lens, &all.status), (&vec![4, 13, 9], &vec![0; 3]));
            case.is_right(device());
            // Again, to the same places.
            case.is_right_after(device(), 3);
        }
    }
}

#[test]
fn sequences_that_another_append_refused_are_left() {
    for append in [append(4, 13), append(4, 13).with_pages(Pages::new(12, 3))] {
        for (earlier, status) in [([0, 2, 0], [0, 2, 0]), ([1, 0, u32::MAX], [1, 0, u32::MAX])] {
            let case =
                Case { earlier: earlier.to_vec(), ..Case::new(append.counted(), &[4, 13, 9]) };
            assert_eq!(case.expected(1).status, status);
            case.is_right(device());
        }
    }
}

#[test]
fn lengths_that_cannot_count_the_rows_take_none() {
    for append in [append(4, 13), append(4, 13).with_pages(Pages::new(15, 3))] {
        for (kv_lens, status) in [
            ([3, 14, 4], [1, 1, 0]),
            ([0, 17, 13], [4, 4, 0]),
            ([u32::MAX, 5, u32::MAX - 1], [4, 0, 4]),
        ] {
            let mut case = Case::new(append.counted(), &[4, 13, 9]);
            if append.pages.is_some() {
                case.block_table = Random::new(2).permutation(15);
            }
            case.kv_lens = kv_lens.to_vec();
            assert_eq!(case.expected(1).status, status, "{kv_lens:?}");
            case.is_right(device());
        }
    }
    let mut case = Case::new(append(4, 13).with_pages(Pages::new(12, 3)).counted(), &[4, 13, 9]);
    case.block_table[1] = u32::MAX;
    assert_eq!(case.expected(1).status, [1, 0, 0]);
    case.is_right(device());
}

#[test]
fn every_sequence_counts_a_number_of_new_rows() {
    for append in [append(4, 13), append(4, 13).with_pages(Pages::new(15, 3))] {
        let mut case = Case::new(append.with_new_lens().counted(), &[4, 13, 9]);
        if append.pages.is_some() {
            case.block_table = Random::new(2).permutation(15);
        }
        (case.kv_lens, case.new_lens) = (vec![1, 13, 0], vec![1, 9, 0]);
        assert_eq!(case.expected(1).status, [0; 3]);
        case.is_right(device());
    }
}

/// Rows of one layer, and what its cache is to hold.
struct Layer {
    case: Case,
    expected: Appended,
}

#[test]
fn layers_in_one_encoder_share_their_lengths() {
    const TOKENS: usize = 6;
    let on = device();
    for append in [append(2, 13), append(2, 13).with_pages(Pages::new(15, 3)).kv_dtype(DType::F16)]
    {
        // The second sequence never has room for both rows, the third is full after five tokens.
        let begin = [0, 12, 3];
        let mut layers: Vec<Layer> = (0..3u64)
            .map(|layer| {
                let mut case = Case::new(append, &begin);
                if append.pages.is_some() {
                    case.block_table = Random::new(2).permutation(15);
                }
                let mut random = Random::new(50 + layer);
                case.k_new.iter_mut().chain(&mut case.v_new).for_each(|x| *x = random.unit());
                // As if each layer had lengths of its own.
                let expected = case.expected(TOKENS);
                Layer { case, expected }
            })
            .collect();
        assert_eq!(layers[0].expected.kv_lens, [12, 12, 13]);
        assert_eq!(layers[0].expected.status, [0, 1, 2]);
        let words = |data: &[u32]| on.buffer(bytemuck::cast_slice(data));
        let (kv_lens, status) = (words(&begin), words(&[7; 3]));
        let table = words(if append.pages.is_some() { &layers[0].case.block_table } else { &[0] });
        let [cos, sin] = [&layers[0].case.cos, &layers[0].case.sin]
            .map(|data| on.buffer(bytemuck::cast_slice(data)));
        // What unused bytes of a cache hold is checked by `compare`.
        let buffers: Vec<[wgpu::Buffer; 4]> = (layers.iter())
            .map(|Layer { case, .. }| {
                let [k, v] = case.cache_lens().map(|n| {
                    let bytes = n * usize::try_from(append.kv_dtype.bits()).expect("small") / 8;
                    on.buffer(&vec![support::append::UNUSED; bytes + 20])
                });
                let [k_new, v_new] =
                    [&case.k_new, &case.v_new].map(|rows| on.buffer(&stored(rows, append.dtype)));
                [k, v, k_new, v_new]
            })
            .collect();
        let dispatches: Vec<_> = (buffers.iter().enumerate())
            .map(|(layer, [k, v, k_new, v_new])| {
                let append = if layer == 0 { append } else { append.counted() };
                let plan = on.attention.plan_append(&append).expect("a plan");
                let mut tensors = Tensors::default()
                    .k(k.slice(..))
                    .v(v.slice(..))
                    .k_new(k_new.slice(..))
                    .v_new(v_new.slice(..))
                    .kv_lens(kv_lens.slice(..))
                    .append_status(status.slice(..))
                    .cos(cos.slice(..))
                    .sin(sin.slice(..));
                if append.pages.is_some() {
                    tensors = tensors.block_table(table.slice(..));
                }
                on.attention.bind(&plan, &tensors).expect("buffers")
            })
            .collect();
        let record = |encoder: &mut wgpu::CommandEncoder| {
            for _ in 0..TOKENS {
                dispatches.iter().for_each(|dispatch| dispatch.encode(encoder));
            }
        };
        let [[k0, v0, ..], [k1, v1, ..], [k2, v2, ..]] = &buffers[..] else { unreachable!() };
        let read = on.read_after(record, [k0, v0, k1, v1, k2, v2, &kv_lens, &status]);
        let numbers = |i: usize| bytemuck::pod_collect_to_vec::<_, u32>(&read[i]);
        for (i, Layer { case, expected }) in layers.iter().enumerate() {
            let (k, v) = (read[2 * i].clone(), read[2 * i + 1].clone());
            let ran = support::append::Ran { k, v, kv_lens: numbers(6), status: numbers(7) };
            assert_eq!(case.compare(&ran, expected), Ok(()), "layer {i}: {append:?}");
        }
        // Were the second layer not counted, its rows would lie elsewhere: the comparison sees that.
        layers[1].case.kv_lens[0] += 2;
        let wrong = layers[1].case.expected(TOKENS);
        let (k, v) = (read[2].clone(), read[3].clone());
        let ran = support::append::Ran { k, v, kv_lens: wrong.kv_lens.clone(), status: numbers(7) };
        assert!(layers[1].case.compare(&ran, &wrong).is_err());
    }
}

#[test]
fn counted_rows_in_host_memory() {
    let [gpu, cpu] = [runner(DeviceClass::Software), &Runner::cpu()];
    for append in [append(4, 13), append(4, 13).with_pages(Pages::new(15, 3))] {
        let mut case = Case::new(append, &[0, 9, 5]);
        if append.pages.is_some() {
            case.block_table = Random::new(2).permutation(15);
        }
        let mut random = Random::new(8);
        let [k, v] = case.cache_lens().map(|n| (0..n).map(|_| random.unit()).collect::<Vec<_>>());
        let plain = case.inputs(&k, &v);
        let counted = AppendInputs { kv_lens: &[4, 13, 9], ..plain };
        for runner in [gpu, cpu] {
            let want = runner.append(&append, &plain).expect("all fits");
            let got = runner.append(&append.counted(), &counted).expect("all is counted");
            assert_eq!(got, want);
            // What was refused is left, whatever its length.
            let refused = AppendInputs { kv_lens: &[4, 99, 9], append_status: &[0, 1, 0], ..plain };
            let got = runner.append(&append.counted(), &refused).expect("the others are counted");
            let one = AppendInputs { new_lens: &[4, 0, 4], ..plain };
            let want = runner.append(&append.with_new_lens(), &one).expect("all fits");
            assert_eq!((got.k, got.v, got.kv_lens), (want.k, want.v, vec![4, 99, 9]));

            for (append, inputs, error) in [
                (
                    append.counted(),
                    AppendInputs { kv_lens: &[4, 3, 9], ..plain },
                    Error::NotCounted { index: 1, kv_len: 3, new_len: 4 },
                ),
                (
                    append.counted(),
                    AppendInputs { kv_lens: &[4, 13, 14], ..plain },
                    Error::CacheFull { index: 2, kv_len: 10, new_len: 4, capacity: 13 },
                ),
                (
                    append.counted(),
                    AppendInputs { append_status: &[0], ..counted },
                    Error::Length { tensor: "append_status".into(), required: 3, actual: 1 },
                ),
                (
                    append,
                    AppendInputs { append_status: &[0; 3], ..plain },
                    Error::Bind(BindError::Unused { tensor: "append_status".into() }),
                ),
            ] {
                assert_eq!(runner.append(&append, &inputs), Err(error));
            }
        }
    }
}

#[test]
fn counted_queries_in_host_memory_are_turned_from_their_end() {
    let rotary = Rotary::new(RotaryPairs::Interleaved, 24, 16);
    let (cos, sin) = tables(&rotary);
    let plain = RotaryEmbedding::new(rotary, Shape::cross_attention(3, 2, 5, 1, 32));
    let mut random = Random::new(4);
    let x: Vec<f32> = (0..3 * 2 * 5 * 32).map(|_| random.unit()).collect();
    let first =
        RotaryInputs { x: &x, cos: &cos, sin: &sin, pos_offsets: &[0, 11, 3], new_lens: &[] };
    let ends = RotaryInputs { pos_offsets: &[5, 16, 8], ..first };
    // 2, 5 and no rows: the others of a sequence are anything.
    let some = RotaryInputs { pos_offsets: &[2, 16, 0], new_lens: &[2, 5, 0], ..first };
    for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
        for dtype in [DType::F32, DType::BF16] {
            let plain = plain.dtype(dtype);
            let want = runner.rotary_embedding(&plain.with_offsets(), &first).expect("positions");
            let got = runner.rotary_embedding(&plain.counted(), &ends).expect("positions");
            assert_eq!(got, want);
            let got = runner.rotary_embedding(&plain.counted_by_new_lens(), &some);
            let got = got.expect("positions");
            for (b, h, i) in [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 4)] {
                let at = ((b * 2 + h) * 5 + i) * 32;
                let row = rounded(&x[at..at + 32], dtype);
                let pos = [0, 11][b] + i as u64;
                let want = reference::rotated(&rotary, &cos, &sin, pos, &row);
                for (got, want) in got[at..at + 32].iter().zip(want) {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off < if dtype == DType::F32 { 1e-6 } else { 0.01 }, "{got} {want}");
                }
            }
        }
        for (embedding, inputs, error) in [
            (
                plain.counted(),
                RotaryInputs { pos_offsets: &[5, 4, 8], ..first },
                Error::NotCounted { index: 1, kv_len: 4, new_len: 5 },
            ),
            (
                plain.counted(),
                RotaryInputs { pos_offsets: &[5, 17, 8], ..first },
                Error::PastTables { index: 1, pos: 16, positions: 16 },
            ),
            (
                plain.counted_by_new_lens(),
                RotaryInputs { new_lens: &[2, 6, 0], ..some },
                Error::LengthTooLarge { tensor: "new_lens", index: 1, found: 6, max: 5 },
            ),
            (
                plain.counted_by_new_lens(),
                RotaryInputs { new_lens: &[3, 5, 0], ..some },
                Error::NotCounted { index: 0, kv_len: 2, new_len: 3 },
            ),
            (
                plain.counted(),
                RotaryInputs { new_lens: &[2, 5, 0], ..ends },
                Error::Bind(BindError::Unused { tensor: "new_lens".into() }),
            ),
        ] {
            assert_eq!(runner.rotary_embedding(&embedding, &inputs), Err(error));
        }
    }
}

#[test]
fn counted_strided_rows() {
    // k and v side by side in a row of a projection.
    let side_by_side = Strides { batch: 4 * 140, head: 32, row: 140 };
    let append = append(4, 13).new_strides(side_by_side, side_by_side).counted();
    for first in [0, 3] {
        Case { first, ..Case::new(append, &[4, 12, 9]) }.is_right(device());
    }
}
