//! The definition's gradients against central differences of the definition itself, in f64, and what must hold of
//! them whatever the numbers.

#![cfg(feature = "cpu")]

use crate::support::case::{Case, Tensors, extent, positions, rows, start};
use crate::support::functions;
use crate::support::random::Random;
use wgpu_attention::{
    Backward, DType, Diagonal, Inputs, Layout, Mask, MaskFormat, Pairs, Problem, ScoreFunction,
    Shape, Slopes, Strides, reference,
};

/// A problem, its inputs, and the gradients of what it gives. All numbers that are moved lie on a grid of [`STEP`], so
/// that f32 holds them exactly after the move.
#[derive(Clone)]
struct Sample {
    name: String,
    backward: Backward,
    tensors: Tensors,
    d_out: Vec<f32>,
    d_lse: Vec<f32>,
}

/// What numbers are moved by. Steps of one and of two of it cancel all but the fourth power, 4e-15 times a fifth
/// derivative; what f64 loses is 1e-16 of the loss, divided by it.
const STEP: f32 = 1.0 / 4096.0;
/// Beside the largest gradient of its tensor, or 1.
const TOLERANCE: f64 = 1e-7;

impl Sample {
    fn new(name: &str, problem: &Problem, sharpness: f32) -> Self {
        let mut backward = Backward::new(problem).with_d_lse();
        backward.d_bias = problem.bias.is_some();
        backward.d_sinks = problem.sinks;
        backward.d_alibi_slopes = problem.alibi.is_some();
        let s = problem.tensor_shape();
        // Inputs that repeat rows have a gradient for each.
        for (strides, dim) in [(&mut backward.d_k, s.head_dim), (&mut backward.d_v, s.v_head_dim)] {
            if [strides.batch, strides.head, strides.row].contains(&0) {
                *strides = Strides::bhsd(s.kv_heads, s.kv_len, dim);
            }
        }
        let mut tensors = Case::new(name, problem.clone()).sharp(sharpness).tensors(0);
        let extra = &mut tensors.extra;
        let moved = [&mut extra.bias, &mut extra.sinks, &mut extra.alibi_slopes];
        for x in moved.into_iter().chain([&mut tensors.q, &mut tensors.k, &mut tensors.v]).flatten()
        {
            // A bias of -1e4 and its neighbour need more bits than f32 has.
            *x = if *x == -1e4 { -4.0 } else { (*x / STEP).round() * STEP };
        }
        let mut random = Random::new(7);
        let mut unit = |n: usize| (0..n).map(|_| random.unit()).collect();
        let d_out = unit(extent(backward.d_out, [s.batch, s.heads, s.q_len], s.v_head_dim));
        let d_lse = unit((s.batch * s.heads * s.q_len) as usize);
        Self { name: name.to_owned(), backward, tensors, d_out, d_lse }
    }

    fn problem(&self) -> &Problem {
        &self.backward.problem
    }

    fn inputs(&self) -> Inputs<'_> {
        self.tensors.inputs()
    }

    fn gradients(&self) -> reference::Gradients {
        assert_eq!(self.backward.validate(), Ok(()), "{}", self.name);
        reference::backward(&self.backward, &self.inputs(), &self.d_out, &self.d_lse)
    }

    /// What the gradients are of: `<out, d_out> + <lse, d_lse>`.
    fn loss(&self) -> f64 {
        let problem = self.problem();
        let s = problem.tensor_shape();
        let all = reference::forward(problem, &self.inputs());
        let mut loss = 0.0;
        for (row, at) in rows(&s).enumerate() {
            let out = &all.out[start(problem.out, at)..][..s.v_head_dim as usize];
            let d_out = &self.d_out[start(self.backward.d_out, at)..];
            loss += out.iter().zip(d_out).map(|(x, d)| x * f64::from(*d)).sum::<f64>();
            if all.lse[row] > f64::NEG_INFINITY {
                loss += all.lse[row] * f64::from(self.d_lse[row]);
            }
        }
        loss
    }

    fn data(&mut self, tensor: Tensor) -> &mut Vec<f32> {
        let Tensors { q, k, v, extra } = &mut self.tensors;
        match tensor {
            Tensor::Q => q,
            Tensor::K => k,
            Tensor::V => v,
            Tensor::Bias => &mut extra.bias,
            Tensor::Sinks => &mut extra.sinks,
            Tensor::Slopes => &mut extra.alibi_slopes,
        }
    }

    /// By central differences, of every element; 0 of those that are no numbers.
    fn differences(&mut self, tensor: Tensor) -> Vec<f64> {
        let count = self.data(tensor).len();
        (0..count).map(|i| self.difference(tensor, i)).collect()
    }

    fn difference(&mut self, tensor: Tensor, i: usize) -> f64 {
        let x = self.data(tensor)[i];
        if !x.is_finite() {
            return 0.0;
        }
        let mut slope = |steps: f32| {
            let [above, below] = [x + steps * STEP, x - steps * STEP].map(|moved| {
                self.data(tensor)[i] = moved;
                self.loss()
            });
            (above - below) / f64::from(2.0 * steps * STEP)
        };
        let (near, far) = (slope(1.0), slope(2.0));
        self.data(tensor)[i] = x;
        (4.0 * near - far) / 3.0
    }

    /// The gradient of every element of a tensor, summed over what repeats it.
    fn elements(&self, gradients: &reference::Gradients, tensor: Tensor) -> Vec<f64> {
        let (problem, s) = (self.problem(), self.problem().tensor_shape());
        let sum = |len: usize, data: &[f64], axes, dim: u32, to: Strides, from: Strides| {
            let mut sums = vec![0.0; len];
            for at in positions(axes) {
                for d in 0..dim as usize {
                    sums[start(to, at) + d] += data[start(from, at) + d];
                }
            }
            sums
        };
        let (queries, keys) = ([s.batch, s.heads, s.q_len], [s.batch, s.kv_heads, s.kv_len]);
        let Tensors { q, k, v, extra } = &self.tensors;
        let b = &self.backward;
        match tensor {
            Tensor::Q => sum(q.len(), &gradients.q, queries, s.head_dim, problem.q, b.d_q),
            Tensor::K => sum(k.len(), &gradients.k, keys, s.head_dim, problem.k, b.d_k),
            Tensor::V => sum(v.len(), &gradients.v, keys, s.v_head_dim, problem.v, b.d_v),
            Tensor::Sinks => gradients.sinks.clone(),
            Tensor::Slopes => gradients.alibi_slopes.clone(),
            Tensor::Bias => {
                let Some(bias) = problem.bias else { return Vec::new() };
                let mut sums = vec![0.0; extra.bias.len()];
                let dense = Pairs::new(bias.pairs.axes);
                let index = |pairs: Pairs, at: [u32; 4]| -> usize {
                    let at = at.iter().zip(pairs.strides).map(|(i, n)| u64::from(*i) * n);
                    usize::try_from(at.sum::<u64>()).expect("in memory")
                };
                let [batch, heads, queries, keys] = bias.pairs.axes;
                for (b, h, i) in positions([batch, heads, queries]) {
                    for j in 0..keys {
                        let at = [b, h, i, j];
                        sums[index(bias.pairs, at)] += gradients.bias[index(dense, at)];
                    }
                }
                sums
            }
        }
    }

    /// Whether these are the gradients of the loss. The error names the first element that is not.
    fn check(&self, gradients: &reference::Gradients) -> Result<(), String> {
        let mut moved = self.clone();
        for tensor in Tensor::ALL {
            let want = moved.differences(tensor);
            let got = self.elements(gradients, tensor);
            assert_eq!(got.len(), want.len(), "{tensor:?}: {}", self.name);
            let largest = want.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = (got - want).abs();
                if off.is_nan() || off > TOLERANCE * largest {
                    let name = &self.name;
                    return Err(format!("{name}: {tensor:?} at {i} is {got:e}, not {want:e}"));
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Tensor {
    Q,
    K,
    V,
    Bias,
    Sinks,
    Slopes,
}

impl Tensor {
    const ALL: [Self; 6] = [Self::Q, Self::K, Self::V, Self::Bias, Self::Sinks, Self::Slopes];
}

fn shape() -> Shape {
    Shape::cross_attention(2, 4, 5, 7, 3).with_kv_heads(2).with_v_head_dim(2)
}

fn plain() -> Problem {
    Problem::new(shape())
}

fn exact() -> Pairs {
    Pairs::new([2, 4, 5, 7])
}

/// Every feature by itself.
fn features() -> Vec<(&'static str, Problem)> {
    let square = Shape::self_attention(1, 2, 6, 2);
    let strides = |batch, head, row| Strides { batch, head, row };
    let packed = Shape::cross_attention(3, 4, 9, 11, 3).with_kv_heads(2).with_v_head_dim(2);
    let bias = |axes| plain().with_bias(DType::F32, Pairs::new(axes));
    let mut all = vec![
        ("plain", plain()),
        ("causal", Problem::new(square).mask(Mask::CAUSAL)),
        ("window", plain().mask(Mask::window(2))),
        ("two-sided", plain().mask(Mask::band(Some(1), Some(2)).along(Diagonal::TopLeft))),
        ("rows without keys", plain().mask(Mask::CAUSAL.along(Diagonal::Offset(-3)))),
        ("diagonals", plain().mask(Mask::window(3).along(Diagonal::PerSequence))),
        ("scale 0", plain().scale(0.0)),
        ("scale below 0", plain().scale(-0.75)),
        ("soft cap", plain().softcap(1.5)),
        ("slopes", plain().with_alibi(Slopes::PerHead)),
        ("slopes of sequences", plain().with_alibi(Slopes::PerSequence)),
        ("bias", bias([2, 4, 5, 7])),
        ("bias with gaps", {
            plain().with_bias(DType::F32, exact().with_strides([160, 5, 1, 22]))
        }),
        ("boolean mask", plain().with_boolean_mask(MaskFormat::Bytes, exact())),
        ("sinks", plain().with_sinks()),
        ("sinks alone", plain().with_sinks().mask(Mask::CAUSAL.along(Diagonal::Offset(-3)))),
        ("lengths", plain().with_lengths(true, true)),
        ("packed", Problem::packed(packed).mask(Mask::CAUSAL)),
        ("slopes of packed", Problem::packed(packed).with_alibi(Slopes::PerSequence)),
        ("fading", plain().with_score_function(functions::fading())),
        ("bent", plain().with_score_function(functions::bent())),
        ("function with a buffer", plain().with_score_function(functions::relative_position())),
        ("mask function", plain().with_mask_function(functions::dilated())),
        ("heads of one key head", Problem::new(shape().with_kv_heads(1))),
        ("a key head each", Problem::new(shape().with_kv_heads(4))),
        ("packed qkv", Problem::new(square).layout(Layout::PackedQkv)),
        ("gaps", {
            let (q, k) = (strides(120, 4, 20), strides(64, 30, 4));
            plain().q_strides(q).k_strides(k).out_strides(strides(67, 3, 13))
        }),
        ("shared keys", plain().k_strides(strides(0, 21, 3)).v_strides(strides(0, 14, 2))),
        ("one key repeated", plain().k_strides(strides(6, 3, 0))),
        ("one query", Problem::new(Shape::cross_attention(2, 2, 1, 7, 3))),
        ("one key", Problem::new(Shape::cross_attention(2, 2, 5, 1, 3))),
    ];
    for i in 0..15_u32 {
        let exact = [2, 4, 5, 7];
        let axes = std::array::from_fn(|axis| if i >> axis & 1 == 1 { exact[axis] } else { 1 });
        all.push(("bias that axes share", bias(axes)));
    }
    all
}

/// Features together, so that none forgets another.
fn mixtures() -> Vec<(&'static str, Problem)> {
    let packed = Shape::cross_attention(3, 4, 9, 11, 3).with_kv_heads(2).with_v_head_dim(2);
    vec![
        ("all of a model", {
            plain()
                .mask(Mask::window(4))
                .softcap(2.0)
                .with_alibi(Slopes::PerSequence)
                .with_bias(DType::F32, Pairs::new([1, 4, 5, 7]))
                .with_boolean_mask(MaskFormat::Bits, Pairs::new([2, 1, 5, 7]))
                .with_sinks()
                .with_lengths(true, true)
                .with_score_function(functions::bent())
        }),
        ("packed with all", {
            Problem::packed(packed)
                .mask(Mask::band(Some(3), Some(1)))
                .softcap(0.75)
                .with_alibi(Slopes::PerHead)
                .with_sinks()
                .with_score_function(functions::fading())
                .with_mask_function(functions::dilated())
        }),
        ("bias before a function", {
            let bias = Pairs::new([1, 1, 5, 1]);
            plain().scale(-0.5).with_bias(DType::F32, bias).with_score_function(functions::bent())
        }),
    ]
}

#[test]
fn gradients_of_every_feature_are_those_of_differences() {
    let sharpness = [1.0, 8.0].into_iter().cycle();
    for ((name, problem), q) in features().into_iter().chain(mixtures()).zip(sharpness) {
        let sample = Sample::new(name, &problem, q);
        assert_eq!(sample.check(&sample.gradients()), Ok(()), "{:?}", sample.problem());
    }
}

/// A cap as the caller's own function: with its derivative right it is the cap; without the factor it is caught.
#[test]
fn a_cap_without_its_derivative_is_caught() {
    let cap = |derivative: fn(f64) -> f64| {
        let function = ScoreFunction::new("cap", "", |s, _| 1.5 * (s / 1.5).tanh());
        let function = function.with_derivative("", move |s, _| derivative(s));
        Sample::new("cap", &plain().with_score_function(function), 4.0)
    };
    let right = cap(|s| 1.0 - (s / 1.5).tanh().powi(2));
    assert_eq!(right.check(&right.gradients()), Ok(()));
    let built_in = Sample::new("cap", &plain().softcap(1.5), 4.0).gradients();
    for (a, b) in right.gradients().q.iter().zip(&built_in.q) {
        approx::assert_relative_eq!(a, b, epsilon = 1e-12);
    }
    let wrong = cap(|_| 1.0);
    assert!(wrong.check(&wrong.gradients()).is_err());
}

#[test]
fn wrong_gradients_are_caught() {
    let problem = plain().with_sinks().with_alibi(Slopes::PerHead);
    let sample = Sample::new("wrong", &problem.with_bias(DType::F32, exact()), 2.0);
    let right = sample.gradients();
    assert_eq!(sample.check(&right), Ok(()));
    for i in 0..6 {
        for factor in [-1.0, 0.99, 0.0] {
            let mut wrong = right.clone();
            let reference::Gradients { q, k, v, bias, sinks, alibi_slopes, .. } = &mut wrong;
            [q, k, v, bias, sinks, alibi_slopes][i].iter_mut().for_each(|x| *x *= factor);
            assert!(sample.check(&wrong).is_err(), "{i} times {factor}");
        }
    }
    // Of a group of heads the first alone.
    let mut first = sample.clone();
    let s = sample.problem().shape;
    for at in rows(&s).filter(|at| at.1 % 2 == 1) {
        first.d_out[start(sample.backward.d_out, at)..][..2].fill(0.0);
        first.d_lse[((at.0 * s.heads + at.1) * s.q_len + at.2) as usize] = 0.0;
    }
    let (alone, mut wrong) = (first.gradients(), right.clone());
    wrong.k = alone.k;
    assert!(sample.check(&wrong).is_err());
    wrong = right;
    wrong.v = alone.v;
    assert!(sample.check(&wrong).is_err());
}

/// Where no sink takes a part, and but for `d_lse`: weights sum to 1 whatever the scores.
#[test]
fn gradients_of_the_scores_of_a_row_sum_to_0() {
    for (name, problem) in features().into_iter().filter(|(_, problem)| !problem.sinks) {
        let sample = Sample::new(name, &problem, 4.0);
        let dim = problem.shape.v_head_dim as usize;
        for (row, at) in rows(&problem.tensor_shape()).enumerate() {
            let d_out = &sample.d_out[start(sample.backward.d_out, at)..][..dim];
            let d_lse = f64::from(sample.d_lse[row]);
            let row = reference::backward_row(&sample.backward, &sample.inputs(), at, d_out, d_lse);
            let sees = reference::visible(&problem, &sample.inputs(), at).contains(&true);
            let want = if sees { d_lse } else { 0.0 };
            approx::assert_abs_diff_eq!(row.d_scores.iter().sum::<f64>(), want, epsilon = 1e-13);
        }
    }
}

#[test]
fn a_constant_added_to_all_scores_changes_no_gradient() {
    let problem = plain().with_bias(DType::F32, exact()).mask(Mask::CAUSAL);
    let sample = Sample::new("shifted", &problem, 4.0);
    let mut shifted = sample.clone();
    shifted.tensors.extra.bias.iter_mut().for_each(|x| *x += 32.0);
    let (a, b) = (sample.gradients(), shifted.gradients());
    for (a, b) in [(&a.q, &b.q), (&a.k, &b.k), (&a.v, &b.v), (&a.bias, &b.bias)] {
        approx::assert_abs_diff_eq!(a[..], b[..], epsilon = 1e-12);
    }
}

#[test]
fn gradients_are_linear_in_those_of_the_result() {
    let problem = plain().softcap(3.0).with_sinks().with_alibi(Slopes::PerHead);
    let sample = Sample::new("linear", &problem, 4.0);
    let (mut other, mut sum) = (sample.clone(), sample.clone());
    other.d_out.reverse();
    other.d_lse.reverse();
    for (sum, (a, b)) in [
        (&mut sum.d_out, (&sample.d_out, &other.d_out)),
        (&mut sum.d_lse, (&sample.d_lse, &other.d_lse)),
    ] {
        sum.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum = 2.0 * a + 4.0 * b);
    }
    let [a, b, sum] = [&sample, &other, &sum].map(Sample::gradients);
    let all = |g: reference::Gradients| [g.q, g.k, g.v, g.sinks, g.alibi_slopes].concat();
    for ((a, b), sum) in all(a).into_iter().zip(all(b)).zip(all(sum)) {
        // Factors are powers of two and sums of d_out are rounded to f32.
        approx::assert_abs_diff_eq!(2.0 * a + 4.0 * b, sum, epsilon = 1e-5);
    }
}

#[test]
fn what_sees_nothing_and_what_nothing_sees_has_gradients_of_exactly_0() {
    let problems = [
        plain().mask(Mask::CAUSAL.along(Diagonal::Offset(-2))),
        plain().mask(Mask::window(1).along(Diagonal::TopLeft)),
        plain().with_lengths(true, true),
        plain().with_boolean_mask(MaskFormat::Bytes, exact()),
    ];
    let mut zeros = 0;
    for problem in problems {
        // Keys that nothing sees, and queries past a sequence's length, are NaN.
        let sample = Sample::new("zeros", &problem, 4.0);
        let (gradients, s, b) = (sample.gradients(), problem.shape, &sample.backward);
        let mut seen = vec![false; (s.batch * s.kv_heads * s.kv_len) as usize];
        for at in rows(&s) {
            let shown = reference::visible(&problem, &sample.inputs(), at);
            let first = (at.0 * s.kv_heads + at.1 / s.group_size()) * s.kv_len;
            if !shown.contains(&true) {
                assert_eq!(gradients.q[start(b.d_q, at)..][..3], [0.0; 3]);
                zeros += 1;
            }
            for (seen, shown) in seen[first as usize..].iter_mut().zip(shown) {
                *seen |= shown;
            }
        }
        for (at, seen) in positions([s.batch, s.kv_heads, s.kv_len]).zip(seen) {
            if !seen {
                assert_eq!(gradients.k[start(b.d_k, at)..][..3], [0.0; 3]);
                assert_eq!(gradients.v[start(b.d_v, at)..][..2], [0.0; 2]);
                zeros += 1;
            }
        }
        let all = [gradients.q, gradients.k, gradients.v].concat();
        assert!(all.iter().all(|x| x.is_finite()), "{problem:?}");
    }
    assert!(zeros > 20, "{zeros}");
}

/// A row that sees a sink alone gives the gradient of its lse to the sink.
#[test]
fn a_sink_that_is_all_a_row_sees_gets_the_gradient_of_its_lse() {
    let problem = Problem::new(Shape::cross_attention(1, 1, 1, 0, 2)).with_sinks();
    let backward = Backward::new(&problem).with_d_lse().with_d_sinks();
    let inputs = Inputs::new(&[1.0, 2.0], &[], &[]).sinks(&[0.5]);
    let gradients = reference::backward(&backward, &inputs, &[3.0, 4.0], &[0.25]);
    assert_eq!((gradients.q, gradients.sinks), (vec![0.0; 2], vec![0.25]));
}

/// Of every kind: what is dropped takes no part in `v`, and all of the softmax in the rest.
#[test]
fn gradients_with_dropout_are_those_of_differences() {
    let mixed = plain().mask(Mask::CAUSAL).softcap(2.0).with_sinks();
    for problem in [
        plain().with_dropout(0.4),
        plain().with_given_dropout(0.25),
        plain().with_dropout(0.0),
        mixed.clone().with_dropout(0.3),
        mixed.with_given_dropout(0.5),
    ] {
        let sample = Sample::new("dropout", &problem, 4.0);
        assert_eq!(sample.check(&sample.gradients()), Ok(()), "{problem:?}");
    }
}
