//! The whole path of the host on wgpu's no-op device: wgpu validates every call, and nothing is computed.

#![cfg(feature = "cpu")]

use std::fmt::Debug;
use wgpu_attention::{
    Algorithm, Attention, BindError, Capabilities, Checks, DeviceClass, Diagonal, Dispatch,
    Download, DownloadError, Error, Layout, Mask, MaskFormat, Pairs, Plan, PlanError, Problem,
    ProblemError, Runner, SelfAttention, Shape, Strides, Tensors,
};

const CLASSES: [DeviceClass; 3] =
    [DeviceClass::Hardware, DeviceClass::Apple, DeviceClass::Software];

/// Larger than any operand here.
const BUFFER_BYTES: u64 = 1 << 18;

struct Host {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Host {
    fn new() -> Self {
        let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
        Self { device, queue }
    }

    fn attention(&self, class: DeviceClass) -> Attention {
        Attention::new(&self.device).with_class(class)
    }

    fn buffer(&self, size: u64) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    }

    fn buffers<const N: usize>(&self) -> [wgpu::Buffer; N] {
        std::array::from_fn(|_| self.buffer(BUFFER_BYTES))
    }

    /// What `act` gives, unless wgpu finds fault with a call.
    fn validated<T>(&self, what: &dyn Debug, act: impl FnOnce() -> T) -> T {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let result = act();
        if let Some(error) = pollster::block_on(scope.pop()) {
            panic!("{error}: {what:?}");
        }
        result
    }

    /// Binds, encodes, submits, and reads `result` back.
    fn run(
        &self,
        attention: &Attention,
        plan: &Plan,
        tensors: &Tensors<'_>,
        result: wgpu::BufferSlice<'_>,
    ) {
        let read: Vec<f32> = self.validated(&(plan, tensors), || {
            let dispatch = attention.bind(plan, tensors).expect("buffers that fit");
            assert!(dispatch.kernels().eq(plan.kernels()));
            let mut encoder = self.device.create_command_encoder(&Default::default());
            dispatch.encode(&mut encoder);
            let download = Download::encode(&self.device, &mut encoder, result);
            self.queue.submit([encoder.finish()]);
            self.device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
            pollster::block_on(download.read()).expect("data")
        });
        assert_eq!(read.len() as u64 * 4, result.size());
    }

    /// Passes a compute pass to `record`, and submits it.
    fn pass(&self, what: &dyn Debug, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
        self.validated(what, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            record(&mut encoder.begin_compute_pass(&Default::default()));
            self.queue.submit([encoder.finish()]);
        });
    }
}

fn shape() -> Shape {
    Shape::cross_attention(2, 6, 37, 53, 32).with_kv_heads(2).with_v_head_dim(16)
}

fn masks() -> [Mask; 6] {
    [
        Mask::FULL,
        Mask::CAUSAL,
        Mask::window(7),
        Mask::band(Some(3), Some(5)),
        Mask::CAUSAL.along(Diagonal::TopLeft),
        Mask::CAUSAL.along(Diagonal::Offset(-9)),
    ]
}

fn problems() -> Vec<Problem> {
    let gapped = |len: u64, dim: u64| Strides { batch: 8 * len * dim, head: len * dim, row: dim };
    let mut problems = Vec::new();
    for mask in masks() {
        let problem = Problem::new(shape()).mask(mask);
        problems.extend([
            problem.clone(),
            problem.clone().with_lse(),
            problem.clone().layout(Layout::Bshd),
            problem.clone().layout(Layout::PackedQkv).with_lse(),
            problem
                .clone()
                .q_strides(gapped(39, 33))
                .k_strides(gapped(53, 35))
                .out_strides(gapped(37, 19)),
            problem.clone().k_strides(Strides { batch: 0, head: 0, row: 0 }),
        ]);
    }
    problems
}

#[test]
fn every_mask_algorithm_and_layout_passes_validation() {
    let host = Host::new();
    let [q, k, v, out, lse] = host.buffers();
    for class in CLASSES {
        let attention = host.attention(class);
        for problem in problems() {
            for algorithm in [Algorithm::Auto, Algorithm::Staged, Algorithm::Flash] {
                let plan = attention.plan_with(&problem, algorithm).expect("a plan");
                let slices = [&q, &k, &v, &out].map(|buffer| buffer.slice(..));
                let mut tensors = Tensors::new(slices[0], slices[1], slices[2], slices[3]);
                if problem.lse {
                    tensors = tensors.lse(lse.slice(..));
                }
                host.run(&attention, &plan, &tensors, out.slice(..));
            }
        }
    }
}

#[test]
fn wgpu_checks_may_be_on() {
    let host = Host::new();
    let [q, k, v, out, lse] = host.buffers();
    let attention = host.attention(DeviceClass::Hardware).with_checks(Checks::On);
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    for algorithm in [Algorithm::Staged, Algorithm::Flash] {
        let problem = Problem::new(shape()).with_lse();
        let plan = attention.plan_with(&problem, algorithm).expect("a plan");
        host.validated(&plan, || attention.compile([&plan]));
        host.run(&attention, &plan, &tensors.clone().lse(lse.slice(..)), out.slice(..));
    }
}

#[test]
fn weights_pass_validation() {
    let host = Host::new();
    let [q, k, v, out, weights] = host.buffers();
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let tensors = tensors.weights(weights.slice(..));
    for class in CLASSES {
        for mask in masks() {
            let attention = host.attention(class);
            let problem = Problem::new(shape()).mask(mask).with_weights();
            let plan = attention.plan(&problem).expect("a plan");
            assert_eq!(plan.workspace_bytes(), 0, "the scores are the caller's");
            host.run(&attention, &plan, &tensors, weights.slice(..));
        }
    }
}

#[test]
fn slices_may_start_at_any_element() {
    let host = Host::new();
    let [q, k, v, out, lse] = host.buffers();
    for class in CLASSES {
        let attention = host.attention(class);
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let problem = Problem::new(shape()).with_lse();
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            for first in [4, 12, 20, 28, 60, 252, 260] {
                let at = |buffer| wgpu::Buffer::slice(buffer, first..);
                let tensors = Tensors::new(at(&q), at(&k), at(&v), at(&out)).lse(at(&lse));
                host.run(&attention, &plan, &tensors, at(&out));
                let mixed = tensors.q(q.slice(..)).out(out.slice(..));
                host.run(&attention, &plan, &mixed, out.slice(..));
            }
        }
    }
}

#[test]
fn inputs_outputs_and_workspace_may_share_a_buffer() {
    let host = Host::new();
    let shared = host.buffer(6 * BUFFER_BYTES);
    for class in CLASSES {
        let attention = host.attention(class);
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            let problem = Problem::new(shape()).with_lse();
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            for first in [0, 4, 16] {
                let part = |i: u64| shared.slice(i * BUFFER_BYTES + first..(i + 1) * BUFFER_BYTES);
                let tensors = Tensors::new(part(0), part(1), part(2), part(3)).lse(part(4));
                host.run(&attention, &plan, &tensors, part(3));
                host.run(&attention, &plan, &tensors.workspace(part(5)), part(3));
            }
        }
    }
}

#[test]
fn a_workspace_of_exactly_workspace_bytes_serves() {
    let host = Host::new();
    let [q, k, v, out] = host.buffers();
    let attention = host.attention(DeviceClass::Hardware);
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let problem = Problem::new(shape());
    let flash = attention.plan_with(&problem, Algorithm::Flash).expect("a plan");
    assert_eq!(flash.workspace_bytes(), 0);
    let staged = attention.plan_with(&problem, Algorithm::Staged).expect("a plan");
    // Rows of 53 scores start at multiples of 4 elements, the region ends at one of 256 bytes.
    let scores_bytes: u64 = 2 * 6 * 37 * 56 * 4;
    assert_eq!(staged.workspace_bytes(), scores_bytes.next_multiple_of(256));
    let workspace = host.buffer(staged.workspace_bytes());
    host.run(&attention, &staged, &tensors.workspace(workspace.slice(..)), out.slice(..));
}

#[test]
fn layers_pass_validation() {
    let host = Host::new();
    let [x, context, w, w_o, b, out, weights] = host.buffers();
    let layer = SelfAttention::new(2, 19, 48, 4).expect("even heads").mask(Mask::CAUSAL);
    let grouped = layer.with_heads(6, 2, 13, 7).with_out_dim(29);
    let layers = [layer, grouped].into_iter().flat_map(|layer| {
        let cross = layer.with_context(31, 21);
        [layer, layer.packed(), cross, layer.with_weights(), cross.with_weights()]
    });
    for layer in layers.flat_map(|layer| [layer, layer.with_biases()]) {
        let mut tensors = Tensors::default().x(x.slice(..)).w_o(w_o.slice(..)).out(out.slice(..));
        tensors = match (layer.packed, layer.biases) {
            (true, false) => tensors.w_qkv(w.slice(..)),
            (true, true) => tensors.w_qkv(w.slice(..)).b_qkv(b.slice(..)),
            (false, false) => tensors.w_q(w.slice(..)).w_k(w.slice(..)).w_v(w.slice(..)),
            (false, true) => (tensors.w_q(w.slice(..)).w_k(w.slice(..)).w_v(w.slice(..)))
                .b_q(b.slice(..))
                .b_k(b.slice(..))
                .b_v(b.slice(..)),
        };
        if layer.biases {
            tensors = tensors.b_o(b.slice(..));
        }
        if layer.context_dim.is_some() {
            tensors = tensors.context(context.slice(..));
        }
        if layer.weights {
            tensors = tensors.weights(weights.slice(..));
        }
        for class in CLASSES {
            let attention = host.attention(class);
            let plan = attention.plan_layer(&layer).expect("a plan");
            assert_eq!(plan.kernels().last(), Some("linear"), "{layer:?}");
            host.run(&attention, &plan, &tensors, out.slice(..));
        }
    }
}

#[test]
fn operands_without_elements_may_be_left_out() {
    let host = Host::new();
    let [q, out, lse] = host.buffers();
    let attention = host.attention(DeviceClass::Hardware);
    let nothing = Tensors::default();
    for algorithm in [Algorithm::Staged, Algorithm::Flash] {
        let shapes = [(0, 37, 53), (2, 0, 53)];
        for (batch, q_len, kv_len) in shapes {
            let shape = Shape::cross_attention(batch, 6, q_len, kv_len, 32).with_kv_heads(2);
            let problem = Problem::new(shape).with_lse();
            let plan = attention.plan_with(&problem, algorithm).expect("a plan");
            assert_eq!(plan.kernels().count(), 0);
            host.run(&attention, &plan, &nothing, out.slice(..));
            host.run(&attention, &plan, &nothing.clone().q(q.slice(..0)), out.slice(..));
        }
        let problem = Problem::new(Shape::cross_attention(2, 6, 37, 0, 32)).with_lse();
        let plan = attention.plan_with(&problem, algorithm).expect("a plan");
        assert!(plan.kernels().eq(["fill"]), "{plan}");
        let tensors = nothing.clone().out(out.slice(..)).lse(lse.slice(..));
        host.run(&attention, &plan, &tensors, out.slice(..));
    }
    let layer = SelfAttention::new(0, 19, 48, 4).expect("even heads");
    let plan = attention.plan_layer(&layer).expect("a plan");
    host.run(&attention, &plan, &nothing, out.slice(..));
}

#[test]
fn a_dispatch_records_into_an_open_pass_whole_or_by_step() {
    let host = Host::new();
    let [q, k, v, out] = host.buffers();
    let attention = host.attention(DeviceClass::Hardware);
    let plan = attention.plan_with(&Problem::new(shape()), Algorithm::Staged).expect("a plan");
    let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
    let dispatch = attention.bind(&plan, &tensors).expect("buffers that fit");
    host.pass(&plan, |pass| {
        dispatch.record(pass);
        dispatch.clone().record(pass);
    });
    host.pass(&plan, |pass| {
        for index in 0..dispatch.kernels().count() {
            dispatch.record_step(index, pass);
        }
    });
}

#[test]
fn threads_bind_one_plan_at_once() {
    let host = Host::new();
    let attention = host.attention(DeviceClass::Hardware);
    let plan = attention.plan(&Problem::new(shape())).expect("a plan");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let [q, k, v, out] = host.buffers();
                let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
                host.validated(&plan, || {
                    let dispatch = attention.clone().bind(&plan, &tensors).expect("buffers");
                    let mut encoder = host.device.create_command_encoder(&Default::default());
                    dispatch.encode(&mut encoder);
                    host.queue.submit([encoder.finish()]);
                });
            });
        }
    });
}

#[test]
fn a_plan_names_its_kernels() {
    let kernels = |plan: &Plan| plan.kernels().collect::<Vec<_>>();
    let plan = |algorithm, class| {
        let capabilities = Capabilities::portable().with_class(class);
        Plan::new(&Problem::new(shape()), &capabilities, algorithm).expect("a plan")
    };
    for class in CLASSES {
        let staged = plan(Algorithm::Staged, class);
        assert_eq!(kernels(&staged), ["scores", "softmax", "values"]);
        assert_eq!(plan(Algorithm::Auto, class), plan(Algorithm::Flash, class));
    }
    assert_eq!(kernels(&plan(Algorithm::Flash, DeviceClass::Hardware)), ["flash_tile"]);
    assert_eq!(kernels(&plan(Algorithm::Flash, DeviceClass::Software)), ["flash_lane"]);

    // 12 heads of 37 rows and 53 keys, 2 (32 + 16) operations a pair; 12 heads take one tile of 64 x 64 each,
    // and the softmax one workgroup a row.
    assert_eq!(
        plan(Algorithm::Staged, DeviceClass::Hardware).to_string(),
        "steps: 3, 0.002 GFLOP, 0.000126 GB, workspace 99584 bytes\n\
         bound by memory: 17.9 FLOP per byte, the roofs of Hardware devices meet at 55.5\n  \
         scores 12 x 1 workgroups of 256\n  \
         softmax 444 x 1 workgroups of 64\n  \
         values 12 x 1 workgroups of 256\n"
    );
}

#[test]
fn a_download_that_cannot_be_read_says_so() {
    let host = Host::new();
    let buffer = host.buffer(12);
    let encode = |encoder: &mut _| Download::encode(&host.device, encoder, buffer.slice(..));
    let mut encoder = host.device.create_command_encoder(&Default::default());
    let [whole, longer, sizeless] = [(); 3].map(|()| encode(&mut encoder));
    host.queue.submit([encoder.finish()]);
    host.device.poll(wgpu::PollType::wait_indefinitely()).expect("a device");
    assert_eq!(pollster::block_on(whole.read::<[f32; 3]>()), Ok(vec![[0.0; 3]]));
    let element = |element| DownloadError::Element { bytes: 12, element };
    assert_eq!(pollster::block_on(longer.read::<f64>()), Err(element(8)));
    assert_eq!(pollster::block_on(sizeless.read::<()>()), Err(element(0)));

    let mut dropped = host.device.create_command_encoder(&Default::default());
    let download = encode(&mut dropped);
    drop(dropped);
    assert_eq!(pollster::block_on(download.read::<f32>()), Err(DownloadError::NotSubmitted));
}

#[test]
#[allow(clippy::single_range_in_vec_init, reason = "one query has one range")]
fn masks_are_the_bands_they_are_documented_to_be() {
    let ranges = |mask: Mask, q_len, kv_len| {
        let diagonal = mask.diagonal(q_len, kv_len).expect("given");
        (0..q_len).map(|q_pos| mask.kv_range(kv_len, diagonal, q_pos)).collect::<Vec<_>>()
    };
    let top_left = |mask: Mask| mask.along(Diagonal::TopLeft);
    assert_eq!(ranges(Mask::FULL, 3, 5), [0..5, 0..5, 0..5]);
    assert_eq!(ranges(top_left(Mask::FULL), 3, 5), [0..5, 0..5, 0..5]);
    // The last query sees the last key, or query i sees key i.
    assert_eq!(ranges(Mask::CAUSAL, 3, 5), [0..3, 0..4, 0..5]);
    assert_eq!(ranges(top_left(Mask::CAUSAL), 3, 5), [0..1, 0..2, 0..3]);
    assert_eq!(ranges(Mask::CAUSAL.along(Diagonal::Offset(1)), 3, 5), [0..2, 0..3, 0..4]);
    assert_eq!(ranges(Mask::CAUSAL, 1, 5), [0..5], "one query sees all that came before");
    // Both ends of a band are inclusive.
    assert_eq!(ranges(Mask::window(1), 3, 5), [1..3, 2..4, 3..5]);
    assert_eq!(ranges(top_left(Mask::window(1)), 3, 5), [0..1, 0..2, 1..3]);
    assert_eq!(ranges(Mask::window(0), 3, 3), [0..1, 1..2, 2..3]);
    assert_eq!(ranges(Mask::band(Some(1), Some(1)), 4, 4), [0..2, 0..3, 1..4, 2..4]);
    assert_eq!(ranges(Mask::band(None, Some(1)), 3, 3), [0..2, 0..3, 0..3]);
    assert_eq!(ranges(Mask::band(Some(1), None), 3, 3), [0..3, 0..3, 1..3]);
    assert_eq!(Mask::from_sliding_window(4), Ok(Mask::window(3)), "the token itself counts");
    // Rows without a key are empty, wherever the diagonal runs.
    assert_eq!(ranges(Mask::CAUSAL, 4, 2), [0..0, 0..0, 0..1, 0..2]);
    for (mask, offset) in [(Mask::CAUSAL, i32::MIN), (Mask::window(2), i32::MAX)] {
        let mask = mask.along(Diagonal::Offset(offset));
        assert!(ranges(mask, 3, 5).iter().all(std::ops::Range::is_empty), "{mask:?}");
    }
    assert_eq!(ranges(Mask::band(Some(u32::MAX), Some(u32::MAX)), 2, 2), [0..2, 0..2]);
}

/// Compiles only if they may be shared between threads.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Attention>();
    shared::<Plan>();
    shared::<Dispatch>();
    shared::<Runner>();
    shared::<ProblemError>();
    shared::<PlanError>();
    shared::<BindError>();
    shared::<DownloadError>();
    shared::<Error>();
};

/// What no kernel binds may be as far apart as it likes.
#[test]
fn strides_of_tensors_that_are_not_bound_do_not_matter() {
    let far = Strides { batch: 1 << 40, head: 1 << 36, row: 8 };
    let empty = Problem::new(Shape::cross_attention(2, 1, 4, 0, 8));
    let pairs = Pairs::new([2, 1, 4, 0]).with_strides([1 << 40, 1, 1, 1]);
    for problem in [
        empty.clone().k_strides(far),
        empty.clone().q_strides(far),
        empty.with_boolean_mask(MaskFormat::Bytes, pairs),
    ] {
        let plan = Plan::new(&problem, &Capabilities::portable(), Algorithm::Auto).expect("a plan");
        assert_eq!(plan.kernels().collect::<Vec<_>>(), ["fill"]);
    }
    let host = Host::new();
    let large = Problem::new(Shape::cross_attention(2, 64, 1 << 20, 1024, 128))
        .with_boolean_mask(MaskFormat::Bytes, Pairs::new([1, 1, 1, 1024]));
    assert!(host.attention(DeviceClass::Hardware).plan_block_mask(&large).is_ok());
}

#[test]
fn parts_of_every_size_pass_validation() {
    let host = Host::new();
    let shape = Shape::cross_attention(2, 4, 45, 70, 16).with_kv_heads(2);
    let problem = Problem::new(shape).mask(Mask::CAUSAL).with_lse();
    for (class, algorithm) in CLASSES
        .into_iter()
        .flat_map(|class| [(class, Algorithm::Staged), (class, Algorithm::Flash)])
    {
        let attention = host.attention(class);
        let plan = attention.plan_with(&problem, algorithm).expect("a plan");
        let [q, k, v, out, lse] = host.buffers();
        let tensors = Tensors::new(q.slice(..), k.slice(..), v.slice(..), out.slice(..));
        let dispatch = attention.bind(&plan, &tensors.lse(lse.slice(..))).expect("buffers");
        for limit in [0, dispatch.work() / 5, u64::MAX] {
            let chunks = host.validated(&plan, || dispatch.chunks(limit).collect::<Vec<_>>());
            assert_eq!(chunks.len() == 1, limit == u64::MAX, "{plan}");
            host.pass(&plan, |pass| chunks.iter().for_each(|chunk| chunk.record(pass)));
            let last = chunks.last().expect("a part").progress();
            assert_eq!((last.done, last.total), (dispatch.work(), dispatch.work()));
        }
    }
}

#[test]
fn nothing_to_do_has_no_parts() {
    let host = Host::new();
    let attention = host.attention(DeviceClass::Hardware);
    let problem = Problem::new(Shape::cross_attention(0, 2, 3, 4, 8));
    let plan = attention.plan(&problem).expect("a plan");
    let dispatch = attention.bind(&plan, &Tensors::default()).expect("no buffers");
    assert_eq!(dispatch.work(), 0);
    let mut chunks = dispatch.chunks(0);
    assert!(chunks.next().is_none());
    assert!(chunks.progress().share() >= 1.0);
}

#[test]
fn every_kernel_can_be_cut() {
    for class in CLASSES {
        for kernel in wgpu_attention::kernels::all(&Capabilities::portable().with_class(class)) {
            for name in ["workgroup_first", "workgroups", "grid_width"] {
                let has = kernel.fields.iter().any(|(field, ..)| *field == name);
                assert!(has, "{} has no {name}", kernel.name);
            }
            let text = kernel.wgsl();
            assert!(text.contains(" >= params.workgroups { return; }"), "{}", kernel.name);
            assert!(text.contains("params.workgroup_first + "), "{}", kernel.name);
        }
    }
}
