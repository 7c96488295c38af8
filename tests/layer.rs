//! Whole layers against the formula in f64: projections, attention, projection.

#![cfg(feature = "cpu")]

#[path = "../examples/support/sentence.rs"]
mod sentence;

use crate::device::{Gpu, classes};
use crate::support;
use crate::support::judge;
use crate::support::layer::{Data, formula};
use crate::support::target::runner;
use sentence::Sentence;
use wgpu_attention::{
    Algorithm, DeviceClass, LayerInputs, Mask, Outputs, Runner, SelfAttention, Tensors,
};

/// The right results, and how far off a result may be: as `judge` has it.
struct Answer {
    out: Vec<f64>,
    weights: Vec<f64>,
    bounds: [f64; 2],
}

impl Answer {
    fn of(layer: &SelfAttention, data: &Data) -> Self {
        let (out, weights) = formula::<f64>(layer, data);
        let mut off = [0.0_f64; 2];
        // The largest error of few elements is a matter of luck.
        let draws = (20_000 / out.len().max(1)).clamp(1, 8) as u64;
        for seed in 1..=draws {
            let data = Data::new(layer, seed);
            let (want, plain) = (formula::<f64>(layer, &data), formula::<f32>(layer, &data));
            let pairs = [(want.0, plain.0), (want.1, plain.1)];
            for (most, (want, plain)) in off.iter_mut().zip(pairs) {
                *most = want.iter().zip(plain).fold(*most, |most, (a, b)| most.max((a - b).abs()));
            }
        }
        Self { out, weights, bounds: off.map(|off| 2.0 * off + 1e-6) }
    }

    fn check(&self, got: &Outputs, what: &str) {
        let weights = got.weights.as_ref().map(|got| (got, &self.weights, self.bounds[1]));
        for (got, want, bound) in [(&got.out, &self.out, self.bounds[0])].into_iter().chain(weights)
        {
            assert_eq!(got.len(), want.len(), "{what}");
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let off = judge::error(*got, *want);
                assert!(off <= bound, "{what}: {got} at {i} is not {want}: {off:e} over {bound:e}");
            }
        }
    }
}

/// On every device class by every algorithm that gives the outputs, and without a GPU.
fn every_way(layer: &SelfAttention, inputs: &LayerInputs<'_>, check: impl Fn(&Outputs, &str)) {
    for class in classes() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            if layer.weights && algorithm == Algorithm::Flash {
                continue;
            }
            let what = format!("{class:?} {algorithm:?} {layer:?}");
            let got = runner(class).layer(layer, algorithm, inputs);
            check(&got.unwrap_or_else(|error| panic!("{what}: {error}")), &what);
        }
    }
    let got = Runner::cpu().layer(layer, Algorithm::Auto, inputs).expect("a CPU");
    check(&got, &format!("CPU {layer:?}"));
}

fn is_right(layer: SelfAttention) {
    let data = Data::new(&layer, 1);
    let answer = Answer::of(&layer, &data);
    every_way(&layer, &data.inputs(layer.packed), |got, what| answer.check(got, what));
}

/// `len` rows of 2 sequences, 3 heads 16 wide.
fn usual(len: u32) -> SelfAttention {
    SelfAttention::new(2, len, 48, 3).expect("an even split")
}

#[test]
fn separate_and_packed_weights_with_and_without_biases() {
    for layer in [usual(37), usual(37).packed()] {
        is_right(layer);
        is_right(layer.with_biases().mask(Mask::CAUSAL));
        is_right(layer.with_biases().with_weights().mask(Mask::CAUSAL));
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
        is_right(odd.with_out_dim(29).mask(Mask::window(5)).scale(-0.3).packed());
    }
}

#[test]
fn cross_attention_to_a_context_of_another_width_and_length() {
    let cross = usual(37).with_heads(4, 2, 16, 16).with_context(53, 64).with_biases();
    is_right(cross);
    is_right(cross.mask(Mask::CAUSAL).with_weights().with_out_dim(40));
    is_right(usual(70).with_context(1, 96).mask(Mask::CAUSAL));
}

#[test]
fn layers_that_drop_weights() {
    let causal = usual(37).mask(Mask::CAUSAL).with_biases();
    is_right(causal.with_dropout(0.3));
    is_right(causal.packed().with_weights().with_dropout(0.5));
    if !support::small() {
        is_right(usual(67).with_heads(6, 2, 16, 16).with_context(53, 64).with_dropout(0.1));
    }
}

#[test]
fn without_context_the_output_is_the_last_bias() {
    for layer in [usual(37).with_context(0, 64), usual(37).with_context(0, 64).with_weights()] {
        for layer in [layer, layer.with_biases()] {
            let data = Data::new(&layer, 1);
            every_way(&layer, &data.inputs(false), |got, what| {
                assert_eq!(got.out.len(), 2 * 37 * 48, "{what}");
                let bias = if layer.biases { data.b[3].clone() } else { vec![0.0; 48] };
                assert!(got.out.chunks_exact(48).all(|row| row == bias), "{what}");
                assert!(got.weights.as_ref().is_none_or(Vec::is_empty), "{what}");
            });
        }
    }
}

#[test]
fn no_sequence_and_no_row_give_no_output() {
    for (batch, len) in [(0, 37), (2, 0)] {
        let layer = SelfAttention::new(batch, len, 96, 3).expect("an even split").with_biases();
        for layer in [layer, layer.packed(), layer.with_weights(), layer.with_context(5, 64)] {
            let data = Data::new(&layer, 1);
            every_way(&layer, &data.inputs(layer.packed), |got, what| {
                assert!(got.out.is_empty(), "{what}");
                assert!(got.weights.as_ref().is_none_or(Vec::is_empty), "{what}");
            });
        }
    }
}

#[test]
fn more_than_a_binding_holds() {
    // Few, so that little work is cut into many blocks.
    let bytes = if support::small() { 1 << 17 } else { 1 << 18 };
    let gpu = Gpu::new(|limits| limits.max_storage_buffer_binding_size = bytes);
    let rows = u32::try_from(bytes / 384).expect("small");
    // All with biases and a mask: the same kernels.
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
        let data = Data::new(&layer, 1);
        let answer = Answer::of(&layer, &data);
        for class in classes() {
            for (algorithm, whole) in [(Algorithm::Staged, 7), (Algorithm::Flash, 5)] {
                let what = format!("{class:?} {algorithm:?} {layer:?}");
                let out = run(&gpu, class, (&layer, algorithm, whole), &data.inputs(layer.packed));
                assert_eq!(out.len(), answer.out.len(), "{what}");
                for (i, (got, want)) in out.iter().zip(&answer.out).enumerate() {
                    let off = judge::error(*got, *want);
                    assert!(off <= answer.bounds[0], "{what}: {got} at {i} is not {want}");
                }
            }
        }
    }
}

/// The output of a layer in buffers of the test's own; it takes more than `whole` steps.
fn run(
    gpu: &Gpu,
    class: DeviceClass,
    (layer, algorithm, whole): (&SelfAttention, Algorithm, usize),
    inputs: &LayerInputs<'_>,
) -> Vec<f32> {
    let LayerInputs { x, context, w_q, w_k, w_v, w_qkv, w_o, b_q, b_k, b_v, b_qkv, b_o, .. } =
        *inputs;
    let rows = (layer.shape.batch * layer.shape.q_len) as usize;
    let out = gpu.output(rows * layer.out_dim as usize);
    let data = [x, context, w_q, w_k, w_v, w_qkv, w_o, b_q, b_k, b_v, b_qkv, b_o];
    let buffers = data.map(|data| (!data.is_empty()).then(|| gpu.input(data)));
    let give = [
        Tensors::x,
        Tensors::context,
        Tensors::w_q,
        Tensors::w_k,
        Tensors::w_v,
        Tensors::w_qkv,
        Tensors::w_o,
        Tensors::b_q,
        Tensors::b_k,
        Tensors::b_v,
        Tensors::b_qkv,
        Tensors::b_o,
    ];
    let mut tensors = Tensors::default().out(out.slice(..));
    for (buffer, give) in buffers.iter().zip(give) {
        if let Some(buffer) = buffer {
            tensors = give(tensors, buffer.slice(..));
        }
    }
    let plan = gpu.attention(class).plan_layer_with(layer, algorithm).expect("a plan");
    assert!(plan.kernels().count() > whole, "{layer:?}: {plan}");
    gpu.run(&[&gpu.attention(class).bind(&plan, &tensors).expect("buffers")]);
    gpu.read(&out)
}

#[test]
fn a_trained_layer_gives_the_stored_answers() {
    let sentence = Sentence::load().expect("data/sentence.safetensors");
    let inputs = sentence.inputs();
    let w_qkv = [inputs.w_q, inputs.w_k, inputs.w_v].concat();
    let b_qkv = [inputs.b_q, inputs.b_k, inputs.b_v].concat();
    let LayerInputs { x, w_o, b_o, .. } = inputs;
    let (w_qkv, b_qkv) = (&w_qkv[..], &b_qkv[..]);
    let packed = LayerInputs { x, w_qkv, w_o, b_qkv, b_o, ..LayerInputs::default() };
    let near = |got: &[f32], want: &[f32], what: &str| {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = judge::error(*got, f64::from(*want));
            assert!(off <= 1e-5, "{what}: {got} at {i} is not {want}");
        }
    };
    for (layer, inputs) in [(sentence.layer, inputs), (sentence.layer.packed(), packed)] {
        for layer in [layer, layer.with_weights()] {
            every_way(&layer, &inputs, |got, what| {
                near(&got.out, &sentence.expected_output, what);
                assert_eq!(got.weights.is_some(), layer.weights, "{what}");
                if let Some(weights) = &got.weights {
                    near(weights, &sentence.expected_weights, what);
                    let it_to_cat = sentence.head(weights, 11)[8 * sentence.tokens.len() + 2];
                    assert!((it_to_cat - 0.71).abs() < 0.005, "{what}: {it_to_cat}");
                }
            });
        }
    }
    assert_eq!(sentence.heads, 12);
}
