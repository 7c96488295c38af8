//! Dropout of layers: the mask of the attention inside, by a seed of the layer's own.

#![cfg(feature = "cpu")]

use crate::device::{CLASSES, bits};
use crate::support;
use crate::support::judge;
use crate::support::layer::{Data, named};
use crate::support::target::runner;
use wgpu_attention::{
    Algorithm, Attention, BindError, Error, Inputs, LayerBackwardInputs, LayerGradients,
    LayerInputs, Layout, Mask, Operand, Outputs, Problem, ProblemError, Runner, SelfAttention,
    Tensors, reference, wgpu,
};

/// 2 sequences of 37 rows, 4 heads on 2, 24 wide, causal.
fn usual() -> SelfAttention {
    let layer = SelfAttention::new(2, 37, 96, 4).expect("an even split");
    layer.with_heads(4, 2, 24, 24).mask(Mask::CAUSAL)
}

/// On every device class, where drivers are slow on one, and without a GPU.
fn runners() -> impl Iterator<Item = (String, &'static Runner)> {
    let cpu: &'static Runner = Box::leak(Box::new(Runner::cpu()));
    let gpus = (CLASSES.into_iter().skip(usize::from(support::small())))
        .map(|class| (format!("{class:?}"), runner(class)));
    gpus.chain([("CPU".to_owned(), cpu)])
}

/// Output and gradients of the sum of all outputs.
fn train(
    runner: &Runner,
    layer: &SelfAttention,
    inputs: &LayerInputs<'_>,
) -> Result<(Outputs, LayerGradients), Error> {
    let outputs = runner.layer(layer, Algorithm::Auto, inputs)?;
    let d_out = vec![1.0; outputs.out.len()];
    let saved = outputs.saved.clone().unwrap_or_default();
    let given = LayerBackwardInputs { d_out: &d_out, saved: &saved };
    let gradients = runner.layer_backward(&layer.backward(), inputs, &given)?;
    Ok((outputs, gradients))
}

/// Every bit of both.
fn all_bits((outputs, gradients): &(Outputs, LayerGradients)) -> Vec<u32> {
    let names = ["x", "w_q", "w_k", "w_v", "w_o"];
    let of = names.iter().flat_map(|name| bits(named(gradients, name)));
    bits(&outputs.out).into_iter().chain(of).collect()
}

/// `x w^T`, in f64.
fn project(x: &[f64], w: &[f32], width: usize) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        w.chunks(width).map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

/// Projections, the definition's attention with the same weights kept, a projection.
#[test]
fn a_layer_drops_what_its_attention_drops() {
    let layer = usual().with_dropout(0.4);
    let (s, data) = (layer.shape, Data::new(&layer, 1));
    let seed = data.seed.expect("of dropout");
    let x: Vec<f64> = data.x.iter().map(|x| f64::from(*x)).collect();
    #[allow(clippy::cast_possible_truncation, reason = "as the definition takes it")]
    let [q, k, v] = [0, 1, 2].map(|i| -> Vec<f32> {
        project(&x, &data.w[i], 96).into_iter().map(|x| x as f32).collect()
    });
    let problem = Problem::new(s).mask(layer.mask).layout(Layout::Bshd).with_dropout(0.4);
    let heads = reference::forward(&problem, &Inputs::new(&q, &k, &v).seed(seed)).out;
    let want = project(&heads, &data.w[3], 96);
    let inputs = data.inputs(false);
    for (name, runner) in runners() {
        for algorithm in [Algorithm::Staged, Algorithm::Flash] {
            if name == "CPU" && algorithm == Algorithm::Flash {
                continue;
            }
            let got = runner.layer(&layer, algorithm, &inputs).expect("a layer").out;
            assert_eq!(got.len(), want.len());
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = judge::error(*got, *want);
                assert!(off <= 2e-5, "{name} {algorithm:?}: {got} at {i} is not {want}");
            }
        }
    }
}

#[test]
fn nothing_is_dropped_with_probability_0() {
    for layer in [usual(), usual().with_saved()] {
        let data = Data::new(&layer, 1);
        let (inputs, none) = (data.inputs(false), layer.with_dropout(0.0));
        for (name, runner) in runners() {
            let run = |layer: &SelfAttention, seed| {
                train(runner, layer, &LayerInputs { seed, ..inputs }).expect("gradients")
            };
            let plain = run(&layer, None);
            for seed in [None, Some(77)] {
                let dropped = run(&none, seed);
                assert_eq!(all_bits(&plain), all_bits(&dropped), "{name}: {seed:?}");
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_bits_and_another_does_not() {
    for layer in [usual().with_dropout(0.3), usual().with_dropout(0.3).with_saved()] {
        let data = Data::new(&layer, 1);
        let inputs = data.inputs(false);
        let seed = inputs.seed.expect("of dropout");
        for (name, runner) in runners() {
            let run = |seed| {
                let inputs = LayerInputs { seed: Some(seed), ..inputs };
                train(runner, &layer, &inputs).expect("gradients")
            };
            let first = run(seed);
            assert_eq!(all_bits(&first), all_bits(&run(seed)), "{name}");
            for bit in [0, 31, 32, 63] {
                let (outputs, gradients) = run(seed ^ 1 << bit);
                assert_ne!(first.0.out, outputs.out, "{name}: bit {bit}");
                for tensor in ["x", "w_q", "w_k", "w_v", "w_o"] {
                    let [one, other] = [&first.1, &gradients].map(|all| named(all, tensor));
                    assert_ne!(one, other, "{name}: d_{tensor}, bit {bit}");
                }
            }
        }
    }
}

/// With what one seed saved, gradients by another are of neither.
#[test]
fn gradients_take_the_seed_and_not_only_what_was_saved() {
    let layer = usual().with_dropout(0.3).with_saved();
    let data = Data::new(&layer, 1);
    let inputs = data.inputs(false);
    let other = LayerInputs { seed: inputs.seed.map(|seed| seed ^ 1), ..inputs };
    for (name, runner) in runners() {
        let (outputs, right) = train(runner, &layer, &inputs).expect("gradients");
        let d_out = vec![1.0; outputs.out.len()];
        let saved = outputs.saved.expect("asked for");
        let given = LayerBackwardInputs { d_out: &d_out, saved: &saved };
        let wrong = runner.layer_backward(&layer.backward(), &other, &given).expect("gradients");
        assert_ne!(right.w_v, wrong.w_v, "{name}");
    }
}

#[test]
fn a_seed_that_is_missing_or_not_asked_for_is_an_error() {
    let layer = usual().with_dropout(0.3);
    let data = Data::new(&layer, 1);
    let (inputs, tensor) = (data.inputs(false), || Operand::Seed.name().into());
    let d_out = vec![1.0; data.x.len()];
    let given = LayerBackwardInputs { d_out: &d_out, saved: &[] };
    for (name, runner) in runners() {
        let refused = |layer: &SelfAttention, seed| {
            let inputs = LayerInputs { seed, ..inputs };
            let forward = runner.layer(layer, Algorithm::Auto, &inputs).expect_err(&name);
            let backward = runner.layer_backward(&layer.backward(), &inputs, &given);
            assert_eq!(forward, backward.expect_err(&name), "{name}");
            forward
        };
        let missing = Error::Bind(BindError::Missing { tensor: tensor() });
        assert_eq!(refused(&layer, None), missing, "{name}");
        let unused = Error::Bind(BindError::Unused { tensor: tensor() });
        assert_eq!(refused(&usual(), Some(0)), unused, "{name}");
    }
    for p in [-0.1, 1.0, f32::NAN] {
        let error = layer.with_dropout(p).validate().expect_err("no probability");
        let is_p = |error: &wgpu_attention::PlanError| {
            matches!(error, wgpu_attention::PlanError::Problem(ProblemError::Dropout { .. }))
        };
        assert!(is_p(&error), "{p}: {error}");
    }

    let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    let attention = Attention::new(&device);
    let layer = SelfAttention::new(1, 4, 8, 2).expect("an even split").packed();
    let dropped = layer.with_dropout(0.3);
    let forward = |layer| attention.plan_layer(layer).expect("a plan");
    let backward =
        |layer: &SelfAttention| attention.plan_layer_backward(&layer.backward()).expect("a plan");
    let buffer = |elements: u64| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * elements,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let [x, w_qkv, w_o, out, d_x, d_w_qkv, d_w_o] = [32, 192, 64, 32, 32, 192, 64].map(buffer);
    let (seed, short) = (buffer(2), buffer(1));
    let inputs = Tensors::default().x(x.slice(..)).w_qkv(w_qkv.slice(..)).w_o(w_o.slice(..));
    let to = inputs.clone().d_out(out.slice(..)).d_x(d_x.slice(..));
    let to = to.d_w_qkv(d_w_qkv.slice(..)).d_w_o(d_w_o.slice(..));
    let from = inputs.out(out.slice(..));
    for (plan, plain, tensors) in
        [(forward(&dropped), forward(&layer), from), (backward(&dropped), backward(&layer), to)]
    {
        assert_eq!(plan.operand_bytes(Operand::Seed), 8);
        let refused = |tensors: &Tensors<'_>| attention.bind(&plan, tensors).expect_err("no seed");
        assert_eq!(refused(&tensors), BindError::Missing { tensor: tensor() });
        let given = tensors.clone().seed(seed.slice(..));
        assert!(attention.bind(&plan, &given).is_ok());
        let (required, actual) = (8, 4);
        let too_small = BindError::TooSmall { tensor: tensor(), required, actual };
        assert_eq!(refused(&tensors.clone().seed(short.slice(..))), too_small);
        let unused = attention.bind(&plain, &given).expect_err("a seed too many");
        assert_eq!(unused, BindError::Unused { tensor: tensor() });
    }
}
