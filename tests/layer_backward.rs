//! Gradients of whole layers against the formula in f64.

#![cfg(feature = "cpu")]

use crate::device;
use crate::device::{Gpu, bits, classes};
use crate::support;
use crate::support::judge;
use crate::support::layer::{Data, Gradients, formula, gradients, named};
use crate::support::random::Random;
use crate::support::target::runner;
use wgpu_attention::{
    Algorithm, Attention, BindError, DeviceClass, Error, LayerBackwardInputs, LayerGradients,
    LayerInputs, Mask, Operand, PlanError, ProblemError, Runner, SelfAttention, Tensors, wgpu,
};

/// Gradients of the output, of a layer's size.
fn d_out(layer: &SelfAttention, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed ^ 0xd0);
    let rows = layer.shape.batch * layer.shape.q_len;
    (0..rows * layer.out_dim).map(|_| random.unit()).collect()
}

/// The right gradients, and how far off each may be.
struct Answer {
    want: Vec<(&'static str, Vec<f64>)>,
    bounds: Vec<f64>,
}

impl Answer {
    fn of(layer: &SelfAttention, data: &Data, d_out: &[f32]) -> Self {
        // The largest error of few elements is a matter of luck.
        Self::drawn(layer, data, d_out, 4)
    }

    /// By the errors of so many draws.
    fn drawn(layer: &SelfAttention, data: &Data, d_out: &[f32], draws: u64) -> Self {
        let want = gradients::<f64>(layer, data, d_out).named(layer);
        let mut off = vec![0.0_f64; want.len()];
        for seed in 1..=draws {
            let (data, d_out) = (Data::new(layer, seed), self::d_out(layer, seed));
            let exact = gradients::<f64>(layer, &data, &d_out).named(layer);
            let plain = gradients::<f32>(layer, &data, &d_out).named(layer);
            for (most, ((_, exact), (_, plain))) in off.iter_mut().zip(exact.iter().zip(&plain)) {
                *most = exact.iter().zip(plain).fold(*most, |most, (a, b)| most.max((a - b).abs()));
            }
        }
        let bounds: Vec<f64> = off.into_iter().map(|off| 2.0 * off + 1e-6).collect();
        // What is wrong by a thousandth is seen.
        for ((name, want), bound) in want.iter().zip(&bounds) {
            let most = want.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            assert!(most < 0.1 || *bound < 1e-3 * most, "{name}: {bound:e}, {most:e}: {layer:?}");
        }
        Self { want, bounds }
    }

    fn check(&self, got: &LayerGradients, what: &str) {
        for ((name, want), bound) in self.want.iter().zip(&self.bounds) {
            let got = named(got, name);
            assert_eq!(got.len(), want.len(), "{name}: {what}");
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let off = judge::error(*got, *want);
                let far = format!("d_{name}: {got} at {i} is not {want}: {off:e} over {bound:e}");
                assert!(off <= *bound, "{far}: {what}");
            }
        }
    }
}

/// On every device class, where drivers are slow on one, and without a GPU, from what the layer saved and without.
fn every_way(
    layer: &SelfAttention,
    inputs: &LayerInputs<'_>,
    d_out: &[f32],
    check: impl Fn(&LayerGradients, &str),
) {
    let cpu = Runner::cpu();
    let runners = classes().map(|class| (format!("{class:?}"), runner(class)));
    for (name, runner) in runners.chain([("CPU".to_owned(), &cpu)]) {
        for layer in [*layer, layer.with_saved()] {
            let what = format!("{name} {layer:?}");
            let run = || {
                let mut given = LayerBackwardInputs { d_out, ..Default::default() };
                let outputs = runner.layer(&layer, Algorithm::Auto, inputs)?;
                let saved = outputs.saved.unwrap_or_default();
                given.saved = &saved;
                runner.layer_backward(&layer.backward(), inputs, &given)
            };
            check(&run().unwrap_or_else(|error: Error| panic!("{what}: {error}")), &what);
        }
    }
}

fn is_right(layer: SelfAttention) {
    let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
    let answer = Answer::of(&layer, &data, &d_out);
    every_way(&layer, &data.inputs(layer.packed), &d_out, |got, what| answer.check(got, what));
}

/// `len` rows of 2 sequences, 3 heads 16 wide.
fn usual(len: u32) -> SelfAttention {
    SelfAttention::new(2, len, 48, 3).expect("an even split")
}

/// Where a tensor is.
type Place = fn(&mut Data) -> &mut Vec<f32>;

#[test]
fn the_formula_agrees_with_central_differences() {
    let layer = SelfAttention::new(2, 5, 6, 2).expect("an even split").with_biases();
    let grouped = layer.with_heads(4, 2, 3, 2).with_out_dim(5).mask(Mask::CAUSAL);
    for layer in [
        layer,
        grouped,
        grouped.mask(Mask::window(2)).scale(-0.7),
        grouped.with_context(4, 3),
        grouped.with_dropout(0.4),
    ] {
        let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
        let loss = |data: &Data| -> f64 {
            let (out, _) = formula::<f64>(&layer, data);
            out.iter().zip(&d_out).map(|(out, d)| out * f64::from(*d)).sum()
        };
        let Gradients { x, context, w, b } = gradients::<f64>(&layer, &data, &d_out);
        let mut tensors: Vec<(&str, Vec<f64>, Place)> =
            vec![("x", x, |data| &mut data.x), ("context", context, |data| &mut data.context)];
        let [w_q, w_k, w_v, w_o] = w;
        let [b_q, b_k, b_v, b_o] = b;
        tensors.push(("w_q", w_q, |data| &mut data.w[0]));
        tensors.push(("w_k", w_k, |data| &mut data.w[1]));
        tensors.push(("w_v", w_v, |data| &mut data.w[2]));
        tensors.push(("w_o", w_o, |data| &mut data.w[3]));
        tensors.push(("b_q", b_q, |data| &mut data.b[0]));
        tensors.push(("b_k", b_k, |data| &mut data.b[1]));
        tensors.push(("b_v", b_v, |data| &mut data.b[2]));
        tensors.push(("b_o", b_o, |data| &mut data.b[3]));
        for (name, gradient, of) in tensors {
            for (i, got) in gradient.iter().enumerate() {
                let [(low, left), (high, right)] = [-1.0, 1.0].map(|side| {
                    let mut moved = data.clone();
                    let element = &mut of(&mut moved)[i];
                    *element += side / 1024.0;
                    (f64::from(*element), loss(&moved))
                });
                let slope = (right - left) / (high - low);
                let off = (got - slope).abs();
                assert!(
                    off <= 1e-5 * (1.0 + slope.abs()),
                    "d_{name} {i}: {got}, {slope}: {layer:?}"
                );
            }
        }
    }
}

#[test]
fn separate_and_packed_weights_with_and_without_biases() {
    for layer in [usual(37), usual(37).packed()] {
        is_right(layer);
        is_right(layer.with_biases().mask(Mask::CAUSAL));
    }
}

#[test]
fn grouped_heads_and_other_widths() {
    let grouped = usual(67).mask(Mask::CAUSAL).with_biases().with_heads(6, 2, 16, 16);
    is_right(grouped);
    is_right(grouped.packed().with_out_dim(50));
    if !support::small() {
        // Nothing is a multiple of 4.
        let odd = SelfAttention::new(3, 41, 35, 5).expect("an even split").with_heads(6, 3, 7, 9);
        let odd = odd.with_out_dim(29).mask(Mask::window(5)).scale(-0.3);
        is_right(odd.packed());
        is_right(odd.with_biases());
    }
}

#[test]
fn cross_attention_to_a_context_of_another_width_and_length() {
    let cross = usual(37).with_heads(4, 2, 16, 16).with_context(53, 64).with_biases();
    is_right(cross);
    is_right(cross.mask(Mask::CAUSAL).with_out_dim(40));
    is_right(usual(70).with_context(1, 96).mask(Mask::CAUSAL));
}

#[test]
fn layers_that_drop_weights() {
    let causal = usual(37).mask(Mask::CAUSAL).with_biases();
    is_right(causal.with_dropout(0.3));
    is_right(causal.packed().with_dropout(0.5));
    if !support::small() {
        is_right(usual(67).with_heads(6, 2, 16, 16).with_context(53, 64).with_dropout(0.1));
    }
}

#[test]
fn one_row_of_one_sequence() {
    is_right(SelfAttention::new(1, 1, 8, 2).expect("an even split").with_biases());
}

#[test]
fn without_context_only_the_last_bias_has_a_gradient() {
    let layer = usual(37).with_context(0, 64).with_biases();
    let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
    let answer = Answer::of(&layer, &data, &d_out);
    every_way(&layer, &data.inputs(false), &d_out, |got, what| {
        answer.check(got, what);
        for name in ["x", "w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v"] {
            assert!(named(got, name).iter().all(|x| *x == 0.0), "{name}: {what}");
        }
    });
}

#[test]
fn no_sequence_and_no_row_give_zeros() {
    for (batch, len) in [(0, 37), (2, 0)] {
        let layer = SelfAttention::new(batch, len, 96, 3).expect("an even split").with_biases();
        for layer in [layer, layer.packed(), layer.with_context(5, 64)] {
            let data = Data::new(&layer, 1);
            let answer = Answer::of(&layer, &data, &[]);
            every_way(&layer, &data.inputs(layer.packed), &[], |got, what| {
                answer.check(got, what);
                for (name, want) in &answer.want {
                    let zeros = named(got, name).iter().all(|x| *x == 0.0);
                    assert!(zeros && want.iter().all(|x| *x == 0.0), "{name}: {what}");
                }
            });
        }
    }
}

/// A layer's tensors in buffers of the test's own, each `gap` elements past the start of its own.
struct Buffers {
    inputs: Vec<(Give, wgpu::Buffer)>,
    outputs: Vec<(&'static str, usize, Give, wgpu::Buffer)>,
    gap: u64,
}

type Give = for<'a> fn(Tensors<'a>, wgpu::BufferSlice<'a>) -> Tensors<'a>;

/// A tensor's name and data, and how it and its gradient are given.
macro_rules! tensor {
    ($name:ident, $gradient:ident) => {
        (
            stringify!($name),
            $name,
            |tensors, slice| tensors.$name(slice),
            |tensors, slice| tensors.$gradient(slice),
        )
    };
}

impl Buffers {
    fn new(gpu: &Gpu, inputs: &LayerInputs<'_>, d_out: &[f32], gap: usize) -> Self {
        let LayerInputs { x, context, w_q, w_k, w_v, w_qkv, w_o, b_q, b_k, b_v, b_qkv, b_o, seed } =
            *inputs;
        let all: [(&'static str, &[f32], Give, Give); 12] = [
            tensor!(x, d_x),
            tensor!(context, d_context),
            tensor!(w_q, d_w_q),
            tensor!(w_k, d_w_k),
            tensor!(w_v, d_w_v),
            tensor!(w_qkv, d_w_qkv),
            tensor!(w_o, d_w_o),
            tensor!(b_q, d_b_q),
            tensor!(b_k, d_b_k),
            tensor!(b_v, d_b_v),
            tensor!(b_qkv, d_b_qkv),
            tensor!(b_o, d_b_o),
        ];
        let shifted = |data: &[f32]| [&vec![f32::NAN; gap], data].concat();
        let mut buffers = Self { inputs: Vec::new(), outputs: Vec::new(), gap: 4 * gap as u64 };
        buffers.inputs.push((|tensors, slice| tensors.d_out(slice), gpu.input(&shifted(d_out))));
        if let Some(seed) = seed {
            #[allow(clippy::cast_possible_truncation, reason = "the halves of a seed")]
            let words = [seed as u32, (seed >> 32) as u32].map(f32::from_bits);
            let give: Give = |tensors, slice| tensors.seed(slice);
            buffers.inputs.push((give, gpu.input(&shifted(&words))));
        }
        for (name, data, give, give_gradient) in
            all.into_iter().filter(|(_, data, ..)| !data.is_empty())
        {
            buffers.inputs.push((give, gpu.input(&shifted(data))));
            let output = gpu.output(data.len() + 2 * gap);
            buffers.outputs.push((name, data.len(), give_gradient, output));
        }
        buffers
    }

    fn tensors(&self) -> Tensors<'_> {
        let inputs = self.inputs.iter().map(|(give, buffer)| (*give, buffer));
        let outputs = self.outputs.iter().map(|(_, _, give, buffer)| (*give, buffer));
        inputs.chain(outputs).fold(Tensors::default(), |tensors, (give, buffer)| {
            give(tensors, buffer.slice(self.gap..))
        })
    }

    /// What was written; nothing before and behind it.
    fn read(&self, gpu: &Gpu) -> LayerGradients {
        let mut gradients = LayerGradients::default();
        for (name, len, _, buffer) in &self.outputs {
            let all = gpu.read(buffer);
            let gap = (self.gap / 4) as usize;
            let poison = |words: &[f32]| words.iter().all(|x| x.to_bits() == device::POISON);
            assert!(poison(&all[..gap]) && poison(&all[gap + len..]), "{name}");
            *support::layer::named_mut(&mut gradients, name) = all[gap..][..*len].to_vec();
        }
        gradients
    }
}

/// Both forms of all kernels, by either way to the gradients of the attention.
fn ways() -> impl Iterator<Item = (DeviceClass, Algorithm)> {
    let both = [Algorithm::Auto, Algorithm::Staged];
    classes().flat_map(move |class| both.map(|algorithm| (class, algorithm)))
}

/// The gradients of a layer in buffers of the test's own; they take more than `least` steps.
fn run(
    gpu: &Gpu,
    (class, algorithm): (DeviceClass, Algorithm),
    layer: &SelfAttention,
    buffers: &Buffers,
    least: usize,
) -> LayerGradients {
    let attention = gpu.attention(class);
    let plan = attention.plan_layer_backward_with(&layer.backward(), algorithm).expect("a plan");
    assert!(plan.kernels().count() > least, "{layer:?}: {plan}");
    gpu.run(&[&attention.bind(&plan, &buffers.tensors()).expect("buffers")]);
    buffers.read(gpu)
}

#[test]
fn more_than_a_binding_holds() {
    // Few, so that little work is cut into many blocks.
    let bytes = if support::small() { 1 << 17 } else { 1 << 18 };
    let gpu = Gpu::new(|limits| limits.max_storage_buffer_binding_size = bytes);
    let rows = u32::try_from(bytes / 384).expect("small");
    let new = |batch, len, dim| {
        let layer = SelfAttention::new(batch, len, dim, dim / 16).expect("an even split");
        layer.with_biases().mask(Mask::CAUSAL)
    };
    let long = new(1, rows + rows / 9, 96).mask(Mask::window(40));
    let side = if support::small() { 192 } else { 288 };
    let wide = new(2, 19, side);
    for layer in
        [long, long.packed(), new(1, 37, 96).with_context(2 * rows, 64), wide, wide.packed()]
    {
        let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
        let answer = Answer::of(&layer, &data, &d_out);
        let buffers = Buffers::new(&gpu, &data.inputs(layer.packed), &d_out, 0);
        for way in ways() {
            let least = if layer.packed { 18 } else { 28 };
            answer.check(&run(&gpu, way, &layer, &buffers, least), &format!("{way:?} {layer:?}"));
        }
    }
}

#[test]
fn a_binding_of_a_mebibyte() {
    let gpu = Gpu::new(|limits| limits.max_storage_buffer_binding_size = 1 << 20);
    let layer = SelfAttention::new(1, 700, 512, 8).expect("an even split");
    let layer = layer.mask(Mask::window(64)).with_heads(8, 2, 64, 64);
    let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
    let answer = Answer::drawn(&layer, &data, &d_out, 1);
    let buffers = Buffers::new(&gpu, &data.inputs(false), &d_out, 0);
    let way = (DeviceClass::Software, Algorithm::Auto);
    answer.check(&run(&gpu, way, &layer, &buffers, 20), &format!("{layer:?}"));
}

#[test]
fn slices_start_anywhere_and_nothing_around_them_is_written() {
    let gpu = Gpu::new(|_| ());
    let dropped = usual(37).mask(Mask::CAUSAL).with_dropout(0.3);
    for layer in
        [usual(37).with_biases(), usual(37).packed(), usual(19).with_context(23, 64), dropped]
    {
        let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
        let answer = Answer::of(&layer, &data, &d_out);
        for way in ways() {
            for gap in [1, 3, 64] {
                let buffers = Buffers::new(&gpu, &data.inputs(layer.packed), &d_out, gap);
                let got = run(&gpu, way, &layer, &buffers, 5);
                answer.check(&got, &format!("{gap} {way:?} {layer:?}"));
            }
        }
    }
}

#[test]
fn the_same_bits_every_time_and_in_parts() {
    let gpu = Gpu::new(|_| ());
    let layer = usual(67).with_biases().mask(Mask::CAUSAL);
    let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
    for way in ways() {
        let buffers = Buffers::new(&gpu, &data.inputs(false), &d_out, 0);
        let all = |gradients: &LayerGradients| {
            let names = buffers.outputs.iter().map(|(name, ..)| *name);
            names.flat_map(|name| bits(named(gradients, name))).collect::<Vec<u32>>()
        };
        let first = all(&run(&gpu, way, &layer, &buffers, 5));
        assert_eq!(all(&run(&gpu, way, &layer, &buffers, 5)), first, "{way:?}");

        let again = Buffers::new(&gpu, &data.inputs(false), &d_out, 0);
        let attention = gpu.attention(way.0);
        let plan = attention.plan_layer_backward_with(&layer.backward(), way.1).expect("a plan");
        let dispatch = attention.bind(&plan, &again.tensors()).expect("buffers");
        let mut parts = 0;
        for chunk in dispatch.chunks(1 << 18) {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            chunk.encode(&mut encoder);
            gpu.queue.submit([encoder.finish()]);
            parts += 1;
        }
        assert!(parts > 20, "{parts}");
        assert_eq!(all(&again.read(&gpu)), first, "in parts: {way:?}");
    }
}

#[test]
fn what_was_saved_is_what_would_be_computed_again() {
    let layer = usual(37).with_biases().with_saved();
    let (data, d_out) = (Data::new(&layer, 1), d_out(&layer, 1));
    let inputs = data.inputs(false);
    for runner in [runner(DeviceClass::Software), &Runner::cpu()] {
        let outputs = runner.layer(&layer, Algorithm::Auto, &inputs).expect("a layer");
        let saved = outputs.saved.expect("asked for");
        let mut plain = layer;
        plain.saved = false;
        let unsaved = runner.layer(&plain, Algorithm::Auto, &inputs).expect("a layer");
        assert_eq!((outputs.out, None), (unsaved.out, unsaved.saved));
        let given = LayerBackwardInputs { d_out: &d_out, saved: &saved };
        let from_saved = runner.layer_backward(&layer.backward(), &inputs, &given);
        let given = LayerBackwardInputs { d_out: &d_out, saved: &[] };
        let again = runner.layer_backward(&plain.backward(), &inputs, &given);
        assert_eq!(from_saved.expect("gradients"), again.expect("gradients"));
    }
}

#[test]
fn wrong_buffers_are_refused_by_name() {
    let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    let attention = Attention::new(&device);
    let buffer = |bytes: u64| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let layer = SelfAttention::new(1, 4, 8, 2).expect("an even split").packed().with_saved();
    let forward = attention.plan_layer(&layer).expect("a plan");
    let plan = attention.plan_layer_backward(&layer.backward()).expect("a plan");
    let saved_bytes = plan.operand_bytes(Operand::Saved);
    assert_eq!(forward.operand_bytes(Operand::Saved), saved_bytes);
    // q, k and v, the heads, and an lse a row and head.
    assert_eq!(saved_bytes, 4 * (4 * 24 + 4 * 8 + 4 * 2));
    let [x, w_qkv, w_o, d_out, d_x, d_w_qkv, d_w_o] =
        [32, 192, 64, 32, 32, 192, 64].map(|n| buffer(4 * n));
    let (saved, small) = (buffer(saved_bytes), buffer(64));
    let inputs = || {
        let tensors = Tensors::default().x(x.slice(..)).w_qkv(w_qkv.slice(..)).w_o(w_o.slice(..));
        tensors.d_out(d_out.slice(..))
    };
    let all = || {
        let tensors = inputs().saved(saved.slice(..)).d_x(d_x.slice(..));
        tensors.d_w_qkv(d_w_qkv.slice(..)).d_w_o(d_w_o.slice(..))
    };
    assert!(attention.bind(&plan, &all()).is_ok());
    let refused =
        |tensors: Tensors<'_>| attention.bind(&plan, &tensors).expect_err("a wrong buffer");
    let missing = |tensor: &'static str| BindError::Missing { tensor: tensor.into() };
    let without_saved =
        inputs().d_x(d_x.slice(..)).d_w_qkv(d_w_qkv.slice(..)).d_w_o(d_w_o.slice(..));
    assert_eq!(refused(without_saved), missing("saved"));
    let without_d_x =
        inputs().saved(saved.slice(..)).d_w_qkv(d_w_qkv.slice(..)).d_w_o(d_w_o.slice(..));
    assert_eq!(refused(without_d_x), missing("d_x"));
    let tensor = "d_w_o".into();
    let too_small = BindError::TooSmall { tensor, required: 256, actual: 64 };
    assert_eq!(refused(all().d_w_o(small.slice(..))), too_small);
    let unused = |tensor: &'static str| BindError::Unused { tensor: tensor.into() };
    assert_eq!(refused(all().d_w_q(small.slice(..))), unused("d_w_q"));
    assert_eq!(refused(all().d_b_qkv(small.slice(..))), unused("d_b_qkv"));
    assert_eq!(refused(all().d_context(small.slice(..))), unused("d_context"));
    assert!(matches!(refused(all().d_x(x.slice(..))), BindError::Overlap { .. }));
}

#[test]
fn what_has_no_gradient_or_no_room_is_an_error() {
    let layer = usual(5);
    let given = LayerBackwardInputs::default();
    let data = Data::new(&layer, 1);
    let cpu = Runner::cpu();
    let error = |layer: &SelfAttention, given: &LayerBackwardInputs<'_>| {
        cpu.layer_backward(&layer.backward(), &data.inputs(false), given).expect_err("not so")
    };
    let what = "weights";
    let no_gradient = ProblemError::NoGradient { what, why: "attention has none" };
    assert_eq!(error(&layer.with_weights(), &given), PlanError::Problem(no_gradient).into());
    let tensor = "d_out".into();
    assert_eq!(error(&layer, &given), Error::Length { tensor, required: 480, actual: 0 });
    let given = LayerBackwardInputs { d_out: &d_out(&layer, 1), saved: &[0.0; 4] };
    let tensor = "saved".into();
    assert_eq!(error(&layer, &given), Error::Length { tensor, required: 0, actual: 4 });

    let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor {
        required_limits: wgpu::Limits {
            max_storage_buffer_binding_size: 1 << 16,
            ..wgpu::Limits::default()
        },
        ..Default::default()
    });
    let wide = SelfAttention::new(1, 2, 32, 2).expect("an even split").with_out_dim(1 << 15);
    let error = Attention::new(&device).plan_layer_backward(&wide.backward()).expect_err("no room");
    let PlanError::LimitExceeded { what, limit, required, .. } = error else { panic!("{error}") };
    assert_eq!(what, "one row of d_out");
    // Slices may start at any element: a binding starts up to an alignment before.
    let alignment = u64::from(device.limits().min_storage_buffer_offset_alignment);
    assert_eq!((limit, required), ("max_storage_buffer_binding_size", (4 << 15) + alignment));
}
