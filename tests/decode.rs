//! Few queries over many keys: split keys, shared loads, lengths that grow, and results that no batch changes.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, classes};
use crate::support;
use crate::support::case::{Case, Tensors, start};
use crate::support::judge::Answer;
use crate::support::random::Random;
use crate::support::target::{Target, runner};
use wgpu_attention::{
    Algorithm, Capabilities, DType, DeviceClass, Download, Error, Mask, MaskFormat, Pages, Pairs,
    Plan, Problem, Shape, Strides, wgpu,
};

fn kernels(
    problem: &Problem,
    capabilities: &Capabilities,
    algorithm: Algorithm,
) -> Vec<&'static str> {
    Plan::new(problem, capabilities, algorithm).expect("a plan").kernels().collect()
}

/// Workgroups of the first kernel of this name.
fn workgroups(plan: &Plan, kernel: &str) -> u32 {
    let text = plan.to_string();
    let line = text.lines().find(|line| line.trim_start().starts_with(kernel)).expect("a step");
    let mut numbers = line.split(' ').filter_map(|word| word.parse::<u32>().ok());
    numbers.next().expect("workgroups") * numbers.next().expect("workgroups")
}

#[test]
fn few_rows_share_the_loads_of_their_keys() {
    for (class, name) in
        [(DeviceClass::Hardware, "decode_team"), (DeviceClass::Software, "decode_lane")]
    {
        let device = Capabilities::portable().with_class(class).with_cores(2);
        for (q_len, group, few) in
            [(1, 1, true), (1, 4, true), (4, 4, true), (16, 1, true), (64, 4, false)]
        {
            let shape = Shape::cross_attention(8, 4 * group, q_len, 4096, 128).with_kv_heads(4);
            let kernels = kernels(&Problem::new(shape), &device, Algorithm::Auto);
            assert_eq!(kernels[0] == name, few, "{class:?}: {q_len} x {group}: {kernels:?}");
        }
        // One workgroup walks the keys of each of 8 x 4 key/value heads.
        let shape = Shape::cross_attention(8, 16, 1, 4096, 128).with_kv_heads(4);
        let plan = Plan::new(&Problem::new(shape), &device, Algorithm::Auto).expect("a plan");
        assert_eq!(workgroups(&plan, name), 32, "{plan}");
    }
}

#[test]
fn keys_are_split_where_cores_would_be_idle() {
    let shape = Shape::cross_attention(1, 32, 1, 16_384, 128).with_kv_heads(8);
    let of = |cores, problem: &Problem| {
        let device = Capabilities::portable().with_cores(cores);
        let plan = Plan::new(problem, &device, Algorithm::Auto).expect("a plan");
        workgroups(&plan, "decode_team") / 8
    };
    let problem = Problem::new(shape);
    let [few, many] = [2, 64].map(|cores| of(cores, &problem));
    assert_eq!(few, 1);
    assert!((24..=64).contains(&many), "{many} ranges");
    assert_eq!(of(64, &problem.clone().with_splits(5)), 5);
    assert_eq!(of(64, &problem.clone().with_splits(1)), 1);
    // Many rows of one head, too.
    let shape = Shape::cross_attention(1, 1, 64, 65_536, 128);
    let kernels = kernels(&Problem::new(shape), &Capabilities::portable(), Algorithm::Auto);
    assert_eq!(kernels, ["flash_tile", "merge"]);
}

fn judged(case: &Case, targets: &[Target]) {
    let (answer, tensors) = (Answer::of(case), case.tensors(0));
    for target in targets {
        let got = target.run(&case.to_string(), &case.problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

fn fused() -> Vec<Target> {
    let [hardware, software] = CLASSES;
    let few = [Target::Auto(hardware), Target::Split(software)];
    let more = [Target::Auto(software), Target::Split(hardware)];
    // Each once where drivers are slow.
    few.into_iter().chain(more.into_iter().filter(|_| !support::small())).collect()
}

#[test]
fn every_number_of_rows_and_keys_agrees_with_the_definition() {
    let mut random = Random::new(3);
    let mut case = |q_len: u32, group: u32, kv_len: u32, (dim, v_dim): (u32, u32)| {
        let shape = Shape::cross_attention(2, 2 * group, q_len, kv_len, dim)
            .with_kv_heads(2)
            .with_v_head_dim(v_dim);
        let masks = [Mask::CAUSAL, Mask::FULL, Mask::window(70)];
        // Each number of rows and each mask compile kernels of their own.
        let mask = if support::small() { q_len } else { random.below(3) };
        let mask = masks[mask as usize % 3];
        let problem = Problem::new(shape).mask(mask).with_lse();
        Case::new("few rows", problem).sharp([1.0, 8.0, 20.0][random.below(3) as usize])
    };
    for (n, q_len) in (0..).zip([1, 2, 3, 5, 8, 11, 16]) {
        let group = [1, 4, 7, 3, 2, 1, 1][n];
        if support::small() && !matches!(q_len, 1 | 8) {
            continue;
        }
        let dims = [(64, 64), (32, 32)][n % 2];
        let dims = if support::small() { (16, 16) } else { dims };
        for kv_len in [1, 63, 65, 300, 1111] {
            judged(&case(q_len, group, kv_len, dims), &fused());
        }
    }
    let dims = [(40, 72), (7, 3), (128, 128), (256, 96), (512, 512), (1000, 4)];
    for dims in dims.into_iter().take(if support::small() { 1 } else { 6 }) {
        judged(&case(2, 3, 500, dims), &fused());
    }
}

/// New tokens of a tree: each sees the cache and its ancestors.
#[test]
fn a_tree_of_drafted_tokens_sees_its_branches() {
    let parents = [0, 0, 0, 1, 1, 2, 4];
    let (cached, drafted) = (150, parents.len());
    let shape = Shape::cross_attention(1, 4, 7, 157, 16).with_kv_heads(2);
    let problem = Problem::new(shape)
        .with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 1, 7, 157]))
        .with_lse();
    let case = Case::new("tree", problem).sharp(8.0);
    let mut tensors = case.tensors(0);
    let mut mask = vec![false; drafted * (cached + drafted)];
    for (i, row) in mask.chunks_mut(cached + drafted).enumerate() {
        row[..cached].fill(true);
        let mut at = i;
        row[cached + at] = true;
        while at > 0 {
            at = parents[at];
            row[cached + at] = true;
        }
    }
    // What was NaN because no row saw it, some row may see now.
    tensors.extra.mask = mask;
    for data in [&mut tensors.k, &mut tensors.v] {
        data.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.25);
    }
    let rows: Vec<_> = support::case::rows(&shape).collect();
    let answer = Answer::for_rows(case.to_string(), &case.problem, &tensors, &rows);
    for target in fused() {
        let got = target.run(&case.to_string(), &case.problem, &tensors);
        answer.check(&got).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
}

/// What is bound once is encoded for every length: in pages or not, each sequence at its own.
#[test]
fn lengths_grow_under_one_dispatch() {
    use wgpu::util::DeviceExt as _;
    let shape = Shape::cross_attention(3, 4, 1, 1500, 16).with_kv_heads(2);
    let plain = Problem::new(shape).mask(Mask::CAUSAL).with_lengths(false, true).with_lse();
    let paged = plain.clone().with_pages(Pages::new(3 * 100 + 2, 15));
    let steps = [[0, 1, 1500], [1, 2, 0], [14, 15, 16], [300, 64, 65], [1500, 1499, 700]];
    for problem in [plain, paged] {
        let case = Case::new("growing", problem.clone()).sharp(8.0);
        let mut tensors = case.tensors(0);
        tensors.extra.kv_lens = vec![1500; 3];
        if problem.pages.is_some() {
            let order = Random::new(8).permutation(302);
            tensors.extra.block_table = order[..300].to_vec();
        }
        let mut random = Random::new(4);
        let mut filled = |data: &mut Vec<f32>| data.iter_mut().for_each(|x| *x = random.unit());
        filled(&mut tensors.k);
        filled(&mut tensors.v);
        for class in classes() {
            let (device, queue, attention) = runner(class).device().expect("a GPU");
            let buffer = |contents: &[u8]| {
                device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                    label: None,
                    contents,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_SRC
                        | wgpu::BufferUsages::COPY_DST,
                })
            };
            let floats = |data: &[f32]| buffer(bytemuck::cast_slice(data));
            let words = |data: &[u32]| buffer(bytemuck::cast_slice(data));
            let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|data| floats(data));
            let (out, lse) = (floats(&[f32::NAN; 3 * 4 * 16]), floats(&[f32::NAN; 12]));
            let (lens, table) =
                (words(&[7; 3]), words(&[&tensors.extra.block_table[..], &[0]].concat()));
            let plan = attention.plan(&problem).expect("a plan");
            let mut bound =
                wgpu_attention::Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..))
                    .lse(lse.slice(..))
                    .kv_lens(lens.slice(..));
            if problem.pages.is_some() {
                bound = bound.block_table(table.slice(..));
            }
            let dispatch = attention.bind(&plan, &bound).expect("a dispatch");
            for step in steps {
                tensors.extra.kv_lens = step.to_vec();
                queue.write_buffer(&lens, 0, bytemuck::cast_slice(&step));
                let mut encoder = device.create_command_encoder(&Default::default());
                dispatch.encode(&mut encoder);
                let read = [&out, &lse]
                    .map(|buffer| Download::encode(device, &mut encoder, buffer.slice(..)));
                queue.submit([encoder.finish()]);
                device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
                let [out, lse] =
                    read.map(|read| pollster::block_on(read.read::<f32>()).expect("data"));
                let rows: Vec<_> = support::case::rows(&shape).collect();
                let what = format!("{class:?} {step:?} {problem:?}");
                let answer = Answer::for_rows(what, &problem, &tensors, &rows);
                let got =
                    support::emulation::Got { out, lse: Some(lse), weights: None, scores: None };
                answer.check(&got).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

fn invariant() -> [Target; 3] {
    [Target::Auto(CLASSES[0]), Target::Auto(CLASSES[1]), Target::Cpu]
}

/// Rows `range` of `[heads, len, dim]`.
fn rows_of(data: &[f32], heads: u32, dim: u32, range: std::ops::Range<u32>) -> Vec<f32> {
    let len = data.len() / (heads * dim) as usize;
    let rows =
        |head: &[f32]| head[(range.start * dim) as usize..(range.end * dim) as usize].to_vec();
    data.chunks(len * dim as usize).flat_map(rows).collect()
}

/// Alone, first, in the middle and last of a batch, beside longer and shorter ones.
#[test]
fn a_sequence_has_the_same_bits_in_every_batch() {
    let shape = |batch| Shape::cross_attention(batch, 4, 9, 2500, 16).with_kv_heads(2);
    let of = |batch| {
        let problem = Problem::new(shape(batch)).mask(Mask::CAUSAL).with_lse();
        problem.with_lengths(false, true).batch_invariant()
    };
    let alone = Case::new("alone", of(1)).sharp(8.0);
    let mut one = alone.tensors(0);
    one.extra.kv_lens = vec![2222];
    let mut random = Random::new(2);
    let mut fill = |data: &mut Vec<f32>| data.iter_mut().for_each(|x| *x = random.unit());
    fill(&mut one.k);
    fill(&mut one.v);
    let size = (one.q.len(), one.k.len(), one.v.len());
    for target in invariant() {
        let want = target.run("alone", &of(1), &one);
        for (batch, at) in [(2, 0), (2, 1), (5, 2), (7, 6)] {
            let mut all = Case::new("batch", of(batch)).sharp(8.0).tensors(1);
            all.extra.kv_lens = (0..batch).map(|b| 311 * b % 2500).collect();
            all.extra.kv_lens[at] = 2222;
            for (to, from, size) in [
                (&mut all.q, &one.q, size.0),
                (&mut all.k, &one.k, size.1),
                (&mut all.v, &one.v, size.2),
            ] {
                to[at * size..][..size].copy_from_slice(from);
            }
            let got = target.run("batch", &of(batch), &all);
            let out = want.out.len();
            assert_eq!(
                bits(&got.out[at * out..][..out]),
                bits(&want.out),
                "{target:?}: {at} of {batch}"
            );
            let (got, want) = (got.lse.expect("asked"), want.lse.clone().expect("asked"));
            assert_eq!(bits(&got[at * want.len()..][..want.len()]), bits(&want), "{target:?}");
        }
    }
}

/// A prompt whole, in chunks, and token by token; a chunk's keys are those so far.
#[test]
fn a_prompt_in_chunks_has_the_bits_of_the_whole() {
    let (heads, dim, len) = (4, 64, 1300);
    let problem = |q_len: u32, kv_len: u32| {
        let shape = Shape::cross_attention(1, heads, q_len, kv_len, dim).with_kv_heads(2);
        Problem::new(shape).mask(Mask::CAUSAL).with_lse().batch_invariant()
    };
    let whole = Case::new("whole", problem(len, len)).sharp(8.0).tensors(0);
    for target in invariant() {
        let want = target.run("whole", &problem(len, len), &whole);
        for (from, to) in [(0, 256), (256, 512), (512, 513), (513, 530), (1024, 1300), (1299, 1300)]
        {
            let part = Tensors {
                q: rows_of(&whole.q, heads, dim, from..to),
                k: rows_of(&whole.k, 2, dim, 0..to),
                v: rows_of(&whole.v, 2, dim, 0..to),
                ..Tensors::default()
            };
            let got = target.run("part", &problem(to - from, to), &part);
            let want = rows_of(&want.out, heads, dim, from..to);
            assert_eq!(bits(&got.out), bits(&want), "{target:?}: {from}..{to}");
        }
    }
}

/// On a device that binds some of the keys at a time, too: ranges stay where they are.
#[test]
fn a_prompt_bound_in_parts_has_the_bits_of_the_whole() {
    let (heads, dim, len) = (2, 4, 3500);
    let problem = |q_len: u32, kv_len: u32| {
        let shape = Shape::cross_attention(1, heads, q_len, kv_len, dim);
        Problem::new(shape).mask(Mask::CAUSAL).with_lse().batch_invariant()
    };
    let whole = Case::new("whole", problem(len, len)).sharp(8.0).tensors(0);
    for class in classes() {
        let target = Target::Tight(class, Algorithm::Split);
        let want = target.run("whole", &problem(len, len), &whole);
        for (from, to) in [(2300, 2400), (3000, 3001), (3400, 3500)] {
            let part = Tensors {
                q: rows_of(&whole.q, heads, dim, from..to),
                k: rows_of(&whole.k, heads, dim, 0..to),
                v: rows_of(&whole.v, heads, dim, 0..to),
                ..Tensors::default()
            };
            let got = target.run("part", &problem(to - from, to), &part);
            let want = rows_of(&want.out, heads, dim, from..to);
            assert_eq!(bits(&got.out), bits(&want), "{class:?}: {from}..{to}");
        }
    }
}

/// The same keys and values as blocks: within what an element may be off.
#[test]
fn quantised_caches_stay_near_what_was_stored() {
    let shape = Shape::cross_attention(1, 8, 1, 900, 32).with_kv_heads(2);
    let plain = Case::new("plain", Problem::new(shape));
    let tensors = plain.tensors(0);
    for class in classes() {
        let exact = Target::Auto(class).run("plain", &plain.problem, &tensors);
        // Numbers are between -1 and 1: half a scale is 1/254, or 1/15. The weighted sum of values is off by no more
        // than a value, and as much again by what scores are off.
        for (dtype, most) in [(DType::Q8, 2.0 / 254.0), (DType::Q4, 2.0 / 15.0)] {
            let problem = plain.problem.clone().kv_dtype(dtype);
            let got = Target::Auto(class).run("blocks", &problem, &tensors);
            let off =
                got.out.iter().zip(&exact.out).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= most && off > 0.0, "{class:?} {dtype:?}: off by {off}");
        }
    }
}

/// A position off by one, or a page mistaken for another, is found.
#[test]
fn wrong_pages_are_found() {
    let shape = Shape::cross_attention(2, 2, 1, 90, 16);
    let problem = Problem::new(shape).with_lengths(false, true).with_pages(Pages::new(40, 5));
    let case = Case::new("pages", problem.with_lse()).sharp(8.0);
    let mut tensors = case.tensors(0);
    tensors.extra.kv_lens = vec![90, 47];
    tensors.extra.block_table = Random::new(9).permutation(40)[..36].to_vec();
    let mut random = Random::new(5);
    for data in [&mut tensors.k, &mut tensors.v] {
        data.iter_mut().for_each(|x| *x = random.unit());
    }
    let rows: Vec<_> = support::case::rows(&shape).collect();
    let answer = Answer::for_rows(case.to_string(), &case.problem, &tensors, &rows);
    let check = |tensors: &Tensors| {
        answer.check(&Target::Auto(CLASSES[1]).run("pages", &case.problem, tensors))
    };
    check(&tensors).expect("right pages");
    let mut swapped = tensors.clone();
    swapped.extra.block_table.swap(0, 1);
    assert_eq!(
        check(&swapped),
        Ok(()),
        "whole pages in another order are other positions to no mask"
    );
    let mut mistaken = tensors.clone();
    mistaken.extra.block_table[3] = mistaken.extra.block_table[4];
    assert!(check(&mistaken).is_err());
    let mut short = tensors.clone();
    short.extra.kv_lens[1] = 46;
    assert!(check(&short).is_err());
    // Past the length a table may hold anything.
    let mut unused = tensors.clone();
    unused.extra.block_table[18 + 10..].fill(u32::MAX);
    assert_eq!(check(&unused), Ok(()));
    let first = start(case.problem.k, (tensors.extra.block_table[18 + 9], 0, 2));
    let mut garbage = unused.clone();
    garbage.k[first..][..32].fill(f32::NAN);
    garbage.v[first..][..32].fill(f32::INFINITY);
    assert_eq!(check(&garbage), Ok(()), "position 47 is past the length");
}

/// In host memory a page that is not the pool's is an error that names it; in a buffer it reaches nothing out of bounds,
/// and no other sequence.
#[test]
fn pages_that_the_pool_does_not_have_are_found_or_stay_within_it() {
    use wgpu::util::DeviceExt as _;
    let shape = Shape::cross_attention(2, 2, 1, 40, 16);
    let problem = Problem::new(shape).with_lengths(false, true).with_pages(Pages::new(11, 8));
    let case = Case::new("pages", problem.with_lse()).sharp(8.0);
    let mut tensors = case.tensors(0);
    tensors.extra.kv_lens = vec![40, 33];
    tensors.extra.block_table = (0..10).collect();
    let mut random = Random::new(6);
    for data in [&mut tensors.k, &mut tensors.v] {
        data.iter_mut().for_each(|x| *x = random.unit());
    }
    let want = Target::Cpu.run("right", &case.problem, &tensors);
    let mut wrong = tensors.clone();
    wrong.extra.block_table[2] = 11;
    for target in [Target::Auto(CLASSES[0]), Target::Auto(CLASSES[1]), Target::Cpu] {
        let error = target.try_run(&case.problem, &wrong).expect_err("a page too many");
        assert_eq!(error, Error::NoSuchPage { index: 2, found: 11, pages: 11 }, "{target:?}");
        let mut short = tensors.clone();
        short.extra.block_table.pop();
        let error = target.try_run(&case.problem, &short).expect_err("an entry too few");
        assert!(matches!(error, Error::Length { required: 10, actual: 9, .. }), "{error}");
    }
    for class in classes() {
        let (device, queue, attention) = runner(class).device().expect("a GPU");
        let buffer = |contents: &[u8]| {
            device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: None,
                contents,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            })
        };
        let floats = |data: &[f32]| buffer(bytemuck::cast_slice(data));
        let words = |data: &[u32]| buffer(bytemuck::cast_slice(data));
        let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|data| floats(data));
        let (out, lse) = (floats(&[f32::NAN; 2 * 2 * 16]), floats(&[f32::NAN; 4]));
        let lens = words(&tensors.extra.kv_lens);
        let mut pages = tensors.extra.block_table.clone();
        pages[..5].copy_from_slice(&[u32::MAX, 1 << 31, 12, 1_000_000, 4]);
        let table = words(&pages);
        let plan = attention.plan(&case.problem).expect("a plan");
        let bound =
            wgpu_attention::Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..))
                .lse(lse.slice(..))
                .kv_lens(lens.slice(..))
                .block_table(table.slice(..));
        let mut encoder = device.create_command_encoder(&Default::default());
        attention.bind(&plan, &bound).expect("a dispatch").encode(&mut encoder);
        let read = Download::encode(device, &mut encoder, out.slice(..));
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
        let got = pollster::block_on(read.read::<f32>()).expect("data");
        assert!(got.iter().all(|x| x.is_finite()), "{class:?}");
        let off =
            got[32..].iter().zip(&want.out[32..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-5, "{class:?}: the other sequence is off by {off}");
    }
}

/// A pool in one buffer with another order of axes: heads outermost, or positions before heads.
#[test]
fn pools_have_any_strides() {
    let shape = Shape::cross_attention(2, 4, 3, 60, 16).with_kv_heads(2);
    let pages = Pages::new(12, 11);
    let base = Problem::new(shape).mask(Mask::CAUSAL).with_lengths(false, true).with_lse();
    for strides in [
        Strides { batch: 2 * 11 * 32, head: 11 * 32, row: 32 },
        Strides { batch: 11 * 32, head: 12 * 11 * 32 + 5, row: 32 },
        Strides { batch: 11 * 70, head: 33, row: 70 },
    ] {
        let problem = base.clone().with_pages(pages).k_strides(strides).v_strides(strides);
        judged(&Case::new("pools", problem).sharp(8.0), &fused());
        let problem = base.clone().with_pages(pages).k_strides(strides).v_strides(strides);
        let staged = [Target::Staged(CLASSES[0]), Target::Staged(CLASSES[1]), Target::Cpu];
        judged(&Case::new("pools", problem).sharp(8.0), &staged);
    }
}
