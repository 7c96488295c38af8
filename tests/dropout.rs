//! Dropout: one mask on every path, random as it should be, and free where nothing is dropped.

#![cfg(feature = "cpu")]

use crate::device;
use crate::device::Gpu;
use crate::support;
use crate::support::case::{Case, Tensors};
use crate::support::judge::{Answer, error};
use crate::support::target::Target;
use wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Algorithm, Capabilities, DType, DeviceClass, Diagonal, Dropout, Error, Layout, Mask,
    MaskFormat, Operand, Pages, Pair, Pairs, Plan, PlanError, Problem, Shape, Slopes, wgpu,
};

const CLASSES: [DeviceClass; 2] = [DeviceClass::Hardware, DeviceClass::Software];

/// Every path, and all of them on a device that binds little at once; of these a few where drivers are slow.
fn targets() -> impl Iterator<Item = Target> {
    let [hardware, software] = CLASSES;
    let few =
        [Target::Staged(software), Target::Flash(hardware), Target::Split(software), Target::Cpu];
    let algorithms = [Algorithm::Staged, Algorithm::Flash, Algorithm::Split];
    let tight = CLASSES.into_iter().flat_map(move |c| algorithms.map(|a| Target::Tight(c, a)));
    let auto = CLASSES.map(Target::Auto);
    let all = Target::ALL.into_iter().chain(tight).chain(auto);
    let (few, all) = if support::small() { (Some(few), None) } else { (None, Some(all)) };
    few.into_iter().flatten().chain(all.into_iter().flatten())
}

fn dropout(p: f32) -> Dropout {
    Problem::new(Shape::self_attention(1, 1, 1, 1)).with_dropout(p).dropout.expect("asked for")
}

fn pair(batch: u32, head: u32, q_pos: u32, kv_pos: u32) -> Pair {
    Pair::new(batch, head, q_pos, kv_pos, 0)
}

/// All features that have a say in where a pair is.
fn cases() -> Vec<Case> {
    let shape = Shape::cross_attention(3, 4, 75, 133, 20).with_kv_heads(2);
    let few = Shape::cross_attention(2, 6, 3, 301, 32).with_kv_heads(2);
    let paged = Shape::cross_attention(2, 4, 20, 60, 16).with_kv_heads(2);
    let wide = Shape::self_attention(1, 2, 40, 192);
    let narrow = Shape::cross_attention(2, 2, 70, 90, 8).with_v_head_dim(24);
    let all = |shape| Problem::new(shape).with_lse();
    let packed = Problem::packed(Shape::cross_attention(4, 4, 150, 211, 16)).with_lse();
    let functions = support::functions::relative_position();
    [
        ("plain", all(shape).with_dropout(0.3)),
        ("causal", all(shape).mask(Mask::CAUSAL).with_dropout(0.5)),
        ("much", all(shape).mask(Mask::window(40)).with_dropout(0.95)),
        ("few rows", all(few).with_dropout(0.2)),
        ("few rows of a band", all(few).mask(Mask::window(150)).with_dropout(0.2)),
        ("one row", all(Shape::cross_attention(1, 8, 1, 700, 128)).with_dropout(0.4)),
        ("narrow", all(narrow).layout(Layout::Bshd).with_dropout(0.1)),
        ("wide", all(wide).mask(Mask::CAUSAL).with_dropout(0.4)),
        ("f16", all(shape).dtype(DType::F16).with_dropout(0.3)),
        ("f32 on q8", all(few).kv_dtype(DType::Q8).with_dropout(0.3)),
        ("lengths", all(shape).with_lengths(true, true).mask(Mask::CAUSAL).with_dropout(0.3)),
        ("packed", packed.clone().with_dropout(0.3)),
        ("packed and causal", packed.mask(Mask::CAUSAL).with_sinks().with_dropout(0.6)),
        (
            "heavy",
            all(shape)
                .softcap(20.0)
                .with_alibi(Slopes::PerHead)
                .with_sinks()
                .with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 4, 75, 133]))
                .with_dropout(0.3),
        ),
        ("functions", all(shape).with_score_function(functions).with_dropout(0.3)),
        (
            "pages",
            all(paged).with_lengths(false, true).with_pages(Pages::new(9, 16)).with_dropout(0.3),
        ),
        ("given", all(shape).mask(Mask::CAUSAL).with_given_dropout(0.4)),
        ("given, of p 0", all(few).with_given_dropout(0.0)),
        ("weights", all(shape).with_weights().mask(Mask::CAUSAL).with_dropout(0.4)),
        ("weights of a given mask", all(few).with_weights().with_given_dropout(0.4)),
    ]
    .into_iter()
    .map(|(name, problem)| Case::new(name, problem))
    .collect()
}

#[test]
fn every_path_drops_what_the_definition_drops() {
    let no_room = |error: &Error| {
        matches!(
            error,
            Error::Plan(PlanError::LimitExceeded { limit: "max_storage_buffer_binding_size", .. })
        )
    };
    let mut failures = Vec::new();
    // Where drivers are slow, every third.
    let third = if support::small() { 3 } else { 1 };
    for (i, case) in cases().into_iter().step_by(third).enumerate() {
        let (answer, tensors) = (Answer::of(&case), case.tensors(0));
        let targets = targets().filter(|target| target.gives(&case.problem)).collect::<Vec<_>>();
        // Of kernels every other, which is every algorithm; one in turn where drivers are slow.
        let step = if support::small() { targets.len() } else { 2 };
        for (n, target) in targets.into_iter().enumerate() {
            if n % step != i % step && !matches!(target, Target::Cpu) {
                continue;
            }
            let result = match target.try_run(&case.problem, &tensors) {
                Err(error) if matches!(target, Target::Tight(..)) && no_room(&error) => continue,
                result => result.map_err(|error| error.to_string()),
            };
            if let Err(wrong) = result.and_then(|got| answer.check(&got)) {
                failures.push(format!("{target:?}: {wrong}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Equal scores, and a value that is 1 in a column of its key's own: what is not 0 is what was kept.
#[test]
fn the_mask_is_the_same_bit_for_bit_on_every_path() {
    let (q_len, kv_len) = (77, 72);
    let shape = Shape::cross_attention(3, 4, q_len, kv_len, 8).with_kv_heads(1);
    let shape = shape.with_v_head_dim(kv_len);
    let seed = 0xfeed_0123_4567_89ab;
    for (problem, name) in [
        (Problem::new(shape).with_dropout(0.5), "all at once"),
        (Problem::new(shape).layout(Layout::Bshd).with_dropout(0.5), "heads within rows"),
        (Problem::new(shape).with_weights().with_dropout(0.5), "weights too"),
    ] {
        let mut tensors = Tensors {
            q: vec![0.0; (3 * 4 * q_len * 8) as usize],
            k: vec![1.0; (3 * kv_len * 8) as usize],
            v: vec![0.0; (3 * kv_len * kv_len) as usize],
            ..Tensors::default()
        };
        tensors.extra.seed = seed;
        for (b, h, j) in support::case::positions([3, 1, kv_len]) {
            tensors.v[support::case::start(problem.v, (b, h, j)) + j as usize] = 1.0;
        }
        let rows = || support::case::rows(&shape);
        let dropout = dropout(0.5);
        let want = |(b, h, i)| (0..kv_len).map(move |j| dropout.keeps(seed, pair(b, h, i, j)));
        for target in targets().filter(|target| target.gives(&problem)) {
            let got = target.run(name, &problem, &tensors);
            for at in rows() {
                let row = &got.out[support::case::start(problem.out, at)..][..kv_len as usize];
                let same = row.iter().map(|x| *x != 0.0).eq(want(at));
                assert!(same, "{target:?}: {name}: row {at:?}: {row:?}");
            }
            if let Some(weights) = got.weights {
                let flat = 1.0 / kv_len as f32;
                assert!(weights.iter().all(|p| (p - flat).abs() < 1e-6), "{target:?}: {name}");
            }
        }
    }
}

/// Sequences behind one another, and the same in a batch of the longest.
#[test]
fn packed_and_padded_sequences_have_the_same_mask() {
    let (lens, kv_lens) = ([30, 1, 0, 43], [51, 6, 9, 43]);
    let (heads, dim) = (2, 16);
    let starts = |lens: &[u32; 4]| {
        lens.iter().fold(vec![0], |mut starts, len| {
            starts.push(starts[starts.len() - 1] + len);
            starts
        })
    };
    let (q_starts, k_starts) = (starts(&lens), starts(&kv_lens));
    let packed = Problem::packed(Shape::cross_attention(4, heads, q_starts[4], k_starts[4], dim));
    let packed = packed.mask(Mask::CAUSAL).with_dropout(0.4);
    let padded = Problem::new(Shape::cross_attention(4, heads, 43, 51, dim)).layout(Layout::Bshd);
    let padded = padded.mask(Mask::CAUSAL).with_lengths(true, true).with_dropout(0.4);
    let mut one = Case::new("packed", packed.clone()).tensors(0);
    (one.extra.cu_seqlens_q, one.extra.cu_seqlens_k) = (q_starts.clone(), k_starts.clone());
    let width = (heads * dim) as usize;
    // Rows of a sequence to where they lie in a batch.
    let apart = |data: &[f32], starts: &[u32], len: u32| {
        let mut batch = vec![f32::NAN; 4 * len as usize * width];
        for b in 0..4 {
            let rows = &data[starts[b] as usize * width..starts[b + 1] as usize * width];
            batch[b * len as usize * width..][..rows.len()].copy_from_slice(rows);
        }
        batch
    };
    let mut other = Tensors::default();
    let whole = |data: &[f32]| data.iter().map(|x| if x.is_nan() { 0.5 } else { *x }).collect();
    [one.q, one.k, one.v] = [&one.q, &one.k, &one.v].map(|data| whole(data));
    other.q = apart(&one.q, &q_starts, 43);
    (other.k, other.v) = (apart(&one.k, &k_starts, 51), apart(&one.v, &k_starts, 51));
    (other.extra.q_lens, other.extra.kv_lens) = (lens.to_vec(), kv_lens.to_vec());
    other.extra.seed = one.extra.seed;
    for target in targets() {
        let got = target.run("packed", &packed, &one).out;
        let want = target.run("padded", &padded, &other).out;
        for (b, len) in lens.iter().enumerate() {
            let got = &got[q_starts[b] as usize * width..][..*len as usize * width];
            let off = got.iter().zip(&want[b * 43 * width..]).map(|(a, b)| error(*a, (*b).into()));
            assert!(off.fold(0.0, f64::max) < 1e-5, "{target:?}: sequence {b}");
        }
    }
}

#[test]
fn another_seed_or_probability_is_noticed() {
    let shape = Shape::cross_attention(2, 2, 40, 70, 16);
    let case = Case::new("seeds", Problem::new(shape).with_dropout(0.3));
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    for target in targets() {
        for bit in [0, 31, 32, 63] {
            let mut other = tensors.clone();
            other.extra.seed ^= 1 << bit;
            let got = target.run("another seed", &case.problem, &other);
            assert!(answer.check(&got).is_err(), "{target:?}: bit {bit} has no effect");
        }
        let problem = Problem::new(shape).with_dropout(0.31);
        let got = target.run("another probability", &problem, &tensors);
        assert!(answer.check(&got).is_err(), "{target:?}: 0.31 is as 0.3");
    }
}

#[test]
fn nothing_is_dropped_with_probability_0() {
    let shape = Shape::cross_attention(2, 4, 45, 83, 16).with_kv_heads(2);
    let base = Problem::new(shape).mask(Mask::CAUSAL).with_lse();
    let case = Case::new("p 0", base.clone());
    let mut tensors = case.tensors(0);
    for seed in [0, 77] {
        for target in targets() {
            tensors.extra.seed = 0;
            let plain = target.run("plain", &base, &tensors);
            tensors.extra.seed = seed;
            let none = target.run("p 0", &base.clone().with_dropout(0.0), &tensors);
            assert_eq!(plain, none, "{target:?}");
        }
    }
    let plan = |problem: &Problem, class, algorithm| {
        let capabilities = Capabilities::portable().with_class(class);
        Plan::new(problem, &capabilities, algorithm).expect("a plan")
    };
    for class in DeviceClass::ALL {
        for algorithm in [Algorithm::Staged, Algorithm::Flash, Algorithm::Split] {
            let plain = plan(&base, class, algorithm);
            let none = plan(&base.clone().with_dropout(0.0), class, algorithm);
            assert_eq!(plain.to_string(), none.to_string());
            assert_eq!(none.operand_bytes(Operand::Seed), 0);
            let some = plan(&base.clone().with_dropout(0.1), class, algorithm);
            assert_eq!(some.operand_bytes(Operand::Seed), 8);
        }
    }
}

/// E[keep / (1 - p)] = 1.
#[test]
fn the_mean_over_many_seeds_is_the_attention_without_dropout() {
    const SEEDS: u16 = 400;
    let p = 0.3;
    let base = Problem::new(Shape::cross_attention(1, 2, 24, 40, 16));
    let problem = base.clone().with_weights().with_dropout(p);
    let mut tensors = Case::new("mean", base.clone()).tensors(0);
    for target in [Target::Staged(CLASSES[0]), Target::Staged(CLASSES[1]), Target::Cpu] {
        let plain = target.run("plain", &base, &tensors).out;
        let mut sums = vec![0.0; plain.len()];
        let mut weights = Vec::new();
        for seed in 0..SEEDS {
            tensors.extra.seed = u64::from(seed) << 20;
            let got = target.run("dropped", &problem, &tensors);
            sums.iter_mut().zip(&got.out).for_each(|(sum, x)| *sum += f64::from(*x));
            weights = got.weights.expect("asked for");
        }
        tensors.extra.seed = 0;
        let mut worst: f64 = 0.0;
        for (i, (sum, want)) in sums.iter().zip(&plain).enumerate() {
            // Of independent terms, each w v keep / (1 - p).
            let (row, d) = (i / 16, i % 16);
            let head = row / 24;
            let terms =
                (0..40).map(|j| weights[row * 40 + j] * tensors.v[(head * 40 + j) * 16 + d]);
            let variance: f64 = terms.map(|term| f64::from(term).powi(2)).sum();
            let variance = variance * f64::from(p / (1.0 - p)) / f64::from(SEEDS);
            let off = sum / f64::from(SEEDS) - f64::from(*want);
            worst = worst.max(off.abs() / variance.sqrt());
        }
        // Of 768 elements the furthest is at 3 to 4.5 standard deviations.
        assert!((2.0..5.0).contains(&worst), "{target:?}: {worst} standard deviations");
    }
}

/// How many standard deviations a count is from its mean.
fn deviations(count: usize, n: usize, p: f64) -> f64 {
    let (count, n) = (count as f64, n as f64);
    (count - n * p) / (n * p * (1.0 - p)).sqrt()
}

#[test]
fn as_many_are_kept_as_the_probability_says() {
    for p in [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99] {
        let dropout = dropout(p);
        for seed in [0, 1, 2, u64::MAX, 0x1234_5678_9abc_def0] {
            let n = 1 << 18;
            let kept = (0..n).filter(|i| dropout.keeps(seed, pair(0, 3, i >> 9, i & 511))).count();
            let off = deviations(kept, n as usize, 1.0 - f64::from(p));
            assert!(off.abs() < 4.5, "p {p}, seed {seed}: {off} standard deviations");
        }
    }
}

#[test]
fn neighbours_along_every_axis_are_independent() {
    for p in [0.2, 0.5, 0.9] {
        let dropout = dropout(p);
        let q = 1.0 - f64::from(p);
        let n = 1 << 17;
        // The pair, and another that differs in one thing.
        let at = |i: u32| [i >> 15, (i >> 12) & 7, (i >> 6) & 63, i & 63];
        let keeps =
            |seed: u64, [b, h, i, j]: [u32; 4]| u8::from(dropout.keeps(seed, pair(b, h, i, j)));
        let moved = |axis: usize, by: u32| {
            move |i: u32| {
                let mut at = at(i);
                at[axis] += by;
                at
            }
        };
        for by in [1, 2, 4, 64, 1 << 16] {
            for axis in 0..4 {
                let both = (0..n).filter(|i| keeps(9, at(*i)) & keeps(9, moved(axis, by)(*i)) == 1);
                let off = deviations(both.count(), n as usize, q * q);
                // Overlapping pairs of neighbours have up to thrice the variance.
                assert!(off.abs() < 8.0, "p {p}: axis {axis} by {by}: {off}");
            }
        }
        for other in [1, 2, 1 << 31, 1 << 32, 1 << 63] {
            let both = (0..n).filter(|i| keeps(9, at(*i)) & keeps(9 ^ other, at(*i)) == 1);
            let off = deviations(both.count(), n as usize, q * q);
            assert!(off.abs() < 4.5, "p {p}: seeds that differ by {other:x}: {off}");
        }
    }
}

/// The counts of many rows are spread as binomial ones are: neither more, as with repeats, nor less.
#[test]
fn counts_of_rows_and_of_columns_are_binomial() {
    let (rows, keys) = (2000, 256);
    for p in [0.1, 0.5, 0.8] {
        let dropout = dropout(p);
        let q = 1.0 - f64::from(p);
        for by_row in [true, false] {
            let count = |a: u32| {
                let keeps = |b: u32| {
                    let (i, j) = if by_row { (a, b) } else { (b, a) };
                    dropout.keeps(42, pair(1, 2, i, j))
                };
                (0..keys).filter(|b| keeps(*b)).count()
            };
            let chi: f64 = (0..rows).map(|a| deviations(count(a), keys as usize, q).powi(2)).sum();
            // A chi-square of n degrees of freedom has mean n and variance 2 n.
            let n = f64::from(rows);
            let off = (chi - n) / (2.0 * n).sqrt();
            assert!(off.abs() < 4.5, "p {p}, by row {by_row}: {off} standard deviations");
        }
    }
}

/// `Dropout::WGSL` in a shader of a caller's own.
#[test]
fn the_host_and_the_shader_agree_on_every_pair() {
    const PAIRS: u32 = 1 << 14;
    let gpu = Gpu::new(|_| {});
    let text = [
        Dropout::WGSL,
        "@group(0) @binding(0) var<storage, read> asked: array<u32>;
        @group(0) @binding(1) var<storage, read_write> kept: array<u32>;
        @compute @workgroup_size(64)
        fn ask(@builtin(global_invocation_id) id: vec3<u32>) {
            let i = id.x * 7u;
            let keeps = dropout_keeps(vec2<u32>(asked[i], asked[i + 1u]), asked[i + 2u], asked[i + 3u], asked[i + 4u],
                                      asked[i + 5u], asked[i + 6u]);
            kept[id.x] = u32(keeps);
        }",
    ]
    .concat();
    let mut random = support::random::Random::new(3);
    let mut of = |n: u32| match random.below(4) {
        0 => 0,
        1 => random.below(n),
        2 => n - 1 - random.below(n.min(8)),
        _ => random.below(n.min(100)),
    };
    let asked: Vec<_> = (0..PAIRS)
        .map(|i| {
            let dropout = dropout([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0 - f32::EPSILON][i as usize % 6]);
            let seed = u64::from(of(u32::MAX)) << 32 | u64::from(of(u32::MAX));
            let at = pair(of(u32::MAX), of(u32::MAX), of(1 << 29), of(1 << 29));
            (dropout, seed, at)
        })
        .collect();
    let words: Vec<u32> = (asked.iter())
        .flat_map(|(dropout, seed, at)| {
            let [low, high]: [u32; 2] = bytemuck::cast(*seed);
            [low, high, dropout.threshold(), at.batch, at.head, at.q_pos, at.kv_pos]
        })
        .collect();
    let device = &gpu.device;
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let input = device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: None,
        contents: bytemuck::cast_slice(&words),
        usage: wgpu::BufferUsages::STORAGE,
    });
    let output = gpu.output(PAIRS as usize);
    let entries = [&input, &output].map(|buffer| buffer.as_entire_binding());
    let entries: Vec<_> = (0..)
        .zip(entries)
        .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
        .collect();
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(PAIRS / 64, 1, 1);
    }
    gpu.queue.submit([encoder.finish()]);
    let got = gpu.read(&output);
    for ((dropout, seed, at), got) in asked.iter().zip(got) {
        let want = u32::from(dropout.keeps(*seed, *at));
        assert_eq!(got.to_bits(), want, "{dropout:?}, {seed:x}, {at:?}");
    }
}

/// Lengths, offsets, slopes, sinks, pages, a block mask and a seed: one more than a kernel may bind beside the table.
#[test]
fn a_seed_that_is_one_buffer_too_many_is_gathered_apart() {
    let shape = Shape::cross_attention(2, 2, 40, 70, 16);
    let problem = Problem::new(shape)
        .mask(Mask::CAUSAL.along(Diagonal::PerSequence))
        .with_lengths(true, true)
        .with_alibi(Slopes::PerHead)
        .with_sinks()
        .with_pages(Pages::new(12, 16))
        .with_boolean_mask(MaskFormat::Bytes, Pairs::new([2, 1, 40, 70]));
    let problem = problem.with_lse().with_dropout(0.3);
    let gpu = Gpu::new(|limits| limits.max_storage_buffers_per_shader_stage = 8);
    let case = Case::new("nine buffers", problem.clone());
    let (answer, tensors) = (Answer::of(&case), case.tensors(0));
    let e = &tensors.extra;
    let words = |data: &[u32]| {
        let words: Vec<f32> = data.iter().map(|word| f32::from_bits(*word)).collect();
        gpu.input(&words)
    };
    let mut shown: Vec<u8> = e.mask.iter().map(|shown| u8::from(*shown)).collect();
    shown.resize(shown.len().next_multiple_of(4), 0);
    let offsets: Vec<u32> = e.diag_offsets.iter().map(|offset| offset.cast_unsigned()).collect();
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|data| gpu.input(data));
    let mask = words(bytemuck::cast_slice(&shown));
    let [slopes, sinks] = [&e.alibi_slopes, &e.sinks].map(|data| gpu.input(data));
    let lens = [&e.q_lens, &e.kv_lens, &offsets, &e.block_table].map(|data| words(data));
    let seed = words(bytemuck::cast_slice(&[e.seed]));
    for class in device::classes() {
        let attention = gpu.attention(class);
        let problem = problem.clone().with_block_mask();
        let making = attention.plan_block_mask(&problem).expect("a plan");
        let bytes = making.operand_bytes(Operand::BlockMask);
        let block_mask = gpu.output(usize::try_from(bytes / 4).expect("small"));
        let tensors = wgpu_attention::Tensors::default()
            .mask(mask.slice(..))
            .alibi_slopes(slopes.slice(..))
            .sinks(sinks.slice(..))
            .q_lens(lens[0].slice(..))
            .kv_lens(lens[1].slice(..))
            .diag_offsets(lens[2].slice(..))
            .block_table(lens[3].slice(..))
            .block_mask(block_mask.slice(..));
        let make = attention.bind(&making, &tensors).expect("a dispatch without a seed");
        let plan = attention.plan_with(&problem, Algorithm::Flash).expect("a plan");
        let gathers = plan.kernels().filter(|name| *name == "gather").count();
        assert_eq!(gathers, 2, "{plan}");
        let (out, lse) = (gpu.output(2 * 2 * 40 * 16), gpu.output(2 * 2 * 40));
        let tensors = tensors.q(q.slice(..)).k(k.slice(..)).v(v.slice(..)).seed(seed.slice(..));
        let tensors = tensors.out(out.slice(..)).lse(lse.slice(..));
        let attend = attention.bind(&plan, &tensors).expect("a dispatch");
        gpu.run(&[&make, &attend]);
        let got = support::emulation::Got {
            out: gpu.read(&out),
            lse: Some(gpu.read(&lse)),
            weights: None,
            scores: None,
        };
        answer.check(&got).unwrap_or_else(|wrong| panic!("{class:?}: {wrong}"));
    }
}
