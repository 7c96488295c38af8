//! What does not fit a binding is cut, what does not fit a grid is folded, what nothing sees costs nothing.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, Gpu, classes};
use crate::support;
use crate::support::case::{Case, extent};
use crate::support::emulation::Got;
use crate::support::judge::{Answer, sampled};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use wgpu_attention::{
    Algorithm, Attention, Capabilities, DeviceClass, Diagonal, Dispatch, Layout, Mask, Operand,
    Plan, Problem, Shape, Tensors, wgpu,
};

/// Bytes that the tight device binds at once: few, so that little work is cut into many blocks.
fn binding_bytes() -> u64 {
    if support::small() { 1 << 16 } else { 1 << 18 }
}

/// Rows 32 wide that fit one binding.
fn rows() -> u32 {
    u32::try_from(binding_bytes() / 128).expect("small")
}

/// WebGPU's default limits; all tests here share its kernels, each of which takes a software GPU a while to compile.
static GPU: LazyLock<Gpu> = LazyLock::new(|| {
    Gpu::new(|limits| *limits = wgpu::Limits::default().or_worse_values_from(limits))
});

/// A no-op device with the tight limit, on which wgpu finds any binding that is past it.
static TIGHT: LazyLock<(wgpu::Device, wgpu::Queue)> = LazyLock::new(|| {
    let required_limits = wgpu::Limits {
        max_storage_buffer_binding_size: binding_bytes(),
        ..Capabilities::portable().limits
    };
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    wgpu::Device::noop(&descriptor)
});

/// A plan bound to poisoned outputs.
struct Bound {
    dispatch: Dispatch,
    out: wgpu::Buffer,
    lse: wgpu::Buffer,
    weights: wgpu::Buffer,
}

impl Bound {
    fn new(class: DeviceClass, plan: &Plan, case: &Case) -> Self {
        let (problem, inputs) = (&case.problem, case.tensors(0));
        let s = problem.shape;
        let rows = s.batch as usize * s.heads as usize * s.q_len as usize;
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| GPU.input(data));
        let out = GPU.output(extent(problem.out, [s.batch, s.heads, s.q_len], s.v_head_dim));
        let lse = GPU.output(rows);
        let weights = GPU.output(if problem.weights { rows * s.kv_len as usize } else { 1 });
        let mut tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
        if problem.lse {
            tensors = tensors.lse(lse.slice(..));
        }
        if problem.weights {
            tensors = tensors.weights(weights.slice(..));
        }
        let dispatch = GPU.attention(class).bind(plan, &tensors).expect("buffers that fit");
        Self { dispatch, out, lse, weights }
    }

    fn run(&self) -> Got {
        GPU.run(&[&self.dispatch]);
        let [out, lse, weights] = [&self.out, &self.lse, &self.weights].map(|b| GPU.read(b));
        Got { out, lse: Some(lse), weights: Some(weights), scores: None }
    }
}

/// Right by both algorithms with tiles of both classes, cut into several steps by each, and no step binds more
/// than the limit.
fn is_cut(name: &str, problem: Problem) {
    let case = Case::new(name, problem.clone()).sharp(8.0);
    let answer = Answer::of(&case);
    let tight = Attention::new(&TIGHT.0);
    for class in classes() {
        for (algorithm, whole) in [(Algorithm::Staged, 3), (Algorithm::Flash, 1)] {
            if problem.weights && algorithm == Algorithm::Flash {
                continue;
            }
            let tight = tight.clone().with_class(class);
            let plan = tight.plan_with(&problem, algorithm).expect("a plan");
            assert!(plan.kernels().count() > whole, "{case}: {plan}");
            is_within_the_limit(&tight, &plan, &problem);
            let got = Bound::new(class, &plan, &case).run();
            answer.check(&got).unwrap_or_else(|error| panic!("{class:?} {algorithm:?}: {error}"));
        }
    }
}

/// wgpu finds no fault with any binding.
fn is_within_the_limit(attention: &Attention, plan: &Plan, problem: &Problem) {
    let (device, queue) = &*TIGHT;
    // From 4 bytes on, what the plan needs, and so much more that no whole buffer could be bound. A device that does
    // nothing holds memory all the same.
    let held = |operand| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 + plan.operand_bytes(operand) + binding_bytes(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    use Operand::{K, Lse, Out, Q, V, Weights};
    let [q, k, v, out, lse, weights] = [Q, K, V, Out, Lse, Weights].map(held);
    let mut tensors = Tensors::new(q.slice(4..), k.slice(4..), v.slice(4..), out.slice(4..));
    if problem.lse {
        tensors = tensors.lse(lse.slice(4..));
    }
    if problem.weights {
        tensors = tensors.weights(weights.slice(4..));
    }
    let dispatch = attention.bind(plan, &tensors).expect("buffers that fit");
    let mut encoder = device.create_command_encoder(&Default::default());
    dispatch.encode(&mut encoder);
    queue.submit([encoder.finish()]);
    assert_eq!(pollster::block_on(scope.pop()).map(|error| error.to_string()), None, "{plan}");
}

/// In both layouts, with lse.
fn is_cut_in_both_layouts(name: &str, shape: Shape, mask: Mask) {
    for layout in [Layout::Bhsd, Layout::Bshd] {
        let problem = Problem::new(shape).mask(mask).layout(layout).with_lse();
        is_cut(&format!("{name}, {layout:?}"), problem);
    }
}

#[test]
fn more_sequences_than_a_binding_holds() {
    let batch = rows() / 100;
    let shape = Shape::cross_attention(batch, 2, 57, 69, 32);
    is_cut_in_both_layouts("batch", shape, Mask::CAUSAL);
}

#[test]
fn more_heads_than_a_binding_holds() {
    let len = rows() / 35;
    let shape = Shape::self_attention(1, 40, len, 32).with_kv_heads(8);
    is_cut_in_both_layouts("groups of 5 heads", shape, Mask::CAUSAL);
}

#[test]
fn more_heads_of_one_group_than_a_binding_holds() {
    let len = rows() / 8;
    let shape = Shape::cross_attention(1, 9, len, 77, 32).with_kv_heads(1);
    is_cut_in_both_layouts("9 heads on 1", shape, Mask::CAUSAL);
    let shape = Shape::cross_attention(1, 6, rows() / 2, 77, 32).with_kv_heads(2);
    is_cut_in_both_layouts("groups of 3 heads", shape, Mask::CAUSAL);
}

#[test]
fn more_queries_than_a_binding_holds() {
    let shape = Shape::cross_attention(1, 1, rows() + rows() / 9, 77, 32);
    is_cut_in_both_layouts("rows", shape, Mask::band(None, Some(20)));
}

#[test]
fn more_keys_than_a_binding_holds() {
    let shape = Shape::cross_attention(1, 1, 77, 2 * rows() + rows() / 9, 32);
    is_cut_in_both_layouts("keys", shape, Mask::CAUSAL);
    let shape = Shape::cross_attention(1, 4, 5, rows() + 1, 32).with_kv_heads(2);
    is_cut_in_both_layouts("keys of two heads", shape, Mask::CAUSAL);
}

#[test]
fn more_keys_than_a_binding_holds_of_which_a_row_sees_few() {
    let shape = Shape::self_attention(1, 1, rows() + rows() / 9, 32);
    is_cut_in_both_layouts("window", shape, Mask::window(70));
    // The first rows see no key at all, the others not that of each range.
    let shape = Shape::cross_attention(1, 1, 70, 2 * rows(), 32);
    let offset = i32::try_from(rows()).expect("small") - 35;
    for mask in [Mask::window(5), Mask::CAUSAL] {
        let mask = mask.along(Diagonal::Offset(offset));
        is_cut_in_both_layouts("window between ranges", shape, mask);
    }
    let shape = Shape::cross_attention(1, 1, 70, rows() + 64, 32);
    is_cut_in_both_layouts("empty rows", shape, Mask::CAUSAL.along(Diagonal::Offset(-50)));
}

#[test]
fn more_weights_than_a_binding_holds() {
    let scores = u32::try_from(binding_bytes() / 4).expect("small");
    for (name, shape) in [
        ("batch", Shape::cross_attention(scores / 2500, 1, 50, 60, 32)),
        ("heads", Shape::cross_attention(1, scores / 2500, 50, 64, 32)),
        ("queries", Shape::cross_attention(1, 1, scores / 60, 68, 32)),
        ("keys", Shape::cross_attention(1, 1, 33, rows() + 64, 32)),
    ] {
        let problem = Problem::new(shape).mask(Mask::CAUSAL).with_weights().with_lse();
        is_cut(&format!("weights by {name}"), problem);
    }
}

#[test]
fn weights_of_which_one_sequence_takes_more_elements_than_32_bits_count_are_planned() {
    for shape in [Shape::self_attention(1, 1, 65_536, 64), Shape::self_attention(1, 16, 16_384, 64)]
    {
        let problem = Problem::new(shape).with_weights();
        let plan = Plan::new(&problem, &Capabilities::portable(), Algorithm::Staged);
        assert!(plan.expect("a plan").kernels().count() > 3 * 64);
    }
}

#[test]
fn the_default_limits_of_webgpu_are_enough() {
    let shape = Shape::cross_attention(2, 4, 67, 131, 32).with_kv_heads(2);
    let case = Case::new("limits", Problem::new(shape).mask(Mask::CAUSAL).with_lse()).sharp(8.0);
    let answer = Answer::of(&case);
    for class in classes() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let plan = GPU.attention(class).plan_with(&case.problem, algorithm).expect("a plan");
            let got = Bound::new(class, &plan, &case).run();
            answer.check(&got).unwrap_or_else(|error| panic!("{class:?} {algorithm:?}: {error}"));
        }
    }
}

#[test]
fn more_workgroups_than_an_axis_of_a_grid_has_are_folded() {
    // 70,000 sequences and heads: at least one workgroup each, and an axis ends at 65,535.
    let shape = Shape::cross_attention(700, 100, 1, 3, 32);
    let case = Case::new("70,000 heads", Problem::new(shape).mask(Mask::window(1)).with_lse());
    let rows = sampled(&shape, 5000);
    let answer = Answer::for_rows(case.to_string(), &case.problem, &case.tensors(0), &rows);
    // Old software GPUs take minutes for both.
    for class in classes() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let plan = GPU.attention(class).plan_with(&case.problem, algorithm);
            let plan = plan.expect("a plan");
            assert!(plan.to_string().contains("65535 x 2 workgroups"), "{plan}");
            let got = Bound::new(class, &plan, &case).run();
            answer.check(&got).unwrap_or_else(|error| panic!("{class:?} {algorithm:?}: {error}"));
        }
    }
}

#[test]
fn long_sequences_take_the_memory_of_q_k_v_and_out_only() {
    let len = if support::small() { 8192 } else { 65_536 };
    let shape = Shape::self_attention(1, 1, len, 64);
    for mask in [Mask::FULL, Mask::CAUSAL, Mask::window(63)] {
        let problem = Problem::new(shape).mask(mask);
        for class in CLASSES {
            let plan = GPU.attention(class).plan(&problem).expect("a plan");
            assert_eq!(plan.workspace_bytes(), 0, "{plan}");
            assert_eq!(plan.kernels().count(), 1, "{plan}");
        }
    }
    let case = Case::new("long", Problem::new(shape).mask(Mask::window(63)).with_lse()).sharp(8.0);
    let rows = sampled(&shape, 1000);
    let answer = Answer::for_rows(case.to_string(), &case.problem, &case.tensors(0), &rows);
    for class in classes() {
        let plan = GPU.attention(class).plan(&case.problem).expect("a plan");
        assert_eq!(plan.workspace_bytes(), 0, "{plan}");
        let got = Bound::new(class, &plan, &case).run();
        answer.check(&got).unwrap_or_else(|error| panic!("{class:?}: {error}"));
    }
}

#[test]
fn no_workgroup_walks_a_million_keys() {
    // Each plan's kernels by their names, on a device that binds as much as there is.
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 1 << 31,
        max_buffer_size: 1 << 31,
        ..wgpu::Limits::default()
    };
    let mut capabilities = Capabilities::portable();
    capabilities.limits = limits;
    let kernels = |class, algorithm, mask, keys| {
        let problem = Problem::new(Shape::cross_attention(1, 1, 64, keys, 64)).mask(mask);
        let capabilities = capabilities.clone().with_class(class);
        let plan = Plan::new(&problem, &capabilities, algorithm).expect("a plan");
        plan.kernels().collect::<Vec<_>>()
    };
    for class in CLASSES {
        let fused = |mask, keys| kernels(class, Algorithm::Flash, mask, keys);
        let staged = |mask, keys| kernels(class, Algorithm::Staged, mask, keys);
        assert_eq!(fused(Mask::FULL, 100_000).len(), 1, "{class:?}");
        assert_eq!(staged(Mask::FULL, 100_000).len(), 3, "{class:?}");
        for mask in [Mask::FULL, Mask::CAUSAL, Mask::window(900_000)] {
            assert!(fused(mask, 3_000_000).len() > 3, "{class:?}");
            assert!(staged(mask, 3_000_000).len() > 3, "{class:?}");
        }
        // Of these it sees few.
        assert_eq!(fused(Mask::window(4000), 3_000_000).len(), 1, "{class:?}");
    }

    let keys = if support::small() { 5000 } else { 440_000 };
    let shape = Shape::cross_attention(1, 1, 3, keys, 32);
    let case = Case::new("very long", Problem::new(shape).with_lse());
    let rows = sampled(&shape, 3);
    let answer = Answer::for_rows(case.to_string(), &case.problem, &case.tensors(0), &rows);
    let attention = GPU.attention(DeviceClass::Software);
    let plan = attention.plan_with(&case.problem, Algorithm::Flash).expect("a plan");
    assert_eq!(plan.kernels().any(|name| name == "merge"), !support::small(), "{plan}");
    let got = Bound::new(DeviceClass::Software, &plan, &case).run();
    answer.check(&got).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn tiles_that_nothing_sees_cost_nothing() {
    // Several of the largest blocks of rows.
    let len: u32 = 1024;
    let shape = Shape::self_attention(1, 1, len, 32);
    let time = |class, algorithm, mask: Mask, runs: u32| -> Duration {
        let case = Case::new("time", Problem::new(shape).mask(mask).with_lse());
        let plan = GPU.attention(class).plan_with(&case.problem, algorithm).expect("a plan");
        let bound = Bound::new(class, &plan, &case);
        let run = || {
            let start = Instant::now();
            GPU.run(&[&bound.dispatch]);
            start.elapsed()
        };
        (0..runs).map(|_| run()).min().expect("a run")
    };
    // The last rows of the second see the first keys.
    let edge = i32::try_from(len / 32).expect("small") - i32::try_from(len).expect("small");
    for class in classes() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            // All pairs but one: the same kernels.
            let full = time(class, algorithm, Mask::band(None, Some(len - 2)), 1);
            for mask in [Mask::window(15), Mask::CAUSAL.along(Diagonal::Offset(edge))] {
                let few = time(class, algorithm, mask, 4);
                assert!(few * 2 < full, "{class:?} {algorithm:?} {mask:?}: {few:?}, {full:?}");
            }
        }
    }
}

#[test]
fn a_device_with_one_mebibyte_a_binding_takes_larger_tensors_in_parts() {
    let gpu = Gpu::new(|limits| limits.max_storage_buffer_binding_size = 1 << 20);
    // 1,152,000 bytes each, and scores of 324 MB, of which a row sees 64 keys.
    let problem =
        Problem::new(Shape::self_attention(1, 1, 9000, 32)).mask(Mask::window(63)).with_lse();
    let case = Case::new("one mebibyte", problem.clone()).sharp(8.0);
    let (inputs, answer) = (case.tensors(0), Answer::of(&case));
    for class in classes() {
        for (algorithm, kernel) in [(Algorithm::Staged, "values"), (Algorithm::Flash, "merge")] {
            let attention = gpu.attention(class);
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            assert!(plan.kernels().filter(|name| *name == kernel).count() > 1, "{plan}");
            let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|data| gpu.input(data));
            let (out, lse) = (gpu.output(9000 * 32), gpu.output(9000));
            let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
            let dispatch = attention.bind(&plan, &tensors.lse(lse.slice(..))).expect("buffers");
            gpu.run(&[&dispatch]);
            let got =
                Got { out: gpu.read(&out), lse: Some(gpu.read(&lse)), weights: None, scores: None };
            answer.check(&got).unwrap_or_else(|error| panic!("{class:?} {algorithm:?}: {error}"));
        }
    }
}
